"""What real code imports, passes, reads, defines and derives from works under Lightning's names.

Counted over 29 public repositories; the names stand below as they were found. ``programs/surface.py`` uses each of
them, in a process of its own with the aliases on, once as a program of 2.6 and once as one of 1.5.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "programs" / "surface.py"

#: "pl" is pytorch_lightning and lightning.pytorch, "fabric" is lightning.fabric.
PATHS = """
pl.LightningModule pl.Trainer pl.LightningDataModule pl.callbacks.ModelCheckpoint pl.seed_everything
pl.callbacks.Callback pl.Callback pl.loggers.TensorBoardLogger pl.callbacks.LearningRateMonitor pl.loggers
pl.__version__ pl.loggers.WandbLogger pl.callbacks pl.callbacks.EarlyStopping pl.strategies.DDPStrategy
pl.trainer.Trainer pl.utilities.rank_zero_only pl.callbacks.early_stopping.EarlyStopping pl.loggers.CSVLogger
pl.loggers.TestTubeLogger pl.loggers.Logger pl.trainer.Trainer.add_argparse_args pl.trainer.Trainer.from_argparse_args
pl.utilities.distributed.rank_zero_only pl.utilities.rank_zero_info pl.Trainer.add_argparse_args
pl.Trainer.from_argparse_args pl.accelerators.Accelerator pl.callbacks.ProgressBar pl.callbacks.early_stopping
pl.callbacks.progress.tqdm_progress.Tqdm pl.loggers.LightningLoggerBase pl.loggers.logger.DummyLogger
pl.loggers.wandb.WandbLogger pl.strategies.ddp.DDPStrategy pl.trainer.states.RunningStage
pl.trainer.states.RunningStage.SANITY_CHECKING pl.tuner.Tuner pl.utilities.types.STEP_OUTPUT
pl.utilities.warnings.PossibleUserWarning pl.LightningModule.test_step pl.Trainer.__init__
pl.accelerators.cuda.CUDAAccelerator pl.accelerators.cuda.CUDAAccelerator.is_available
pl.callbacks.BasePredictionWriter pl.callbacks.DeviceStatsMonitor pl.callbacks.LearningRateFinder
pl.callbacks.ModelSummary pl.callbacks.RichProgressBar pl.callbacks.TQDMProgressBar
pl.callbacks.gradient_accumulation_scheduler.GradientAccumulationScheduler
pl.callbacks.model_checkpoint.ModelCheckpoint pl.callbacks.progress.TQDMProgressBar
pl.callbacks.progress.tqdm_progress.TQDMProgressBar pl.cli.LightningCLI pl.core.LightningModule
pl.core.datamodule.LightningDataModule pl.core.lightning.LightningModule pl.core.mixins.HyperparametersMixin
pl.core.saving.get_filesystem pl.loggers.base pl.loggers.base.DummyExperiment pl.loggers.base.DummyLogger
pl.loggers.base.LoggerCollection pl.loggers.logger.Logger pl.loggers.logger.rank_zero_experiment
pl.loggers.tensorboard pl.loggers.tensorboard.TensorBoardLogger pl.metrics pl.metrics.Metric pl.plugins.DDPPlugin
pl.strategies pl.strategies.DataParallelStrategy pl.strategies.SingleDeviceStrategy pl.strategies.Strategy pl.trainer
pl.trainer.Trainer.__init__ pl.trainer.connectors.accelerator_connector._AcceleratorConnector
pl.trainer.connectors.signal_connector.SignalConnector
pl.trainer.connectors.signal_connector.SignalConnector._valid_signals pl.trainer.states.RunningStage.PREDICTING
pl.trainer.states.RunningStage.TESTING pl.trainer.states.RunningStage.TRAINING
pl.trainer.states.RunningStage.VALIDATING pl.tuner pl.tuner.lr_finder._LRFinder pl.tuner.tuning.Tuner pl.utilities
pl.utilities.apply_func.apply_to_collection pl.utilities.cloud_io.get_filesystem pl.utilities.distributed.ReduceOp
pl.utilities.distributed.ReduceOp.SUM pl.utilities.distributed.rank_zero_info
pl.utilities.distributed.sync_ddp_if_available pl.utilities.exceptions
pl.utilities.exceptions.MisconfigurationException pl.utilities.model_summary.summarize
pl.utilities.move_data_to_device pl.utilities.parsing.AttributeDict pl.utilities.parsing.get_init_args
pl.utilities.rank_zero.rank_prefixed_message pl.utilities.rank_zero.rank_zero_info
pl.utilities.rank_zero.rank_zero_only pl.utilities.rank_zero_only.rank pl.utilities.rank_zero_warn
pl.utilities.seed.seed_everything pl.utilities.signature_utils.is_param_in_hook_signature pl.utilities.warnings
fabric.accelerators.TPUAccelerator fabric.accelerators.TPUAccelerator.is_available
fabric.plugins.io.torch_io.TorchCheckpointIO fabric.utilities.types._MAP_LOCATION_TYPE fabric.utilities.types._PATH
"""

#: Sections of what the program prints, and names of real code that they must have; more is there.
NAMES = {
    "package": "",
    "helpers": "",
    "subclassed": "",
    "callbacks, loggers, helpers": "",
    "self.log": "prog_bar on_epoch sync_dist logger add_dataloader_idx log_dict",
    "Trainer arguments": """
callbacks logger max_epochs accelerator strategy devices enable_checkpointing precision default_root_dir gpus
log_every_n_steps enable_progress_bar num_nodes deterministic enable_model_summary fast_dev_run gradient_clip_val
limit_train_batches resume_from_checkpoint limit_val_batches max_steps num_sanity_val_steps use_distributed_sampler
accumulate_grad_batches limit_test_batches min_epochs plugins reload_dataloaders_every_n_epochs sync_batchnorm
val_check_interval check_val_every_n_epoch checkpoint_callback early_stop_callback inference_mode max_time
overfit_batches profiler progress_bar_refresh_rate
""",
    "self": """
trainer logger device forward global_step current_epoch optimizers automatic_optimization hparams example_input_array
lr_schedulers all_gather dtype global_rank on_gpu print
""",
    "trainer": """
callback_metrics current_epoch global_step datamodule global_rank logger checkpoint_callback max_epochs
save_checkpoint state strategy sanity_checking optimizers accumulate_grad_batches interrupted model should_stop
world_size callbacks estimated_stepping_batches gpus is_global_zero log_every_n_steps num_training_batches
train_dataloader accelerator devices early_stopping_callback fast_dev_run fit_loop limit_train_batches num_devices
precision profiler root_gpu training_type_plugin val_dataloaders check_val_every_n_epoch default_root_dir
lightning_module log_dir logged_metrics loggers lr_scheduler_configs predict_dataloaders predict_loop
val_check_interval weights_summary
""",
    "hooks of a module": """
training_step configure_optimizers forward validation_step on_validation_epoch_end test_step
training_step(optimizer_idx) on_train_epoch_end on_test_epoch_end on_train_batch_end predict_step on_train_start
validation_epoch_end on_train_epoch_start optimizer_step test_epoch_end on_after_backward on_epoch_end on_fit_start
on_load_checkpoint on_save_checkpoint training_epoch_end log lr_scheduler_step on_before_optimizer_step on_fit_end
on_test_epoch_start on_train_end on_validation_batch_end on_validation_epoch_start on_validation_start setup
training_step_end backward configure_callbacks configure_gradient_clipping on_predict_end on_predict_start
on_test_batch_end on_test_end on_test_start on_train_batch_start on_validation_end on_validation_model_eval
on_validation_model_train transfer_batch_to_device validation_step_end
""",
    "hooks of a datamodule": """
train_dataloader setup val_dataloader test_dataloader prepare_data predict_dataloader teardown load_state_dict
on_after_batch_transfer on_before_batch_transfer state_dict
""",
    "hooks of a callback": """
on_train_batch_end on_train_epoch_end on_validation_batch_end on_train_epoch_start on_validation_epoch_end
on_pretrain_routine_start on_train_start on_validation_end on_fit_start on_train_batch_start on_fit_end
on_keyboard_interrupt on_train_end on_validation_epoch_start load_state_dict on_exception setup state_dict
on_batch_end on_before_accelerator_backend_setup on_epoch_end on_predict_batch_end on_predict_batch_start
on_predict_end on_predict_start on_pretrain_routine_end on_save_checkpoint on_test_batch_end on_test_epoch_end
on_test_epoch_start on_validation_batch_start
""",
}


@pytest.fixture(scope="module", params=["2.6", "1.5"])
def facts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What did not work, by section and name."""
    command = [sys.executable, "-m", "leyden", "run", "--era", request.param, str(PROGRAM), json.dumps(PATHS.split())]
    folder = tmp_path_factory.mktemp("surface")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_path_can_be_imported(facts: Any) -> None:
    """Import paths, and attributes of the package."""
    assert {path: text for path, text in facts["imports"].items() if text} == {}
    assert facts["imports"].keys() == set(PATHS.split())


@pytest.mark.parametrize("section", NAMES)
def test_every_name_works(section: str, facts: Any) -> None:
    """R1-R7, R45, R140, R141, R142, R163: values are as they must be, hooks of 1.x and 2.x are called."""
    known = facts[section] | (facts["trainer in a fit"] if section == "trainer" else {})
    assert {name: text for name, text in known.items() if text} == {}
    assert known and set(NAMES[section].split()) <= known.keys()
