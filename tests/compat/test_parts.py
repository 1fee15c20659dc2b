"""Users' own strategies, precisions and accelerators: what of them is called as in Lightning, and what is refused."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import pytorch_lightning.accelerators
import pytorch_lightning.plugins
import pytorch_lightning.strategies
import torch
from torch.utils.data import DataLoader

import leyden
from leyden import Fabric
from leyden.callbacks import ModelCheckpoint
from leyden.compat import hardware
from leyden.compat.survey import ABSENT, DIFFERENT, SAME, survey
from leyden.errors import InvalidValueError, MisconfigurationException
from leyden.precision import MixedPrecision, Precision
from leyden.strategies import SingleDeviceStrategy, Strategy
from leyden.strategies.uncalled import UNCALLED

THEIRS, OURS = (
    (
        pytorch_lightning,
        pytorch_lightning.strategies.SingleDeviceStrategy,
        pytorch_lightning.plugins.Precision,
        pytorch_lightning.accelerators.CPUAccelerator,
        pytorch_lightning.callbacks.ModelCheckpoint,
    ),
    (leyden, SingleDeviceStrategy, Precision, hardware.CPUAccelerator, ModelCheckpoint),
)
QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
    "num_sanity_val_steps": 0,
}
OF_STRATEGIES = (
    *("connect", "setup_environment", "setup", "model_to_device", "batch_to_device", "teardown"),
    *("save_checkpoint", "load_checkpoint", "remove_checkpoint"),
)


def noting(base: type, names: Any, calls: list[Any]) -> Any:
    """A subclass whose methods note that they are called, and do what the base does."""

    def method(name: str) -> Any:
        def note(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(name if base.__name__ != "CPUAccelerator" else f"accelerator.{name}")
            return getattr(base, name)(self, *args, **kwargs)

        return note

    return type("Own", (base,), {name: method(name) for name in names})


def build(package: Any) -> Any:
    class Module(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.seen = batch.dtype, self.layer(batch).dtype

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(1)
    return Module()


def loader() -> DataLoader[Any]:
    return DataLoader(torch.arange(18.0).reshape(6, 3) / 18, batch_size=2)  # type: ignore[arg-type]


def trainer(package: Any = leyden, **arguments: Any) -> Any:
    return package.Trainer(
        **{"accelerator": "cpu", "max_epochs": 2, "enable_checkpointing": False, **QUIET, **arguments}
    )


@pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning")
def test_the_same_methods_are_called_as_often_as_in_lightning(tmp_path: Path) -> None:
    """In a fit and in a validation from its file, of all three; and the weights are the same, bit for bit."""
    told, weights = [], []
    for package, strategy, precision, accelerator, saver in (THEIRS, OURS):
        calls: list[Any] = []
        kind = noting(accelerator, ("setup_device", "setup", "teardown"), calls)
        kind.name = staticmethod(lambda: "mine")
        run = trainer(
            package,
            accelerator=kind(),
            strategy=noting(strategy, OF_STRATEGIES, calls)(),
            plugins=[noting(precision, ("convert_module", "convert_input", "forward_context"), calls)()],
            callbacks=[saver(tmp_path / package.__name__)],  # each epoch's file takes the place of the last one's
            enable_checkpointing=True,
        )
        module = build(package)
        run.fit(module, loader(), loader())
        fit = Counter(calls)
        calls.clear()
        run.validate(module, loader(), ckpt_path=run.checkpoint_callback.best_model_path, verbose=False)
        told.append((fit, set(calls)))
        weights.append(module.layer.weight)
    assert told[0] == told[1]
    fit, validation = told[1]
    assert fit["batch_to_device"] == 12 and fit["save_checkpoint"] == 2 and fit["remove_checkpoint"] == 1
    assert {"load_checkpoint", "accelerator.setup_device", "forward_context"} <= validation
    assert torch.equal(*weights)


def test_what_a_strategy_returns_is_used(tmp_path: Path) -> None:
    """Batches, files, and the module that is where `model_to_device` has brought it; hooks have their place."""
    files: dict[str, Any] = {}

    class InMemory(SingleDeviceStrategy):
        def model_to_device(self) -> None:
            assert self.model is self.lightning_module
            self.model.double()

        def batch_to_device(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
            assert (device, dataloader_idx) == (self.root_device, 0)
            return super().batch_to_device(batch, device, dataloader_idx).double()

        def save_checkpoint(self, checkpoint: Any, filepath: Any, storage_options: Any = None) -> None:
            files[str(filepath)] = checkpoint

        def load_checkpoint(self, checkpoint_path: Any, weights_only: Any = None) -> Any:
            return files[str(checkpoint_path)]

    module, moved = build(leyden), []
    module.on_before_batch_transfer = lambda batch, dataloader_idx: moved.append(("before", batch.dtype)) or batch
    module.on_after_batch_transfer = lambda batch, dataloader_idx: moved.append(("after", batch.dtype)) or batch
    run = trainer(strategy=InMemory())
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert list(files) == [str(tmp_path / "a.ckpt")] and not (tmp_path / "a.ckpt").exists()
    again = build(leyden)
    trainer(strategy=InMemory()).validate(again, loader(), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert again.seen == (torch.float64, torch.float64)
    assert moved[:2] == [("before", torch.float32), ("after", torch.float32)]


def test_a_precision_of_ones_own(tmp_path: Path) -> None:
    """Its base is float32 as it is; what is overridden has its place, in a Fabric too."""

    class Double(Precision):
        precision = "64-mine"

        def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
            return module.double()

        def convert_input(self, batch: Any) -> Any:
            return torch.utils._pytree.tree_map(lambda value: value.double(), batch)

        def convert_output(self, output: Any) -> Any:
            return output.half()

    module = build(leyden)
    run = trainer(plugins=[Double()])
    run.fit(module, loader(), loader())
    assert module.seen == (torch.float64, torch.float64) and run.precision == "64-mine"
    fabric = Fabric(accelerator="cpu", plugins=Double())
    assert fabric.setup(torch.nn.Linear(3, 1))(torch.ones(1, 3)).dtype == torch.float16
    plain = trainer(plugins=[Precision()])
    plain.validate(module.float(), loader(), verbose=False)
    assert module.seen == (torch.float32, torch.float32) and plain.precision == "32-true"


# -- what is never called -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "base", "name", "remedy"),
    [
        ("strategy", SingleDeviceStrategy, "backward", "LightningModule.backward"),
        ("strategy", SingleDeviceStrategy, "optimizer_step", "LightningModule.optimizer_step"),
        ("strategy", SingleDeviceStrategy, "validation_step", "LightningModule.validation_step"),
        ("strategy", SingleDeviceStrategy, "setup_optimizers", "LightningModule.configure_optimizers"),
        ("strategy", SingleDeviceStrategy, "on_train_start", "Callback.on_train_start"),
        ("precision", Precision, "clip_gradients", "LightningModule.configure_gradient_clipping"),
        ("precision", Precision, "val_step_context", "Precision.forward_context"),
        ("precision", functools.partial(MixedPrecision, "bf16-mixed", "cpu"), "backward", "LightningModule.backward"),
    ],
)
@pytest.mark.parametrize("runner", [trainer, functools.partial(Fabric, accelerator="cpu")])
def test_methods_that_are_never_called_are_refused(runner: Any, kind: str, base: Any, name: str, remedy: str) -> None:
    """Before any step, with what to write in their place."""
    arguments = getattr(base, "args", ())
    part = type("Mine", (getattr(base, "func", base),), {name: lambda self, *args: None})(*arguments)
    given = {"strategy": part} if kind == "strategy" else {"plugins": [part]}
    with pytest.raises(MisconfigurationException, match=rf"Mine has.*{name} \(write {remedy} .*\[{kind}-method\]"):
        runner(**given)


def test_the_table_of_uncalled_methods() -> None:
    """It names only what Lightning's classes have, or had before 2.6, and nothing of leyden's."""
    former = {"training_step_end", "validation_step_end", "init_optimizers", "dispatch", "pre_dispatch"}
    for kind, base, theirs in (
        ("strategy", Strategy, pytorch_lightning.strategies.Strategy),
        ("precision", Precision, pytorch_lightning.plugins.Precision),
    ):
        assert not {name for name in UNCALLED[kind] if hasattr(base, name)}
        unknown = {name for name in UNCALLED[kind] if not hasattr(theirs, name)} - former
        assert unknown <= {"model_sharded_context", "module_init_context"}  # each is of the other kind alone
        missing = {name for name in dir(theirs) if name[0] != "_"} - set(UNCALLED[kind]) - set(dir(base))
        assert missing <= {
            *("launcher", "optimizers", "register_strategies", "unscale_gradients", "handles_gradient_accumulation"),
            *("root_device", "precision_plugin"),  # of instances
        }


def test_of_a_strategy_for_several_devices_nothing_is_called() -> None:
    """On one device: one warning names the methods that somebody has written for it, and none is without them."""

    class Mixin:
        def configure_ddp(self) -> None:
            raise AssertionError

    class Mine(Mixin, hardware.DDPStrategy):
        strategy_name = "mine"

        def backward(self, *args: Any) -> None:
            raise AssertionError

    with pytest.warns(
        UserWarning, match=r"methods of .*Mine is called: backward, configure_ddp\..*\[strategy-method\]"
    ):
        run = trainer(strategy=Mine(find_unused_parameters=True))
    assert type(run.strategy) is SingleDeviceStrategy
    run.fit(build(leyden), loader())
    silent = type("Silent", (hardware.FSDPStrategy,), {"limit": 3, "__init__": lambda self: None})
    assert type(trainer(strategy=silent()).strategy) is SingleDeviceStrategy


# -- accelerators -------------------------------------------------------------------------------------------------


def test_an_accelerator_may_choose_the_device() -> None:
    """One of a kind that leyden does not know, too; it has one device to choose."""

    class Meta(hardware.Accelerator):
        name = "meta"

        @staticmethod
        def parse_devices(devices: Any) -> Any:
            return int(devices)

        @staticmethod
        def get_parallel_devices(devices: Any) -> list[torch.device]:
            return [torch.device("meta")] * devices

    accelerator: Any = Meta()
    for devices in ("auto", 1, "1"):
        run = trainer(accelerator=accelerator, devices=devices)
        assert run.strategy.root_device == torch.device("meta", 0) and run.strategy.accelerator is accelerator
    assert run.accelerator == "meta" and accelerator.get_device_stats("meta") == {}
    with pytest.raises(
        MisconfigurationException, match=r"Meta.get_parallel_devices returns .*\[distribution-not-yet\]"
    ):
        trainer(accelerator=accelerator, devices=2)
    assert hardware.CPUAccelerator.name() == "cpu"
    with pytest.raises(InvalidValueError, match=r"\[accelerator\]"):
        trainer(accelerator=hardware.TPUAccelerator())


def test_a_strategy_brings_its_accelerator_and_precision() -> None:
    """As its arguments, which are Lightning's."""
    calls: list[Any] = []
    accelerator = noting(hardware.CPUAccelerator, ("setup_device", "teardown"), calls)()
    precision = Precision()
    run = trainer(strategy=SingleDeviceStrategy("cpu", accelerator, None, precision))
    run.fit(build(leyden), loader())
    assert run.strategy.accelerator is accelerator and run.precision_plugin is precision
    assert calls == ["accelerator.setup_device", "accelerator.teardown"]


def test_migrate_tells(tmp_path: Path) -> None:
    """Which methods of such classes run."""
    (tmp_path / "parts.py").write_text(
        "import pytorch_lightning as pl\n"
        "class A(pl.strategies.SingleDeviceStrategy):\n"
        "    def backward(self): ...\n"
        "    def setup(self): ...\n"
        "class B(pl.strategies.DDPStrategy):\n"
        "    def __init__(self): ...\n"
        "    def backward(self): ...\n"
        "class C(pl.plugins.PrecisionPlugin):\n"
        "    def clip_gradients(self): ...\n"
    )
    found = [(use.line, use.name, use.verdict) for use in survey(tmp_path).uses if use.what == "method"]
    assert found == [
        (3, "backward", ABSENT),
        (4, "setup", SAME),
        (7, "backward", DIFFERENT),
        (9, "clip_gradients", ABSENT),
    ]
