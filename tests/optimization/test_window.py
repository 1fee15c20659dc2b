"""Accumulation windows: rules R111-R115 and departures V2 (exact windows), V3 (no loss) and V5 (replayed windows)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

from given import Given, Manual, Unsized, fit, given, seeded
from leyden import Joint, LightningModule, MisconfigurationException, Trainer
from leyden.callbacks import GradientAccumulationScheduler
from leyden.errors import InvalidValueError
from leyden.optimization.window import Window
from leyden.strategies import SingleDeviceStrategy

NO_LOSS = math.nan  # a batch for which training_step returns None


class Skipping(Given):
    """Returns None for a batch that is not a number; remembers the gradients that each update finds."""

    def loss(self, batch: Tensor) -> Any:
        return None if batch.isnan().any() else super().loss(batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.append(None if self.weight.grad is None else self.weight.grad.tolist())


class Weighted(Given):
    """A batch is the gradient of its mean loss and the number of things that this is a mean of."""

    def training_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Any:
        gradient, weight = batch
        return {"loss": self.loss(gradient), "weight": weight}


def sized(*batches: Any) -> list[Any]:
    return list(batches)


@pytest.fixture(params=[sized, lambda *batches: Unsized(batches)], ids=["sized", "unsized"])
def loader(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a loader of batches: one whose length is known beforehand, and one that just ends."""
    return request.param  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------- R111, R112: the argument


@pytest.mark.parametrize("batches", [0, -1, 1.5, "2", True, [2]], ids=str)
def test_what_is_no_number_of_batches_is_refused(batches: Any) -> None:
    """R111: an int >= 1, a dict or None, else a MisconfigurationException that names the value."""
    with pytest.raises(MisconfigurationException, match="accumulate_grad_batches=.* must be an int >= 1"):
        Trainer(accumulate_grad_batches=batches, max_epochs=1)


@pytest.mark.parametrize("batches", [None, 1])
def test_none_and_one_accumulate_nothing(batches: Any) -> None:
    """R111: None means 1."""
    module = Given()
    assert fit(module, given(1.0, 2.0), accumulate_grad_batches=batches).accumulate_grad_batches == 1
    assert module.gradients == [[1.0], [2.0]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"accumulate_grad_batches": {1: 2, 2: 4}},
        {"callbacks": [GradientAccumulationScheduler({1: 2, 2: 4})]},
    ],
    ids=["argument", "callback"],
)
def test_a_schedule_takes_effect_with_its_epoch(arguments: dict[str, Any]) -> None:
    """R111, R112: the factor of the greatest key <= epoch, 1 before the first one."""
    module = Given()
    fit(module, given(1.0, 3.0, 5.0, 7.0), max_epochs=4, **arguments)
    assert module.gradients == [[1.0], [3.0], [5.0], [7.0], [2.0], [6.0], [4.0], [4.0]]


def test_an_empty_schedule_is_refused() -> None:
    """R112: an empty dict is a TypeError."""
    with pytest.raises(TypeError, match="accumulation-schedule"):
        Trainer(accumulate_grad_batches={}, max_epochs=1)


def test_two_numbers_for_one_thing_are_refused_when_training_starts() -> None:
    """R112: both an argument and a callback: a MisconfigurationException that is a ValueError, too."""
    with pytest.raises(ValueError, match="accumulation-twice") as caught:
        fit(Given(), given(1.0), accumulate_grad_batches=2, callbacks=[GradientAccumulationScheduler({0: 2})])
    assert isinstance(caught.value, MisconfigurationException)


# --------------------------------------------------------------------------------- R113, R114: where windows close


@pytest.mark.parametrize(
    ("count", "every", "steps"),
    [(6, 3, [2, 5]), (5, 3, [2, 4]), (4, 3, [2, 3]), (2, 3, [1]), (1, 3, [0]), (3, 1, [0, 1, 2])],
)
def test_a_window_closes_when_it_is_full_or_the_epoch_ends(
    loader: Any, count: int, every: int, steps: list[int]
) -> None:
    """R113: and the next one begins with the next epoch; zero_grad runs on the first batch of each."""
    zeroed, stepped = [], []

    class Model(Given):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            zeroed.append((epoch, batch_idx))
            optimizer.zero_grad()

        def on_before_optimizer_step(self, optimizer):
            stepped.append((self.trainer.current_epoch, len(self.weights) % count))

    with pytest.warns(UserWarning, match="accumulation-override") if every > 1 else nullcontext():
        trainer = fit(Model(), loader(*given(*[1.0] * count)), max_epochs=2, accumulate_grad_batches=every)
    assert stepped == [(epoch, batch) for epoch in range(2) for batch in steps]
    firsts = [0, *(step + 1 for step in steps[:-1])]
    assert zeroed == [(epoch, batch) for epoch in range(2) for batch in firsts]
    assert trainer.global_step == trainer.num_updates == 2 * len(steps)


def test_a_limit_of_batches_ends_the_epoch_and_its_last_window(loader: Any) -> None:
    """R113 (R29): limit_train_batches counts, and with V2 the window that it cuts has its true size."""
    module = Given()
    data = loader(*given(1.0, 3.0, 8.0, 100.0))
    fit(module, data, accumulate_grad_batches=2, limit_train_batches=3)
    assert module.gradients == [[2.0], [8.0]]


def test_a_validation_in_the_middle_of_a_window_leaves_its_gradients_alone(loader: Any) -> None:
    """R113 (R44): gradients are cleared before a validation only where no window is open."""

    class Model(Given):
        def validation_step(self, batch, batch_idx):
            self.events.append(None if self.weight.grad is None else self.weight.grad.item())

    module = Model()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_progress_bar=False,
        accumulate_grad_batches=3,
        val_check_interval=1,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, loader(*given(3.0, 6.0, 9.0, 5.0)), given(0.0))
    assert module.gradients == [[6.0], [5.0]]
    assert module.events == [1.0, 3.0, None, None]


def test_backward_and_outputs_see_the_divided_loss() -> None:
    """R114: the loss is divided out of place, by the true size of its window (V2)."""
    seen: dict[str, list[float]] = {"backward": [], "returned": [], "outputs": []}

    class Model(Given):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch) + 12
            seen["returned"].append(loss)
            return loss

        def on_before_backward(self, loss):
            seen["backward"].append(loss.item())

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen["outputs"].append(outputs["loss"].item())
            assert not outputs["loss"].requires_grad

    fit(Model(), given(*[0.0] * 5), accumulate_grad_batches=3)
    assert seen["backward"] == seen["outputs"] == [4.0, 4.0, 4.0, 6.0, 6.0]
    assert [loss.item() for loss in seen["returned"]] == [12.0] * 5


class Reducing(SingleDeviceStrategy):  # type: ignore[misc]  # final for users; a stand-in for many processes here
    """Notes when gradients would be reduced over processes, and when that is held back."""

    reduces_gradients = True

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []
        self.blocked = False

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self.blocked = True
        try:
            yield
        finally:
            self.blocked = False

    def gradients_ready(self, parameters: Any) -> None:
        self.events.append("reduced")


def test_gradients_are_not_reduced_while_they_accumulate() -> None:
    """R115: sync is blocked on accumulating batches, and each window is reduced once, before hooks see it."""
    strategy = Reducing()

    class Model(Given):
        def training_step(self, batch, batch_idx):
            strategy.events.append((batch_idx, strategy.blocked))
            return self.loss(batch)

        def on_after_backward(self):
            strategy.events.append(strategy.blocked)

        def on_before_optimizer_step(self, optimizer):
            strategy.events.append("step")

    fit(Model(), given(1.0, 2.0, 3.0), accumulate_grad_batches=2, strategy=strategy)
    open_window = [(0, True), True, (1, False), False, "reduced", "step"]
    assert strategy.events == [*open_window, (2, False), False, "reduced", "step"]


# ------------------------------------------------------------------------------------ V2: the k-fold batch, exactly


class Regression(LightningModule):
    """A small network in double precision, so that the order of a sum hardly shows."""

    def __init__(self, optimizer: Callable[..., Any] = Adam) -> None:
        super().__init__()
        self.net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))).double()
        self.make = optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters(), lr=0.05)


class CountingSamples(Regression):
    """Says how many samples its loss is a mean of."""

    count: Callable[[int], Any] = int

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "weight": self.count(len(batch[0]))}


def micro_batches(sizes: list[int]) -> list[Any]:
    def build() -> list[Any]:
        x = torch.randn(sum(sizes), 3, dtype=torch.float64)
        y = x.sum(1, keepdim=True).sin()
        return list(zip(x.split(sizes), y.split(sizes), strict=True))

    return seeded(build, 5)  # type: ignore[no-any-return]


def merged(batches: list[Any], every: int) -> list[Any]:
    """One big batch for each window."""
    windows = [batches[i : i + every] for i in range(0, len(batches), every)]
    return [tuple(torch.cat(parts) for parts in zip(*window, strict=True)) for window in windows]


@pytest.mark.parametrize("make", [SGD, Adam], ids=lambda make: make.__name__)
@pytest.mark.parametrize(("count", "every"), [(6, 3), (5, 3), (4, 3), (2, 3), (7, 2)])
def test_k_micro_batches_are_one_k_fold_batch(loader: Any, count: int, every: int, make: Any) -> None:
    """V2: also in the last short window, whether or not it is known beforehand to be short."""
    small, big = Regression(make), Regression(make)
    batches = micro_batches([2] * count)
    fit(small, loader(*batches), max_epochs=2, accumulate_grad_batches=every)
    fit(big, merged(batches, every), max_epochs=2)
    assert_close(small, big)


def assert_close(left: nn.Module, right: nn.Module) -> None:
    """Equal but for the rounding of sums in double precision, which a few steps amplify."""
    for name, value in left.state_dict().items():
        torch.testing.assert_close(value, right.state_dict()[name], rtol=1e-10, atol=1e-12, msg=name)


def test_the_last_short_window_has_the_bits_of_its_true_size() -> None:
    """V2: where the length is known nothing is corrected afterwards: the loss is divided by 2, not by 3."""
    module, twin = Regression(), Regression()
    batches = micro_batches([2] * 5)
    fit(module, batches, accumulate_grad_batches=3)
    optimizer = twin.configure_optimizers()
    for window in (batches[:3], batches[3:]):
        optimizer.zero_grad()
        for batch in window:
            (twin.training_step(batch, 0) / len(window)).backward()
        optimizer.step()
    for name, value in module.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


def test_repro_1_of_lightning_the_last_window_is_not_diluted(loader: Any) -> None:
    """V2: 5 batches with gradient 1 each, in windows of 4: both updates have gradient 1, not 1 and 0.25."""
    module = Given()
    fit(module, loader(*given(*[1.0] * 5)), accumulate_grad_batches=4)
    assert module.gradients == [[1.0], [1.0]]


@pytest.mark.parametrize("sizes", [[1, 5, 2], [3, 3, 1, 4], [4, 1]], ids=str)
@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("kind", [int, torch.tensor], ids=["number", "tensor"])
def test_weights_make_uneven_micro_batches_one_big_batch(loader: Any, sizes: list[int], every: int, kind: Any) -> None:
    """V2: {"loss", "weight"} with the number of samples gives the gradient of the mean over all samples.

    A tensor loses no digits of a loss in double precision.
    """
    small, big = CountingSamples(), Regression()
    small.count = kind
    batches = micro_batches(sizes)
    fit(small, loader(*batches), max_epochs=2, accumulate_grad_batches=every)
    fit(big, merged(batches, every), max_epochs=2)
    assert_close(small, big)


@pytest.mark.parametrize(
    "kind",
    [
        int,
        float,
        numpy.int64,
        numpy.float32,
        torch.tensor,
        lambda n: torch.tensor([float(n)]),
        lambda n: torch.tensor(n, dtype=torch.int32),
    ],
    ids=["int", "float", "int of numpy", "float of numpy", "tensor", "tensor of shape (1,)", "tensor of int32"],
)
def test_weights_may_be_numbers_or_tensors(loader: Any, kind: Callable[[int], Any]) -> None:
    """V2: 1 token with gradient 8 and 3 with gradient 4 make gradient 5; a short window of one keeps its own."""
    module = Weighted()
    one, three, two = (given(8.0)[0], kind(1)), (given(4.0)[0], kind(3)), (given(6.0)[0], kind(2))
    fit(module, loader(one, three, two), accumulate_grad_batches=2)
    assert module.gradients == [[5.0], [6.0]]


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["float", "tensor"])
def test_a_weight_alone_in_its_window_changes_no_bits(kind: Any) -> None:
    """V2: only shares matter; without accumulation the gradient is the loss's own."""
    module = Weighted()
    fit(module, [(given(0.1)[0], kind(7.0)), (given(0.3)[0], kind(0.1))])
    twin = -(torch.tensor([0.1]) + torch.tensor([0.3]))
    assert torch.equal(twin, module.weight)


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["float", "tensor"])
@pytest.mark.parametrize(("weights", "expected"), [((0, 3), 4.0), ((3, 0), 8.0), ((0, 0), 0.0)])
def test_a_weight_may_be_zero(kind: Any, weights: tuple[int, int], expected: float) -> None:
    """V2: a micro-batch without a token takes no part; a window without a token has gradient 0, not nan."""
    module = Weighted()
    fit(module, [(g, kind(float(w))) for g, w in zip(given(8.0, 4.0), weights, strict=True)], accumulate_grad_batches=2)
    assert module.weight.item() == pytest.approx(-expected)


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (-1, "'weight' is -1; it must be a finite number >= 0"),
        (math.nan, "'weight' is nan"),
        (math.inf, "'weight' is inf"),
        (1j, "'weight' is 1j"),
        ("3", "'weight' is '3'"),
        (True, "'weight' is True"),
        (torch.ones(2), r"'weight' is a tensor of shape \(2,\)"),
    ],
    ids=str,
)
def test_what_is_no_weight_is_refused(weight: Any, text: str) -> None:
    """V2: with a text that says what a weight is."""
    with pytest.raises(InvalidValueError, match=text) as caught:
        fit(Weighted(), [(given(1.0)[0], weight)])
    assert caught.value.code == "window-weight"


@pytest.mark.parametrize("weights", [(2, None), (None, 2)], ids=str)
def test_weights_for_a_part_of_a_window_are_refused(weights: Any) -> None:
    """V2: there is no telling what the others would weigh."""
    batches = [(gradient, weight) for gradient, weight in zip(given(1.0, 2.0), weights, strict=True)]
    with pytest.raises(InvalidValueError, match="window-mixed-weights"):
        fit(Weighted(), batches, accumulate_grad_batches=2)


def test_weights_and_extras_reach_their_places() -> None:
    """V2 (R53): the weight steers the window and is kept for on_train_batch_end, as other keys are."""
    seen = []

    class Model(Weighted):
        def training_step(self, batch, batch_idx):
            return {**super().training_step(batch, batch_idx), "accuracy": 0.5}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append(sorted(outputs))

    fit(Model(), [(given(1.0)[0], 3)])
    assert seen == [["accuracy", "loss", "weight"]]


def test_each_of_several_optimizers_has_its_own_weights() -> None:
    """V2: windows belong to optimizers, so their weights do, too."""

    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.pair = nn.ParameterList([torch.zeros(1), torch.zeros(1)])

        def training_step(self, batch, batch_idx, optimizer_idx):
            return {"loss": (self.pair[optimizer_idx] * batch[0]).sum(), "weight": batch[1][optimizer_idx]}

        def configure_optimizers(self):
            return [SGD([weight], lr=1.0) for weight in self.pair]

    module = Model()
    fit(module, [(given(8.0)[0], (1, 3)), (given(4.0)[0], (3, 1))], accumulate_grad_batches=2)
    assert [weight.item() for weight in module.pair] == [-5.0, -7.0]


def test_the_members_of_a_joint_share_their_window(loader: Any) -> None:
    """V2: one window, one true size, for all members."""

    class Model(Given):
        def configure_optimizers(self):
            self.other = nn.Parameter(torch.zeros(1))
            return Joint([SGD([self.weight], lr=1.0), SGD([self.other], lr=10.0)])

        def loss(self, batch):
            return ((self.weight + self.other) * batch).sum()

    module = Model()
    fit(module, loader(*given(1.0, 3.0, 5.0)), accumulate_grad_batches=2)
    assert (module.weight.item(), module.other.item()) == (-7.0, -70.0)


@pytest.mark.parametrize(("count", "losses", "factor"), [(3, 3, None), (3, 2, 1.5), (3, 1, 3.0), (3, 0, None)])
def test_a_window_is_corrected_by_what_was_unknown(count: int, losses: int, factor: float | None) -> None:
    """V2: in the plain case the factor is None, and nothing is multiplied."""
    window = Window()
    window.begin(count)
    for _ in range(losses):
        assert window.share(torch.tensor(6.0), None).item() == 2.0
    assert window.correction() == factor


# ----------------------------------------------------------------------------------------- V3: micro-batches without


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        ((NO_LOSS, 1.0), [1.0]),  # repro 5 of Lightning: 0.5
        ((1.0, NO_LOSS), [1.0]),
        ((2.0, NO_LOSS, 4.0), [3.0]),
        ((NO_LOSS, NO_LOSS, 4.0), [4.0]),
        ((NO_LOSS, 2.0, NO_LOSS), [2.0]),
    ],
    ids=str,
)
def test_a_micro_batch_without_a_loss_does_not_dilute_its_window(
    loader: Any, gradients: tuple[float, ...], expected: list[float]
) -> None:
    """V3: the window is the mean over the micro-batches that have a loss, wherever the others stand."""
    module = Skipping()
    with pytest.warns(UserWarning, match="training-step-none"):
        trainer = fit(module, loader(*given(*gradients)), accumulate_grad_batches=len(gradients))
    assert module.gradients == [expected]
    assert trainer.clocks.optimizers[0].skipped == {}


def test_a_short_window_may_lack_a_loss_as_well(loader: Any) -> None:
    """V2, V3: both corrections at once."""
    module = Skipping()
    with pytest.warns(UserWarning, match="training-step-none"):
        fit(module, loader(*given(1.0, 1.0, 1.0, 1.0, 3.0, NO_LOSS, 5.0)), accumulate_grad_batches=4)
    assert module.gradients == [[1.0], [4.0]]


def test_weights_and_missing_losses() -> None:
    """V2, V3: a weighted window without one of its micro-batches."""

    class Model(Weighted):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    module = Model()
    batches = [(g, w) for g, w in zip(given(8.0, 100.0, 4.0), (1, 50, 3), strict=True)]
    with pytest.warns(UserWarning, match="training-step-none"):
        fit(module, batches, accumulate_grad_batches=3)
    assert module.gradients == [[5.0]]


@pytest.mark.parametrize("every", [1, 2])
def test_a_window_without_any_loss_counts_as_skipped(every: int) -> None:
    """V3 (R52): its hooks and the raw step still run, zero_grad has run, and global_step counts it."""

    class Model(Skipping):
        def configure_optimizers(self):
            return CountingSGD(self.parameters(), lr=1.0)

    module = Model()
    data = [g for g in given(1.0, NO_LOSS, 3.0) for _ in range(every)]
    with pytest.warns(UserWarning, match="training-step-none"):
        trainer = fit(module, data, accumulate_grad_batches=every)
    assert module.gradients == [[1.0], [3.0]]
    assert module.events == [[1.0], None, [3.0]]
    assert module.optimizers(use_pl_optimizer=False).steps == 3
    assert trainer.global_step == 3
    clock = trainer.clocks.optimizers[0]
    assert (clock.attempted, clock.applied, clock.skipped) == (3, 2, {"no loss": 1})


class CountingSGD(SGD):
    """Counts calls of ``step``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return super().step(closure)


# --------------------------------------------------------------------------------- V5: closures replay their window


class SAM(Optimizer):
    """Sharpness-aware minimisation: to the top of the hill first, then a step with the gradient from there."""

    def __init__(self, params: Any, lr: float, rho: float = 0.5) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base = SGD(self.param_groups, lr=lr, momentum=0.9)

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


def small_lbfgs(params: Any, lr: float) -> LBFGS:
    return LBFGS(params, lr=lr, max_iter=4, history_size=3, line_search_fn="strong_wolfe")


CLOSURE_OPTIMIZERS = pytest.mark.parametrize("make", [SAM, LBFGS, small_lbfgs], ids=lambda make: make.__name__)


class Parabola(Given):
    """The square of the distance to the batch: its optimum over a window is the mean of the window."""

    def loss(self, batch: Tensor) -> Any:
        return (self.weight - batch).square().sum()

    def configure_optimizers(self) -> Any:
        return LBFGS(self.parameters(), lr=0.5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_repro_6_of_lightning_lbfgs_finds_the_optimum_of_the_window(precision: str) -> None:
    """V5: the optimum of (w - 1)**2 and (w - 4)**2 is 2.5; gradients that pile up end at 4."""
    module = Parabola()
    fit(module, given(1.0, 4.0), max_epochs=3, accumulate_grad_batches=2, precision=precision)
    assert module.weight.item() == pytest.approx(2.5, abs=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lbfgs_by_hand_finds_the_optimum_of_the_window(precision: str) -> None:
    """V5, in manual mode: the closure goes through the batches that the user has kept."""

    class Model(Parabola):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.window = []

        def training_step(self, batch, batch_idx):
            self.window.append(batch)
            if not (self.trainer.is_last_batch or len(self.window) == 2):
                return

            def closure():
                self.optimizers().zero_grad()
                losses = [self.loss(batch) / len(self.window) for batch in self.window]
                for loss in losses:
                    self.manual_backward(loss)
                return sum(losses)

            self.optimizers().step(closure)
            self.window.clear()

    module = Model()
    fit(module, given(1.0, 4.0), max_epochs=3, precision=precision)
    assert module.weight.item() == pytest.approx(2.5, abs=1e-3)


@CLOSURE_OPTIMIZERS
@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_evaluation_replays_the_whole_window(make: Any, every: int) -> None:
    """V5: bit for bit the loop in which the closure goes over all micro-batches of the window."""
    module, twin = Regression(make), Regression(make)
    batches = micro_batches([2] * 5)
    trainer = fit(module, batches, accumulate_grad_batches=every, max_epochs=2)

    optimizer = twin.configure_optimizers()
    for _ in range(2):
        for start in range(0, len(batches), every):
            window = batches[start : start + every]

            def closure(window: Any = window) -> Tensor:
                total = torch.zeros((), dtype=torch.float64)
                with torch.enable_grad():
                    for place, batch in enumerate(window):
                        loss = twin.training_step(batch, 0) / len(window)
                        if place == 0:
                            optimizer.zero_grad()
                        loss.backward()
                        total = total + loss.detach()
                return total

            optimizer.step(closure)
    for name, value in module.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
    assert trainer.global_step == trainer.clocks.optimizers[0].applied == 2 * math.ceil(5 / every)


@CLOSURE_OPTIMIZERS
def test_a_replayed_window_is_the_k_fold_batch(loader: Any, make: Any) -> None:
    """V2, V5: also with a short last window, weights and a loader that does not know its length."""
    small, big = CountingSamples(make), Regression(make)
    batches = micro_batches([1, 3, 2, 4, 1])
    fit(small, loader(*batches), accumulate_grad_batches=3)
    fit(big, merged(batches, 3))
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, big.state_dict()[name], rtol=1e-8, atol=1e-10, msg=name)


def test_the_events_of_a_replay() -> None:
    """V5 (R57): each evaluation runs the whole window, zeroes on its first batch, and ends with hooks and clipping."""
    events: list[Any] = []

    class Model(Parabola):
        def training_step(self, batch, batch_idx):
            events.append(batch_idx)
            return super().training_step(batch, batch_idx)

        def on_before_zero_grad(self, optimizer):
            events.append("zero")

        def on_before_optimizer_step(self, optimizer):
            events.append("hook")

        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            events.append("clip")

        def configure_optimizers(self):
            return SAM(self.parameters(), lr=0.1)

    trainer = fit(Model(), given(1.0, 2.0, 3.0), accumulate_grad_batches=2)
    evaluation = [0, "zero", 1, "hook", "clip"]
    assert events == [*evaluation, *evaluation, *[2, "zero", "hook", "clip"] * 2]
    assert trainer.global_step == 2


def test_the_closure_returns_the_loss_of_the_whole_window(loader: Any) -> None:
    """V5: what a line search compares is the window's loss: (9 + 1) / 2, and 16 for the short one."""
    values = []

    class Searching(SGD):
        def step(self, closure=None):
            values.extend([closure().item(), closure().item()])

    class Model(Parabola):
        def configure_optimizers(self):
            return Searching(self.parameters(), lr=1.0)

    fit(Model(), loader(*given(3.0, 1.0, 4.0)), accumulate_grad_batches=2)
    assert values == [5.0, 5.0, 16.0, 16.0]


def test_a_replayed_window_may_lack_losses() -> None:
    """V3, V5: a None in the window, at every evaluation."""

    class Model(Parabola):
        def loss(self, batch):
            return None if batch.isnan().any() else super().loss(batch)

    module = Model()
    with pytest.warns(UserWarning, match="training-step-none"):
        fit(module, given(1.0, NO_LOSS, 4.0), max_epochs=3, accumulate_grad_batches=3)
    assert module.weight.item() == pytest.approx(2.5, abs=1e-3)


def test_an_override_that_steps_twice_replays_its_window() -> None:
    """V5 (R75): optimizer_step may call step several times; each one has the gradient of the whole window."""

    class Model(Given):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)
            optimizer.step(closure=optimizer_closure)

    module = Model()
    with pytest.warns(UserWarning, match="accumulation-override"):
        trainer = fit(module, given(1.0, 3.0), accumulate_grad_batches=2)
    assert module.weight.item() == -4.0
    assert trainer.global_step == 1


def test_alternating_closure_optimizers_replay_their_own_windows() -> None:
    """V5 with several optimizers: each replays with its own index and its own parameters."""

    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.pair = nn.ParameterList([torch.zeros(1), torch.zeros(1)])

        def training_step(self, batch, batch_idx, optimizer_idx):
            return (self.pair[optimizer_idx] - (1 + optimizer_idx) * batch).square().sum()

        def configure_optimizers(self):
            return [LBFGS([weight], lr=0.5) for weight in self.pair]

    module = Model()
    fit(module, given(1.0, 4.0), max_epochs=3, accumulate_grad_batches=2)
    assert [weight.item() for weight in module.pair] == pytest.approx([2.5, 5.0], abs=1e-3)


# ------------------------------------------------------------------------------------- the same windows, by hand


class ByHand(Manual):
    """Accumulates with the helper of manual mode."""

    every = 2

    def training_step(self, batch: Any, batch_idx: int) -> None:
        gradient, weight = batch if isinstance(batch, tuple) else (batch, None)
        with self.accumulate(self.optimizers(), self.every, weight) as window:
            if not gradient.isnan().any():
                self.manual_backward(self.loss(gradient))
        self.events.append(tuple(window))
        if window.closes:
            self.optimizers().step()


def test_the_helper_of_manual_mode_makes_the_same_windows(loader: Any) -> None:
    """V2 in manual mode: true sizes, a short last window, and windows that end with the epoch."""
    module = ByHand()
    fit(module, loader(*given(1.0, 3.0, 5.0)), max_epochs=2)
    assert module.gradients == [[2.0], [5.0]] * 2
    assert module.events == [(True, False, 2), (False, True, 2), (True, True, 1)] * 2


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["float", "tensor"])
def test_the_helper_takes_weights(loader: Any, kind: Any) -> None:
    """V2 in manual mode: weights as numbers and tensors."""
    module = ByHand()
    weights = [kind(1.0), kind(3.0), kind(2.0)]
    fit(module, loader(*zip(given(8.0, 4.0, 6.0), weights, strict=True)))
    assert module.gradients == [[5.0], [6.0]]


@pytest.mark.parametrize("gradients", [(NO_LOSS, 4.0), (4.0, NO_LOSS)], ids=str)
def test_the_helper_knows_micro_batches_without_backward(loader: Any, gradients: tuple[float, ...]) -> None:
    """V3 in manual mode: a micro-batch that the user skips does not dilute its window."""
    module = ByHand()
    fit(module, loader(*given(*gradients)))
    assert module.gradients == [[4.0]]


class SharedByHand(Manual):
    """Two optimizers that share a window: their weights add up."""

    def loss(self, batch: Tensor) -> Any:
        return ((self.weight + self.other) * batch).sum()

    def step_all(self) -> None:
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        self.other = nn.Parameter(torch.zeros(1))
        return [SGD([self.weight], lr=1.0), SGD([self.other], lr=10.0)]


def test_optimizers_may_share_a_window_by_hand(loader: Any) -> None:
    """V2 in manual mode: one backward for two optimizers, corrected for both."""

    class Model(SharedByHand):
        def training_step(self, batch, batch_idx):
            with self.accumulate(self.optimizers(), 3) as window:
                self.manual_backward(self.loss(batch))
            if window.closes:
                self.step_all()

    module = Model()
    fit(module, loader(*given(1.0, 3.0, 5.0, 7.0, 9.0)))
    assert (module.weight.item(), module.other.item()) == (-11.0, -110.0)


def test_stepping_inside_of_the_window_by_hand_is_the_same(loader: Any) -> None:
    """V2 in manual mode: step() before the `with` ends finds gradients that are already right, for all optimizers."""

    class Model(SharedByHand):
        def training_step(self, batch, batch_idx):
            with self.accumulate(self.optimizers(), 3) as window:
                self.manual_backward(self.loss(batch))
                if window.closes:
                    self.step_all()

    module = Model()
    fit(module, loader(*given(1.0, 3.0, 5.0, 7.0, 9.0)))
    assert (module.weight.item(), module.other.item()) == (-11.0, -110.0)


def test_gradients_are_not_reduced_while_they_accumulate_by_hand() -> None:
    """R115 in manual mode: the helper blocks sync on all but the last micro-batch."""
    strategy = Reducing()

    class Model(ByHand):
        def on_after_backward(self):
            strategy.events.append(strategy.blocked)

    fit(Model(), given(1.0, 2.0, 3.0), strategy=strategy)
    assert strategy.events == [True, False, "reduced", False, "reduced"]


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None], ids=str)
def test_the_helper_refuses_what_is_no_number_of_batches(every: Any) -> None:
    """R111 in manual mode."""
    module = ByHand()
    module.every = every
    with pytest.raises(InvalidValueError, match=r"accumulate\(batches=.*must be an int >= 1"):
        fit(module, given(1.0))


def test_the_helper_is_refused_in_automatic_mode() -> None:
    """R111: there the Trainer's argument says it."""

    class Model(Given):
        def training_step(self, batch, batch_idx):
            with self.accumulate(self.optimizers(), 2):
                return self.loss(batch)

    with pytest.raises(MisconfigurationException, match="manual-in-automatic"):
        fit(Model(), given(1.0))
