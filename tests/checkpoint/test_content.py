"""Files that are whole to the last bit and hold what cannot be: none is loaded, and nothing changes by one."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from leyden import Callback, LightningDataModule, LightningModule, Trainer
from leyden.callbacks import EarlyStopping
from leyden.checkpoint import read_checkpoint, write_checkpoint
from leyden.errors import CheckpointError, LeydenWarning
from leyden.precision import MixedPrecision
from resumption import SaveAt, differences, shuffled

Edit = Callable[[dict[str, Any]], None]


class Rich(LightningModule):
    """Two optimizers of different classes that take turns, two schedulers, a metric object, validations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.metric = MeanMetric()
        first, second = Adam(self.body.parameters()), SGD(self.head.parameters(), lr=0.1, momentum=0.9)
        for parameter in self.body.parameters():  # these have been used before
            first.state[parameter] = {name: torch.ones_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            first.state[parameter]["step"] = torch.tensor(4.0)
        self.made = [first, second]
        self.schedules = [StepLR(first, 2), ExponentialLR(second, 0.5)]

    def loss(self, batch: Any) -> Any:
        return self.head(self.norm(self.body(batch[0]))).square().mean()

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        loss = self.loss(batch)
        self.metric(loss.detach())
        self.log("metric", self.metric, on_step=False, on_epoch=True)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=2)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", self.loss(batch), batch_size=2)
        return self.loss(batch)

    def validation_epoch_end(self, outputs: Any) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return self.made, self.schedules


class Data(LightningDataModule):
    """Counts how often its state was loaded."""

    loaded = 0

    def train_dataloader(self) -> Any:
        return shuffled()

    def val_dataloader(self) -> Any:
        return DataLoader(modes_data(), batch_size=2)

    def state_dict(self) -> Any:
        return {"loaded": self.loaded}

    def load_state_dict(self, state_dict: Any) -> None:
        self.loaded += 1


def modes_data() -> Any:
    return [(torch.ones(3), torch.ones(1))] * 4


class History(Callback):
    """Keeps a list that it adds to when its state is loaded."""

    def __init__(self) -> None:
        self.seen: list[Any] = ["here"]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": ["there"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen.extend(state_dict["seen"])


def build(*callbacks: Any, **options: Any) -> Trainer:
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    silent = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    silent["enable_checkpointing"] = bool(callbacks)
    given = {"max_epochs": 3, "accelerator": "cpu", "accumulate_grad_batches": 2, "plugins": precision, **silent}
    return Trainer(**{**given, **options}, callbacks=[EarlyStopping("val_loss", patience=9), History(), *callbacks])


@cache
def folder() -> Path:
    """Good files of one run: in the middle of a window, in a validation, and at the end of an epoch."""
    path = Path(mkdtemp())
    torch.manual_seed(1)
    build(
        SaveAt(path / "window", "on_train_batch_end", 1, 2),
        SaveAt(path / "validation", "on_validation_batch_end", 1, 5, 1),
        SaveAt(path / "epoch", "on_train_epoch_end", 1),
    ).fit(Rich(), datamodule=Data())
    return path


class Present:
    """A trainer, a module and data of this process, and everything that a refused file must not change."""

    def __init__(self) -> None:
        self.trainer, self.module, self.data = build(), Rich(), Data()
        torch.manual_seed(7)
        random.seed(7)
        self.before = self.look()

    def look(self) -> dict[str, Any]:
        trainer, module, clocks = self.trainer, self.module, self.trainer.clocks
        return copy.deepcopy(
            {
                "weights": dict(module.state_dict()),
                "gradients": [p.grad for p in module.parameters()],
                "trained": [p.requires_grad for p in module.parameters()],
                "training": [part.training for part in module.modules()],
                "metric": [module.metric.mean_value, module.metric.weight],
                "optimizers": [optimizer.state_dict() for optimizer in module.made],
                "schedulers": [scheduler.state_dict() for scheduler in module.schedules],
                "scaler": trainer.scaler.state_dict(),
                "torch": torch.get_rng_state(),
                "python": random.getstate(),
                "clocks": [getattr(clocks, name) for name in ("epoch", "batch_idx", "updates", "global_step")],
                "callbacks": [trainer.callbacks[0].state_dict(), trainer.callbacks[1].seen],
                "data": self.data.loaded,
            }
        )

    def fit(self, path: Path, **options: Any) -> None:
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=path, **options)


@pytest.mark.parametrize("place", ["window", "validation", "epoch"])
def test_the_good_files_are_good(place: str, tmp_path: Path) -> None:
    """Written again without an edit they are taken: so it is the edits below that are refused."""
    write_checkpoint(read_checkpoint(folder() / place), tmp_path / "a.ckpt")
    Present().fit(tmp_path / "a.ckpt")


def put(place: str, value: Any) -> Edit:
    """Set what is at a place, given by keys and indices; a function gets what was there."""

    def edit(checkpoint: dict[str, Any]) -> None:
        *path, last = [int(key) if key.isdigit() else key for key in place.split("/")]
        holder: Any = checkpoint
        for key in path:
            holder = holder[key]
        holder[last] = (
            value(holder.get(last) if isinstance(holder, dict) else holder[last]) if callable(value) else value
        )

    return edit


def drop(place: str) -> Edit:
    """Remove what is at a place."""

    def edit(checkpoint: dict[str, Any]) -> None:
        *path, last = [int(key) if key.isdigit() else key for key in place.split("/")]
        holder: Any = checkpoint
        for key in path:
            holder = holder[key]
        del holder[last]

    return edit


NAN = float("nan")
FIT, WINDOW = "loops/fit_loop", "leyden/windows/windows/0"
OWN = "leyden"


def short(value: Any) -> Any:
    return value[:-1]


def doubled(value: Any) -> Any:
    return [*value, value[-1]]


def turned(value: Any) -> Any:
    return value[::-1]


def spoiled(value: Any) -> Any:
    value = value.clone()
    value.view(-1)[0] = NAN
    return value


EDITS: dict[str, tuple[str, Edit]] = {
    # weights
    "weights that are a list": ("window", put("state_dict", [torch.ones(1)])),
    "a weight that is missing": ("window", drop("state_dict/body.weight")),
    "a weight too many": ("window", put("state_dict/more", torch.ones(1))),
    "a weight of another shape": ("window", put("state_dict/body.weight", torch.ones(2, 3))),
    "a weight of integers": ("window", put("state_dict/body.weight", torch.ones(3, 3, dtype=torch.int64))),
    "a weight that is a number": ("window", put("state_dict/body.weight", 3.0)),
    "a weight that is nothing": ("window", put("state_dict/body.weight", None)),
    "a weight that is NaN": ("window", put("state_dict/body.weight", spoiled)),
    "a buffer that is infinite": ("window", put("state_dict/norm.running_var", lambda v: v / 0)),
    # optimizers
    "an optimizer that is missing": ("window", put("optimizer_states", short)),
    "an optimizer too many": ("window", put("optimizer_states", doubled)),
    "no optimizer": ("window", put("optimizer_states", [])),
    "two optimizers exchanged": ("window", put("optimizer_states", turned)),
    "optimizers that are a dict": ("window", put("optimizer_states", lambda v: dict(enumerate(v)))),
    "an optimizer that is a list": ("window", put("optimizer_states/0", [1, 2])),
    "an optimizer that is a tensor": ("window", put("optimizer_states/0", torch.ones(1))),
    "an optimizer without its state": ("window", drop("optimizer_states/0/state")),
    "an optimizer without groups": ("window", put("optimizer_states/0/param_groups", [])),
    "a moment that is missing": ("window", lambda c: c["optimizer_states"][0]["state"][0].pop("exp_avg_sq")),
    "the state of an unknown parameter": ("window", lambda c: c["optimizer_states"][0]["state"].update({99: {}})),
    "a group with a parameter too many": ("window", put("optimizer_states/0/param_groups/0/params", [0, 1, 2])),
    "a group with a parameter twice": ("window", put("optimizer_states/0/param_groups/0/params", [0, 0])),
    "a moment of another shape": ("window", put("optimizer_states/0/state/0/exp_avg", torch.ones(9))),
    "a moment of integers": ("window", put("optimizer_states/0/state/0/exp_avg", torch.ones(3, 3, dtype=torch.int64))),
    "a moment that is NaN": ("window", put("optimizer_states/0/state/0/exp_avg", spoiled)),
    "a moment that is infinite": ("window", put("optimizer_states/1/state/0/momentum_buffer", lambda v: v / 0)),
    "a second moment that is negative": ("window", put("optimizer_states/0/state/0/exp_avg_sq", lambda v: -v - 1)),
    "a count of steps that is negative": ("window", put("optimizer_states/0/state/0/step", torch.tensor(-1.0))),
    "a count of steps that is NaN": ("window", put("optimizer_states/0/state/0/step", torch.tensor(NAN))),
    "a learning rate that is negative": ("window", put("optimizer_states/0/param_groups/0/lr", -0.1)),
    "a learning rate that is a text": ("window", put("optimizer_states/0/param_groups/0/lr", "0.1")),
    "an option that is NaN": ("window", put("optimizer_states/0/param_groups/0/weight_decay", NAN)),
    "an option that is a text": ("window", put("optimizer_states/0/param_groups/0/eps", "small")),
    "an option that is missing": ("window", drop("optimizer_states/0/param_groups/0/betas")),
    "names in another order": ("window", put("leyden/plan/members/0/names/0", turned)),
    "names that are missing": ("window", put("leyden/plan/members/0/names/0", short)),
    "an optimizer's class as another": ("window", put("leyden/plan/members/0/class", "RMSprop")),
    # schedulers
    "a scheduler that is missing": ("window", put("lr_schedulers", short)),
    "a scheduler too many": ("window", put("lr_schedulers", doubled)),
    "two schedulers exchanged": ("window", put("lr_schedulers", turned)),
    "schedulers that are a dict": ("window", put("lr_schedulers", lambda v: dict(enumerate(v)))),
    "a scheduler that is a list": ("window", put("lr_schedulers/0", [1])),
    "a scheduler of another class": ("window", put("lr_schedulers/0", {"T_max": 9, "eta_min": 0, "last_epoch": 3})),
    "a scheduler at a negative epoch": ("window", put("lr_schedulers/0/last_epoch", -3)),
    "a scheduler at half an epoch": ("window", put("lr_schedulers/0/last_epoch", 1.5)),
    "a scheduler with a rate that is NaN": ("window", put("lr_schedulers/0/base_lrs", [NAN])),
    "a scheduler for more groups": ("window", put("lr_schedulers/0/base_lrs", [0.1, 0.1])),
    # the loss scale
    "a loss scale that is NaN": ("window", put("MixedPrecision/scale", NAN)),
    "a loss scale that is 0": ("window", put("MixedPrecision/scale", 0.0)),
    "a loss scale that is a text": ("window", put("MixedPrecision/scale", "8")),
    "a loss scale that is a list": ("window", put("MixedPrecision", [8.0])),
    "a loss scale that lacks a part": ("window", drop("MixedPrecision/growth_factor")),
    "a growth that is negative": ("window", put("MixedPrecision/_growth_tracker", -2)),
    # counts
    "a negative epoch": ("window", put("epoch", -1)),
    "an epoch of half": ("window", put("epoch", 1.5)),
    "another epoch than in the loops": ("window", put("epoch", 2)),
    "a count of steps that is a text": ("window", put("global_step", "12")),
    "another count of steps": ("window", put("global_step", 3)),
    "loops that are a list": ("window", put("loops", [1])),
    "loops that lack the fit": ("window", drop(FIT)),
    "loops that lack the batches": ("window", drop(f"{FIT}/epoch_loop.batch_progress")),
    "a negative count in the loops": ("window", put(f"{FIT}/epoch_loop.batch_progress/current/ready", -1)),
    "more completed than begun": ("window", put(f"{FIT}/epoch_loop.batch_progress/current/completed", 99)),
    "another epoch in the loops": (
        "window",
        put(f"{FIT}/epoch_progress/current", dict.fromkeys(("ready", "started", "processed", "completed"), 7)),
    ),
    # leyden's part
    "leyden's part as a list": ("window", put(OWN, [1])),
    "leyden's part without clocks": ("window", drop(f"{OWN}/clocks")),
    "a later format": ("window", put(f"{OWN}/format", 99)),
    "a format that is a text": ("window", put(f"{OWN}/format", "one")),
    "an unknown phase": ("window", put(f"{OWN}/phase", "lunch")),
    "a phase that is a number": ("window", put(f"{OWN}/phase", 3)),
    "a window of no batches": ("window", put(f"{OWN}/window_size", 0)),
    "batches that are a text": ("window", put(f"{OWN}/batches", "3")),
    "other batches than in the loops": ("window", put(f"{OWN}/batches", 5)),
    "whether it closes as a text": ("window", put(f"{OWN}/closes", "no")),
    "a negative clock": ("window", put(f"{OWN}/clocks/updates", -1)),
    "a clock that is a float": ("window", put(f"{OWN}/clocks/micro_batches", 3.5)),
    "a clock that is missing": ("window", drop(f"{OWN}/clocks/batch_idx")),
    "samples that are negative": ("window", put(f"{OWN}/clocks/samples", -4)),
    "seconds that are infinite": ("window", put(f"{OWN}/clocks/seconds_before", float("inf"))),
    "a clock of an optimizer that lacks counts": ("window", drop(f"{OWN}/clocks/optimizers/0/applied")),
    "more applied than attempted": ("window", put(f"{OWN}/clocks/optimizers/0/applied", 99)),
    "an unknown reason of a skip": (
        "window",
        put(f"{OWN}/clocks/optimizers/0", {"attempted": 1, "applied": 0, "skipped": {"tired": 1}}),
    ),
    "an unknown verdict": ("window", put(f"{OWN}/verdicts/0", "perhaps")),
    "a verdict too few": ("window", put(f"{OWN}/verdicts", short)),
    "whether to stop as a text": ("window", put(f"{OWN}/should_stop", "no")),
    "a plan that is a text": ("window", put(f"{OWN}/plan", "Adam")),
    "a plan without optimizers": ("window", drop(f"{OWN}/plan/members")),
    "options that are a list": ("window", put(f"{OWN}/plan/configured", [1])),
    "data of a wrong form": ("window", put(f"{OWN}/plan/data", "DataLoader")),
    "a number of processes that is none": ("window", put(f"{OWN}/plan/world_size", 0)),
    # random generators
    "a generator of another size": ("window", put(f"{OWN}/now/global/torch", torch.zeros(7, dtype=torch.uint8))),
    "a generator of floats": ("window", put(f"{OWN}/before/global/torch", torch.zeros(5056))),
    "Python's generator cut": ("window", put(f"{OWN}/now/global/python", [3, torch.ones(3, dtype=torch.int64), None])),
    "NumPy's generator as a text": ("window", put(f"{OWN}/now/global/numpy", "MT19937")),
    "generators of the loader as numbers": ("window", put(f"{OWN}/now/own", [1])),
    "generators as a list": ("window", put(f"{OWN}/now", [])),
    "workers that are numbers": ("window", put(f"{OWN}/now/workers", [1])),
    "the validation's generators": ("window", put(f"{OWN}/val_own", [1])),
    # what an epoch has so far
    "a gradient of another shape": ("window", put(f"{OWN}/windows/gradients/body.weight", torch.ones(9))),
    "a gradient of integers": ("window", put(f"{OWN}/windows/gradients/body.weight", torch.ones(3, 3).long())),
    "a gradient of an unknown parameter": ("window", put(f"{OWN}/windows/gradients/tail", torch.ones(1))),
    "a gradient that is a list": ("window", put(f"{OWN}/windows/gradients/body.weight", [1.0])),
    "gradients that are a list": ("window", put(f"{OWN}/windows/gradients", [torch.ones(1)])),
    "an open window without gradients": ("window", drop(f"{OWN}/windows")),
    "a window with a negative size": ("window", put(f"{WINDOW}/size", -2)),
    "a window that lacks its losses": ("window", drop(f"{WINDOW}/losses")),
    "a turn of an unknown window": ("window", put(f"{OWN}/windows/turns/0/window", 9)),
    "a turn too few": ("window", put(f"{OWN}/windows/turns", short)),
    "results that are a list": ("window", put(f"{OWN}/results", [1])),
    "a result that lacks its options": ("window", drop(f"{OWN}/results/entries/0/options")),
    "a result of an unknown option": ("window", put(f"{OWN}/results/entries/0/options/often", True)),
    "a result of an unknown reduction": ("window", put(f"{OWN}/results/entries/1/options/reduce_fx", "mode")),
    "a reduction of texts": ("window", put(f"{OWN}/results/entries/1/reduction", ["a", "b"])),
    "a reduction cut": ("window", put(f"{OWN}/results/entries/1/reduction", [1.0])),
    "a result of an unknown hook": ("window", put(f"{OWN}/results/entries/1/hook", 7)),
    "a metric that is a list": ("window", put(f"{OWN}/metrics/metric", [1])),
    "a metric with an unknown state": ("window", put(f"{OWN}/metrics/metric/forward", torch.ones(1))),
    "views that are a list": ("window", put(f"{OWN}/views", [1])),
    "a view that is a number": ("window", put(f"{OWN}/views/callback", 3)),
    "a logged value that is a text": ("window", put(f"{OWN}/views/callback/loss", "low")),
    "rows that are negative": ("window", put(f"{OWN}/eval_rows", {0: -1})),
    "schedules that are texts": ("window", put(f"{OWN}/schedules", {"val_check_interval": "soon"})),
    "switches that are a list": ("window", put(f"{OWN}/switches", [1])),
    "a switch that is a number": ("window", put(f"{OWN}/switches/trained", {"body.weight": 2})),
    "toggles that are numbers": ("window", put(f"{OWN}/toggles", [1])),
    "a toggle of an unknown optimizer": ("window", put(f"{OWN}/toggles", [{"optimizer": 9, "foreign": [], "own": []}])),
    "batches ahead that are a number": ("window", put(f"{OWN}/kept/ahead", 3)),
    "loggers that are a text": ("window", put(f"{OWN}/loggers", "csv")),
    # a validation
    "a validation that is a list": ("validation", put(f"{OWN}/validation", [1])),
    "a validation at a negative batch": ("validation", put(f"{OWN}/validation/done", -1)),
    "a validation at an unknown loader": ("validation", put(f"{OWN}/validation/loader", 7)),
    "a validation beyond its loader": ("validation", put(f"{OWN}/validation/done", 70)),
    "outputs that are numbers": ("validation", put(f"{OWN}/validation/outputs", 3)),
    "outputs without their devices": ("validation", drop(f"{OWN}/validation/outputs/on_cpu")),
    "outputs with too few devices": ("validation", put(f"{OWN}/validation/outputs/on_cpu", [])),
    "results of a validation": ("validation", put(f"{OWN}/validation/results", {})),
    "generators of a validation": ("validation", put(f"{OWN}/validation/now/global/torch", torch.zeros(5))),
    # callbacks and data
    "callbacks that are a list": ("window", put("callbacks", [1])),
    "a callback's state as a number": ("window", put("callbacks/History", 3)),
    "a callback's state without its key": ("window", put("callbacks/History", {})),
    "EarlyStopping with a text": (
        "window",
        put("callbacks/EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}/wait_count", "two"),
    ),
    "EarlyStopping without a score": (
        "window",
        drop("callbacks/EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}/best_score"),
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_wrong_content_is_refused(name: str, tmp_path: Path) -> None:
    place, edit = EDITS[name]
    checkpoint, present = read_checkpoint(folder() / place), Present()
    edit(checkpoint)
    write_checkpoint(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="a.ckpt"):
        present.fit(tmp_path / "a.ckpt")
    assert differences(present.before, present.look()) == []


#: What is wrong in a file of Lightning's, which is read by order, shows as well.
BY_ORDER = [
    *("weights that are a list", "a weight of another shape", "a weight that is NaN", "a moment of another shape"),
    *("an optimizer that is missing", "an optimizer too many", "no optimizer", "two optimizers exchanged"),
    *("an optimizer without its state", "the state of an unknown parameter", "a moment that is NaN"),
    *("a group with a parameter too many", "a count of steps that is negative", "a learning rate that is negative"),
    *("a scheduler that is missing", "a scheduler too many", "two schedulers exchanged"),
    *(
        "a scheduler at a negative epoch",
        "a loss scale that is NaN",
        "a negative epoch",
        "a count of steps that is a text",
    ),
    *("loops that are a list", "loops that lack the fit", "loops that lack the batches", "more completed than begun"),
    *("a negative count in the loops", "callbacks that are a list", "EarlyStopping with a text"),
]


@pytest.mark.parametrize("name", BY_ORDER)
def test_wrong_content_of_lightning_is_refused(name: str, tmp_path: Path) -> None:
    """R148, R152: without names and without leyden's own part."""
    place, edit = EDITS[name]
    checkpoint, present = read_checkpoint(folder() / place), Present()
    del checkpoint["leyden"]
    edit(checkpoint)
    write_checkpoint(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="a.ckpt"):
        present.fit(tmp_path / "a.ckpt")
    assert differences(present.before, present.look()) == []


def test_a_state_that_was_lost_is_told(tmp_path: Path) -> None:
    """An optimizer may have begun anew right before the save, so it is no reason to refuse."""
    checkpoint = read_checkpoint(folder() / "epoch")
    checkpoint["optimizer_states"][0]["state"] = {}
    write_checkpoint(checkpoint, tmp_path / "a.ckpt")
    with pytest.warns(
        LeydenWarning, match=r"(?s)optimizer 0 has no state in the file, after \d+ updates.*resume-differs"
    ):
        Present().fit(tmp_path / "a.ckpt")
