"""The training that is killed: a script as users write one, which also notes what it has trained on.

    python tests/reliability/program.py FOLDER --mode joint --workers 2        (again and again: it goes on)

Everything that can go wrong in a resume is in it: random transforms and dropout, rows of several clocks,
schedulers by step and by epoch, windows of three batches (the epoch's last one is shorter), validations in the middle
of epochs and of windows, an average of the weights, metric objects, and saves on three rhythms.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

WINDOW = 3
SAMPLES = 40
MODES = ("one", "alternating", "joint", "manual")
KINDS = ("step", "save", "window", "validation")


@dataclass(kw_only=True)
class Moment:
    """When a process stops for good.

    Attributes:
        kind: what it is in the middle of, one of KINDS.
        nth: of how many of that kind, from the process's start.
        calls: after how many calls of any function in it; at its end if there are fewer.
        files: count only calls that reach the file system.
        signal: what the process gets; the default stops it, and whoever has started it then kills it.
    """

    kind: str
    nth: int
    calls: int
    files: bool = False
    signal: str = "SIGSTOP"

    @property
    def code(self) -> int:
        """The exit code of a process that ends as it should."""
        return 128 + (signal.SIGKILL if self.signal == "SIGSTOP" else getattr(signal, self.signal))


@dataclass(kw_only=True)
class Settings:
    """One start of the script.

    Attributes:
        folder: what it writes is in there.
        mode: one of MODES.
        workers: of the training loader.
        framework: "leyden" or "pytorch_lightning".
        saves: batches between additional saves, anywhere in a window; 0 for none.
        saves_in_validation: whether there are additional saves between the batches of validations.
        asynchronous: whether the regular saves are written in the background.
        only_one: whether there is one checkpoint at any time.
        moment: when to stop; None runs to the end.
        measures: whether to count calls by kind, for choosing moments.
    """

    folder: str
    mode: str = "one"
    workers: int = 0
    framework: str = "leyden"
    saves: int = 0
    saves_in_validation: bool = False
    asynchronous: bool = False
    only_one: bool = False
    moment: Moment | None = None
    measures: bool = False


# -- the moment ----------------------------------------------------------------------------------------------------

#: Calls that reach the file system, as profilers name them.
FILE_CALLS = frozenset(
    ("open", "write", "write_record", "write_end_of_file", "flush", "fsync", "close", "replace", "rename", "link")
    + ("symlink", "unlink", "remove", "chmod", "ftruncate", "truncate", "mkdir", "scandir", "listdir", "stat", "fchmod")
)


class Watch:
    """Knows what the script is in the middle of, and stops the process in the chosen moment.

    It stops all threads at once (SIGSTOP), and whoever has started it then kills it.
    """

    def __init__(self, moment: Moment | None, *, measures: bool) -> None:
        self.moment = moment
        self.measures = measures
        self.spans: list[str] = []
        self.begun: Counter[str] = Counter()
        self.longest: Counter[str] = Counter()
        self._calls = 0
        self._armed = False

    def begin(self, kind: str) -> None:
        self.spans.append(kind)
        self.begun[kind] += 1
        chosen = self.moment is not None and (self.moment.kind, self.moment.nth) == (kind, self.begun[kind])
        if chosen or (self.measures and len(self.spans) == 1):
            self._calls, self._armed = 0, True
            sys.setprofile(self._on_event)

    def end(self, kind: str) -> None:
        if kind not in self.spans:
            return
        if self._armed and self.moment is not None and self.moment.kind == kind:
            self.stop()
        self.longest[kind] = max(self.longest[kind], self._calls)
        self.spans.remove(kind)
        if not self.spans:
            self._armed = False
            sys.setprofile(None)

    def stop(self) -> None:
        assert self.moment is not None
        name, self.moment, self._armed = self.moment.signal, None, False
        sys.setprofile(None)
        os.kill(os.getpid(), getattr(signal, name))

    def _on_event(self, frame: Any, event: str, argument: Any) -> None:
        if event not in ("call", "c_call") or not self.spans:
            return
        if self.moment is None:
            self._calls += 1
        elif self.spans[-1] == self.moment.kind and (not self.moment.files or _reaches_files(event, argument)):
            if self._calls >= self.moment.calls:
                self.stop()
            self._calls += 1


def _reaches_files(event: str, function: Any) -> bool:
    return event == "c_call" and getattr(function, "__name__", "") in FILE_CALLS


@contextlib.contextmanager
def watched(watch: Watch, kind: str) -> Iterator[None]:
    watch.begin(kind)
    try:
        yield
    finally:
        watch.end(kind)


# -- the data ------------------------------------------------------------------------------------------------------


class Augmented(Dataset[Any]):
    """Samples that are changed at random, by all three generators that there are, each time they are asked for."""

    def __init__(self, size: int, seed: int) -> None:
        self.inputs = torch.randn(size, 6, generator=torch.Generator().manual_seed(seed))
        self.targets = (self.inputs.sum(1) > 0).long() + (self.inputs[:, 0] > 1).long()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        x = self.inputs[index] + 0.1 * torch.randn(6)
        return x * random.uniform(0.8, 1.2) + float(np.random.normal(0.0, 0.01)), self.targets[index], index


# -- the module ----------------------------------------------------------------------------------------------------


class Steps:
    """A classifier, and what its modes have in common."""

    is_manual = False

    def build(self, journal: Journal) -> None:
        torch.manual_seed(5)
        layers = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.backbone, self.head = nn.Sequential(*layers), nn.Linear(8, 3)
        self.accuracy, self.val_accuracy = MulticlassAccuracy(3), MulticlassAccuracy(3)
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))  # in every file, whoever has written it
        self.journal = journal

    def loss(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss; also logs, and notes the samples."""
        x, y, indices = batch
        self.journal.note("trained", int(self.trained), self.trainer.current_epoch, batch_idx, *indices.tolist())
        self.trained += 1
        logits = self.head(self.backbone(x))
        loss = nn.functional.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=len(x))
        self.log("train_accuracy", self.accuracy, on_step=True, on_epoch=True, batch_size=len(x))
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        logits = self.head(self.backbone(x))
        self.val_accuracy(logits, y)
        self.log("val_loss", nn.functional.cross_entropy(logits, y), on_step=True, on_epoch=True, batch_size=len(x))
        self.log("val_accuracy", self.val_accuracy, batch_size=len(x))

    def configure_optimizers(self) -> Any:
        optimizer = Adam(self.parameters(), lr=0.02)
        return [optimizer], _schedulers(optimizer, optimizer)


class Alternating(Steps):
    """Two optimizers take turns; the second one's loss is another draw of the dropout."""

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        if optimizer_idx == 0:
            return self.loss(batch, batch_idx)
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        first, second = Adam(self.backbone.parameters(), lr=0.02), SGD(self.head.parameters(), lr=0.1, momentum=0.9)
        return [first, second], _schedulers(first, second)


class Together(Steps):
    """Two optimizers in one Joint."""

    def configure_optimizers(self) -> Any:
        joint = importlib.import_module("leyden").Joint
        first, second = Adam(self.backbone.parameters(), lr=0.02), SGD(self.head.parameters(), lr=0.1, momentum=0.9)
        return [joint([first, second])], _schedulers(first, second)


class ByHand(Steps):
    """Two optimizers in manual mode, one of them in windows by hand, the other by leyden's helper."""

    is_manual = True

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        closes = (batch_idx + 1) % WINDOW == 0 or self.trainer.is_last_batch
        if batch_idx % WINDOW == 0:
            first.zero_grad()
        loss = self.loss(batch, batch_idx)
        if hasattr(self, "accumulate"):
            self.manual_backward(loss / WINDOW, retain_graph=True, inputs=list(self.backbone.parameters()))
            with self.accumulate(second, WINDOW) as window:
                self.manual_backward(loss, inputs=list(self.head.parameters()))
            assert window.closes == closes
        else:
            if batch_idx % WINDOW == 0:
                second.zero_grad()
            self.manual_backward(loss / WINDOW)
        if closes:
            first.step()
            second.step()
            self.lr_schedulers()[0].step()

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers()[1].step()

    def configure_optimizers(self) -> Any:
        first, second = Adam(self.backbone.parameters(), lr=0.02), SGD(self.head.parameters(), lr=0.1, momentum=0.9)
        return [first, second], _schedulers(first, second)


def _schedulers(by_step: Any, by_epoch: Any) -> list[dict[str, Any]]:
    return [
        {"scheduler": ExponentialLR(by_step, 0.97), "interval": "step"},
        {"scheduler": StepLR(by_epoch, 1, 0.5), "interval": "epoch"},
    ]


def build_module(settings: Settings, journal: Journal) -> Any:
    steps = dict(zip(MODES, (Steps, Alternating, Together, ByHand), strict=True))[settings.mode]
    base = importlib.import_module(settings.framework).LightningModule

    class Module(steps, base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not steps.is_manual
            self.build(journal)

    return Module()


# -- what is noted -------------------------------------------------------------------------------------------------


class Journal:
    """Lines that no kill can take back: each is one write, which outlives the process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def note(self, *words: Any) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


def clone(state: Any) -> Any:
    """A copy of a nested state."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: clone(value) for key, value in state.items()}
    return [clone(value) for value in state] if isinstance(state, list | tuple) else state


def without_folders(state: Any) -> Any:
    """A copy of a state with the names of its files only."""
    if isinstance(state, str):
        return os.path.basename(state)
    if isinstance(state, dict):
        return {without_folders(key): without_folders(value) for key, value in state.items()}
    return [without_folders(value) for value in state] if isinstance(state, list | tuple) else clone(state)


def final_state(trainer: Any, module: Any, trained: dict[str, Any]) -> dict[str, Any]:
    """Everything that must not depend on a break."""
    state = {
        "weights": clone(module.state_dict()),
        "trained weights": trained,
        "optimizers": [clone(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "schedulers": [clone(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        "rates": [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
        "metrics": clone(dict(trainer.callback_metrics)),
        "callbacks": [without_folders(callback.state_dict()) for callback in trainer.callbacks],
        "clocks": {"epoch": trainer.current_epoch, "global_step": trainer.global_step},
        "random": [torch.get_rng_state(), list(random.getstate()[1]), np.random.get_state()[1].tolist()],
    }
    if hasattr(trainer, "clocks"):
        clocks = trainer.clocks
        state["clocks"].update({name: getattr(clocks, name) for name in ("micro_batches", "updates")})
        state["clocks"]["optimizers"] = [asdict(clock) for clock in clocks.optimizers]
    return state


# -- the script ----------------------------------------------------------------------------------------------------


def build_callbacks(settings: Settings, watch: Watch, journal: Journal, trained: dict[str, Any]) -> list[Any]:
    framework = importlib.import_module(settings.framework)
    callbacks = importlib.import_module(f"{settings.framework}.callbacks")

    class Watching(framework.Callback):  # type: ignore[misc, name-defined]
        """Says what the run is in the middle of; stands before all other callbacks."""

        def on_train_start(self, trainer: Any, module: Any) -> None:
            name = Path(str(trainer.ckpt_path)).name if trainer.ckpt_path else "-"
            journal.note("started", int(module.trained), name)

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.end_batch()
            watch.begin("window" if batch_idx % WINDOW else "step")

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.end_batch()

        def on_validation_start(self, trainer: Any, module: Any) -> None:
            if not trainer.sanity_checking:
                watch.begin("validation")

        def on_train_end(self, trainer: Any, module: Any) -> None:
            self.end_batch()
            trained.update(clone(module.state_dict()))

        def end_batch(self) -> None:
            watch.end("step")
            watch.end("window")

    class WatchingEnd(callbacks.Checkpoint):  # type: ignore[misc, name-defined]
        """Stands behind all others, and saves in the middle of windows and of validations, if it is to."""

        dirpath: str | None = None

        def setup(self, trainer: Any, module: Any, stage: str) -> None:
            self.dirpath = trainer.checkpoint_callback.dirpath

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            watch.end("validation")

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if settings.saves and int(module.trained) % settings.saves == 0:
                self.save(trainer)

        def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
            if settings.saves_in_validation and not trainer.sanity_checking:
                self.save(trainer)

        def save(self, trainer: Any) -> None:
            trainer.save_checkpoint(os.path.join(self.dirpath or "", "last-anywhere.ckpt"))

    by_step: dict[str, Any] = {"filename": "{step}", "every_n_train_steps": 2, "save_last": True}
    best: dict[str, Any] = {"filename": "best-{epoch}-{step}", "monitor": "val_loss", "save_top_k": 2}
    if settings.asynchronous:
        by_step["asynchronous"] = best["asynchronous"] = True
    if settings.only_one:
        by_step["save_last"], best["save_top_k"] = False, 0
    if settings.framework != "leyden":  # which looks into the folders of earlier versions for "last"
        by_step["dirpath"] = best["dirpath"] = os.path.join(settings.folder, "checkpoints")
    return [
        Watching(),
        callbacks.EMAWeightAveraging(decay=0.9),
        callbacks.EarlyStopping("val_loss", patience=1000),
        callbacks.LearningRateMonitor("step"),
        callbacks.ModelCheckpoint(**by_step),
        callbacks.ModelCheckpoint(**best, save_on_train_epoch_end=False),
        WatchingEnd(),
    ]


def main(settings: Settings) -> None:
    """Train, from the last checkpoint if there is one."""
    framework = importlib.import_module(settings.framework)
    loggers = importlib.import_module(f"{settings.framework}.loggers")
    journal, watch = Journal(Path(settings.folder, "journal")), Watch(settings.moment, measures=settings.measures)
    framework.seed_everything(7)
    module, trained = build_module(settings, journal), {}
    trainer = framework.Trainer(
        accelerator="cpu",
        max_epochs=3,
        accumulate_grad_batches=1 if settings.mode == "manual" else WINDOW,
        val_check_interval=4,
        log_every_n_steps=1,
        logger=loggers.CSVLogger(settings.folder, "logs", flush_logs_every_n_steps=2),  # ahead of checkpoints
        callbacks=build_callbacks(settings, watch, journal, trained),
        default_root_dir=settings.folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.save_checkpoint = _watched_save(trainer.save_checkpoint, module, watch, journal)
    training = DataLoader(Augmented(SAMPLES, 1), batch_size=4, shuffle=True, num_workers=settings.workers)
    trainer.fit(module, training, DataLoader(Augmented(8, 2), batch_size=3), ckpt_path="last")
    state = final_state(trainer, module, trained)
    if settings.measures:
        state["moments"] = {kind: (watch.begun[kind], watch.longest[kind]) for kind in KINDS}
    torch.save(state, os.path.join(settings.folder, "final.pt"))


def _watched_save(save: Callable[..., Any], module: Any, watch: Watch, journal: Journal) -> Callable[..., Any]:
    """Saves, and notes of how many batches a file knows when it is there."""
    calls_back = "then" in inspect.signature(save).parameters

    def watched_save(*args: Any, then: Callable[[], Any] = lambda: None, **options: Any) -> None:
        trained = int(module.trained)

        def note() -> None:
            journal.note("saved", trained)
            then()  # which may delete older files

        with watched(watch, "save"):
            save(*args, **options, **({"then": note} if calls_back else {}))
            if not calls_back:
                note()

    return watched_save


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--mode", choices=MODES, default="one")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--framework", default="leyden")
    main(Settings(**vars(parser.parse_args())))
