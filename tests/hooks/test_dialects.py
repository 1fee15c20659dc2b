"""1.x and 2.x signatures of the same hook: R1-R7, R74, V14, V17."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from given import Given, Manual, fit, given
from leyden import Callback, LightningModule, LightningOptimizer, MisconfigurationException, Trainer
from leyden.hooks.dialects import adapt

# -- binding by signature ---------------------------------------------------------------------------------------------


class Seven:
    """An optimizer list in which everything is the seventh."""

    def index_of(self, optimizer: Any) -> int:
        return 7

    def active(self) -> tuple[Any, int | None]:
        return "active", 7


def spy(parameters: str) -> Any:
    """A function with these parameters that returns what it got for each of them."""
    return eval(f"lambda {parameters}: tuple(locals().values())")


class Handle:
    optimizer = object()


HANDLE, RAW, CLOSURE, SCHEDULER = Handle(), object(), object(), mock.Mock()
FLAGS = {"on_tpu": False, "using_native_amp": True, "using_lbfgs": False}

#: What leyden calls a hook with.
CALLS: dict[str, tuple[Any, ...]] = {
    "optimizer_step": (4, 2, HANDLE, CLOSURE),
    "optimizer_zero_grad": (4, 2, RAW),
    "on_before_optimizer_step": (RAW,),
    "configure_gradient_clipping": (RAW, 0.5, "norm"),
    "backward": ("loss",),
    "lr_scheduler_step": (SCHEDULER, 0.25),
    "toggle_optimizer": (RAW,),
    "on_train_batch_start": ("batch", 2),
    "on_train_batch_end": ("outputs", "batch", 2),
    "on_validation_batch_start": ("batch", 2),
    "on_validation_batch_end": ("outputs", "batch", 2),
    "on_predict_epoch_end": ("results",),
    "setup": ("fit",),
}
#: hook, parameters of the user's method, what the method gets
BOUND: list[tuple[str, str, tuple[Any, ...]]] = [
    # a parameter that only 1.x had
    ("optimizer_step", "epoch, batch_idx, optimizer, optimizer_idx, closure", (4, 2, HANDLE, 7, CLOSURE)),
    ("optimizer_step", "e, b, o, opt_idx, c, **more", (4, 2, HANDLE, 7, CLOSURE, FLAGS)),
    ("optimizer_step", "e, b, o, optimizer_idx, c, using_lbfgs, on_tpu", (4, 2, HANDLE, 7, CLOSURE, False, False)),
    ("optimizer_step", "e, b, o, i, c, *, using_native_amp", (4, 2, HANDLE, 7, CLOSURE, True)),
    (
        "optimizer_step",
        "e, b, o, i, c, on_tpu=5, using_native_amp=5, using_lbfgs=5",
        (4, 2, HANDLE, 7, CLOSURE) + tuple(FLAGS.values()),
    ),
    ("optimizer_zero_grad", "epoch, batch_idx, optimizer, optimizer_idx", (4, 2, RAW, 7)),
    ("on_before_optimizer_step", "optimizer, opt_idx", (RAW, 7)),
    (
        "configure_gradient_clipping",
        "optimizer, optimizer_idx, gradient_clip_val=None, gradient_clip_algorithm=None",
        (RAW, 7, 0.5, "norm"),
    ),
    (
        "configure_gradient_clipping",
        "optimizer, optimizer_idx, **options",
        (RAW, 7, {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "norm"}),
    ),
    ("backward", "loss, optimizer, optimizer_idx, *args, **kwargs", ("loss", "active", 7, (), {})),
    ("lr_scheduler_step", "scheduler, optimizer_idx, metric", (SCHEDULER, 7, 0.25)),
    ("toggle_optimizer", "optimizer, optimizer_idx", (RAW, 7)),
    ("on_train_batch_start", "batch, batch_idx, unused=3", ("batch", 2, 0)),
    ("on_train_batch_end", "outputs, batch, batch_idx, dataloader_idx", ("outputs", "batch", 2, 0)),
    # else the number of parameters, under any names
    ("optimizer_step", "a, b, c, d, e", (4, 2, HANDLE, 7, CLOSURE)),
    ("optimizer_step", "a, b, c, d", (4, 2, HANDLE, CLOSURE)),
    ("optimizer_zero_grad", "a, b, c, d", (4, 2, RAW, 7)),
    ("optimizer_zero_grad", "a, b, c", (4, 2, RAW)),
    ("on_before_optimizer_step", "a, b", (RAW, 7)),
    ("on_before_optimizer_step", "a", (RAW,)),
    ("configure_gradient_clipping", "a, b, c, d", (RAW, 7, 0.5, "norm")),
    ("configure_gradient_clipping", "a, b, c", (RAW, 0.5, "norm")),
    ("configure_gradient_clipping", "optimizer, gradient_clip_val, gradient_clip_algorithm", (RAW, 0.5, "norm")),
    (
        "configure_gradient_clipping",
        "optimizer, **options",
        (RAW, {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "norm"}),
    ),
    ("backward", "a, b, c", ("loss", "active", 7)),
    ("backward", "loss", ("loss",)),
    ("backward", "loss, *args, **kwargs", ("loss", (), {})),
    ("lr_scheduler_step", "a, b, c", (SCHEDULER, 7, 0.25)),
    ("lr_scheduler_step", "a, b", (SCHEDULER, 0.25)),
    ("toggle_optimizer", "a", (RAW,)),
    ("on_train_batch_start", "a, b, c", ("batch", 2, 0)),
    ("on_train_batch_start", "a, b", ("batch", 2)),
    ("on_train_batch_end", "a, b, c", ("outputs", "batch", 2)),
    ("on_validation_batch_start", "batch, batch_idx, dataloader_idx", ("batch", 2, 0)),
    ("on_validation_batch_start", "batch, batch_idx", ("batch", 2)),
    ("on_validation_batch_end", "outputs, batch, batch_idx, dataloader_idx", ("outputs", "batch", 2, 0)),
    ("on_validation_batch_end", "outputs, batch, batch_idx, dataloader_idx=5", ("outputs", "batch", 2, 5)),
    ("on_predict_epoch_end", "results", ("results",)),
    ("on_predict_epoch_end", "", ()),
    ("setup", "stage", ("fit",)),
    ("setup", "stage=None", ("fit",)),
    ("setup", "*, stage", ("fit",)),
    ("setup", "what", ("fit",)),
    ("setup", "", ()),
    # else the 2.x form
    ("optimizer_step", "*args, **kwargs", ((4, 2, HANDLE, CLOSURE), {})),
    ("optimizer_zero_grad", "*args", ((4, 2, RAW),)),
    ("on_before_optimizer_step", "*args", ((RAW,),)),
    ("configure_gradient_clipping", "*args", ((RAW, 0.5, "norm"),)),
    (
        "configure_gradient_clipping",
        "*args, **kwargs",
        ((RAW,), {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "norm"}),
    ),
    ("backward", "*args", (("loss",),)),
    ("lr_scheduler_step", "*args", ((SCHEDULER, 0.25),)),
    ("on_train_batch_start", "*args", (("batch", 2),)),
    ("on_validation_batch_end", "*args, **kwargs", (("outputs", "batch", 2), {})),
    ("on_predict_epoch_end", "*args", ((),)),
    ("setup", "**kwargs", ({"stage": "fit"},)),
]


@pytest.mark.parametrize(("hook", "parameters", "expected"), BOUND, ids=[f"{h}({p})" for h, p, _ in BOUND])
def test_binding(hook: str, parameters: str, expected: tuple[Any, ...]) -> None:
    """R2: a 1.x-only name decides, else the number of parameters, else it is 2.x."""
    method = adapt(spy(parameters), hook, several=False, turns=Seven(), mixed=True)
    assert method(*CALLS[hook]) == expected


#: hook, parameters, what the method gets while several optimizers take turns
SEVERAL: list[tuple[str, str, tuple[Any, ...]]] = [
    ("optimizer_step", "*args", ((4, 2, HANDLE, 7, CLOSURE),)),
    ("optimizer_step", "*args, **kwargs", ((4, 2, HANDLE, 7, CLOSURE), {})),
    ("optimizer_zero_grad", "*args", ((4, 2, RAW, 7),)),
    ("on_before_optimizer_step", "*args", ((RAW, 7),)),
    ("configure_gradient_clipping", "*args", ((RAW, 7, 0.5, "norm"),)),
    ("backward", "*args", (("loss", "active", 7),)),
    ("lr_scheduler_step", "*args", ((SCHEDULER, 7, 0.25),)),
    ("toggle_optimizer", "*args", ((RAW, 7),)),
    ("optimizer_step", "a, b, c, d", (4, 2, HANDLE, CLOSURE)),
    ("on_before_optimizer_step", "optimizer", (RAW,)),
    ("on_train_batch_start", "*args", (("batch", 2),)),
]


@pytest.mark.parametrize(("hook", "parameters", "expected"), SEVERAL, ids=[f"{h}({p})" for h, p, _ in SEVERAL])
def test_binding_with_several_optimizers(hook: str, parameters: str, expected: tuple[Any, ...]) -> None:
    """R3: a pure ``*args`` is 1.x then, without keywords that it did not ask for (R2); what R2 decides stays."""
    method = adapt(spy(parameters), hook, several=True, turns=Seven(), mixed=True)
    assert method(*CALLS[hook]) == expected


def test_hooks_without_dialects_are_left_alone() -> None:
    """R2: nothing is put around a method whose form never changed."""
    method = spy("optimizer, optimizer_idx=None")
    for hook in ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_train_start"):
        assert adapt(method, hook, several=True, turns=Seven()) is method


def test_signatures_are_read_through_decorators() -> None:
    """R1: through ``functools.wraps``; a decorated 1.x method stays 1.x."""

    def decorated(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return wrapper

    old = decorated(spy("optimizer, optimizer_idx"))
    new = decorated(spy("optimizer"))
    assert adapt(old, "on_before_optimizer_step", several=False, turns=Seven())(RAW) == (RAW, 7)
    assert adapt(new, "on_before_optimizer_step", several=True, turns=Seven())(RAW) == (RAW,)


def test_methods_without_a_signature() -> None:
    """R2: a mock, or a callable of C, counts as ``*args, **kwargs``."""
    hook = mock.Mock()
    adapt(hook, "optimizer_step", several=False, turns=Seven())(*CALLS["optimizer_step"])
    hook.assert_called_once_with(4, 2, HANDLE, CLOSURE)


# -- whole runs -------------------------------------------------------------------------------------------------------


class Two(Given):
    """Two weights, each with an optimizer; the gradients are ``batch`` and ``2 * batch``; schedulers halve both."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int, optimizer_idx: int) -> Any:
        return ((self.weight, self.other)[optimizer_idx] * batch * (optimizer_idx + 1)).sum()

    def configure_optimizers(self) -> Any:
        self.a, self.b = SGD([self.weight], lr=1.0), SGD([self.other], lr=1.0)
        self.schedulers = [{"scheduler": StepLR(o, 1, gamma=0.5), "interval": "step"} for o in (self.a, self.b)]
        return [self.a, self.b], self.schedulers

    def name(self, optimizer: Any) -> str:
        """a or b; "handle of a" if it is not the optimizer itself."""
        raw = optimizer.optimizer if type(optimizer) is LightningOptimizer else optimizer
        letter = {id(self.a): "a", id(self.b): "b"}[id(raw)]
        return letter if raw is optimizer else f"handle of {letter}"

    @property
    def result(self) -> list[float]:
        return [self.weight.item(), self.other.item(), *(o.param_groups[0]["lr"] for o in (self.a, self.b))]


def test_one_module_of_both_eras() -> None:
    """R1: the dialect is decided hook by hook, not for the module."""

    class Mixed(Two):
        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_idx: int, optimizer_closure: Any, **kwargs: Any
        ) -> None:
            self.events.append(("optimizer_step", self.name(optimizer), optimizer_idx, kwargs))
            optimizer.step(closure=optimizer_closure)

        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            self.events.append(("optimizer_zero_grad", self.name(optimizer)))
            optimizer.zero_grad()

        def on_before_optimizer_step(self, optimizer: Any, opt_idx: int) -> None:
            self.events.append(("on_before_optimizer_step", self.name(optimizer), opt_idx))

    module = Mixed()
    fit(module, given(1))
    flags = {"on_tpu": False, "using_native_amp": False, "using_lbfgs": False}
    assert module.events == [
        ("optimizer_step", "handle of a", 0, flags),
        ("optimizer_zero_grad", "a"),
        ("on_before_optimizer_step", "a", 0),
        ("optimizer_step", "handle of b", 1, flags),
        ("optimizer_zero_grad", "b"),
        ("on_before_optimizer_step", "b", 1),
    ]
    assert module.result == [-1.0, -2.0, 0.5, 0.5]


def test_flags_of_optimizer_step() -> None:
    """R2, R74: using_lbfgs and using_native_amp say what is so."""

    class Old(Given):
        def configure_optimizers(self) -> Any:
            return LBFGS(self.parameters(), max_iter=1)

        def optimizer_step(
            self,
            epoch: int,
            batch_idx: int,
            optimizer: Any,
            optimizer_idx: int,
            optimizer_closure: Any,
            on_tpu: bool,
            using_native_amp: bool,
            using_lbfgs: bool,
        ) -> None:
            self.events.append((epoch, batch_idx, optimizer_idx, on_tpu, using_native_amp, using_lbfgs))
            optimizer.step(closure=optimizer_closure)

    module = Old()
    fit(module, given(1, 2), precision="bf16-mixed")
    assert module.events == [(0, 0, 0, False, True, True), (0, 1, 0, False, True, True)]


def test_callbacks_of_both_eras() -> None:
    """R2: the callback forms have trainer and module before the module's parameters."""
    got: list[Any] = []

    class Old(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any, opt_idx: int) -> None:
            got.append((pl_module.name(optimizer), opt_idx))

        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int
        ) -> None:
            got.append(("start", batch_idx, dataloader_idx))

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, unused: int = 9
        ) -> None:
            got.append(("end", batch_idx, unused))

        def setup(self, trainer: Any, pl_module: Any, stage: str | None = None) -> None:
            got.append(stage)

    class New(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            got.append(pl_module.name(optimizer))

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            got.append(("new start", batch_idx))

        def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
            got.append(stage)

    fit(Two(), given(1), callbacks=[Old(), New()])
    assert got == ["fit", ("start", 0, 0), ("new start", 0), ("a", 0), "a", ("b", 1), "b", ("end", 0, 0), "fit"]


def test_backward_in_manual_mode() -> None:
    """R2: the 1.x form gets None for optimizer and index; what manual_backward is given follows in both forms."""

    class Old(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(self.loss(batch), None, retain_graph=True)

        def backward(self, loss: Tensor, optimizer: Any, optimizer_idx: Any, *args: Any, **kwargs: Any) -> None:
            self.events.append((optimizer, optimizer_idx, args, kwargs))
            loss.backward(*args, **kwargs)

    class New(Old):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            self.events.append((args, kwargs))
            loss.backward(*args, **kwargs)

    for kind, expected in (
        (Old, (None, None, (None,), {"retain_graph": True})),
        (New, ((None,), {"retain_graph": True})),
    ):
        module = kind()
        fit(module, given(3))
        assert module.events == [expected]
        assert module.weight.grad is not None
        assert module.weight.grad.tolist() == [3.0]


def test_lr_scheduler_step_of_a_scheduler_without_optimizer() -> None:
    """R2, R23: the 1.x form gets None as the index where there is no optimizer to tell it."""

    class Own:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    class Old(Given):
        def configure_optimizers(self) -> Any:
            return [SGD(self.parameters(), lr=1.0)], [Own()]

        def lr_scheduler_step(self, scheduler: Any, optimizer_idx: int | None, metric: Any) -> None:
            self.events.append((type(scheduler), optimizer_idx, metric))

    module = Old()
    fit(module, given(1))
    assert module.events == [(Own, None, None)]


def loaders(*gradients: list[int]) -> list[DataLoader[Tensor]]:
    """Several loaders of batches as in ``given``."""
    return [DataLoader(torch.tensor(each).float().reshape(-1, 1), batch_size=None) for each in gradients]


class Evaluated(Given):
    """Notes the evaluation's batch hooks, with one loader or several."""

    def note(self, name: str, *indices: int) -> None:
        self.events.append((name, *indices))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 9) -> None:
        self.note("step", batch_idx, dataloader_idx)

    test_step = predict_step = validation_step


class NewHooks(Evaluated):
    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 9) -> None:
        self.note("start", batch_idx, dataloader_idx)

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 9) -> None:
        self.note("end", batch_idx, dataloader_idx)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end


class OldHooks(Evaluated):
    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.note("start", batch_idx, dataloader_idx)

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.note("end", batch_idx, dataloader_idx)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("kind", [NewHooks, OldHooks])
def test_dataloader_idx(stage: str, kind: type[Evaluated]) -> None:
    """R2: 2.x has it with several loaders only, so its default is seen; a 1.x hook always gets it."""
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False)
    one, several = kind(), kind()
    getattr(trainer, stage)(one, given(1))
    default = 9 if kind is NewHooks else 0
    assert one.events == [("start", 0, default), ("step", 0, 9), ("end", 0, default)]
    getattr(trainer, stage)(several, loaders([1], [2]))
    assert several.events == [(name, 0, loader) for loader in (0, 1) for name in ("start", "step", "end")]


def test_on_predict_epoch_end() -> None:
    """R2: the 1.x form gets the predictions, a list for each loader; the 2.x form gets nothing."""

    class Old(Given):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return batch.item()

        def on_predict_epoch_end(self, results: Any) -> None:
            self.events.append(results)

    class New(Old):
        def on_predict_epoch_end(self) -> None:
            self.events.append("called")

    trainer = Trainer(accelerator="cpu", enable_progress_bar=False)
    old, new = Old(), New()
    assert trainer.predict(old, given(1, 2)) == [1.0, 2.0]
    assert trainer.predict(old, loaders([1, 2], [3])) == [[1.0, 2.0], [3.0]]
    assert old.events == [[[1.0, 2.0]], [[1.0, 2.0], [3.0]]]
    trainer.predict(new, given(1))
    assert new.events == ["called"]


# -- super() ----------------------------------------------------------------------------------------------------------

Base: Any = Two
#: An override that hands everything on to the base class, in the dialect that it is written in.
SUPER: dict[str, dict[str, Any]] = {
    "optimizer_step, 1.x": {
        "optimizer_step": lambda self, epoch, batch_idx, optimizer, optimizer_idx, closure: Base.optimizer_step(
            self, epoch, batch_idx, optimizer, optimizer_idx, closure
        )
    },
    "optimizer_step, 1.x with flags": {
        "optimizer_step": lambda self, e, b, o, optimizer_idx, c, on_tpu, using_native_amp, using_lbfgs: (
            Base.optimizer_step(self, e, b, o, optimizer_idx, c, on_tpu, using_native_amp, using_lbfgs)
        )
    },
    "optimizer_step, 1.x by keyword": {
        "optimizer_step": lambda self, epoch, batch_idx, optimizer, optimizer_idx, closure, **flags: (
            Base.optimizer_step(
                self,
                epoch=epoch,
                batch_idx=batch_idx,
                optimizer=optimizer,
                optimizer_idx=optimizer_idx,
                optimizer_closure=closure,
                **flags,
            )
        )
    },
    "optimizer_step, 1.x with the closure by keyword": {
        "optimizer_step": lambda self, e, b, o, optimizer_idx, c, on_tpu: Base.optimizer_step(
            self, e, b, o, optimizer_idx, optimizer_closure=c, on_tpu=on_tpu
        )
    },
    "optimizer_step, 2.x": {"optimizer_step": lambda self, e, b, o, c: Base.optimizer_step(self, e, b, o, c)},
    "optimizer_step, 2.x by keyword": {
        "optimizer_step": lambda self, e, b, o, c: Base.optimizer_step(self, e, b, o, optimizer_closure=c)
    },
    "optimizer_step, *args": {
        "optimizer_step": lambda self, *args, **kwargs: Base.optimizer_step(self, *args, **kwargs)
    },
    "optimizer_zero_grad, 1.x": {
        "optimizer_zero_grad": lambda self, e, b, o, optimizer_idx: Base.optimizer_zero_grad(
            self, e, b, o, optimizer_idx
        )
    },
    "optimizer_zero_grad, 1.x by keyword": {
        "optimizer_zero_grad": lambda self, e, b, o, optimizer_idx: Base.optimizer_zero_grad(
            self, epoch=e, batch_idx=b, optimizer=o, optimizer_idx=optimizer_idx
        )
    },
    "optimizer_zero_grad, 2.x": {"optimizer_zero_grad": lambda self, e, b, o: Base.optimizer_zero_grad(self, e, b, o)},
    "on_before_optimizer_step, 1.x": {
        "on_before_optimizer_step": lambda self, o, optimizer_idx: Base.on_before_optimizer_step(self, o, optimizer_idx)
    },
    "on_before_optimizer_step, 2.x": {
        "on_before_optimizer_step": lambda self, o: Base.on_before_optimizer_step(self, o)
    },
    "configure_gradient_clipping, 1.x": {
        "configure_gradient_clipping": lambda self, o, i, v, a: Base.configure_gradient_clipping(self, o, i, v, a)
    },
    "configure_gradient_clipping, 1.x by keyword": {
        "configure_gradient_clipping": lambda self, o, optimizer_idx, gradient_clip_val, gradient_clip_algorithm: (
            Base.configure_gradient_clipping(
                self,
                o,
                optimizer_idx,
                gradient_clip_val=gradient_clip_val,
                gradient_clip_algorithm=gradient_clip_algorithm,
            )
        )
    },
    "configure_gradient_clipping, 1.x all by keyword": {
        "configure_gradient_clipping": lambda self, o, optimizer_idx, gradient_clip_val, gradient_clip_algorithm: (
            Base.configure_gradient_clipping(
                self,
                optimizer=o,
                optimizer_idx=optimizer_idx,
                gradient_clip_val=gradient_clip_val,
                gradient_clip_algorithm=gradient_clip_algorithm,
            )
        )
    },
    "configure_gradient_clipping, 2.x": {
        "configure_gradient_clipping": lambda self, o, v, a: Base.configure_gradient_clipping(self, o, v, a)
    },
    "configure_gradient_clipping, 2.x by keyword": {
        "configure_gradient_clipping": lambda self, optimizer, **options: Base.configure_gradient_clipping(
            self, optimizer, **options
        )
    },
    "backward, 1.x": {
        "backward": lambda self, loss, optimizer, optimizer_idx, *args, **kwargs: Base.backward(
            self, loss, optimizer, optimizer_idx, *args, **kwargs
        )
    },
    "backward, 1.x by keyword": {
        "backward": lambda self, loss, optimizer, optimizer_idx: Base.backward(
            self, loss, optimizer=optimizer, optimizer_idx=optimizer_idx
        )
    },
    "backward, 2.x": {"backward": lambda self, loss, *args, **kw: Base.backward(self, loss, *args, **kw)},
    "lr_scheduler_step, 1.x": {
        "lr_scheduler_step": lambda self, s, optimizer_idx, m: Base.lr_scheduler_step(self, s, optimizer_idx, m)
    },
    "lr_scheduler_step, 1.x by keyword": {
        "lr_scheduler_step": lambda self, s, optimizer_idx, m: Base.lr_scheduler_step(
            self, scheduler=s, optimizer_idx=optimizer_idx, metric=m
        )
    },
    "lr_scheduler_step, 2.x": {"lr_scheduler_step": lambda self, s, m: Base.lr_scheduler_step(self, s, m)},
    "lr_scheduler_step, 2.x by keyword": {
        "lr_scheduler_step": lambda self, s, m: Base.lr_scheduler_step(self, s, metric=m)
    },
    "toggle_optimizer, 1.x": {
        "toggle_optimizer": lambda self, o, optimizer_idx: Base.toggle_optimizer(self, o, optimizer_idx),
        "untoggle_optimizer": lambda self, optimizer_idx: Base.untoggle_optimizer(self, optimizer_idx),
    },
    "toggle_optimizer, 1.x by keyword": {
        "toggle_optimizer": lambda self, o, optimizer_idx: Base.toggle_optimizer(
            self, optimizer=o, optimizer_idx=optimizer_idx
        ),
        "untoggle_optimizer": lambda self, optimizer_idx: Base.untoggle_optimizer(self, optimizer_idx=optimizer_idx),
    },
    "toggle_optimizer, 2.x": {
        "toggle_optimizer": lambda self, o: Base.toggle_optimizer(self, o),
        "untoggle_optimizer": lambda self, o: Base.untoggle_optimizer(self, o),
    },
    "on_train_batch_start/end, 1.x": {
        "on_train_batch_start": lambda self, batch, i, unused: Base.on_train_batch_start(self, batch, i, unused),
        "on_train_batch_end": lambda self, outputs, batch, i, dataloader_idx: LightningModule.on_train_batch_end(
            self, outputs, batch, i, dataloader_idx
        ),
    },
    "setup and teardown without a stage": {
        "setup": lambda self, stage=None: Base.setup(self),
        "teardown": lambda self, stage=None: Base.teardown(self),
    },
    "setup and teardown with a stage": {
        "setup": lambda self, stage: Base.setup(self, stage),
        "teardown": lambda self, stage: Base.teardown(self, stage=stage),
    },
}


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize("form", SUPER)
def test_super(form: str, clip: float | None) -> None:
    """R4, V17: an override that calls ``super()`` in its own dialect changes nothing."""
    plain, overriding = Two(), type("Overriding", (Two,), SUPER[form])()
    for module in (plain, overriding):
        fit(module, given(1, 2, 4), gradient_clip_val=clip)
    assert plain.result == [-3.0, -6.0, 0.125, 0.125] if clip is None else [-2.125, -2.625, 0.125, 0.125]
    assert overriding.result == plain.result


def test_super_of_toggles_freezes() -> None:
    """R4: inside of ``super().toggle_optimizer(optimizer, optimizer_idx)`` the other optimizer's weight is frozen."""

    class Old(Two):
        def toggle_optimizer(self, optimizer: Any, optimizer_idx: int) -> None:  # type: ignore[override]
            super().toggle_optimizer(optimizer, optimizer_idx)
            self.events.append((optimizer_idx, self.weight.requires_grad, self.other.requires_grad))

        def untoggle_optimizer(self, optimizer_idx: int) -> None:  # type: ignore[override]
            super().untoggle_optimizer(optimizer_idx)
            self.events.append((optimizer_idx, self.weight.requires_grad, self.other.requires_grad))

    module = Old()
    fit(module, given(1))
    assert module.events == [(0, True, False), (0, True, True), (1, False, True), (1, True, True)]


def test_super_in_evaluations() -> None:
    """R4: batch hooks and on_predict_epoch_end, in both forms."""

    class Old(Evaluated):
        def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
            super().on_validation_batch_start(batch, batch_idx, dataloader_idx)

        def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
            super().on_predict_batch_end(outputs, batch, batch_idx, dataloader_idx)

        def on_predict_epoch_end(self, results: Any) -> None:
            super().on_predict_epoch_end(results)

    class New(Evaluated):
        def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().on_validation_batch_start(batch, batch_idx)

        def on_predict_epoch_end(self) -> None:
            super().on_predict_epoch_end()

    for kind in (Old, New):
        trainer = Trainer(accelerator="cpu", enable_progress_bar=False)
        module = kind()
        trainer.validate(module, given(1))
        trainer.predict(module, given(1))
        assert module.events == [("step", 0, 9), ("step", 0, 9)]


def test_super_in_callbacks() -> None:
    """R4: the base callback takes both forms as well."""
    got: list[str] = []

    class Old(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str | None = None) -> None:
            super().setup(trainer, pl_module)  # type: ignore[call-arg]
            got.append("setup")

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any, opt_idx: int) -> None:
            super().on_before_optimizer_step(trainer, pl_module, optimizer, opt_idx)  # type: ignore[call-arg]
            got.append("on_before_optimizer_step")

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, unused: int) -> None:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx, unused)  # type: ignore[call-arg]
            got.append("on_train_batch_start")

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int
        ) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)  # type: ignore[call-arg]
            got.append("on_train_batch_end")

    fit(Given(), given(1), callbacks=[Old()])
    assert got == ["setup", "on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end"]


def test_both_clip_arguments_win_over_the_trainer() -> None:
    """V14, R102, R103: in the hook a complete call wins; one contradicting argument alone is an error."""

    class Complete(Given):
        def configure_gradient_clipping(
            self, optimizer: Any, optimizer_idx: int, gradient_clip_val: Any, gradient_clip_algorithm: Any
        ) -> None:
            self.clip_gradients(
                optimizer, gradient_clip_val=gradient_clip_val * 2, gradient_clip_algorithm=gradient_clip_algorithm
            )

    class Contradicting(Given):
        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any
        ) -> None:
            self.clip_gradients(optimizer, gradient_clip_val=gradient_clip_val * 2)

    module = Complete()
    fit(module, given(16), gradient_clip_val=2)
    assert module.gradients == [[pytest.approx(4.0)]]
    with pytest.raises(MisconfigurationException, match=r"gradient_clip_val=4\) contradicts Trainer"):
        fit(Contradicting(), given(16), gradient_clip_val=2)


# -- training_step ----------------------------------------------------------------------------------------------------

B = "the batch"
#: parameters of training_step -> what it gets with one optimizer, and with two that take turns (None: refused, R15)
STEPS: dict[str, tuple[tuple[Any, ...], list[tuple[Any, ...]] | None]] = {
    "batch": ((B,), None),
    "batch, batch_idx": ((B, 0), None),
    "x, i": ((B, 0), None),
    "x, i=3": ((B, 0), None),
    "batch, batch_idx=3": ((B, 0), None),
    "batch, **kwargs": ((B, {}), None),
    "batch, *, batch_idx=3": ((B, 3), None),
    "batch, batch_idx, optimizer_idx": ((B, 0, 0), [(B, 0, 0), (B, 0, 1)]),
    "x, i, optimizer_idx=5": ((B, 0, 0), [(B, 0, 0), (B, 0, 1)]),
    "*args": (((B, 0),), [((B, 0, 0),), ((B, 0, 1),)]),
    "batch, *args": ((B, (0,)), [(B, (0, 0)), (B, (0, 1))]),
}


def seen(base: type[Given], parameters: str) -> list[tuple[Any, ...]]:
    """What a ``training_step`` with these parameters gets in each call of one batch."""
    step = spy(parameters)

    class Module(base):  # type: ignore[misc, valid-type]
        def shown(self, value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(self.shown, value))
            return B if isinstance(value, Tensor) else value

        @functools.wraps(spy(f"self, {parameters}"))
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            self.events.append(self.shown(step(*args, **kwargs)))
            return self.weight.sum() + sum(p.sum() for p in self.parameters())

    module = Module()
    fit(module, given(1))
    return module.events


@pytest.mark.parametrize("parameters", STEPS)
def test_training_step(parameters: str) -> None:
    """R5: by position; batch_idx if it is named, second or in ``*args``. R6: optimizer_idx is 0 with one optimizer."""
    assert seen(Given, parameters) == [STEPS[parameters][0]]


@pytest.mark.parametrize("parameters", STEPS)
def test_training_step_of_several_optimizers(parameters: str) -> None:
    """R5: optimizer_idx if it is named or there is ``*args``; R15: else refused."""
    expected = STEPS[parameters][1]
    if expected is not None:
        assert seen(Two, parameters) == expected
        return
    with pytest.raises(ValueError, match="does not say what to do with them"):
        seen(Two, parameters)


def test_training_step_as_an_attribute() -> None:
    """R1, R5: a function put on the instance is asked for its own parameters."""
    module = Given()
    batches: list[Any] = []

    def step(batch: Any) -> Any:
        batches.append(batch)
        return module.loss(batch)

    module.training_step = step  # type: ignore[method-assign, assignment]
    fit(module, given(1, 2))
    assert batches == given(1, 2)
    assert module.gradients == [[1.0], [2.0]]


@pytest.mark.parametrize("name", ["training_step", "validation_step"])
def test_dataloader_iter(name: str) -> None:
    """R2: a step that wants the loader's iterator is refused, not given a batch in its place."""

    class Iterating(Given):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    setattr(Iterating, name, lambda self, dataloader_iter: None)
    with pytest.raises(MisconfigurationException, match=r"'dataloader_iter' draws its batches by itself"):
        Trainer(enable_progress_bar=False, accelerator="cpu", max_epochs=1).fit(Iterating(), given(1), given(1))


# -- what is refused --------------------------------------------------------------------------------------------------


def test_code_that_only_lightning_2_refuses_runs() -> None:
    """R7: several optimizers in automatic mode, optimizer_idx, and the epoch-end hooks with outputs."""

    class Old(Two):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return batch.item()

        test_step = validation_step

        def training_epoch_end(self, outputs: Any) -> None:
            self.events.append([[output["loss"].item() for output in of_one] for of_one in outputs])

        def validation_epoch_end(self, outputs: Any) -> None:
            self.events.append(outputs)

        test_epoch_end = validation_epoch_end

    module = Old()
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_progress_bar=False, num_sanity_val_steps=0)
    trainer.fit(module, given(1, 2), given(3))
    trainer.validate(module, given(4))
    trainer.test(module, given(5))
    assert module.events == [[3.0], [[0.0, -2.0], [0.0, -8.0]], [4.0], [5.0]]


class Bare(LightningModule):
    """A module without the methods that a run needs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def test_a_module_without_training_step() -> None:
    """R7: refused, as by Lightning of either era."""

    class Module(Bare):
        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=1.0)

    with pytest.raises(MisconfigurationException, match=r"Module does not define training_step\(\)"):
        fit(Module(), given(1))


def test_a_module_without_configure_optimizers() -> None:
    """R7: refused, as by Lightning of either era; None is what says "no optimizer" (R10)."""

    class Module(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.weight * batch).sum()

    with pytest.raises(MisconfigurationException, match="configure_optimizers"):
        fit(Module(), given(1))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_several_loaders_need_dataloader_idx(stage: str) -> None:
    """R7: a step that does not take it could not tell the loaders apart, so it stays refused."""
    name = stage.replace("validate", "validation") + "_step"
    module = type("Module", (Given,), {name: lambda self, batch, batch_idx: None})()
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False)
    getattr(trainer, stage)(module, given(1))
    with pytest.raises(MisconfigurationException, match=r"define .*\(self, batch, batch_idx, dataloader_idx=0\)"):
        getattr(trainer, stage)(module, loaders([1], [2]))


@pytest.mark.parametrize("arguments", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_trainer_arguments_that_manual_mode_ignores(arguments: dict[str, Any]) -> None:
    """R7: what 2.x refuses in manual mode stays refused."""
    with pytest.raises(MisconfigurationException, match="does nothing in manual optimization"):
        fit(Manual(), given(1), **arguments)
