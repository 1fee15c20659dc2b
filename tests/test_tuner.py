"""``Tuner`` and ``trainer.tune``: beside Lightning's, and the traces that they must not leave."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import DataLoader, TensorDataset

import leyden
from leyden import Callback, LightningDataModule, Trainer, Tuner
from leyden.callbacks import BatchSizeFinder, LearningRateFinder
from leyden.compat import names
from leyden.errors import MisconfigurationException, OrderError
from modes import MODES, Rows, build

SWEEP: dict[str, Any] = {"min_lr": 1e-4, "num_training": 30}
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    **dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
}


def regression(framework: Any = leyden, **attributes: Any) -> Any:
    class Regression(framework.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
            self.learning_rate = 0.02
            self.batch_size = 4
            self.sizes: list[int] = []
            self.events: list[str] = []
            self.__dict__.update(attributes)

        def setup(self, stage: str) -> None:
            torch.rand(1)  # as layers that are built here draw

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            self.sizes.append(len(x))
            return nn.functional.mse_loss(self.net(x), y)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.sizes.append(len(batch[0]))

        test_step = validation_step

        def predict_step(self, batch: Any, batch_idx: int) -> None:
            self.sizes.append(len(batch[0]))

        def on_fit_start(self) -> None:
            self.events.append("fit")

        def on_validation_epoch_end(self) -> None:
            self.events.append("validation end")

        def loader(self) -> Any:
            generator = torch.Generator().manual_seed(1)
            data = TensorDataset(torch.randn(160, 3, generator=generator), torch.ones(160, 1))
            return DataLoader(data, batch_size=self.batch_size, shuffle=True)

        train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader

        def configure_optimizers(self) -> Any:
            return Adam(self.parameters(), lr=self.learning_rate)

    return Regression()


def weights_of(module: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"mode": "linear", "max_lr": 0.3}, {"update_attr": False}])
def test_the_curve_and_the_fit_that_follows_are_lightnings(options: dict[str, Any], tmp_path: Path) -> None:
    """Rates, losses, suggestion, attribute, and the weights after a fit, which are those of that rate from the start.

    Lightning draws from the global generator in its sweep and does not put that back, so both are seeded before fit.
    """
    seen = {}
    for framework in (leyden, pytorch_lightning):
        module = regression(framework)
        trainer = framework.Trainer(max_epochs=2, default_root_dir=tmp_path, num_sanity_val_steps=0, **QUIET)
        tuner = Tuner(trainer) if framework is leyden else pytorch_lightning.tuner.Tuner(trainer)
        torch.manual_seed(3)
        curve = tuner.lr_find(module, **SWEEP, **options)
        torch.manual_seed(4)
        trainer.fit(module)
        seen[framework] = (curve.results, curve.suggestion(), module.learning_rate, weights_of(module))
    ours, theirs = seen[leyden], seen[pytorch_lightning]
    assert ours[0]["lr"] == pytest.approx(theirs[0]["lr"], rel=1e-12)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6)
    assert ours[1:3] == pytest.approx(theirs[1:3], rel=1e-12)
    assert (ours[2] == 0.02) is ("update_attr" in options)
    assert all(map(torch.equal, ours[3], theirs[3]))


@pytest.mark.parametrize("name", ["lr_find", "scale_batch_size"])
def test_arguments_are_lightnings(name: str) -> None:
    """All of them, in the same order, with the same defaults."""
    ours, theirs = (
        inspect.signature(getattr(kind, name)).parameters for kind in (Tuner, pytorch_lightning.tuner.Tuner)
    )
    assert list(ours)[: len(theirs)] == list(theirs)
    different = [argument for argument in theirs if ours[argument].default != theirs[argument].default]
    assert different in ([], ["update_attr"])  # None takes the Tuner's own, which is the same by default


@pytest.mark.parametrize("what", ["lr_find", "scale_batch_size"])
def test_tuning_leaves_no_trace(what: str) -> None:
    """The fit afterwards is bit for bit the fit with what was found: weights, optimizers, random numbers, clocks."""
    ends = []
    found: dict[str, Any] = {}
    for tuned in (True, False):
        module = regression(**found)
        trainer = Trainer(max_epochs=2, **QUIET)
        torch.manual_seed(7)
        if tuned:
            state = torch.get_rng_state()
            before = {name: value for name, value in vars(trainer).items()}
            if what == "lr_find":
                Tuner(trainer).lr_find(module, **SWEEP)
                found["learning_rate"] = module.learning_rate
            else:
                found["batch_size"] = Tuner(trainer).scale_batch_size(module, max_trials=3)
                assert module.batch_size == found["batch_size"] == 8
            assert module.training and module.sizes == [] and "fit" not in module.events
            assert all(parameter.grad is None for parameter in module.parameters())
            assert vars(trainer) == before and trainer.state.status == "initializing" and not trainer.optimizers
            assert torch.equal(torch.get_rng_state(), state)
        trainer.fit(module)
        ends.append(
            (
                module.state_dict(),
                [optimizer.state_dict() for optimizer in trainer.optimizers],
                (trainer.global_step, trainer.current_epoch, trainer.num_updates),
                torch.get_rng_state(),
            )
        )
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_optimization_is_tuned_and_left_as_it_was(mode: str) -> None:
    """Of several optimizers one is named; weights and buffers stay."""
    module = build(mode, rate=0.1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    name = {"one": None, "accumulated": None, "joint": "0.1"}.get(mode, 0)
    data = DataLoader([(torch.ones(2, 3), torch.ones(2, 1))] * 4, batch_size=None)
    trainer = Trainer(max_epochs=1, **QUIET, **MODES[mode][1])
    curve = Tuner(trainer).lr_find(module, data, num_training=15, update_attr=False, optimizer=name)
    assert curve is not None and len(curve.results["lr"]) > 3
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_nothing_of_the_trainers_own_takes_part() -> None:
    """Callbacks, the module's callbacks, loggers and the profiler see nothing, and are there for the fit."""
    seen: list[str] = []

    class Watch(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            seen.append(stage)

    class Own(Watch):
        pass

    rows = Rows()
    module = regression(configure_callbacks=lambda: [Own()])
    trainer = Trainer(max_epochs=1, callbacks=[Watch()], profiler="simple", **{**QUIET, "logger": rows})
    trainer.profiler.describe = lambda: seen.append("profile")  # type: ignore[method-assign]
    for method in ("fit", "validate"):
        Tuner(trainer).scale_batch_size(module, method=method, max_trials=2)
    assert seen == [] and rows.rows == []
    trainer.fit(module)
    assert seen == ["fit", "fit", "profile"]


@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
def test_a_batch_size_for_each_method(method: str) -> None:
    """As Lightning finds it, without the hooks around an evaluation."""
    module = regression()
    size = Tuner(Trainer(max_epochs=1, **QUIET)).scale_batch_size(
        module, method=method, mode="binsearch", max_trials=4, margin=0.25
    )
    assert (size, module.batch_size) == (12, 12)
    assert module.events == []
    assert regression(batch_size=size).loader().batch_size == 12


def test_a_datamodule_may_stand_where_loaders_do() -> None:
    """Its attribute is set, for fits and evaluations."""

    class Data(LightningDataModule):
        batch_size = 2

        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.ones(16, 3), torch.ones(16, 1)), batch_size=self.batch_size)

        val_dataloader = train_dataloader

    places: list[dict[str, Any]] = [
        {"train_dataloaders": Data()},
        {"datamodule": Data()},
        {"dataloaders": Data()},  # the fourth argument was the datamodule in 1.5
        {"dataloaders": Data(), "method": "validate"},
    ]
    for given in places:
        module = regression()
        tuner = Tuner(Trainer(max_epochs=1, **QUIET))
        assert tuner.scale_batch_size(module, **given) == 16
        assert [data.batch_size for data in given.values() if isinstance(data, Data)] == [16]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda tuner, module: tuner.lr_find(module, method="validate"), "only 'fit' has a learning rate"),
        (lambda tuner, module: tuner.lr_find(module, dataloaders=[1]), "takes its data as train_dataloaders"),
        (lambda tuner, module: tuner.scale_batch_size(module, [1], method="test"), "takes its data as dataloaders"),
        (lambda tuner, module: tuner.scale_batch_size(module, method="tune"), "must be one of 'fit'"),
        (lambda tuner, module: tuner.lr_find(module, [1], datamodule=LightningDataModule()), "pass one of them"),
        (lambda tuner, module: tuner.lr_find(module, attr_name="rate"), "have 'rate'"),
        (lambda tuner, module: tuner.lr_find(module, optimizer=0), "needs attr_name"),
        (lambda tuner, module: tuner.scale_batch_size(module, mode="half"), "must be 'power' or 'binsearch'"),
    ],
)
def test_mistakes(call: Any, text: str) -> None:
    """Told before any update, and the Trainer is as it was."""
    module, trainer = regression(), Trainer(max_epochs=1, **QUIET)
    with pytest.raises(MisconfigurationException, match=text):
        call(Tuner(trainer), module)
    assert module.sizes == [] and trainer.state.status == "initializing"


def test_a_run_is_not_tuned_inside_of_itself() -> None:
    """A callback that searches has its place, and the Tuner is before a run."""

    class Nested(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            Tuner(trainer).lr_find(pl_module)

    with pytest.raises(OrderError, match="inside of another run"):
        Trainer(max_epochs=1, callbacks=[Nested()], **QUIET).fit(regression())


def test_what_would_search_twice_and_what_looks_for_mistakes() -> None:
    """Lightning refuses a finder beside the Tuner; under fast_dev_run neither tunes."""
    for finder, name in ((LearningRateFinder(), "lr_find"), (BatchSizeFinder(), "scale_batch_size")):
        with pytest.raises(ValueError, match="searches when a run begins"):
            getattr(Tuner(Trainer(max_epochs=1, callbacks=[finder], **QUIET)), name)(regression())
        with pytest.warns(UserWarning, match="nothing is tuned"):
            assert getattr(Tuner(Trainer(fast_dev_run=True, accelerator="cpu")), name)(regression()) is None


def test_a_job_that_was_requeued_keeps_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fit goes on from it, not the sweep before."""
    monkeypatch.setenv("SLURM_JOB_ID", "11")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    path = Path(trainer._interrupted_path())
    path.write_bytes(b"kept")
    Tuner(trainer).lr_find(regression(), **SWEEP)
    assert path.read_bytes() == b"kept"


@pytest.mark.filterwarnings("ignore:.*of Lightning 1.x")
def test_tune_does_what_the_arguments_of_1x_say() -> None:
    """R163: the batch size, then the learning rate, under the attribute that is named."""
    module = regression(rate=0.5)
    trainer = Trainer(max_epochs=1, auto_lr_find="rate", auto_scale_batch_size="binsearch", **QUIET)
    found = trainer.tune(module, scale_batch_size_kwargs={"max_trials": 2, "margin": 0.0}, lr_find_kwargs=SWEEP)
    assert list(found) == ["scale_batch_size", "lr_find"]
    assert module.batch_size == found["scale_batch_size"] == 4
    assert module.rate == found["lr_find"].suggestion() != 0.5
    assert module.learning_rate == 0.02
    trainer = Trainer(max_epochs=1, auto_lr_find=True, **QUIET)
    assert trainer.tune(module, train_dataloader=module.loader(), lr_find_kwargs=SWEEP).keys() == {"lr_find"}
    assert module.learning_rate != 0.02


def test_tune_without_anything_to_tune_says_so() -> None:
    """Otherwise nobody would notice."""
    with pytest.warns(UserWarning, match="neither auto_scale_batch_size nor auto_lr_find"):
        assert Trainer(max_epochs=1, **QUIET).tune(regression()) == {}


def test_the_names_of_1x_set_nothing_unless_told_to() -> None:
    """``trainer.tuner.lr_find`` and its older spellings leave the attribute to the caller, as they did."""
    lr_find, curve_class = (names.find("pytorch", "tuner.lr_finder", name) for name in ("lr_find", "_LRFinder"))
    scale_batch_size = names.find("pytorch", "tuner.batch_size_scaling", "scale_batch_size")
    assert all(names.find("pytorch", place, "Tuner") is Tuner for place in ("tuner", "tuner.tuning"))
    for call in (
        Trainer(**QUIET).tuner.lr_find,
        Trainer(**QUIET).lr_find,
        lambda *a, **k: lr_find(Trainer(**QUIET), *a, **k),
    ):
        module = regression()
        curve = call(module, **SWEEP)
        assert isinstance(curve, curve_class) and curve.suggestion() > 0 and module.learning_rate == 0.02
    module = regression()
    assert Trainer(**QUIET).scale_batch_size(module, max_trials=2) == module.batch_size == 4
    assert scale_batch_size(Trainer(**QUIET), module, "power", max_trials=3) == module.batch_size == 8
