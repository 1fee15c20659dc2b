"""The table of cases: what is trained, and how.

A case is a kind of module, its optimizers, and a point on four axes: accumulation, clipping, scheduler, precision. A
kind is a mixin without a framework: ``build(case, base)`` puts it on leyden's ``LightningModule``, on Lightning's, or
on a plain ``nn.Module`` for the loop written by hand, which stands under the same name in ``twins.py``.

A new optimizer, or a new pair of them, is one line in ``OPTIMIZERS`` or ``PAIRS``; it meets all points of the axes
and gets every property in ``test_twins.py`` and ``test_lightning.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from leyden import Joint

EPOCHS = 2

Batch = tuple[Tensor, Tensor]
Make = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """A point on the axes.

    Attributes:
        accumulate: micro-batches of a window.
        clip: algorithm and value, or None.
        schedule: interval of the schedulers, one for each optimizer; None for none.
        precision: the Trainer's argument.
    """

    accumulate: int = 1
    clip: tuple[str, float] | None = None
    schedule: str | None = None
    precision: str = "32-true"

    def __str__(self) -> str:
        clip = "no clip" if self.clip is None else self.clip[0]
        return f"{self.accumulate}, {clip}, {self.schedule or 'no schedule'}, {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table.

    Attributes:
        name: of the optimizers.
        kind: mixin with networks, losses and the steps of a module.
        makes: builds each optimizer from the parameters of its network.
        options: the point on the axes.
        batches: in an epoch, of two samples each.
        draws: whether the run draws random numbers (dropout, shuffling).
    """

    name: str
    kind: type[Any]
    makes: tuple[Make, ...]
    options: Options = field(default_factory=Options)
    batches: int = 5
    draws: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.options}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The Trainer's, as far as the case decides about them."""
        options, automatic = self.options, self.kind.automatic_optimization
        arguments: dict[str, Any] = {"max_epochs": EPOCHS, "precision": options.precision}
        if automatic:
            arguments["accumulate_grad_batches"] = options.accumulate
        if automatic and options.clip is not None:
            arguments["gradient_clip_algorithm"], arguments["gradient_clip_val"] = options.clip
        return arguments


# ------------------------------------------------------------------------------------------------------------ kinds


class Kind:
    """What all kinds have in common.

    Attributes:
        is_one_big_batch: whether a window could as well be one batch. It could not where an optimizer moves weights
            that are in another one's loss: on a window's last micro-batch the second one meets the new weights.
        trace: loss and learning rates at every micro-batch.
        made: the optimizers of the run.
        schedulers: of the run, one for each optimizer that has groups of its own.
    """

    automatic_optimization = True
    is_one_big_batch = False

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.trace: list[Any] = []
        self.made: list[Any] = []
        self.schedulers: list[Any] = []
        dropout = [nn.Dropout(0.3)] if case.draws else []
        self.first = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *dropout, nn.Linear(4, 1))
        self.second = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))

    def loss(self, batch: Batch, index: int = 0) -> Tensor:
        """The loss of the optimizer at ``index``; keeps the trace."""
        loss = self.compute(batch, index)
        rates = [float(group["lr"]) for optimizer in self.made for group in optimizer.param_groups]
        self.trace.append((loss.item(), *rates))
        return loss

    def compute(self, batch: Batch, index: int) -> Tensor:
        """By default one network that fits the data."""
        x, y = batch
        return mse_loss(self.first(x), y)

    def make_optimizers(self) -> list[Any]:
        """One for each network."""
        networks = (self.first, self.second)
        self.made = [make(network.parameters()) for make, network in zip(self.case.makes, networks, strict=False)]
        return self.made

    def make_schedulers(self) -> list[Any]:
        """One for each optimizer, a member of a Joint counting as one."""
        schedule = self.case.options.schedule
        if schedule is not None:
            members = [m for o in self.made for m in (o.optimizers if isinstance(o, Joint) else (o,))]
            build = {"step": lambda o: ExponentialLR(o, 0.8), "epoch": lambda o: StepLR(o, 1, 0.5)}[schedule]
            self.schedulers = [build(member) for member in members]
        return self.schedulers

    def configure_optimizers(self) -> Any:
        """The optimizers in turn, and their schedulers."""
        optimizers = self.make_optimizers()
        interval = self.case.options.schedule
        return optimizers, [{"scheduler": s, "interval": interval} for s in self.make_schedulers()]

    def logged(self: Any, batch: Batch, index: int = 0) -> Tensor:
        """The loss, logged."""
        loss: Tensor = self.loss(batch, index)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss


class Alone(Kind):
    """One optimizer that evaluates its closure once."""

    is_one_big_batch = True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.logged(batch)


class Replaying(Alone):
    """One optimizer that evaluates its closure several times."""


class Skipping(Kind):
    """Some micro-batches have no loss."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        return None if self.skips(batch_idx) else self.logged(batch)

    def skips(self, batch_idx: int) -> bool:
        return batch_idx % 3 == 1


class Weighing(Kind):
    """Micro-batches have weights: a tensor of one element for each."""

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.logged(batch), "weight": self.weigh(batch)}

    def weigh(self, batch: Batch) -> Tensor:
        return (batch[1] > 0).sum() + 1


class Players(Kind):
    """Two networks; each loss goes through both."""

    def compute(self, batch: Batch, index: int) -> Tensor:
        x, y = batch
        a = self.first(x)
        return mse_loss(self.second(a), y) if index == 0 else (self.second(a) - a).abs().mean()


class Alternating(Players):
    """They take turns on every batch."""

    def training_step(self, batch: Batch, batch_idx: int, optimizer_idx: int) -> Tensor:
        return self.logged(batch, optimizer_idx)


class SideBySide(Alternating):
    """Two networks that have nothing to do with each other."""

    is_one_big_batch = True

    def compute(self, batch: Batch, index: int) -> Tensor:
        x, y = batch
        return mse_loss(self.first(x), y) if index == 0 else mse_loss(self.second(y), x[:, :1])


class Gan(Alternating):
    """A generator and a discriminator."""

    def compute(self, batch: Batch, index: int) -> Tensor:
        x, real = batch
        guess = self.second(self.first(x))
        if index == 0:
            return binary_cross_entropy_with_logits(guess, torch.ones_like(guess))
        fake = binary_cross_entropy_with_logits(self.second(self.first(x).detach()), torch.zeros_like(guess))
        return (binary_cross_entropy_with_logits(self.second(real), torch.ones_like(guess)) + fake) / 2


class Frequent(Alternating):
    """One batch for the first, two for the second, and so on, across epochs."""

    FREQUENCIES = (1, 2)

    def configure_optimizers(self) -> Any:
        optimizers = self.make_optimizers()
        schedulers: list[Any] = self.make_schedulers() or [None, None]
        interval = self.case.options.schedule
        return [
            {
                "optimizer": optimizer,
                "frequency": frequency,
                "lr_scheduler": scheduler and {"scheduler": scheduler, "interval": interval},
            }
            for optimizer, scheduler, frequency in zip(optimizers, schedulers, self.FREQUENCIES, strict=True)
        ]


class Together(Players):
    """A Joint: one backward, two steps."""

    is_one_big_batch = True

    def make_optimizers(self) -> list[Any]:
        self.made = [Joint(super().make_optimizers())]
        return self.made

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.logged(batch)


class Nested(Alternating):
    """A Joint takes turns with another optimizer."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.third = nn.Linear(3, 1)

    def compute(self, batch: Batch, index: int) -> Tensor:
        x, y = batch
        return mse_loss(self.second(self.first(x)), (y, self.third(x))[index])

    def make_optimizers(self) -> list[Any]:
        joint = Joint(super().make_optimizers())
        self.made = [joint, self.case.makes[0](self.third.parameters())]
        return self.made


class ByHand(Players):
    """Manual mode: both are updated, one after the other, in one training_step."""

    automatic_optimization = False

    def training_step(self: Any, batch: Batch, batch_idx: int) -> None:
        options = self.case.options
        for index, optimizer in enumerate(self.optimizers()):
            with self.toggled_optimizer(optimizer):
                if options.accumulate == 1:
                    optimizer.zero_grad()
                    self.manual_backward(self.logged(batch, index))
                else:
                    with self.accumulate(optimizer, options.accumulate) as window:
                        self.manual_backward(self.logged(batch, index))
                    if not window.closes:
                        continue
                if options.clip is not None:
                    algorithm, value = options.clip
                    self.clip_gradients(optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm)
                optimizer.step()
                if options.schedule == "step":
                    self.schedulers[index].step()

    def on_train_epoch_end(self) -> None:
        if self.case.options.schedule == "epoch":
            for scheduler in self.schedulers:
                scheduler.step()


# ------------------------------------------------------------------------------------------------------- optimizers


class SAM(optim.Optimizer):
    """Sharpness-aware minimisation: to the top of the hill first, then a step with the gradient from there."""

    def __init__(self, params: Any, lr: float, rho: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base = optim.SGD(self.param_groups, lr=lr, momentum=0.9)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        loss = closure()
        for group in self.param_groups:
            norm = torch.stack([p.grad.norm() for p in group["params"]]).norm()
            for p in group["params"]:
                self.state[p]["before"] = p.clone()
                p.add_(p.grad * (group["rho"] / norm))
        closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["before"])
        self.base.step()
        return loss


def lbfgs(params: Any) -> optim.LBFGS:
    return optim.LBFGS(params, lr=0.5, max_iter=4, history_size=3, line_search_fn="strong_wolfe")


def groups(params: Any) -> optim.SGD:
    matrices, vectors = [], []
    for p in params:
        (matrices if p.ndim == 2 else vectors).append(p)
    return optim.SGD([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr": 0.2}], lr=0.1)


#: Every dense optimizer of torch, some in several forms.
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd maximize": lambda p: optim.SGD(p, lr=0.02, maximize=True),
    "sgd groups": groups,
    "adam": lambda p: optim.Adam(p, lr=0.02),
    "adam amsgrad": lambda p: optim.Adam(p, lr=0.02, amsgrad=True),
    "adam fused": lambda p: optim.Adam(p, lr=0.02, fused=True),
    "adam with a tensor as rate": lambda p: optim.Adam(p, lr=torch.tensor(0.02)),
    "adamw": lambda p: optim.AdamW(p, lr=0.02),
    "adamw foreach": lambda p: optim.AdamW(p, lr=0.02, foreach=True),
    "nadam": lambda p: optim.NAdam(p, lr=0.02),
    "radam": lambda p: optim.RAdam(p, lr=0.02),
    "adamax": lambda p: optim.Adamax(p, lr=0.02),
    "asgd": lambda p: optim.ASGD(p, lr=0.1),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, centered=True, momentum=0.9),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.05),
}
if hasattr(optim, "Muon"):  # torch >= 2.9
    OPTIMIZERS["muon"] = lambda p: optim.Muon([q for q in p if q.ndim == 2], lr=0.02)

#: Optimizers that evaluate their closure several times.
REPLAYING: dict[str, Make] = {"lbfgs": lbfgs, "sam": lambda p: SAM(p, lr=0.1)}

SGD, ADAM = OPTIMIZERS["sgd nesterov"], OPTIMIZERS["adam"]

#: Modules with two optimizers.
PAIRS: dict[str, tuple[type[Any], Make, Make]] = {
    "alternating": (Alternating, ADAM, SGD),
    "side by side": (SideBySide, SGD, ADAM),
    "gan": (Gan, ADAM, ADAM),
    "frequencies": (Frequent, SGD, ADAM),
    "joint": (Together, OPTIMIZERS["adamw foreach"], SGD),
    "nested": (Nested, ADAM, SGD),
    "manual": (ByHand, SGD, ADAM),
}

#: Modules that need no more than some points of the axes.
SPECIAL: dict[str, Case] = {
    "dropout and shuffling": Case(name="dropout and shuffling", kind=Alone, makes=(ADAM,), draws=True),
    "dropout, alternating": Case(name="dropout, alternating", kind=Alternating, makes=(ADAM, SGD), draws=True),
    "no loss": Case(name="no loss", kind=Skipping, makes=(ADAM,)),
    "weights": Case(name="weights", kind=Weighing, makes=(ADAM,)),
}


# ------------------------------------------------------------------------------------------------------------- axes

ACCUMULATE = (1, 3)  # five batches: the last window of three is short
CLIP = (None, ("norm", 0.5), ("value", 0.1))
SCHEDULE = (None, "step", "epoch")
PRECISION = ("32-true", "bf16-mixed")


def points(clip: Any = CLIP, accumulate: Any = ACCUMULATE) -> Iterator[Options]:
    """All points of the axes."""
    for a, c, s, p in product(accumulate, clip, SCHEDULE, PRECISION):
        yield Options(accumulate=a, clip=c, schedule=s, precision=p)


def _table() -> Iterator[Case]:
    for name, make in OPTIMIZERS.items():
        yield from (Case(name=name, kind=Alone, makes=(make,), options=o) for o in points())
    for name, make in REPLAYING.items():
        yield from (Case(name=name, kind=Replaying, makes=(make,), options=o) for o in points(CLIP[:2]))
    for name, (kind, *makes) in PAIRS.items():
        # With frequencies and accumulation some optimizers never step (R65).
        accumulate = (1,) if kind is Frequent else ACCUMULATE
        for options in points(CLIP[:2], accumulate):
            yield Case(name=name, kind=kind, makes=tuple(makes), options=options)
    for case in SPECIAL.values():
        yield from (replace(case, options=o) for o in points(CLIP[:2]))


#: The table.
CASES: Mapping[str, Case] = {str(case): case for case in _table()}


# ------------------------------------------------------------------------------------------------------ what is run


@functools.cache
def _class(kind: type[Any], base: type[Any]) -> type[Any]:
    return type(kind.__name__, (kind, base), {})


def build(case: Case, base: type[Any]) -> Any:
    """The module of a case on a base class: always with the same weights."""
    seed(1)
    return _class(case.kind, base)(case)


def seed(value: int) -> None:
    """``torch.manual_seed`` for the CPU alone: ten times as fast, and nothing is kept for devices to come."""
    torch.default_generator.manual_seed(value)


@functools.cache
def samples(count: int) -> Batch:
    """``count`` samples of one data set."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, 3, generator=generator)
    return x, x.sum(1, keepdim=True).sin()


def data(case: Case) -> DataLoader[Any]:
    """The loader of a case; one that shuffles draws from the global generator."""
    dataset = TensorDataset(*samples(2 * case.batches))
    if case.draws:
        return DataLoader(dataset, batch_size=2, shuffle=True)
    return DataLoader(dataset, batch_size=2, generator=torch.Generator())


def merged(case: Case) -> list[Any]:
    """The same data with one batch for each window."""
    batches = list(data(case))
    windows = [batches[i : i + case.options.accumulate] for i in range(0, len(batches), case.options.accumulate)]
    return [tuple(torch.cat(parts) for parts in zip(*window, strict=True)) for window in windows]
