"""R163: what the Trainer had in 1.x is mapped to what it has today, or warned of; and command lines by argparse."""

from __future__ import annotations

import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from leyden import LightningDataModule, LightningModule, Trainer, callbacks
from leyden.data.combined import CombinedLoader
from leyden.errors import InvalidTypeError, MisconfigurationException, NonFiniteError
from leyden.former import DEFAULTS
from leyden.loggers import CSVLogger


def build(**arguments: Any) -> Trainer:
    return Trainer(**{"accelerator": "cpu", "enable_progress_bar": None, **arguments})


def kinds(trainer: Trainer) -> list[str]:
    return [type(callback).__name__ for callback in trainer.callbacks]


class Regression(LightningModule):
    def __init__(self, outcome: float = 1.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.outcome = outcome

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean() * self.outcome

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("seen", float(len(batch)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TwoPlayers(Regression):
    """Outputs are a list, an item for each optimizer."""

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
        return self.layer(batch).mean() * (1.0 if optimizer_idx == 0 else self.outcome)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([parameter], lr=0.1) for parameter in self.parameters()]


BATCHES = [torch.ones(3, 2)] * 2
STOPPING = callbacks.EarlyStopping("loss")

#: name, value -> what to write instead, and what holds of the Trainer.
MAPPED: list[tuple[str, Any, str, Callable[[Trainer], bool]]] = [
    ("gpus", 0, "accelerator='cpu'", lambda t: t.accelerator == "cpu" and t.gpus is None),
    ("gpus", [], "accelerator='cpu'", lambda t: t.accelerator == "cpu"),
    ("checkpoint_callback", True, "enable_checkpointing=True", lambda t: kinds(t)[-1] == "ModelCheckpoint"),
    ("checkpoint_callback", False, "enable_checkpointing=False", lambda t: t.checkpoint_callback is None),
    (
        "checkpoint_callback",
        callbacks.ModelCheckpoint(save_top_k=0),
        r"callbacks=\[...\]",
        lambda t: t.checkpoint_callback.save_top_k == 0,
    ),
    ("early_stop_callback", STOPPING, r"callbacks=\[...\]", lambda t: t.early_stopping_callback is STOPPING),
    ("early_stop_callback", True, "EarlyStopping", lambda t: t.early_stopping_callback.monitor == "val_loss"),
    ("weights_summary", None, "enable_model_summary=False", lambda t: "ModelSummary" not in kinds(t)),
    ("weights_summary", "top", "max_depth=1", lambda t: "ModelSummary" in kinds(t)),
    ("weights_summary", "full", "max_depth=-1", lambda t: "ModelSummary" in kinds(t)),
    ("progress_bar_refresh_rate", 0, "enable_progress_bar=False", lambda t: t.progress_bar_callback is None),
    ("progress_bar_refresh_rate", 20, "refresh_rate=20", lambda t: t.progress_bar_callback.refresh_rate == 20),
    ("process_position", 2, "process_position=2", lambda t: t.progress_bar_callback.process_position == 2),
    (
        "reload_dataloaders_every_epoch",
        True,
        "reload_dataloaders_every_n_epochs=1",
        lambda t: t.reload_dataloaders_every_n_epochs == 1,
    ),
    ("replace_sampler_ddp", False, "use_distributed_sampler=False", lambda t: True),
    ("distributed_backend", "ddp", "strategy='ddp'", lambda t: t.world_size == 1),
    (
        "terminate_on_nan",
        True,
        r"callbacks=\[leyden.former.TerminateOnNaN\(\)\]",
        lambda t: "TerminateOnNaN" in kinds(t),
    ),
    ("stochastic_weight_avg", True, r"Averaging\(\)", lambda t: "StochasticWeightAveraging" in kinds(t)),
    ("weights_save_path", "there", r"ModelCheckpoint\(dirpath", lambda t: t.weights_save_path == "there"),
    ("multiple_trainloader_mode", "min_size", "CombinedLoader", lambda t: True),
    ("auto_lr_find", "lr", "Tuner", lambda t: t._former["auto_lr_find"] == "lr"),
    ("auto_scale_batch_size", "power", "Tuner", lambda t: t._former["auto_scale_batch_size"] == "power"),
]
#: Values that are said to do nothing.
WITHOUT_EFFECT = {
    "auto_select_gpus": True,
    "amp_backend": "native",
    "amp_level": "O2",
    "move_metrics_to_cpu": True,
    "flush_logs_every_n_steps": 10,
    "log_gpu_memory": "all",
    "prepare_data_per_node": True,
}
#: Values that ask for nothing, and are silent: defaults of 1.x, as configuration files have them.
SILENT = {
    **dict.fromkeys(["gpus", "tpu_cores", "ipus", "num_processes", "checkpoint_callback", "progress_bar_refresh_rate"]),
    **dict.fromkeys(["resume_from_checkpoint", "log_gpu_memory", "distributed_backend", "stochastic_weight_avg"]),
    **{"multiple_trainloader_mode": "max_size_cycle", "weights_save_path": None, "num_processes": 1},
    **{"process_position": 0, "terminate_on_nan": False, "track_grad_norm": -1, "auto_lr_find": False},
    **{"reload_dataloaders_every_epoch": False, "auto_scale_batch_size": False, "auto_select_gpus": False},
}


@pytest.mark.parametrize(("name", "value", "instead", "holds"), MAPPED)
def test_an_argument_is_mapped(name: str, value: Any, instead: str, holds: Callable[[Trainer], bool]) -> None:
    """R163: and the warning says what to write, at the line that makes the Trainer."""
    with pytest.warns(UserWarning, match=rf"{name}=.*{instead}.*\[trainer-argument-1x\]") as told:
        trainer = Trainer(**{name: value} if name == "gpus" else {"accelerator": "cpu", name: value})
    assert holds(trainer)
    assert {Path(warning.filename).name for warning in told} == {Path(__file__).name}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_has_no_effect_is_told(name: str) -> None:
    """R163."""
    with pytest.warns(UserWarning, match=rf"{name}=.*: no effect; .*\[trainer-argument-1x\]"):
        build(**{name: WITHOUT_EFFECT[name]})


def test_one_warning_tells_all() -> None:
    """R163: one line, whatever number of them there is, each with what to write."""
    with pytest.warns(UserWarning, match="trainer-argument-1x") as told:
        build(gpus=0, weights_summary=None, progress_bar_refresh_rate=0, amp_level="O2", process_position=0)
    assert [str(warning.message) for warning in told] == [
        "Trainer() was given arguments of Lightning 1.x. gpus=0: write accelerator='cpu'. weights_summary=None: write "
        "enable_model_summary=False. progress_bar_refresh_rate=0: write enable_progress_bar=False. amp_level='O2': no "
        "effect; torch's own mixed precision is used [trainer-argument-1x]"
    ]


@pytest.mark.parametrize(("mode", "batches"), [("min_size", 2), ("max_size_cycle", 6), (None, 6)])
def test_several_training_loaders(mode: str | None, batches: int) -> None:
    """R163: the mode of a collection of loaders; a CombinedLoader has its own, and 1.x has no others."""

    class Summing(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["a"] + batch["b"], batch_idx)

    loaders = {name: DataLoader(BATCHES * count, batch_size=None) for name, count in (("a", 3), ("b", 1))}
    for given, count in ((loaders, batches), (CombinedLoader(loaders, "min_size"), 2)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*\[trainer-argument-1x\]")
            trainer = build(max_epochs=1, multiple_trainloader_mode=mode, enable_progress_bar=False)
        trainer.fit(Summing(), given)
        assert (trainer.global_step, trainer.num_training_batches) == (count, count)
    with pytest.raises(MisconfigurationException, match="mode='longest'.: expected 'max_size_cycle' or 'min_size'"):
        build(multiple_trainloader_mode="longest")


@pytest.mark.parametrize("logger", [False, True])
def test_weights_save_path(tmp_path: Path, logger: bool) -> None:
    """R163: checkpoints go there, below the names of a logger's run; 1.5 has the same places."""
    own = [CSVLogger(tmp_path / "logs", name="name", version=3)] if logger else False
    with pytest.warns(UserWarning, match="weights_save_path"):
        trainer = build(max_epochs=1, weights_save_path=tmp_path / "there", enable_checkpointing=True, logger=own)
    trainer.fit(Regression(), BATCHES)
    run = "name/version_3/checkpoints" if logger else "checkpoints"
    assert [path.parent for path in tmp_path.rglob("*.ckpt")] == [tmp_path / "there" / run]


def test_values_that_ask_for_nothing_are_silent() -> None:
    """R163: the defaults of 1.x may be written out."""
    assert kinds(build(**SILENT)) == kinds(build())


def test_every_argument_is_tested_here() -> None:
    tested = {name for name, *_ in MAPPED} | set(WITHOUT_EFFECT) | set(SILENT)
    assert set(DEFAULTS) - tested == {"hpus"}  # as tpu_cores


def test_gpus_are_devices() -> None:
    """R163: there is none here, and that is what the error says."""
    for value in (1, "1", -1, [0], "0,"):
        with (
            pytest.warns(UserWarning, match="accelerator='gpu', devices="),
            pytest.raises(MisconfigurationException, match=r"\[(accelerator|devices)\]"),
        ):
            Trainer(gpus=value)


@pytest.mark.parametrize("name", ["tpu_cores", "ipus", "hpus"])
def test_other_devices_are_refused(name: str) -> None:
    """R163."""
    with pytest.raises(MisconfigurationException, match=r"leyden runs on the CPU, CUDA and MPS \[trainer-argument\]"):
        build(**{name: 8})


def test_a_strategy_in_the_place_of_an_accelerator() -> None:
    """R163: Trainer(accelerator="ddp") is of 1.x, where gpus says on what."""
    assert Trainer(accelerator="ddp").world_size == 1
    with pytest.warns(UserWarning, match="trainer-argument-1x"):
        assert Trainer(accelerator="ddp", gpus=0).accelerator == "cpu"


def test_a_callback_that_is_given_is_preferred() -> None:
    """R163: as in 1.x, over the one that an argument would add."""
    bar, summary = callbacks.TQDMProgressBar(refresh_rate=3), callbacks.ModelSummary(max_depth=2)
    for value in (0, 20):
        with pytest.warns(UserWarning, match="trainer-argument-1x"):
            trainer = build(progress_bar_refresh_rate=value, weights_summary="top", callbacks=[bar, summary])
        assert trainer.callbacks == [bar, summary]
    with pytest.warns(UserWarning, match="trainer-argument-1x"):
        assert build(progress_bar_refresh_rate=20, enable_progress_bar=False).progress_bar_callback is None
    with pytest.warns(UserWarning, match="trainer-argument-1x"):
        assert len(build(progress_bar_refresh_rate=20, process_position=1).callbacks) == 1


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("max_nb_epochs", "max_epochs"),
        ("row_log_interval", "log_every_n_steps"),
        ("log_save_interval", "CSVLogger"),
        ("val_percent_check", "limit_val_batches"),
        ("train_percent_check", "limit_train_batches"),
        ("truncated_bptt_steps", "self.truncated_bptt_steps of the module"),
    ],
)
def test_the_oldest_names_are_refused_with_today_s(name: str, today: str) -> None:
    with pytest.raises(InvalidTypeError, match=rf"no argument '{name}'; {name}: did you mean {today}"):
        build(**{name: 1})


def test_a_name_that_no_trainer_had_is_refused() -> None:
    with pytest.raises(InvalidTypeError, match=r"no argument 'max_epoch'.*did you mean max_epochs\?.*trainer-argument"):
        build(max_epoch=3)


@pytest.mark.parametrize("kind", [Regression, TwoPlayers])
@pytest.mark.parametrize("outcome", [1.0, float("nan")])
def test_terminate_on_nan(kind: type[Regression], outcome: float) -> None:
    """R163: a loss or parameters that are not finite end the fit, whatever form the outputs have."""
    with pytest.warns(UserWarning, match="terminate_on_nan"):
        trainer = build(max_epochs=1, terminate_on_nan=True, enable_progress_bar=False)
    if outcome == 1.0:
        trainer.fit(kind(outcome), BATCHES)
        return
    with pytest.raises(NonFiniteError, match=r"the loss, .*layer.* not finite after batch 0 of epoch 0"):
        trainer.fit(kind(outcome), BATCHES)


def test_resume_from_checkpoint(tmp_path: Path) -> None:
    """R163: is fit(ckpt_path=...)."""
    first = build(max_epochs=1, enable_progress_bar=False)
    first.fit(Regression(), BATCHES)
    first.save_checkpoint(tmp_path / "first.ckpt")
    with pytest.warns(UserWarning, match="resume_from_checkpoint.*ckpt_path"):
        second = build(max_epochs=2, resume_from_checkpoint=tmp_path / "first.ckpt", enable_progress_bar=False)
    second.fit(Regression(), BATCHES)
    assert (second.global_step, second.num_updates, first.global_step) == (4, 4, 2)


def test_former_names_of_dataloaders() -> None:
    """R163: train_dataloader, val_dataloaders and test_dataloaders."""
    trainer = build(max_epochs=1, enable_progress_bar=False)
    trainer.fit(Regression(), train_dataloader=BATCHES, val_dataloaders=BATCHES)
    assert trainer.validate(Regression(), val_dataloaders=BATCHES, verbose=False) == [{"seen": 3.0}]
    assert trainer.global_step == 2


def test_attributes_of_1x() -> None:
    """What code of 1.x reads from a Trainer on one CPU."""
    trainer = build(default_root_dir="there")
    assert (trainer.gpus, trainer.num_gpus, trainer.root_gpu, trainer.num_processes) == (None, 0, None, 1)
    assert trainer.training_type_plugin is trainer.strategy
    assert trainer.weights_save_path == "there"


# -- argparse ------------------------------------------------------------------------------------------------------


def parse(line: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--max_epochs", type=int, default=7)  # the program's own come first
    parser.add_argument("--width", type=int, default=8)
    return Trainer.add_argparse_args(parser).parse_args(line.split())


def test_a_command_line_makes_a_trainer() -> None:
    """Types are told from the texts; flags need no value; what was not given keeps its default."""
    args = parse("--accelerator cpu --limit_train_batches 0.5 --val_check_interval 3 --fast_dev_run --max_steps 1e2")
    assert (args.limit_train_batches, args.val_check_interval, args.fast_dev_run) == (0.5, 3, True)
    trainer = Trainer.from_argparse_args(parse("--accelerator cpu --limit_val_batches 4 --deterministic false"))
    assert (trainer.max_epochs, trainer.limit_val_batches, trainer.limit_train_batches) == (7, 4, 1.0)
    with pytest.warns(UserWarning, match="progress_bar_refresh_rate"):
        trainer = Trainer.from_argparse_args(parse("--accelerator cpu --progress_bar_refresh_rate 0"), max_epochs=2)
    assert (trainer.max_epochs, trainer.progress_bar_callback) == (2, None)


FLAGS = (
    *("logger", "checkpoint_callback", "enable_checkpointing", "auto_select_gpus", "enable_progress_bar"),
    *("fast_dev_run", "sync_batchnorm", "enable_model_summary", "benchmark", "deterministic", "auto_lr_find"),
    *("reload_dataloaders_every_epoch", "replace_sampler_ddp", "detect_anomaly", "auto_scale_batch_size"),
    *("prepare_data_per_node", "move_metrics_to_cpu", "stochastic_weight_avg", "terminate_on_nan"),
)


@pytest.mark.parametrize("name", FLAGS)
def test_flags_of_1_5_need_no_value(name: str) -> None:
    """Those of 1.5.10's parser: every argument that may be a bool. A value may follow, and others need one."""
    assert vars(parse(f"--{name} --max_steps 3"))[name] is True
    assert vars(parse(f"--{name} False"))[name] is False
    with pytest.raises(SystemExit):
        parse("--gpus")


def test_defaults_go_round() -> None:
    """What the parser adds and nobody gave changes nothing, and warns of nothing."""
    assert kinds(Trainer.from_argparse_args(parse("--accelerator cpu"))) == kinds(Trainer(accelerator="cpu"))


def test_every_argument_has_an_option() -> None:
    """Today's, and those of 1.x."""
    assert set(DEFAULTS) <= set(vars(parse("")))
    assert {"gradient_clip_val", "precision", "callbacks", "accumulate_grad_batches"} <= set(vars(parse("")))


def test_a_parser_may_be_given_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--accelerator", "cpu", "--max_epochs", "3"])
    parser = Trainer.add_argparse_args(ArgumentParser(), use_argument_group=False)
    assert Trainer.from_argparse_args(parser).max_epochs == 3
    monkeypatch.setattr("sys.argv", ["train.py", "--max_epochs", "4", "--unknown", "1"])
    assert Trainer.parse_argparser(parser).max_epochs == 4


class Numbers(LightningDataModule):
    def __init__(self, batch_size: int, folder: str = "data", shuffle: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.given = (batch_size, folder, shuffle)


def test_a_command_line_makes_a_datamodule() -> None:
    """As it did in 1.x; what stands in the namespace for others is left out, in spite of ``**kwargs``."""
    parser = Numbers.add_argparse_args(ArgumentParser())
    args = Trainer.add_argparse_args(parser).parse_args(["--batch_size", "4", "--shuffle", "--max_epochs", "2"])
    assert Numbers.from_argparse_args(args).given == (4, "data", True)
    assert Numbers.from_argparse_args(args, folder="other").given == (4, "other", True)
