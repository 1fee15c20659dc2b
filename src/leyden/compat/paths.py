"""The modules that Lightning has had, from 1.5 to 2.6. A line has a package and what is in it."""

from __future__ import annotations

from typing import Final

_PYTORCH: Final = """
.: accelerators callbacks cli core demos lite loggers logging loops metrics overrides plugins profiler profilers
    strategies trainer tuner utilities
accelerators: accelerator cpu cuda gpu hpu ipu mps tpu xla
callbacks: base batch_size_finder callback checkpoint device_stats_monitor early_stopping fault_tolerance finetuning
    gpu_stats_monitor gradient_accumulation_scheduler lambda_function lr_finder lr_monitor model_checkpoint
    model_summary on_exception_checkpoint prediction_writer progress pruning quantization rich_model_summary spike
    stochastic_weight_avg throughput_monitor timer weight_averaging xla_stats_monitor
callbacks.progress: base progress progress_bar rich_progress tqdm_progress
core: datamodule decorators hooks lightning memory mixins module optimizer saving
core.mixins: device_dtype_mixin hparams_mixin
demos: boring_classes lstm mnist_datamodule transformer
lite: lite wrappers
loggers: base comet csv_logs litlogger logger mlflow neptune tensorboard test_tube utilities wandb
loops: base batch dataloader epoch evaluation_loop fetchers fit_loop loop optimization prediction_loop progress
    training_epoch_loop utilities
loops.batch: training_batch_loop
loops.dataloader: dataloader_loop evaluation_loop prediction_loop
loops.epoch: evaluation_epoch_loop prediction_epoch_loop training_epoch_loop
loops.optimization: automatic closure manual manual_loop optimizer_loop
metrics: functional
overrides: base data_parallel distributed fairscale torch_distributed
plugins: environments io layer_sync plugins_registry precision training_type
plugins.environments: bagua_environment cluster_environment kubeflow_environment lightning_environment
    lsf_environment slurm_environment torchelastic_environment
plugins.io: async_plugin checkpoint_plugin hpu_plugin torch_plugin wrapper xla_plugin
plugins.precision: amp apex_amp bitsandbytes colossalai deepspeed deepspeed_precision double fsdp
    fsdp_native_native_amp fully_sharded_native_amp half hpu ipu ipu_precision mixed native_amp precision
    precision_plugin sharded_native_amp tpu tpu_bf16 transformer_engine xla
plugins.training_type: ddp ddp2 ddp_spawn deepspeed dp fully_sharded horovod ipu parallel sharded sharded_spawn
    single_device single_tpu tpu_spawn training_type_plugin utils
profiler: advanced base profilers pytorch simple
profilers: advanced base profiler pytorch simple xla
strategies: bagua colossalai ddp ddp_spawn deepspeed dp fsdp fully_sharded fully_sharded_native hivemind horovod
    hpu_parallel ipu launchers model_parallel parallel sharded sharded_spawn single_device single_hpu single_tpu
    single_xla strategy tpu_spawn utils xla
strategies.launchers: launcher multiprocessing subprocess_script xla
trainer: call callback_hook configuration_validator connectors data_loading model_hooks optimizers progress setup
    states supporters trainer
trainer.connectors: accelerator_connector callback_connector checkpoint_connector data_connector env_vars_connector
    logger_connector signal_connector
trainer.connectors.logger_connector: fx_validator logger_connector result
tuner: auto_gpu_select batch_size_scaling lr_finder tuning
utilities: apply_func argparse auto_restart cli cloud_io combined_loader compile consolidate_checkpoint data
    deepspeed device_dtype_mixin device_parser distributed enums exceptions fetching finite_checks grads imports
    logger memory meta metrics migration model_helpers model_registry model_summary optimizer parameter_tying
    parsing rank_zero seed signature_utils types upgrade_checkpoint warnings xla_device
utilities.migration: migration utils
utilities.model_summary: model_summary model_summary_deepspeed
"""

_FABRIC: Final = """
.: accelerators cli connector fabric loggers plugins strategies utilities wrappers
accelerators: accelerator cpu cuda mps registry xla
loggers: csv_logs logger tensorboard
plugins: collectives environments io precision
plugins.collectives: collective single_device torch_collective
plugins.environments: cluster_environment kubeflow lightning lsf mpi slurm torchelastic xla
plugins.io: checkpoint_io torch_io xla
plugins.precision: amp bitsandbytes deepspeed double fsdp half precision transformer_engine utils xla
strategies: ddp deepspeed dp fsdp launchers model_parallel parallel registry single_device single_xla strategy xla
    xla_fsdp
strategies.launchers: launcher multiprocessing subprocess_script xla
utilities: apply_func cloud_io consolidate_checkpoint data device_dtype_mixin device_parser distributed enums
    exceptions imports init load logger optimizer rank_zero registry seed spike testing throughput types warnings
"""


def _places(text: str) -> frozenset[str]:
    places, package = [], ""
    for word in text.split():
        if word.endswith(":"):
            package = word[:-1].strip(".")
        else:
            places.append(f"{package}.{word}".lstrip("."))
    return frozenset(places)


#: For each tree the places of its modules, but the first.
TREES: Final = {
    "pytorch": _places(_PYTORCH),
    "fabric": _places(_FABRIC),
    "lightning": frozenset({"pytorch", "fabric"}),
}


def children(tree: str, place: str) -> list[str]:
    """The modules in a package.

    >>> children("pytorch", "core.mixins")
    ['device_dtype_mixin', 'hparams_mixin']
    """
    start = f"{place}." if place else ""
    below = (module[len(start) :] for module in TREES[tree] if module.startswith(start))
    return sorted(name for name in below if "." not in name)
