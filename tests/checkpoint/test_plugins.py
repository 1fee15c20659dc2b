"""Plug-ins of the Trainer: who writes, reads and removes checkpoints, and what else may be given."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.plugins import TorchCheckpointIO as TheirTorchCheckpointIO
from torch.utils.data import DataLoader

import leyden
import modes
from leyden import MisconfigurationException, Trainer
from leyden.callbacks import ModelCheckpoint
from leyden.checkpoint import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO, read_checkpoint
from leyden.checkpoint.plugins import WrappingCheckpointIO
from leyden.compat import hardware
from leyden.errors import CheckpointError, InvalidTypeError
from leyden.precision import MixedPrecision
from leyden.signals import resolve_signals
from leyden.strategies import SingleDeviceStrategy
from resumption import differences


class InMemory(CheckpointIO):
    """Keeps what it is given, and notes each call."""

    def __init__(self) -> None:
        self.files: dict[str, Any] = {}
        self.calls: list[tuple[str, str]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.calls.append(("save", Path(path).name))
        self.files[str(path)] = torch.utils._pytree.tree_map(_copy, checkpoint)
        self.options = storage_options

    def load_checkpoint(self, path: Any, map_location: Any = None) -> Any:  # as before 2.6
        self.calls.append(("load", Path(path).name))
        return torch.utils._pytree.tree_map(_copy, self.files[str(path)])

    def remove_checkpoint(self, path: Any) -> None:
        self.calls.append(("remove", Path(path).name))
        del self.files[str(path)]

    def teardown(self) -> None:
        self.calls.append(("teardown", ""))


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def trainer(folder: Path, framework: Any = leyden, **options: Any) -> Any:
    silent = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    silent["enable_checkpointing"] = True
    return framework.Trainer(**{"max_epochs": 3, "accelerator": "cpu", **silent, "default_root_dir": folder, **options})


def build(name: str = "one", framework: Any = leyden) -> tuple[Any, list[Any]]:
    return modes.build(name, framework), list(modes.DATA)


# -- a CheckpointIO ------------------------------------------------------------------------------------------------


class Theirs(TheirTorchCheckpointIO):
    """Lightning's, with each call noted."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        self.calls.append(("save", Path(path).name))
        super().save_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> Any:
        self.calls.append(("load", Path(path).name))
        return super().load_checkpoint(path, map_location, False)

    def remove_checkpoint(self, path: Any) -> None:
        self.calls.append(("remove", Path(path).name))
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        self.calls.append(("teardown", ""))


def calls_of(framework: Any, plugin: Any, folder: Path) -> list[tuple[str, str]]:
    """What a run, another one that goes on from it, and a validation ask of a plug-in."""
    for epochs in (2, 4):
        module, data = build("one", framework)
        saver = framework.callbacks.ModelCheckpoint(folder, monitor="val_loss", save_last=True, save_top_k=2)
        run = trainer(folder, framework, plugins=[plugin], callbacks=[saver], max_epochs=epochs)
        loaders = DataLoader(data, batch_size=None), DataLoader(data[:2], batch_size=None)
        run.fit(module, *loaders, ckpt_path=None if epochs == 2 else str(folder / "last.ckpt"))
    run.validate(module, loaders[1], ckpt_path=saver.best_model_path, verbose=False)
    return plugin.calls  # type: ignore[no-any-return]


def test_a_users_plug_in_is_asked_for_every_file_as_in_lightning(tmp_path: Path) -> None:
    """Saves, loads, removals and the ends of runs come in Lightning's order, with the same names."""
    plugin = InMemory()
    ours = calls_of(leyden, plugin, tmp_path / "ours")
    theirs = calls_of(pytorch_lightning, Theirs(), tmp_path / "theirs")
    assert {what for what, _ in ours} == {"save", "load", "remove", "teardown"}
    assert ours == theirs
    assert list((tmp_path / "ours").glob("*")) == []  # nobody has written but the plug-in
    assert plugin.options is None


@pytest.mark.parametrize("name", ["one", "alternating", "manual"])
def test_a_run_goes_on_from_what_a_plug_in_returns(name: str, tmp_path: Path) -> None:
    """The dictionary is the checkpoint, whole."""
    plugin, states = InMemory(), []
    for stops in ([4], [2, 4]):
        for epochs in stops:
            module, data = build(name)
            run = trainer(tmp_path, plugins=plugin, max_epochs=epochs, enable_checkpointing=False)
            run.fit(module, data, data[:2], ckpt_path="middle" if epochs > stops[0] else None)
            run.save_checkpoint("middle", storage_options={"tier": 1} if epochs == 2 else None)
        states.append(plugin.files["middle"])
    assert plugin.calls.count(("load", "middle")) == 1
    for state in states:
        del state["leyden"]["clocks"]["seconds_before"]
    assert differences(*(state for state in states)) == []
    assert {"state_dict", "optimizer_states", "loops", "callbacks", "epoch"} <= set(states[0])


def test_a_subclass_of_leydens_own_writes_leydens_files(tmp_path: Path) -> None:
    """What `super()` writes is checked when it is read; what it reads goes through the subclass."""

    class Noting(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            super().save_checkpoint({**checkpoint, "note": 3}, path, storage_options)

        def load_checkpoint(self, path: Any, *args: Any, **given: Any) -> Any:
            content = super().load_checkpoint(path, *args, **given)
            seen.append((content.pop("note"), given))
            return content

    seen: list[Any] = []
    module, data = build()
    run = trainer(tmp_path, plugins=[Noting()])
    run.fit(module, data)
    path = run.checkpoint_callback.best_model_path
    assert read_checkpoint(path)["note"] == 3
    run.validate(module, data, ckpt_path="best", verbose=False)
    assert seen == [(3, {"weights_only": None})]
    Path(path).write_bytes(Path(path).read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="checkpoint-unreadable"):
        run.validate(module, data, ckpt_path=path, verbose=False)


def test_what_a_plug_in_reads_must_be_a_checkpoint(tmp_path: Path) -> None:
    plugin = InMemory()
    plugin.files["x"] = {"weights": 1}
    module, data = build()
    with pytest.raises(CheckpointError, match="'x' is no checkpoint.*checkpoint-content"):
        trainer(tmp_path, plugins=plugin).fit(module, data, ckpt_path="x")


def test_last_finds_the_newest_file_whatever_its_format(tmp_path: Path) -> None:
    """Files that only the plug-in can read are not taken for damaged ones."""

    class AsText(InMemory):
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            super().save_checkpoint(checkpoint, path)
            Path(path).write_text("elsewhere")

        def remove_checkpoint(self, path: Any) -> None:
            super().remove_checkpoint(path)
            Path(path).unlink()

    plugin = AsText()
    for epochs in (2, 3):
        module, data = build()
        saver = ModelCheckpoint(tmp_path / "deep" / "er", save_last=True)
        run = trainer(tmp_path, plugins=plugin, callbacks=[saver], max_epochs=epochs)
        run.fit(module, data, ckpt_path="last" if epochs == 3 else None)
    assert plugin.calls.count(("load", "last.ckpt")) == 1
    assert run.current_epoch == 3
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == ["epoch=2-step=18.ckpt", "last.ckpt"]


def test_the_strategy_holds_it(tmp_path: Path) -> None:
    """It is read and set there, and given to a strategy's class."""
    plugin, module = InMemory(), build()[0]
    run = trainer(tmp_path)
    assert type(run.strategy.checkpoint_io) is TorchCheckpointIO
    run.strategy.checkpoint_io = plugin
    run.fit(module, modes.DATA)
    assert plugin.calls[0][0] == "save"
    for strategy in (SingleDeviceStrategy(checkpoint_io=plugin), hardware.DDPStrategy(checkpoint_io=plugin)):
        assert trainer(tmp_path, strategy=strategy).strategy.checkpoint_io is plugin
    run.strategy.save_checkpoint(run.dump_checkpoint(), "by hand", storage_options=1)
    run.strategy.remove_checkpoint("by hand")
    assert plugin.calls[-2:] == [("save", "by hand"), ("remove", "by hand")]
    assert plugin.options == 1


# -- in the background --------------------------------------------------------------------------------------------


def test_leydens_own_in_the_background(tmp_path: Path) -> None:
    """`AsyncCheckpointIO()` is leyden's own asynchronous writing: whole, durable files of the state at the save."""
    states = []
    for plugins in ([], [AsyncCheckpointIO()]):
        module, data = build()
        saver = ModelCheckpoint(tmp_path / str(len(plugins)), save_top_k=-1, save_last=True)
        run = trainer(tmp_path, plugins=plugins, callbacks=[saver])
        run.fit(module, data)
        assert saver._saves.asynchronous is bool(plugins)
        contents = [read_checkpoint(path) for path in sorted((tmp_path / str(len(plugins))).iterdir())]
        states.append(
            [{key: content[key] for key in ("state_dict", "optimizer_states", "epoch")} for content in contents]
        )
        run.save_checkpoint(tmp_path / "now.ckpt")  # outside of a run it is there at once
        assert len(read_checkpoint(tmp_path / "now.ckpt")["state_dict"]) > 4
    assert len(states[0]) == 4
    assert differences(*states) == []


def test_a_users_plug_in_in_the_background(tmp_path: Path) -> None:
    """Copies are written, one file at a time; who comes next waits, and is told what went wrong."""
    plugin = InMemory()
    both = AsyncCheckpointIO(plugin)
    module, data = build()
    run = trainer(tmp_path, plugins=[both])
    run.fit(module, data)
    assert [what for what, _ in plugin.calls] == ["save", "save", "remove", "save", "remove", "teardown"]
    weight = torch.ones(2)
    both.save_checkpoint({"state_dict": {"weight": weight}}, "x")
    weight.zero_()
    assert both.load_checkpoint("x")["state_dict"]["weight"].tolist() == [1.0, 1.0]
    both.save_checkpoint({"state_dict": object()}, "y", storage_options=3)
    both.wait()
    assert plugin.options == 3
    failing = AsyncCheckpointIO(WrappingCheckpointIO())
    failing.save_checkpoint({"state_dict": {"f": lambda: 1}}, tmp_path / "z.ckpt")
    with pytest.raises(CheckpointError, match="checkpoint-object"):
        failing.teardown()


# -- other plug-ins -----------------------------------------------------------------------------------------------


class Environment:
    """A user's, with the least that makes one."""

    def global_rank(self) -> int:
        raise AssertionError("one device asks nobody")

    world_size = global_rank


def test_what_has_no_effect_on_one_device(tmp_path: Path) -> None:
    """Environments and layer syncs are accepted and asked for nothing."""
    module, data = build()
    run = trainer(tmp_path, plugins=[Environment(), hardware.TorchSyncBatchNorm()], enable_checkpointing=False)
    run.fit(module, data)
    assert (run.world_size, run.global_rank) == (1, 0)
    assert not any(isinstance(part, torch.nn.SyncBatchNorm) for part in module.modules())


@pytest.mark.parametrize("plugins", ["ddp_sharded", hardware.DDPPlugin(find_unused_parameters=False)])
def test_strategies_of_1_5_as_plug_ins(plugins: Any, tmp_path: Path) -> None:
    assert type(trainer(tmp_path, plugins=plugins).strategy) is SingleDeviceStrategy


def test_what_a_strategy_brings(tmp_path: Path) -> None:
    """The precision that a strategy was given is the run's."""
    precision = MixedPrecision("bf16-mixed", "cpu")
    strategy = hardware.DDPStrategy(precision_plugin=precision, cluster_environment=Environment())
    assert trainer(tmp_path, strategy=strategy).precision_plugin is precision


def test_requeueing_by_slurm() -> None:
    """Its environment says whether a signal requeues the job and which one, unless `handle_signals` does."""
    usual = {signal.SIGTERM: "exit", signal.SIGINT: "exit", signal.SIGHUP: "exit"}
    slurm = hardware.SLURMEnvironment
    assert resolve_signals(True, slurm()) == {**usual, signal.SIGUSR1: "requeue"} == resolve_signals(True)
    assert resolve_signals(True, slurm(auto_requeue=False)) == {**usual, signal.SIGUSR1: "save"}
    moved = resolve_signals(True, slurm(requeue_signal=signal.SIGHUP))
    assert moved == {**usual, signal.SIGUSR1: "save", signal.SIGHUP: "requeue"}
    assert resolve_signals(["SIGUSR1"], slurm(auto_requeue=False)) == {signal.SIGUSR1: "requeue"}
    assert resolve_signals(False, slurm()) == {}
    run = Trainer(accelerator="cpu", plugins=[slurm(auto_requeue=False)])
    assert run._signals._actions[signal.SIGUSR1] == "save"


# -- misuse -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", [3, object(), "fast", InMemory, leyden.Callback()])
def test_what_is_no_plug_in(plugin: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidTypeError, match=r"a Precision, a CheckpointIO, .*\[trainer-plugins\]"):
        trainer(tmp_path, plugins=[plugin])


def test_two_of_a_kind(tmp_path: Path) -> None:
    given = {"plugins": [InMemory()], "strategy": hardware.DDPStrategy(checkpoint_io=InMemory())}
    with pytest.raises(MisconfigurationException, match=r"two of a kind \(checkpoint_io\).*\[trainer-plugins\]"):
        trainer(tmp_path, **given)
    with pytest.raises(MisconfigurationException, match=r"two of a kind \(strategy\)"):
        trainer(tmp_path, plugins="ddp", strategy="ddp_spawn")


def test_what_only_leydens_own_can(tmp_path: Path) -> None:
    """Asynchronous saves of leyden's are no user's; options of storage are."""
    module, data = build()
    saver = ModelCheckpoint(tmp_path, asynchronous=True)
    with pytest.raises(MisconfigurationException, match=r"InMemory.*\[checkpoint-asynchronous\]"):
        trainer(tmp_path, plugins=[InMemory()], callbacks=[saver]).fit(module, data)
    run = trainer(tmp_path)
    with pytest.raises(MisconfigurationException, match=r"\[storage-options\]"):
        run.save_checkpoint(tmp_path / "x.ckpt", storage_options={"a": 1})
    with pytest.raises(MisconfigurationException, match=r"\[storage-options\]"):
        TorchCheckpointIO().save_checkpoint({}, tmp_path / "x.ckpt", storage_options={"a": 1})
