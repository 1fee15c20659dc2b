"""The file is compared with the run before anything changes: all differences in one message."""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from leyden import Callback, LightningModule, Trainer
from leyden.callbacks import EarlyStopping, LearningRateMonitor, Timer
from leyden.checkpoint import read_checkpoint, write_checkpoint
from leyden.errors import CheckpointError, LeydenWarning
from leyden.loggers import CSVLogger
from resumption import Noisy, SaveAt, differences


class Net(LightningModule):
    """Two parts, each in a group or an optimizer of its own."""

    def __init__(self, width: int = 4, schedule: Any = None, kind: Any = Adam, frozen: bool = False, lr: float = 0.1):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, width), nn.Linear(width, 1)
        self.body.requires_grad_(not frozen)
        trained = [p for p in self.parameters() if p.requires_grad]
        self.made = kind(trained, lr=lr)
        self.schedules = [schedule(self.made)] if schedule is not None else []
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        loss = self.head(torch.tanh(self.body(batch[0]))).square().mean()
        self.log("loss", loss, batch_size=2)
        return loss

    def configure_optimizers(self) -> Any:
        return [self.made], self.schedules


def loader(size: int = 12, **options: Any) -> Any:
    return DataLoader(Noisy(size), **{"batch_size": 2, "shuffle": True, **options})


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    silent = dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    silent["enable_checkpointing"] = any(isinstance(one, SaveAt) for one in callbacks)
    given = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "log_every_n_steps": 1, **silent}
    return Trainer(**{**given, **options}, callbacks=list(callbacks))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a run: from the middle of an epoch, of a window in it, and from the end of an epoch."""
    folder = tmp_path_factory.mktemp("files")
    saves = [
        SaveAt(folder / "batch", "on_train_batch_end", 1, 3),
        SaveAt(folder / "window", "on_train_batch_end", 1, 2),
        SaveAt(folder / "epoch", "on_train_epoch_end", 1),
    ]
    fit = trainer(*saves, EarlyStopping("loss", patience=9), accumulate_grad_batches=2)
    fit.fit(Net(schedule=lambda o: StepLR(o, 1)), loader())
    return folder


def plain() -> Any:
    return Net(schedule=lambda o: StepLR(o, 1))


Change = tuple[Any, dict[str, Any], Any]

#: What users do all the time: name -> module, Trainer's arguments, loader.
TAKEN: dict[str, Change] = {
    "nothing": (plain, {}, loader),
    "more epochs": (plain, {"max_epochs": 9}, loader),
    "a limit of steps": (plain, {"max_steps": 12}, loader),
    "another logger": (plain, {"logger": CSVLogger}, loader),
    "other callbacks as well": (plain, {"callbacks": [lambda: Timer(duration="00:01:00:00")]}, loader),
    "a monitor of rates": (plain, {"callbacks": [LearningRateMonitor], "logger": CSVLogger}, loader),
    "a bar and a summary": (plain, {"enable_model_summary": True}, loader),
    "another interval of validation": (plain, {"check_val_every_n_epoch": 2}, loader),
    "clipping": (plain, {"gradient_clip_val": 0.5}, loader),
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("place", ["batch", "epoch"])
def test_what_users_change_all_the_time_is_taken_in_silence(name: str, place: str, files: Path, tmp_path: Path) -> None:
    build, options, data = TAKEN[name]
    options = dict(options)
    callbacks = [EarlyStopping("loss", patience=9), *(one() for one in options.pop("callbacks", []))]
    if "logger" in options:
        options["logger"] = options["logger"](tmp_path)
    trainer(*callbacks, **{"accumulate_grad_batches": 2, **options}).fit(build(), data(), ckpt_path=files / place)


#: What may be meant, and is told: name -> change, what is told of it.
TOLD: dict[str, tuple[Change, str]] = {
    "accumulation": ((plain, {"accumulate_grad_batches": 3}, loader), "accumulate_grad_batches was 2 in the file"),
    "precision": (
        (plain, {"precision": "bf16-mixed"}, loader),
        "the precision was '32-true' in the file, and is 'bf16",
    ),
    "a rate": (
        (lambda: Net(schedule=lambda o: StepLR(o, 1), lr=0.3), {}, loader),
        "lr of optimizer 0 was 0.1 and is 0",
    ),
    "a schedule's setting": (
        (lambda: Net(schedule=lambda o: StepLR(o, 2)), {}, loader),
        "step_size of schedulers.0 was 1 and is 2",
    ),
    "the callback that is left out": ((plain, {"without": True}, loader), "states of callbacks that this Trainer does"),
    "the batch size": ((plain, {}, lambda: loader(batch_size=3)), "batch size of the loader: 2 then, 3 now"),
    "more data": ((plain, {}, lambda: loader(16)), "samples of the loader: 12 then, 16 now"),
    "a limit of batches": ((plain, {"limit_train_batches": 3}, loader), ""),
    "another sampler": ((plain, {}, lambda: loader(shuffle=False)), "sampler of the loader: RandomSampler then, Seq"),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_may_be_meant_is_told_once(name: str, files: Path) -> None:
    """Between two epochs everything of this run counts; one warning has all of it."""
    (build, options, data), says = TOLD[name]
    options = dict(options)
    callbacks = [] if options.pop("without", False) else [EarlyStopping("loss", patience=9)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit = trainer(*callbacks, **{"accumulate_grad_batches": 2, **options})
        fit.fit(build(), data(), ckpt_path=files / "epoch")
    texts = [str(one.message) for one in told if "resume-differs" in str(one.message)]
    assert len(texts) == bool(says)
    assert all(says in text and "epoch' was written by a run that differs" in text for text in texts)
    assert fit.current_epoch == 3


#: What would not be the run that was broken off.
REFUSED: dict[str, tuple[str, Change, str]] = {
    "a tensor's shape": ("epoch", (lambda: Net(8, lambda o: StepLR(o, 1)), {}, loader), r"body.weight is \(4, 3\) in"),
    "the optimizer's class": (
        "epoch",
        (lambda: Net(4, lambda o: StepLR(o, 1), SGD), {}, loader),
        "is Adam in the file",
    ),
    "the schedule's class": (
        "epoch",
        (lambda: Net(4, lambda o: ExponentialLR(o, 0.9)), {}, loader),
        "is StepLR in the",
    ),
    "no schedule": ("epoch", (Net, {}, loader), r"scheduler 0 \(StepLR\) is only in the file"),
    "the batch size in an epoch": (
        "batch",
        (plain, {}, lambda: loader(batch_size=3)),
        "batch size of the loader: 2 then",
    ),
    "the sampler in an epoch": ("batch", (plain, {}, lambda: loader(shuffle=False)), "sampler of the loader: RandomS"),
    "the data in an epoch": ("batch", (plain, {}, lambda: loader(16)), "samples of the loader: 12 then, 16 now"),
    "two loaders in an epoch": ("batch", (plain, {}, lambda: [loader(), loader()]), "loaders: 1 then, 2 now"),
    "accumulation in a window": (
        "window",
        (plain, {"accumulate_grad_batches": 3}, loader),
        "1 of 2 micro-batches of a",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_go_on_is_refused(name: str, files: Path) -> None:
    place, (build, options, data), says = REFUSED[name]
    net = build()
    before = copy.deepcopy(dict(net.state_dict()))
    with pytest.raises(CheckpointError, match=rf"(?s){place}' does not fit this run.*{says}.*resume=.*resume-mismatch"):
        trainer(EarlyStopping("loss"), **{"accumulate_grad_batches": 2, **options}).fit(
            net, data(), ckpt_path=files / place
        )
    assert net.steps == 0
    assert differences(before, dict(net.state_dict())) == []


@pytest.mark.parametrize("name", [name for name in REFUSED if "epoch" in name])
def test_the_epoch_may_begin_once_more_with_other_data(name: str, files: Path) -> None:
    """What is refused in the middle of an epoch is the user's right from its beginning, and told."""
    place, (build, options, data), says = REFUSED[name]
    net = build()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit = trainer(EarlyStopping("loss", patience=9), **{"accumulate_grad_batches": 2, **options})
        if name.startswith("two"):
            net.training_step = lambda batch, batch_idx: Net.training_step(net, batch[0], batch_idx)
        fit.fit(net, data(), ckpt_path=files / place, resume={"data": "reset"})
    assert any(says in str(one.message) for one in told)
    assert net.steps == 2 * fit.num_training_batches


def test_everything_is_told_in_one_message_before_anything_changes(files: Path) -> None:
    """Weights, optimizer, schedule, data, window: module, generators, clocks, callbacks are as before."""

    class Keeps(Callback):
        values = None

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            raise AssertionError("nothing is loaded")

    def look() -> dict[str, Any]:
        states = [callback.state_dict() for callback in fit.callbacks]
        generators = {"torch": torch.get_rng_state(), "python": random.getstate()}
        clocks = [
            getattr(fit.clocks, name) for name in ("epoch", "batch_idx", "micro_batches", "updates", "global_step")
        ]
        optimizer = [net.made.state_dict(), net.schedules[0].state_dict()]
        return copy.deepcopy([dict(net.state_dict()), states, generators, clocks, optimizer])

    net, data = Net(8, lambda o: ExponentialLR(o, 0.9), SGD), loader(batch_size=3)
    fit = trainer(EarlyStopping("loss"), Keeps(), accumulate_grad_batches=3, precision="bf16-mixed")
    torch.manual_seed(4)
    before = look()
    with pytest.raises(CheckpointError) as error:
        fit.fit(net, data, ckpt_path=files / "window")
    assert differences(before, look()) == []
    assert [line[4:60] for line in str(error.value).splitlines()[1:]] == [
        "weights have another shape: body.weight is (4, 3) in the",
        "optimizer 0 (SGD of body.weight, body.bias, head.weight,",
        "scheduler 0 (ExponentialLR) is StepLR in the file; retur",
        "the file is from the middle of an epoch, which cannot go",
        " alone would only be told:",
        "the precision was '32-true' in the file, and is 'bf16-mi",
        "accumulate_grad_batches was 2 in the file, and is 3: thi",
    ]


def test_a_refused_file_does_not_spoil_the_trainer(files: Path) -> None:
    """The same trainer and module take the right one afterwards, as fresh ones would."""
    net, fit = plain(), trainer(EarlyStopping("loss", patience=9), accumulate_grad_batches=2)
    with pytest.raises(CheckpointError):
        fit.fit(net, loader(batch_size=3), ckpt_path=files / "batch")
    fit.fit(net, loader(), ckpt_path=files / "batch")
    other, fresh = plain(), trainer(EarlyStopping("loss", patience=9), accumulate_grad_batches=2)
    fresh.fit(other, loader(), ckpt_path=files / "batch")
    assert differences(dict(other.state_dict()), dict(net.state_dict())) == []
    assert (fit.current_epoch, fit.global_step) == (fresh.current_epoch, fresh.global_step)


@pytest.mark.parametrize("strict", [True, False])
def test_names_that_only_one_of_them_has(strict: bool, files: Path) -> None:
    class More(Net):
        def __init__(self) -> None:
            super().__init__(schedule=lambda o: StepLR(o, 1))
            self.extra = nn.Parameter(torch.ones(1))
            self.head = nn.Identity()
            self.strict_loading = strict

        def configure_optimizers(self) -> Any:
            self.made = Adam(self.parameters(), lr=0.1)
            return [self.made], [StepLR(self.made, 1)]

    fit = trainer(EarlyStopping("loss", patience=9), accumulate_grad_batches=2)
    missing, left = "weights are missing in the file: extra", "weights are only in the file: head.weight, head.bias"
    if strict:
        with pytest.raises(
            CheckpointError, match=rf"(?s){missing}.*{left}.*strict_loading = False.*\[resume-mismatch\]"
        ):
            fit.fit(More(), loader(), ckpt_path=files / "epoch")
    else:
        with pytest.warns(LeydenWarning, match=rf"(?s){missing}.*{left}.*and are left out.*\[resume-differs\]"):
            fit.fit(More(), loader(), ckpt_path=files / "epoch")


def test_the_file_of_another_module(files: Path) -> None:
    """Not to be strict is not to load nothing at all."""

    class Other(Net):
        def __init__(self) -> None:
            super().__init__(schedule=lambda o: StepLR(o, 1))
            self.stem, self.top = self._modules.pop("body"), self._modules.pop("head")
            self.strict_loading = False

    with pytest.raises(CheckpointError, match=r"(?s)not a single weight.*\[resume-mismatch\]"):
        trainer(EarlyStopping("loss", patience=9)).fit(Other(), loader(), ckpt_path=files / "epoch")


def test_a_module_may_load_older_weights_in_its_own_way(files: Path) -> None:
    """Names that it translates while it loads are no difference."""

    class Renamed(Net):
        def __init__(self) -> None:
            super().__init__(schedule=lambda o: StepLR(o, 1))
            self.trunk = self._modules.pop("body")

        @property
        def body(self) -> nn.Module:
            return self.trunk

        def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
            for name in [name for name in state_dict if name.startswith("body.")]:
                state_dict[name.replace("body.", "trunk.")] = state_dict.pop(name)

    content = read_checkpoint(files / "epoch")
    for names in content["leyden"]["plan"]["members"][0]["names"]:
        names[:] = [name.replace("body.", "trunk.") for name in names]
    write_checkpoint(content, files / "renamed")
    trainer(EarlyStopping("loss", patience=9), accumulate_grad_batches=2).fit(
        Renamed(), loader(), ckpt_path=files / "renamed"
    )


def test_other_loaders_of_the_same_kind_are_no_difference(files: Path) -> None:
    """A batch sampler is compared as such."""

    def batches(size: int) -> Any:
        data = Noisy(12)
        return DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), size, drop_last=False))

    save = SaveAt(files / "sampler", "on_train_batch_end", 1, 2)
    trainer(save).fit(plain(), batches(2))
    trainer().fit(plain(), batches(2), ckpt_path=files / "sampler")
    with pytest.raises(CheckpointError, match="batches of the loader: 6 then, 4 now"):
        trainer().fit(plain(), batches(3), ckpt_path=files / "sampler")


def test_fewer_validation_loaders_than_the_file_was_in(tmp_path: Path) -> None:
    """It is refused before the training goes on, not when the validation does."""

    class Validated(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            pass

    two = [loader(4, shuffle=False), loader(4, shuffle=False)]
    save = SaveAt(tmp_path / "a.ckpt", "on_validation_batch_end", 1, 5, 3)
    trainer(save).fit(Validated(), loader(), two)
    for given in (two[:1], None):
        with pytest.raises(CheckpointError, match="batch 1 of validation loader 1 is not there"):
            trainer().fit(Validated(), loader(), given, ckpt_path=tmp_path / "a.ckpt")
    trainer().fit(Validated(), loader(), two[:1], ckpt_path=tmp_path / "a.ckpt", resume={"data": "reset"})
