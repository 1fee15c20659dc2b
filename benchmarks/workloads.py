"""The workloads of the benchmark, each as a hand-written step and as a module for a trainer.

Both sides of a workload do the same arithmetic in the same order, so their final weights must be equal to the
last bit. What they share (networks, losses, hyper-parameters) stands once, above; what differs is who drives
the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

BATCH_SIZE = 32
DISTINCT_BATCHES = 64
WINDOW = 4  # micro-batches per update of the accumulating workload
MAX_NORM = 1.0
LEARNING_RATE = 1e-3
LATENT = 16

Step = Callable[[int, Any], None]


class Batches:
    """A list of prebuilt batches that every contestant iterates in the same way.

    Not a plain list, because Lightning takes a list for several loaders, and not a DataLoader, whose time
    would be a good part of what is measured.
    """

    def __init__(self, batches: list[tuple[Tensor, ...]], total: int) -> None:
        self.batches = list(islice(cycle(batches), total))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(self.batches)


class Stopwatch:
    """Times ``steps`` whole steps after ``warmup``: from the start of one training step to that of another.

    Every contestant calls ``tick`` first thing in each training step, so what lies between two ticks is one
    full turn of its loop, and none of its set-up and tear-down.
    """

    def __init__(self, *, warmup: int, steps: int, seed: int, clock: Callable[[], float]) -> None:
        self.first, self.last = warmup + 1, warmup + 1 + steps
        self.seed, self.clock = seed, clock
        self.count = 0
        self.started = self.stopped = float("nan")

    @property
    def total(self) -> int:
        """Number of batches to feed: all steps and the closing tick, up to whole windows."""
        return -(-self.last // WINDOW) * WINDOW

    def tick(self) -> None:
        self.count += 1
        if self.count == self.first:
            self.started = self.clock()
        elif self.count == self.last:
            self.stopped = self.clock()
        elif self.count == 1:
            torch.manual_seed(self.seed)  # whatever random numbers a trainer's set-up has used

    def seconds_per_step(self) -> float:
        return (self.stopped - self.started) / (self.last - self.first)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One thing to be timed.

    Attributes:
        title: what the step does, for the report.
        batches: ``batches(n)`` makes n batches.
        by_hand: ``by_hand(watch)`` returns the model and a function ``step(index, batch)`` that trains it.
        module: ``module(base, watch)`` returns an instance of a subclass of the LightningModule ``base``.
        trainer_arguments: what the Trainer is told beyond the common arguments.
        parts: ``parts(package, folder)`` makes further arguments from the trainer's own loggers and callbacks.
        stage: the Trainer's method that is timed.
        manual_only: contestants that can run this only by hand, hence not here.
    """

    title: str
    batches: Callable[[int], list[tuple[Tensor, ...]]]
    by_hand: Callable[[Stopwatch], tuple[nn.Module, Step]]
    module: Callable[[type, Stopwatch], Any]
    trainer_arguments: Mapping[str, Any] = field(default_factory=dict)
    parts: Callable[[Any, str], Mapping[str, Any]] = lambda package, folder: {}
    stage: str = "fit"
    manual_only: frozenset[str] = frozenset()


# -- what both sides share -----------------------------------------------------------------------------------


def labelled_batches(number: int) -> list[tuple[Tensor, ...]]:
    return [(torch.randn(BATCH_SIZE, 32), torch.randint(0, 2, (BATCH_SIZE,))) for _ in range(number)]


def unlabelled_batches(number: int) -> list[tuple[Tensor, ...]]:
    return [(torch.randn(BATCH_SIZE, 32),) for _ in range(number)]


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, outputs))


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=LEARNING_RATE)


def step_decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.StepLR:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=50, gamma=0.9)


class Adversaries(nn.Module):
    """Generator and discriminator of a small GAN, and what each of them minimises."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = perceptron(LATENT, 32)
        self.discriminator = perceptron(32, 1)
        self.ones = torch.ones(BATCH_SIZE, 1)
        self.zeros = torch.zeros(BATCH_SIZE, 1)

    def generate(self) -> Tensor:
        return self.generator(torch.randn(BATCH_SIZE, LATENT))

    def generator_loss(self, fake: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(self.discriminator(fake), self.ones)

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        real_loss = binary_cross_entropy_with_logits(self.discriminator(real), self.ones)
        return real_loss + binary_cross_entropy_with_logits(self.discriminator(fake.detach()), self.zeros)


# -- mlp: one optimizer, nothing else ------------------------------------------------------------------------


def mlp_by_hand(watch: Stopwatch) -> tuple[nn.Module, Step]:
    model = perceptron(32, 2)
    optimizer = adam(model.parameters())

    def step(index: int, batch: Any) -> None:
        watch.tick()
        inputs, targets = batch
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return model, step


def mlp_module(base: Any, watch: Stopwatch) -> Any:
    class Plain(base):
        def __init__(self) -> None:
            super().__init__()
            self.model = perceptron(32, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            watch.tick()
            inputs, targets = batch
            return cross_entropy(self.model(inputs), targets)

        def configure_optimizers(self) -> Any:
            return adam(self.model.parameters())

    return Plain()


# -- gan: two optimizers take turns on each batch, the other one's parameters frozen meanwhile ---------------


def gan_by_hand(watch: Stopwatch) -> tuple[nn.Module, Step]:
    gan = Adversaries()
    generator_parameters = list(gan.generator.parameters())
    discriminator_parameters = list(gan.discriminator.parameters())
    generator_optimizer = adam(generator_parameters)
    discriminator_optimizer = adam(discriminator_parameters)

    def step(index: int, batch: Any) -> None:
        watch.tick()
        (real,) = batch

        for parameter in discriminator_parameters:
            parameter.requires_grad_(False)
        loss = gan.generator_loss(gan.generate())
        generator_optimizer.zero_grad()
        loss.backward()
        generator_optimizer.step()
        for parameter in discriminator_parameters:
            parameter.requires_grad_(True)

        for parameter in generator_parameters:
            parameter.requires_grad_(False)
        loss = gan.discriminator_loss(real, gan.generate())
        discriminator_optimizer.zero_grad()
        loss.backward()
        discriminator_optimizer.step()
        for parameter in generator_parameters:
            parameter.requires_grad_(True)

    return gan, step


def gan_module(base: Any, watch: Stopwatch) -> Any:
    class Alternating(base):
        def __init__(self) -> None:
            super().__init__()
            self.gan = Adversaries()

        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Tensor:
            gan = self.gan
            if optimizer_idx == 0:
                watch.tick()
                return gan.generator_loss(gan.generate())
            (real,) = batch
            return gan.discriminator_loss(real, gan.generate())

        def configure_optimizers(self) -> Any:
            return [adam(self.gan.generator.parameters()), adam(self.gan.discriminator.parameters())]

    return Alternating()


# -- gan_manual: the user drives both optimizers -------------------------------------------------------------


def gan_manual_by_hand(watch: Stopwatch) -> tuple[nn.Module, Step]:
    gan = Adversaries()
    generator_optimizer = adam(gan.generator.parameters())
    discriminator_optimizer = adam(gan.discriminator.parameters())

    def step(index: int, batch: Any) -> None:
        watch.tick()
        (real,) = batch
        fake = gan.generate()

        loss = gan.discriminator_loss(real, fake)
        discriminator_optimizer.zero_grad()
        loss.backward()
        discriminator_optimizer.step()

        loss = gan.generator_loss(fake)
        generator_optimizer.zero_grad()
        loss.backward()
        generator_optimizer.step()

    return gan, step


def gan_manual_module(base: Any, watch: Stopwatch) -> Any:
    class Manual(base):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.gan = Adversaries()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            watch.tick()
            generator_optimizer, discriminator_optimizer = self.optimizers()
            gan = self.gan
            (real,) = batch
            fake = gan.generate()

            loss = gan.discriminator_loss(real, fake)
            discriminator_optimizer.zero_grad()
            self.manual_backward(loss)
            discriminator_optimizer.step()

            loss = gan.generator_loss(fake)
            generator_optimizer.zero_grad()
            self.manual_backward(loss)
            generator_optimizer.step()

        def configure_optimizers(self) -> Any:
            return [adam(self.gan.generator.parameters()), adam(self.gan.discriminator.parameters())]

    return Manual()


# -- accumulate: four micro-batches per update, gradient norm clipped, learning rate scheduled per update ----


def accumulate_by_hand(watch: Stopwatch) -> tuple[nn.Module, Step]:
    model = perceptron(32, 2)
    parameters = list(model.parameters())
    optimizer = adam(parameters)
    scheduler = step_decay(optimizer)

    def step(index: int, batch: Any) -> None:
        watch.tick()
        inputs, targets = batch
        loss = cross_entropy(model(inputs), targets) / WINDOW
        if index % WINDOW == 0:
            optimizer.zero_grad()
        loss.backward()
        if (index + 1) % WINDOW == 0:
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()
            scheduler.step()

    return model, step


def accumulate_module(base: Any, watch: Stopwatch) -> Any:
    class Accumulating(base):
        def __init__(self) -> None:
            super().__init__()
            self.model = perceptron(32, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            watch.tick()
            inputs, targets = batch
            return cross_entropy(self.model(inputs), targets)

        def configure_optimizers(self) -> Any:
            optimizer = adam(self.model.parameters())
            return [optimizer], [{"scheduler": step_decay(optimizer), "interval": "step"}]

    return Accumulating()


# -- logged, busy: the mlp beside what a research run has on. The hand-written loop has nothing of it ----------


def logged_module(base: Any, watch: Stopwatch) -> Any:
    class Logged(base):
        def __init__(self) -> None:
            super().__init__()
            self.model = perceptron(32, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            watch.tick()
            inputs, targets = batch
            loss = cross_entropy(self.model(inputs), targets)
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return adam(self.model.parameters())

    return Logged()


def busy_module(base: Any, watch: Stopwatch) -> Any:
    class Busy(base):
        def __init__(self) -> None:
            super().__init__()
            self.model = perceptron(32, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            watch.tick()
            inputs, targets = batch
            loss = cross_entropy(self.model(inputs), targets)
            value = loss.detach()
            self.log("loss", value, prog_bar=True, on_step=True, on_epoch=True)
            for name in VALUES:
                self.log(name, value, on_step=True, on_epoch=True)
            return loss

        def configure_optimizers(self) -> Any:
            return adam(self.model.parameters())

    return Busy()


VALUES = [f"value_{index}" for index in range(9)]


def bar_and_csv(package: Any, folder: str) -> dict[str, Any]:
    return {"logger": package.loggers.CSVLogger(folder), "enable_progress_bar": True}


def five_callbacks(package: Any, folder: str) -> dict[str, Any]:
    class Watcher(package.Callback):
        """One of a user's own, with the two hooks that are overridden most."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.started = batch_idx

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.ended = batch_idx

    parts = package.callbacks
    callbacks = [
        parts.LearningRateMonitor(logging_interval="step"),
        parts.EarlyStopping("loss_epoch"),
        parts.Timer(duration="01:00:00:00"),
        parts.GradientAccumulationScheduler({0: 1}),
        Watcher(),
    ]
    return {**bar_and_csv(package, folder), "callbacks": callbacks}


# -- validate: forward, loss, one logged mean ------------------------------------------------------------------


def validate_by_hand(watch: Stopwatch) -> tuple[nn.Module, Step]:
    model = perceptron(32, 2).eval()
    model.total, model.count = torch.zeros(()), 0  # type: ignore[assignment]

    def step(index: int, batch: Any) -> None:
        watch.tick()
        inputs, targets = batch
        model.total += cross_entropy(model(inputs), targets) * len(inputs)
        model.count += len(inputs)

    return model, step


def validate_module(base: Any, watch: Stopwatch) -> Any:
    class Validated(base):
        def __init__(self) -> None:
            super().__init__()
            self.model = perceptron(32, 2)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            watch.tick()
            inputs, targets = batch
            self.log("loss", cross_entropy(self.model(inputs), targets))

    return Validated()


WORKLOADS: dict[str, Workload] = {
    "mlp": Workload(
        title="one optimizer: two linear layers, batch 32, Adam",
        batches=labelled_batches,
        by_hand=mlp_by_hand,
        module=mlp_module,
    ),
    "gan": Workload(
        title="GAN, two optimizers taking turns in automatic mode (a step is both updates)",
        batches=unlabelled_batches,
        by_hand=gan_by_hand,
        module=gan_module,
        manual_only=frozenset({"lightning"}),
    ),
    "gan_manual": Workload(
        title="GAN, two optimizers in manual mode (a step is both updates)",
        batches=unlabelled_batches,
        by_hand=gan_manual_by_hand,
        module=gan_manual_module,
    ),
    "accumulate": Workload(
        title="accumulation over 4 batches, norm clipping, StepLR per update (a step is one batch)",
        batches=labelled_batches,
        by_hand=accumulate_by_hand,
        module=accumulate_module,
        trainer_arguments={"accumulate_grad_batches": WINDOW, "gradient_clip_val": MAX_NORM},
    ),
    "logged": Workload(
        title="the mlp with one self.log, a progress bar and a CSV logger, beside the bare hand-written loop",
        batches=labelled_batches,
        by_hand=mlp_by_hand,
        module=logged_module,
        parts=bar_and_csv,
    ),
    "busy": Workload(
        title="the mlp with ten logged values, five callbacks, bar and CSV, beside the bare hand-written loop",
        batches=labelled_batches,
        by_hand=mlp_by_hand,
        module=busy_module,
        parts=five_callbacks,
    ),
    "validate": Workload(
        title="validation: forward, loss, the mean of it logged",
        batches=labelled_batches,
        by_hand=validate_by_hand,
        module=validate_module,
        stage="validate",
    ),
}
