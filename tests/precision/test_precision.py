"""Precisions: rules R116, R117, R123 and departure V9 (the update never runs under autocast)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning.plugins.precision import DoublePrecision
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam

from given import Given, fit, given, seeded
from leyden import Joint, LightningModule, MisconfigurationException, Trainer
from leyden.precision import HalfPrecision, MixedPrecision, Precision

HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
mixed = pytest.mark.parametrize("precision", list(HALF))


def arguments(precision: str) -> dict[str, Any]:
    """What asks a Trainer for ``precision`` on the CPU; float16 with a scale that overflows nothing."""
    if precision != "16-mixed":
        return {"precision": precision}
    return {"plugins": MixedPrecision(precision, "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))}


def autocast_now() -> Any:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


# ------------------------------------------------------------------------------------------------- R116: spellings


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        (None, "32-true"),
        (32, "32-true"),
        ("32", "32-true"),
        ("32-true", "32-true"),
        (64, "64-true"),
        ("64", "64-true"),
        ("64-true", "64-true"),
        ("16-true", "16-true"),
        ("bf16-true", "bf16-true"),
        ("bf16-mixed", "bf16-mixed"),
    ],
)
def test_spellings_of_all_versions_are_read(spelling: Any, expected: str) -> None:
    """R116: numbers, 1.x strings and 2.x strings; trainer.precision is the 2.x string."""
    assert Trainer(precision=spelling, max_epochs=1, accelerator="cpu").precision == expected


@pytest.mark.parametrize(
    ("spelling", "codes"),
    [
        ("bf16", ["precision-spelling"]),
        (16, ["precision-spelling", "precision-cpu"]),
        ("16", ["precision-spelling", "precision-cpu"]),
        ("16-mixed", ["precision-cpu"]),
    ],
)
def test_spellings_that_are_read_with_a_warning(spelling: Any, codes: list[str]) -> None:
    """R116: 16 and "bf16" mean mixed; float16 on the CPU becomes bfloat16."""
    with pytest.warns(UserWarning, match="precision") as caught:
        assert Trainer(precision=spelling, max_epochs=1, accelerator="cpu").precision == "bf16-mixed"
    assert [str(warning.message).rpartition("[")[2].rstrip("]") for warning in caught] == codes


@pytest.mark.parametrize("spelling", ["half", 8, "17-mixed", True, 16.0, ["16"], torch.float16], ids=str)
def test_an_unknown_precision_is_refused(spelling: Any) -> None:
    """R116: a MisconfigurationException (1.x) that is a ValueError (2.x), naming those that exist."""
    with pytest.raises(ValueError, match="is not known; allowed are .*'bf16-mixed'") as caught:
        Trainer(precision=spelling, max_epochs=1, accelerator="cpu")
    assert isinstance(caught.value, MisconfigurationException)


def test_a_precision_is_given_once() -> None:
    """R116: a plugin and an argument contradict each other."""
    with pytest.raises(MisconfigurationException, match="precision-twice"):
        Trainer(precision="bf16-mixed", plugins=Precision(), max_epochs=1)


@pytest.mark.parametrize("precision", ["32-true", "16", "mixed"])
def test_mixed_precision_has_two_names(precision: str) -> None:
    """R116: the plugin takes the 2.x strings only."""
    with pytest.raises(ValueError, match="'16-mixed' or 'bf16-mixed'"):
        MixedPrecision(precision, "cpu")


def test_a_scaler_for_bfloat16_is_refused() -> None:
    """R123: bf16-mixed scales no loss; a scaler for it is a MisconfigurationException, and it has none."""
    with pytest.raises(MisconfigurationException, match="takes no scaler"):
        MixedPrecision("bf16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer = fit(Given(), given(1.0), precision="bf16-mixed")
    assert trainer.scaler is None


def test_float16_has_a_scaler_of_its_own() -> None:
    """R123, R118: 16-mixed without a given scaler makes torch's, with torch's defaults."""
    scaler = MixedPrecision("16-mixed", "cpu").scaler
    assert scaler is not None
    assert scaler.state_dict() == {**torch.amp.GradScaler("cpu").state_dict()}


# --------------------------------------------------------------------------------------------- R117: where it holds


class Everywhere(Given):
    """Notes in every method whether autocast is on, and the default floating type."""

    def note(self, name: str) -> None:
        self.events.append((name, autocast_now(), torch.get_default_dtype()))


def _noting(name: str) -> Callable[..., Any]:
    def method(self: Everywhere, *args: Any, **kwargs: Any) -> Any:
        self.note(name)
        return getattr(super(Everywhere, self), name)(*args, **kwargs)

    return method


OUTSIDE = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_before_backward",
    "backward",
    "on_after_backward",
    "optimizer_step",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "on_train_batch_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
)
for name in OUTSIDE:
    setattr(Everywhere, name, _noting(name))


class Inside(Everywhere):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("training_step")
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("validation_step")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.note("test_step")

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        self.note("predict_step")


STEPS = {"training_step", "validation_step", "test_step", "predict_step"}


def run_everything(module: LightningModule, **given_arguments: Any) -> None:
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", enable_progress_bar=False, num_sanity_val_steps=0, **given_arguments
    )
    trainer.fit(module, given(1.0), given(1.0))
    trainer.test(module, given(1.0), verbose=False)
    trainer.predict(module, given(1.0))


@mixed
def test_autocast_surrounds_the_step_methods_and_nothing_else(precision: str) -> None:
    """R117: not backward, not hooks, not the update."""
    module = Inside()
    run_everything(module, **arguments(precision))
    assert {name for name, _, _ in module.events} == STEPS | set(OUTSIDE)
    for name, dtype, _ in module.events:
        assert dtype == (HALF[precision] if name in STEPS else None), name


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("16-true", torch.float16), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)],
)
def test_true_precisions_convert_everything(precision: str, dtype: torch.dtype) -> None:
    """R116, R117: parameters, batches, and new tensors in the step methods have the type; the default comes back."""

    class Model(Inside):
        def training_step(self, batch, batch_idx):
            assert batch.dtype == self.weight.dtype == torch.zeros(1).dtype == dtype
            return super().training_step(batch, batch_idx)

    module = Model()
    run_everything(module, precision=precision)
    assert module.weight.dtype == dtype
    assert module.weight.item() == -1.0
    assert HalfPrecision(precision).loss_scale is None
    for name, autocast, default in module.events:
        assert autocast is None
        assert default == (dtype if name in STEPS else torch.float32), name


class Complex(LightningModule):
    """A complex and a real parameter, and a buffer of either kind."""

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.gain = nn.Parameter(torch.tensor([1 + 2j])), nn.Parameter(torch.ones(1))
        self.register_buffer("turn", torch.tensor([1j]))
        self.register_buffer("count", torch.tensor([3]))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("16-true", torch.float16), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)],
)
def test_complex_parameters_are_left_as_they_are(precision: str, dtype: torch.dtype) -> None:
    """R116: a complex number has no real type; as Lightning does for 64-true, only floating tensors are converted."""
    module = Complex()
    assert HalfPrecision(precision).convert_module(module) is module
    assert (module.gain.dtype, module.dtype, module.count.dtype) == (dtype, dtype, torch.int64)
    assert (module.phase.dtype, module.turn.dtype) == (torch.complex64, torch.complex64)
    assert (module.phase.item(), module.turn.item()) == (1 + 2j, 1j)
    theirs = DoublePrecision().convert_module(Complex())
    assert precision != "64-true" or [p.dtype for p in theirs.parameters()] == [p.dtype for p in module.parameters()]


def test_full_precision_changes_nothing() -> None:
    """R116, R117: 32-true has no context at all; batches of other types stay as they are."""

    class Model(Inside):
        def training_step(self, batch, batch_idx):
            assert batch.dtype == torch.float64
            return super().training_step(batch, batch_idx)

    module = Model()
    fit(module, [torch.ones(1, dtype=torch.float64)])
    assert {(autocast, default) for _, autocast, default in module.events} == {(None, torch.float32)}


# --------------------------------------------------------------------------------------- V9: never under autocast


class Probe(SGD):
    """Notes whether autocast is on: in its arithmetic, and around the closure that it calls."""

    def __init__(self, params: Any, lr: float = 1.0, evaluations: int = 1) -> None:
        super().__init__(params, lr=lr)
        self.seen: list[Any] = []
        self.evaluations = evaluations

    def step(self, closure: Any = None) -> Any:
        self.seen.append(autocast_now())
        if closure is not None:
            for _ in range(self.evaluations):
                closure()
                self.seen.append(autocast_now())
        return super().step()


class Probed(Given):
    def configure_optimizers(self) -> Any:
        return Probe(self.parameters())


class ProbedByHand(Probed):
    def __init__(self, size: int = 1) -> None:
        super().__init__(size)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        assert autocast_now() is not None
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        assert autocast_now() is not None
        optimizer.step()
        assert autocast_now() is not None  # the rest of training_step is as it was


class ProbedClosureByHand(ProbedByHand):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        def closure() -> Any:
            assert autocast_now() is not None
            loss = self.loss(batch)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            assert autocast_now() is not None
            return loss

        self.optimizers().step(closure)


class ProbedOutsideByHand(ProbedByHand):
    """Steps where no autocast is on: in a hook."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(self.loss(batch))

    def on_train_batch_end(self, *args: Any) -> None:
        self.optimizers().step()


class ProbedJoint(Probed):
    def configure_optimizers(self) -> Any:
        return Joint([Probe([self.weight])])


@mixed
@pytest.mark.parametrize(
    "module_class",
    [Probed, ProbedJoint, ProbedByHand, ProbedClosureByHand, ProbedOutsideByHand],
    ids=["automatic", "joint", "manual", "closure in manual mode", "in a hook of manual mode"],
)
def test_the_update_never_runs_under_autocast(module_class: Any, precision: str) -> None:
    """V9: in manual mode neither, where training_step itself runs under autocast; closures do have it."""
    module = module_class()
    hooks: list[Any] = []
    for name in ("on_before_backward", "on_after_backward", "on_before_optimizer_step"):
        setattr(module, name, lambda *args: hooks.append(autocast_now()))
    fit(module, given(1.0, 2.0), **arguments(precision))
    assert module.weight.item() == -3.0
    assert hooks == [None] * 6
    optimizer = module.optimizers(use_pl_optimizer=False)
    probe = optimizer.optimizers[0] if isinstance(optimizer, Joint) else optimizer
    assert len(probe.seen) >= 2
    assert set(probe.seen) == {None}


@mixed
@pytest.mark.parametrize("by_hand", [False, True], ids=["automatic", "manual"])
def test_every_evaluation_of_a_closure_runs_under_autocast(precision: str, by_hand: bool) -> None:
    """V9: and what the optimizer computes between them does not."""
    inside = []

    class Model(ProbedClosureByHand if by_hand else Given):  # type: ignore[misc]
        def loss(self, batch):
            inside.append(autocast_now())
            return super().loss(batch)

        def configure_optimizers(self):
            return Probe(self.parameters(), evaluations=3)

    module = Model()
    fit(module, given(1.0), **arguments(precision))
    assert inside == [HALF[precision]] * 3
    assert module.optimizers().seen == [None] * 4
    assert module.weight.item() == -1.0


@mixed
@pytest.mark.parametrize("scope", ["training_step", "optimizer_step"])
def test_autocast_comes_back_behind_an_error(precision: str, scope: str) -> None:
    """V9: also when the update raises, autocast is left as it was found."""

    class Failing(SGD):
        def step(self, closure=None):
            raise RuntimeError("no step")

    class Model(ProbedByHand):
        def training_step(self, batch, batch_idx):
            if scope == "training_step":
                raise RuntimeError("no step")
            try:
                super().training_step(batch, batch_idx)
            finally:
                self.events.append(autocast_now())

        def configure_optimizers(self):
            return Failing(self.parameters(), lr=1.0)

    module = Model()
    with pytest.raises(RuntimeError, match="no step"):
        fit(module, given(1.0), **arguments(precision))
    assert module.events == ([HALF[precision]] if scope == "optimizer_step" else [])
    assert autocast_now() is None


# ------------------------------------------------------------------------------ V9: weights are cast after a step


class Net(LightningModule):
    """Manual mode, with several updates in one training_step."""

    updates = 3

    def __init__(self, make: Callable[..., Any] = Adam) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
        self.make = make

    def loss(self, batch: Tensor) -> Tensor:
        return self.net(batch).float().square().mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        for _ in range(self.updates):
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters(), lr=0.1)


class ClosureNet(Net):
    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        def closure() -> Tensor:
            loss = self.loss(batch)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            return loss

        for _ in range(self.updates):
            self.optimizers().step(closure)


class LookingAgainNet(Net):
    """Goes forward a second time behind backward, as one does to log how well the step went."""

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        def closure() -> Tensor:
            loss = self.loss(batch)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.loss(batch)
            return loss

        for _ in range(self.updates):
            self.optimizers().step(closure)


class AutomaticNet(Net):
    updates = 1

    def __init__(self, make: Callable[..., Any] = Adam) -> None:
        super().__init__(make)
        self.automatic_optimization = True

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:  # type: ignore[override]
        return self.loss(batch)


def lbfgs(params: Any, lr: float) -> LBFGS:
    return LBFGS(params, lr=lr, max_iter=4, history_size=3, line_search_fn="strong_wolfe")


def net_batches() -> list[Tensor]:
    return list(seeded(lambda: torch.randn(6, 3), 2).split(2))


def assert_same_weights(twin: nn.Module, module: nn.Module, start: nn.Module) -> None:
    for (name, weight), begun in zip(module.state_dict().items(), start.state_dict().values(), strict=True):
        assert torch.equal(twin.state_dict()[name], weight), name
        assert not torch.equal(begun, weight), f"{name} was not trained"


@pytest.mark.parametrize(
    ("module_class", "make"),
    [
        (Net, SGD),
        (Net, Adam),
        *((kind, make) for kind in (ClosureNet, LookingAgainNet, AutomaticNet) for make in (SGD, Adam, lbfgs)),
    ],
)
def test_forward_sees_the_weights_that_the_last_update_left(module_class: Any, make: Any) -> None:
    """V9: autocast keeps cast copies of the weights; a step inside of one training_step makes them stale.

    The twin enters autocast anew for every forward, so it has no stale copies. LBFGS evaluates several times within
    one step; bf16-mixed allows it (R122).
    """
    module, twin = module_class(make), module_class(make)
    fit(module, net_batches(), precision="bf16-mixed")
    optimizer = twin.configure_optimizers()
    for batch in net_batches():

        def closure(batch: Tensor = batch) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = twin.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            return loss.detach()  # type: ignore[no-any-return]

        for _ in range(twin.updates):
            optimizer.step(closure)
    assert_same_weights(twin, module, module_class(make))


def test_a_generator_meets_the_discriminator_of_this_batch() -> None:
    """V9: two optimizers in one training_step; the second forward goes through weights that were just updated."""

    class Players(LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.first, self.second = seeded(lambda: (nn.Linear(3, 2), nn.Linear(2, 1)))

        def loss(self, batch, sign):
            return sign * self.second(self.first(batch)).float().square().mean()

        def training_step(self, batch, batch_idx):
            for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch, sign))
                optimizer.step()
                self.untoggle_optimizer(optimizer)

        def configure_optimizers(self):
            return [SGD(self.first.parameters(), lr=0.5), SGD(self.second.parameters(), lr=0.5)]

    module, twin = Players(), Players()
    fit(module, net_batches(), precision="bf16-mixed")
    optimizers = twin.configure_optimizers()
    for batch in net_batches():
        for optimizer, sign in zip(optimizers, (1, -1), strict=True):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = twin.loss(batch, sign)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_same_weights(twin, module, Players())
