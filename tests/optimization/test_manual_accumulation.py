"""``self.accumulate``, the accumulation helper of manual mode (J, V2, V3): exactness, sharing, clipping, misuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from leyden import LightningModule, MisconfigurationException
from leyden.errors import InvalidValueError, OrderError
from leyden.optimization.joint import Joint
from leyden.precision import MixedPrecision
from seed_page import BATCHES, EPOCHS, Regression, TwoPlayers, assert_same_weights, batches, create, fit


class Unsized:
    """The same batches from a loader that does not know its length."""

    def __init__(self, count: int = BATCHES) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return iter(batches(self.count))


class Accumulating(Regression):
    """Windows of ``every`` micro-batches with the helper; notes where in its window each of them is."""

    every = 2

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.places: list[tuple[Any, ...]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        with self.accumulate(optimizer, self.every) as window:
            self.manual_backward(self.compute_loss(batch))
        self.places.append(tuple(window))
        if window.closes:
            optimizer.step()


def windows(count: int, every: int) -> list[list[Any]]:
    """The batches of an epoch, window by window."""
    listed = list(batches(count))
    return [listed[start : start + every] for start in range(0, count, every)]


def doing(every: int, body: Any = None, **members: Any) -> type[Accumulating]:
    if body is not None:
        members["training_step"] = body
    return type("Module", (Accumulating,), {"every": every, **members})


# ---------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("every", [1, 2, 3, 5, 8])
def test_windows_equal_the_loop_by_hand(every: int) -> None:
    """J, V2: each loss is divided by the true size of its window; the epoch's last one is shorter."""
    module, twin = create(doing(every))
    trainer = fit(module)
    assert trainer.global_step == EPOCHS * -(-BATCHES // every)

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for window in windows(BATCHES, every):
            opt.zero_grad()
            for batch in window:
                (twin.compute_loss(batch) / len(window)).backward()
            opt.step()
    assert_same_weights(module, twin)


def test_the_same_bits_as_accumulation_by_the_trainer() -> None:
    """J: whoever goes manual keeps the windows of Trainer(accumulate_grad_batches=...), to the bit."""

    class Automatic(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.compute_loss(batch)

    for data in (batches(), Unsized()):
        module, _ = create(doing(3))
        fit(module, data)
        automatic, _ = create(Automatic)
        fit(automatic, data, accumulate_grad_batches=3)
        assert_same_weights(module, automatic)


def test_a_loader_without_length_closes_its_last_window_too() -> None:
    """V2: the true size is known only at the end; then the gradients are corrected once."""
    module, twin = create(doing(3))
    fit(module, Unsized())
    assert module.places[:5] == [
        (True, False, 3),
        (False, False, 3),
        (False, True, 3),
        (True, False, 3),
        (False, True, 3),
    ]
    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for window in windows(BATCHES, 3):
            opt.zero_grad()
            for batch in window:
                (twin.compute_loss(batch) / 3).backward()
            if len(window) < 3:
                for parameter in twin.parameters():
                    parameter.grad *= 3 / len(window)
            opt.step()
    assert_same_weights(module, twin)


def test_the_place_of_each_micro_batch() -> None:
    """J: opens, closes and the true size, as far as it is known."""
    module, _ = create(doing(2))
    fit(module, max_epochs=1)
    assert module.places == [(True, False, 2), (False, True, 2)] * 2 + [(True, True, 1)]


def test_limits_end_an_epoch_as_the_loader_does() -> None:
    """V2: limit_train_batches makes the last window short as well."""
    module, twin = create(doing(2))
    fit(module, limit_train_batches=3)
    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for window in ([0, 1], [2]):
            opt.zero_grad()
            for place in window:
                (twin.compute_loss(list(batches())[place]) / len(window)).backward()
            opt.step()
    assert_same_weights(module, twin)


def test_weights_make_it_the_big_batch() -> None:
    """V2: micro-batches of different size, weighted by it, have the gradient of all samples at once."""
    x, y = (torch.cat(parts) for parts in zip(*batches(5), strict=True))
    parts = [(x[:1], y[:1]), (x[1:7], y[1:7]), (x[7:10], y[7:10])]

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        with self.accumulate(optimizer, 3, weight=len(batch[0])) as window:
            self.manual_backward(self.compute_loss(batch))
        if window.closes:
            optimizer.step()

    module, twin = create(doing(3, step))
    fit(module, parts)
    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        opt.zero_grad()
        twin.compute_loss([x, y]).backward()
        opt.step()
    torch.testing.assert_close(dict(twin.named_parameters()), dict(module.named_parameters()))


@pytest.mark.parametrize("weight", [None, 3.0])
def test_several_losses_of_one_micro_batch_count_it_once(weight: float | None) -> None:
    """V2: real and fake, say: two backwards on a micro-batch are one loss, their sum."""

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        with self.accumulate(optimizer, 2, weight) as window:
            x, y = batch
            self.manual_backward(self.compute_loss([x, y]))
            self.manual_backward(self.compute_loss([-x, y]))
        if window.closes:
            optimizer.step()

    module, twin = create(doing(2, step))
    fit(module)
    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for window in windows(BATCHES, 2):
            opt.zero_grad()
            for x, y in window:
                (twin.compute_loss([x, y]) / len(window)).backward()
                (twin.compute_loss([-x, y]) / len(window)).backward()
            opt.step()
    assert_same_weights(module, twin)


def test_backwards_outside_of_the_block_are_not_divided() -> None:
    """J: manual_backward takes its share inside of the `with` only."""

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        with self.accumulate(optimizer, 2) as window:
            self.manual_backward(self.compute_loss(batch))
        self.manual_backward(0.1 * self.net[0].weight.square().sum())
        if window.closes:
            optimizer.step()

    module, twin = create(doing(2, step))
    fit(module, batches(4))
    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for window in windows(4, 2):
            opt.zero_grad()
            for batch in window:
                (twin.compute_loss(batch) / 2).backward()
                (0.1 * twin.net[0].weight.square().sum()).backward()
            opt.step()
    assert_same_weights(module, twin)


def test_a_micro_batch_without_backward_does_not_dilute_its_window() -> None:
    """V3: a window of two with one loss is that loss."""

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        with self.accumulate(optimizer, 2) as window:
            if batch_idx != 1:
                self.manual_backward(self.compute_loss(batch))
        if window.closes:
            optimizer.step()

    module, twin = create(doing(2, step))
    fit(module, batches(4))
    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for used in ([0], [2, 3]):
            opt.zero_grad()
            for place in used:
                (twin.compute_loss(list(batches(4))[place]) / len(used)).backward()
            opt.step()
    assert_same_weights(module, twin)


@pytest.mark.parametrize("skipped", [1, 3])
def test_a_batch_that_is_left_out_makes_the_window_wait(skipped: int) -> None:
    """J: batches on which accumulate is not called are not in the window; what the epoch leaves goes into the next."""

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == skipped:
            raise StopIteration
        optimizer = self.optimizers()
        with self.accumulate(optimizer, 2) as window:
            self.manual_backward(self.compute_loss(batch))
        if window.closes:
            self.places.append((batch_idx,))
            optimizer.step()

    module, twin = create(doing(2, step))
    fit(module, batches(4), max_epochs=2)
    closing = {1: [(2,), (3,)] * 2, 3: [(1,), (0,), (2,)]}[skipped]
    assert module.places == closing

    opt = twin.configure_optimizers()
    used = [batch for _ in range(2) for place, batch in enumerate(batches(4)) if place != skipped]
    sizes = {1: [2, 1, 2, 1], 3: [2, 2, 2]}[skipped]
    for size in sizes:
        opt.zero_grad()
        for _ in range(size):
            (twin.compute_loss(used.pop(0)) / size).backward()
        opt.step()
    assert used == []
    assert_same_weights(module, twin)


def test_what_an_epoch_left_may_be_stepped_at_its_end() -> None:
    """J: after the last batch a window counts as complete, with the micro-batches that it has."""

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx < 3:
            with self.accumulate(self.optimizers(), 4):
                self.manual_backward(self.compute_loss(batch))

    module, twin = create(doing(4, step, on_train_epoch_end=lambda self: self.optimizers().step()))
    fit(module, batches(4))
    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        opt.zero_grad()
        for batch in list(batches(4))[:3]:
            (twin.compute_loss(batch) / 4).backward()
        for parameter in twin.parameters():
            parameter.grad *= 4 / 3
        opt.step()
    assert_same_weights(module, twin)


def test_the_optimizer_s_own_zero_grad_is_called() -> None:
    """J: a window opens with zero_grad of the optimizer, if it has one of its own."""

    class Mine(SGD):
        cleared = 0

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.cleared += 1
            super().zero_grad(set_to_none)

    module, _ = create(doing(2, configure_optimizers=lambda self: Mine(self.parameters(), lr=0.1)))
    trainer = fit(module)
    assert trainer.optimizers[0].cleared == EPOCHS * 3


def test_float16_is_unscaled_once_per_window() -> None:
    """J: shares are scaled, correction and unscaling meet at the step; the scale changes per window at most."""
    module, _ = create(doing(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    fit(module, batches(8), max_epochs=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert scaler.get_scale() == 256.0  # four windows, doubled after every second


def test_float16_equals_float16_by_the_trainer() -> None:
    """J: under loss scaling too, manual windows are those of automatic mode, to the bit."""

    class Automatic(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.compute_loss(batch)

    def precision() -> MixedPrecision:
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2))

    module, _ = create(doing(2))
    fit(module, plugins=precision())
    automatic, _ = create(Automatic)
    fit(automatic, accumulate_grad_batches=2, plugins=precision())
    assert_same_weights(module, automatic)


# ------------------------------------------------------------------------------------ several optimizers, clipping


class Halves(Accumulating):
    """One network, an optimizer for each of its two layers."""

    def configure_optimizers(self) -> Any:
        return Adam(self.net[0].parameters(), lr=0.02), SGD(self.net[2].parameters(), lr=0.1)


@pytest.mark.parametrize("data", [batches(5), Unsized(5)], ids=["sized", "unsized"])
@pytest.mark.parametrize("inside", [False, True])
def test_optimizers_that_share_a_window(inside: bool, data: Any) -> None:
    """J: one list, one window: both are cleared when it opens and corrected when it closes, or when one steps."""

    class Module(Halves):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizers = self.optimizers()
            with self.accumulate(optimizers, 2) as window:
                self.manual_backward(self.compute_loss(batch))
                if inside and window.closes:
                    self.step_both()
            if window.closes and not inside:
                self.step_both()

        def step_both(self) -> None:
            for optimizer in self.optimizers():
                optimizer.step()

    module, twin = create(Module)
    trainer = fit(module, data)
    assert trainer.global_step == EPOCHS * 3 * 2

    optimizers = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for window in windows(5, 2):
            for opt in optimizers:
                opt.zero_grad()
            for batch in window:
                (twin.compute_loss(batch) / len(window)).backward()  # 2 * (loss / 2) is loss, to the bit
            for opt in optimizers:
                opt.step()
    assert_same_weights(module, twin)


@pytest.mark.parametrize("form", ["handle", "raw", "list", "tuple", "raw list"])
def test_optimizers_may_be_named_in_any_form(form: str) -> None:
    """J: a handle, an optimizer, or a sequence of them."""

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        handle = self.optimizers()
        raw = self.optimizers(use_pl_optimizer=False)
        named = {"handle": handle, "raw": raw, "list": [handle], "tuple": (handle,), "raw list": [raw]}[form]
        with self.accumulate(named, 2) as window:
            self.manual_backward(self.compute_loss(batch))
        if window.closes:
            handle.step()

    module, _ = create(doing(2, step))
    fit(module)
    expected, _ = create(doing(2))
    fit(expected)
    assert_same_weights(module, expected)


def test_windows_of_different_optimizers_are_independent() -> None:
    """J: player A steps every two batches, player B every three, each toggled in its own pass."""

    class Module(TwoPlayers):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            for index, (optimizer, every) in enumerate(zip(self.optimizers(), (2, 3), strict=True)):
                with self.toggled_optimizer(optimizer), self.accumulate(optimizer, every) as window:
                    self.manual_backward(self.loss(batch, index))
                if window.closes:
                    optimizer.step()

    module, twin = create(Module)
    trainer = fit(module, batches(7))
    assert [clock.attempted for clock in trainer.clocks.optimizers] == [EPOCHS * 4, EPOCHS * 3]

    optimizers = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch_idx, batch in enumerate(batches(7)):
            for index, (opt, every) in enumerate(zip(optimizers, (2, 3), strict=True)):
                players = twin.A, twin.B
                if batch_idx % every == 0:
                    opt.zero_grad()
                players[1 - index].requires_grad_(False)
                size = min(every, 7 - batch_idx // every * every)
                (twin.loss(batch, index) / size).backward()
                players[1 - index].requires_grad_(True)
                if (batch_idx + 1) % every == 0 or batch_idx == 6:
                    opt.step()
    assert_same_weights(module, twin)


def test_a_joint_accumulates_as_one() -> None:
    """J: a Joint is one optimizer with one window."""

    class Module(Accumulating):
        def configure_optimizers(self) -> Any:
            return Joint([Adam(self.net[0].parameters(), lr=0.02), SGD(self.net[2].parameters(), lr=0.1)])

    module, twin = create(Module)
    trainer = fit(module)
    assert trainer.global_step == EPOCHS * 3
    members = twin.configure_optimizers().optimizers
    for _ in range(EPOCHS):
        for window in windows(BATCHES, 2):
            for opt in members:
                opt.zero_grad()
            for batch in window:
                (twin.compute_loss(batch) / len(window)).backward()
            for opt in members:
                opt.step()
    assert_same_weights(module, twin)


@pytest.mark.parametrize("data", [batches(5), Unsized(5)], ids=["sized", "unsized"])
@pytest.mark.parametrize("inside", [False, True])
def test_clipping_acts_on_the_mean_of_the_window(inside: bool, data: Any) -> None:
    """J, R88: clip_gradients where the window closes, inside of the `with` or behind it."""

    class Module(Halves):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            with self.accumulate(self.optimizers(), 2) as window:
                self.manual_backward(self.compute_loss(batch))
                if inside and window.closes:
                    self.clip()
            if window.closes and not inside:
                self.clip()
            if window.closes:
                for optimizer in self.optimizers():
                    optimizer.step()

        def clip(self) -> None:
            self.clip_gradients(self.optimizers()[1], gradient_clip_val=0.02)

    module, twin = create(Module)
    fit(module, data)
    optimizers = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for window in windows(5, 2):
            for opt in optimizers:
                opt.zero_grad()
            for batch in window:
                (twin.compute_loss(batch) / len(window)).backward()
            nn.utils.clip_grad_norm_(twin.net[2].parameters(), 0.02)
            for opt in optimizers:
                opt.step()
    assert_same_weights(module, twin)


def test_another_optimizer_may_step_inside() -> None:
    """J: only the window's own optimizers must wait until it closes."""

    class Module(Halves):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            a, b = self.optimizers()
            b.zero_grad()
            with self.accumulate(a, 2) as window:
                loss = self.compute_loss(batch)
                self.manual_backward(loss, inputs=list(self.net[0].parameters()), retain_graph=True)
                b.step()
            if window.closes:
                a.step()

    module, _ = create(Module)
    trainer = fit(module)
    assert [clock.attempted for clock in trainer.clocks.optimizers] == [EPOCHS * 3, EPOCHS * BATCHES]


# ------------------------------------------------------------------------------------------------- misuse


def step_anyway(self: Any, batch: Any, batch_idx: int) -> None:
    with self.accumulate(self.optimizers(), 2):
        self.manual_backward(self.compute_loss(batch))
    self.optimizers().step()


def step_inside(self: Any, batch: Any, batch_idx: int) -> None:
    with self.accumulate(self.optimizers(), 2):
        self.manual_backward(self.compute_loss(batch))
        self.optimizers().step()


def clip_anyway(self: Any, batch: Any, batch_idx: int) -> None:
    with self.accumulate(self.optimizers(), 2):
        self.manual_backward(self.compute_loss(batch))
    self.clip_gradients(self.optimizers(), gradient_clip_val=1.0)


def call_twice(self: Any, batch: Any, batch_idx: int) -> None:
    for _ in range(2):
        with self.accumulate(self.optimizers(), 2):
            self.manual_backward(self.compute_loss(batch))


def nest(self: Any, batch: Any, batch_idx: int) -> None:
    with self.accumulate(self.optimizers(), 2), self.accumulate(self.optimizers(), 2):
        self.manual_backward(self.compute_loss(batch))


def name_nothing(self: Any, batch: Any, batch_idx: int) -> None:
    with self.accumulate([], 2):
        self.manual_backward(self.compute_loss(batch))


def name_a_stranger(self: Any, batch: Any, batch_idx: int) -> None:
    with self.accumulate(Adam(self.parameters()), 2):
        self.manual_backward(self.compute_loss(batch))


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (
            step_anyway,
            "accumulate-open",
            "step was called .* after 1 of 2 micro-batches; call it only `if window.clo",
        ),
        (step_inside, "accumulate-open", "step was called .* in the middle of its window"),
        (clip_anyway, "accumulate-open", "clip_gradients was called .* in the middle of its window"),
        (call_twice, "accumulate-twice", "Call it once per training_step"),
        (nest, "accumulate-overlap", r"inside of another accumulate.*self.accumulate\(\[a, b\], n\)"),
        (name_nothing, "accumulate-nothing", "names no optimizer"),
        (name_a_stranger, "optimizer-unknown", "Adam is none of the optimizers .* take it from self.optimizers()"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_would_go_wrong_silently_is_refused(body: Any, code: str, text: str) -> None:
    """J: each mistake by its code, with the remedy."""
    module, _ = create(doing(2, body))
    with pytest.raises(MisconfigurationException, match=text) as error:
        fit(module, batches(4))
    assert error.value.code == code


@pytest.mark.parametrize("second", [[0], [1], [1, 0, 0], [0, 1]], ids=str)
def test_an_open_window_belongs_to_the_optimizers_that_opened_it(second: list[int]) -> None:
    """J: other company while a window is open is refused; the same in another order or twice is not other."""

    class Module(Halves):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizers = self.optimizers()
            chosen = [0, 1] if batch_idx == 0 else second
            with self.accumulate([optimizers[index] for index in chosen], 4):
                self.manual_backward(self.compute_loss(batch))

    module, _ = create(Module)
    if set(second) == {0, 1}:
        fit(module, batches(3), max_epochs=1)
        return
    with pytest.raises(OrderError, match="in a window with others") as error:
        fit(module, batches(3), max_epochs=1)
    assert error.value.code == "accumulate-overlap"


@pytest.mark.parametrize("every", [0, -2, 2.0, True, None, "2"], ids=repr)
def test_a_window_has_a_number_of_batches(every: Any) -> None:
    """J: an int >= 1."""
    module, _ = create(doing(every))
    with pytest.raises(InvalidValueError, match="must be an int >= 1: the micro-batches of one update") as error:
        fit(module)
    assert error.value.code == "accumulate-batches"


def test_weights_for_all_or_for_none() -> None:
    """V2: a window with weights on some micro-batches only has no meaning."""

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        with self.accumulate(self.optimizers(), 2, weight=2.0 if batch_idx == 0 else None):
            self.manual_backward(self.compute_loss(batch))

    module, _ = create(doing(2, step))
    with pytest.raises(InvalidValueError, match="for all of them or for none") as error:
        fit(module)
    assert error.value.code == "window-mixed-weights"


def test_refused_in_automatic_mode() -> None:
    """J: there the Trainer accumulates."""

    class Module(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            with self.accumulate(self.optimizers(), 2):
                return self.compute_loss(batch)

    module, _ = create(Module)
    with pytest.raises(MisconfigurationException, match="for manual optimization") as error:
        fit(module)
    assert error.value.code == "manual-in-automatic"


def test_refused_outside_of_a_fit() -> None:
    """J: before and after a fit there is no window."""
    module, _ = create(Accumulating)
    with pytest.raises(OrderError, match="not attached to a Trainer"):
        module.accumulate(None, 2)
    fit(module, max_epochs=1)
    with pytest.raises(OrderError, match="while trainer.fit runs") as error:
        module.accumulate(module.optimizers(), 2)
    assert error.value.code == "manual-outside-fit"


def test_an_exception_inside_leaves_no_window_behind_for_the_next_fit() -> None:
    """J: a fit that died in the middle of a window does not disturb the next one."""

    class Module(Accumulating):
        fails = True

        def compute_loss(self, batch: list[Tensor]) -> Tensor:
            if self.fails and len(self.places) == 2:
                raise ZeroDivisionError
            return super().compute_loss(batch)

    module, _ = create(Module)
    with pytest.raises(ZeroDivisionError):
        fit(module)
    fresh, _ = create(Accumulating)
    module.load_state_dict(fresh.state_dict())
    module.fails = False
    fit(module)
    fit(fresh)
    assert_same_weights(module, fresh)


def test_one_that_a_module_inside_calls() -> None:
    """J: the helper of the module that is fitted, called through a module inside of it."""

    class Inner(LightningModule):
        automatic_optimization = False

        def run(self, optimizer: Any, loss: Tensor) -> None:
            with self.accumulate(optimizer, 2) as window:
                self.manual_backward(loss)
            if window.closes:
                optimizer.step()

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        self.inner.run(self.optimizers(), self.compute_loss(batch))

    def build(self: Any) -> None:
        Accumulating.__init__(self)
        self.inner = Inner()

    module, _ = create(doing(2, step, __init__=build))
    fit(module)
    expected, _ = create(doing(2))
    fit(expected)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))
