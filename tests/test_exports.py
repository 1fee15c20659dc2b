"""Modules as TorchScript and ONNX, and what a module may call: the module itself stays as it is."""

from __future__ import annotations

import importlib.util
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn

import leyden
from leyden import LightningModule, Trainer
from leyden.errors import InvalidValueError, MissingExtraError
from modes import DATA

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
QUIET: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}


class Part(LightningModule):
    """A LightningModule within another, in a mode of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Model(LightningModule):
    """Hooks, logging, hyper-parameters, and properties of every kind."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(1)
        self.part = Part()
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(width, 1))
        self.seen = {"a": object()}

    @property
    def scale(self) -> float:
        return 2.0

    @property
    def automatic_optimization(self) -> bool:  # type: ignore[override]
        return not isinstance(self.seen, list) and "manual" not in self.seen

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x)) * self.scale

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_start(self) -> None:
        self.print("begins", end="")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted() -> Model:
    module = Model()
    Trainer(**QUIET).fit(module, DATA)
    return module


def snapshot(module: LightningModule) -> Any:
    modes = [part.training for part in module.modules()]
    trainers = [vars(part).get("_trainer") for part in module.modules()]
    return modes, trainers, set(vars(module)), torch.get_rng_state().tolist()


@pytest.mark.parametrize("build", [Model, fitted])
@pytest.mark.parametrize("method", ["script", "trace"])
def test_torchscript_computes_the_same_and_the_module_stays(build: Any, method: str, tmp_path: Path) -> None:
    """Scripted and traced, with and without a Trainer, saved and read again."""
    module = build()
    module.example_input_array = torch.ones(2, 3)
    before, weights = snapshot(module), {name: value.clone() for name, value in module.state_dict().items()}
    path = tmp_path / "new" / "model.pt"
    script = module.to_torchscript(path, method=method)
    assert snapshot(module) == before
    torch.testing.assert_close(dict(module.state_dict()), weights, rtol=0, atol=0)
    assert isinstance(script, torch.jit.ScriptModule) and not script.training
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]
    x, loaded = torch.randn(5, 3), torch.jit.load(path)
    expected = module.eval()(x)
    assert torch.equal(script(x), expected) and torch.equal(loaded(x), expected)
    assert not any(isinstance(value, Trainer) for value in vars(script).values())


@pytest.mark.parametrize("example", [(torch.ones(2), torch.ones(2)), {"y": torch.ones(2), "x": torch.ones(2)}])
def test_several_inputs_go_the_way_of_a_batch(example: Any) -> None:
    """A tuple in order, a dict by name, through the hooks that a batch goes through."""

    class Two(LightningModule):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x - 2 * y

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            seen.append(batch)
            return batch

    seen: list[Any] = []
    file = io.BytesIO()
    script = Two().to_torchscript(file, method="trace", example_inputs=example)
    assert len(seen) == 1 and type(seen[0]) is type(example)
    assert script(torch.zeros(2), torch.ones(2)).tolist() == [-2.0, -2.0]
    assert file.tell() > 0


def test_a_trace_draws_no_random_numbers() -> None:
    """Those that forward draws are given back."""

    class Noisy(LightningModule):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(1)

    module = Noisy()
    before = snapshot(module)
    module.to_torchscript(method="trace", example_inputs=torch.ones(1), check_trace=False)
    assert snapshot(module) == before


@pytest.mark.filterwarnings("ignore")
def test_scripts_are_lightnings() -> None:
    """The same class on both: the same graph."""

    def graph(framework: Any) -> str:
        class Net(framework.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(3, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.layer(x).relu()

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                self.log("a", 1.0)

        return Net().to_torchscript().code

    assert graph(leyden) == graph(pytorch_lightning)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda module: module.to_torchscript(method="compile"), "expected 'script' or 'trace'"),
        (lambda module: module.to_torchscript(method="trace"), "set self.example_input_array"),
    ],
)
def test_mistakes(call: Any, text: str) -> None:
    """Lightning raises a ValueError, too; the module is as it was."""
    module = Model()
    before = snapshot(module)
    with pytest.raises(InvalidValueError, match=text):
        call(module)
    assert snapshot(module) == before


@pytest.mark.parametrize(("package", "options"), [("onnx", {"dynamo": False}), ("onnxscript", {})])
def test_without_onnx_the_error_says_what_to_install(
    package: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter by default needs onnxscript, the former one only onnx."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name) or name)
    with pytest.raises(MissingExtraError, match=f"'{package}': pip install 'leyden.onnx.'"):
        Model().to_onnx("model.onnx", torch.ones(2, 3), **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"dynamo": False}, {"verbose": False}])
def test_onnx_is_written_and_the_module_stays(options: dict[str, Any], tmp_path: Path) -> None:
    """By both exporters of torch, from ``example_input_array``."""
    onnx = pytest.importorskip("onnx")
    if options.get("dynamo", True):
        pytest.importorskip("onnxscript")
    module = fitted()
    module.example_input_array = torch.ones(2, 3)
    before = snapshot(module)
    module.to_onnx(tmp_path / "model.onnx", **options)
    assert snapshot(module) == before
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    with pytest.raises(InvalidValueError, match="needs an input of forward"):
        Model().to_onnx(tmp_path / "other.onnx", **options)


def test_freezing() -> None:
    """R163: both return the module, as 2.6's do."""
    module = Model()
    assert module.freeze() is module
    assert not any(p.requires_grad for p in module.parameters()) and not module.training
    assert module.unfreeze() is module
    assert all(p.requires_grad for p in module.parameters()) and all(part.training for part in module.modules())


def test_printing_goes_by_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """With a bar above it, without one as print does; the module prints as its Trainer."""
    module = Model()
    module.print("alone")
    assert capsys.readouterr().out == "alone\n"
    trainer = Trainer(**QUIET)
    trainer.fit(module, DATA)
    trainer.print("by", "the trainer", sep="-")
    assert capsys.readouterr().out == "beginsby-the trainer\n"
    seen: list[Any] = []
    with_bar = Trainer(max_epochs=1, accelerator="cpu")
    bar = with_bar.progress_bar_callback
    assert bar is not None
    bar.print = lambda *args, **kwargs: seen.append(args)  # type: ignore[method-assign]
    with_bar.fit(module, DATA)
    assert ("begins",) in seen


def test_modules_are_made_as_the_run_wants_them() -> None:
    """Where it runs and in its type; an empty one is not initialised, and draws no random numbers."""
    with Trainer(**QUIET, precision="bf16-true").init_module():
        assert nn.Linear(2, 2).weight.dtype == torch.bfloat16
    assert nn.Linear(2, 2).weight.dtype == torch.float32
    with Trainer(**QUIET, precision="bf16-mixed").init_module(empty_init=False):
        assert nn.Linear(2, 2).weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    state = torch.get_rng_state()
    with Trainer(**QUIET).init_module(empty_init=True):
        nn.Sequential(nn.Linear(2, 2), nn.Conv1d(1, 1, 1), nn.Embedding(3, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_attributes_of_older_modules() -> None:
    """R163: hparams by assignment, use_amp, on_gpu, and what is gathered from one process."""

    class Oldest(Model):
        def __init__(self, hparams: Namespace) -> None:
            super().__init__()
            self.hparams = hparams
            self.use_amp = "given"

    module = Oldest(Namespace(lr=0.1))
    assert module.hparams.lr == 0.1 and module.use_amp is True and module.on_gpu is False
    plain = Model()
    assert plain.use_amp is False
    Trainer(**QUIET, precision="bf16-mixed").fit(plain, DATA)
    assert plain.use_amp is True
    tensor = torch.ones(2)
    assert plain.all_gather({"a": tensor})["a"] is tensor


def test_layers_of_configure_sharded_model(tmp_path: Path) -> None:
    """1.x built large models there; a checkpoint of one is read as well."""

    class Sharded(Model):
        def configure_sharded_model(self) -> None:
            self.late = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.late(self.part(x))

    module, trainer = Sharded(), Trainer(**QUIET)
    trainer.fit(module, DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Sharded.load_from_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(again.late.weight, module.late.weight)
