"""Hooks that cannot be called, and methods that look like hooks and are none: both are told before the first step."""

from __future__ import annotations

import functools
import importlib.util
import pkgutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import pytorch_lightning
import pytorch_lightning.demos
import torch

from given import Given, fit, given
from leyden import Callback, LightningDataModule, LightningModule, MisconfigurationException, Trainer
from leyden.assembly import BASES
from leyden.callbacks import LambdaCallback
from leyden.errors import LeydenWarning
from leyden.hooks.checks import check_hooks, misspelt_hooks


def module_with(**methods: Any) -> Given:
    return type("Model", (Given,), methods)()  # type: ignore[no-any-return]


def callback_with(**methods: Any) -> Callback:
    return type("Watcher", (Callback,), methods)()  # type: ignore[no-any-return]


def trainer_for(**arguments: Any) -> Trainer:
    return Trainer(accelerator="cpu", enable_progress_bar=False, **arguments)


# -- parameters -------------------------------------------------------------------------------------------------------

#: hook -> a method of the module with parameters that do not fit, and what the error proposes
MODULE_CASES: dict[str, tuple[Callable[..., Any], str]] = {
    "training_step": (lambda self, batch, batch_idx, foo, bar: None, "(self, batch, batch_idx)"),
    "on_train_batch_start": (lambda self, batch: None, "(self, batch, batch_idx)"),
    "on_train_batch_end": (lambda self, outputs, batch: None, "(self, outputs, batch, batch_idx)"),
    "on_train_epoch_end": (lambda self, outputs: None, "(self)"),
    "on_train_start": (lambda: None, "(self)"),
    "on_before_zero_grad": (lambda self: None, "(self, optimizer)"),
    "on_before_backward": (lambda self, loss, optimizer: None, "(self, loss)"),
    "on_after_backward": (lambda self, loss: None, "(self)"),
    "on_before_optimizer_step": (lambda self: None, "(self, optimizer)"),
    "optimizer_step": (lambda self, epoch, batch_idx, closure: None, "(self, epoch, batch_idx, optimizer, optimizer_c"),
    "optimizer_zero_grad": (lambda self, optimizer: None, "(self, epoch, batch_idx, optimizer)"),
    "configure_gradient_clipping": (lambda self, optimizer: None, "(self, optimizer, gradient_clip_val, gradient_cl"),
    "backward": (lambda self: None, "(self, loss)"),
    "lr_scheduler_step": (lambda self, scheduler: None, "(self, scheduler, metric)"),
    "configure_optimizers": (lambda self, lr: None, "(self)"),
    "setup": (lambda self, trainer, stage: None, "(self, stage)"),
    "training_epoch_end": (lambda self: None, "(self, outputs)"),
    "validation_epoch_end": (lambda self, outputs, more: None, "(self, outputs)"),
    "training_step_end": (lambda self: None, "(self, output)"),
    "validation_step": (lambda self: None, "(self, batch, batch_idx)"),
    "on_validation_batch_end": (lambda self, outputs, batch: None, "(self, outputs, batch, batch_idx)"),
    "on_validation_model_eval": (lambda self, mode: None, "(self)"),
    "transfer_batch_to_device": (lambda self, batch, device: None, "(self, batch, device, dataloader_idx)"),
    "train_dataloader": (lambda self, size: None, "(self)"),
    "on_save_checkpoint": (lambda self: None, "(self, checkpoint)"),
}


@pytest.mark.parametrize("name", MODULE_CASES)
def test_a_hook_of_the_module_that_cannot_be_called(name: str) -> None:
    """The error names class, hook, what was found and what fits, and nothing has run by then."""
    method, proposed = MODULE_CASES[name]
    module = module_with(**{"validation_step": lambda self, batch, batch_idx: None, name: method})
    module.prepare_data = lambda: module.events.append("ran")  # type: ignore[method-assign]
    trainer = trainer_for(max_epochs=1)
    with pytest.raises(MisconfigurationException) as caught:
        trainer.fit(module, given(1), given(1))
    text = str(caught.value)
    assert text.startswith(f"Model.{name}(")
    assert f"Define {name}{proposed}" in text
    assert text.endswith("[hook-signature]")
    assert (trainer.global_step, module.weights) == (0, [])
    assert module.events == (["ran"] if name == "validation_step" else [])  # known when it is clear that it is used


def test_the_text() -> None:
    """What was found is shown as it was written, without its annotations, and what Python has against it."""

    class Net(Given):
        def on_train_batch_end(self, outputs: Any, batch: torch.Tensor) -> None:  # type: ignore[override]
            """Has no batch_idx."""

    with pytest.raises(MisconfigurationException) as caught:
        fit(Net(), given(1))
    assert caught.value.message == (
        "test_the_text.<locals>.Net.on_train_batch_end(self, outputs, batch) does not take what a run passes: too many "
        "positional arguments. Define on_train_batch_end(self, outputs, batch, batch_idx)"
    )


def test_training_step_tells_of_optimizer_idx_and_hiddens() -> None:
    """What else a training_step may take depends on the module, so the error says when it is passed."""

    class Net(Given):
        def training_step(self, batch: Any, batch_idx: int, hiddens: Any) -> Any:  # type: ignore[override]
            """Takes hidden states that nobody passes."""

    with pytest.raises(MisconfigurationException, match="missing a required argument: 'hiddens'") as caught:
        fit(Net(), given(1))
    assert "optimizer_idx behind batch_idx where several optimizers take turns" in str(caught.value)
    assert "hiddens as the last where the module has truncated_bptt_steps" in str(caught.value)


def test_truncated_backpropagation_needs_hiddens() -> None:
    """R144: a training_step that cannot take them is told before the first split."""
    module = module_with(truncated_bptt_steps=2, training_step=lambda self, batch, batch_idx: None)
    with pytest.raises(MisconfigurationException, match=r"Define training_step\(self, batch, batch_idx, hiddens\)"):
        fit(module, given(1))


#: hook -> a method of a callback, and what the error proposes
CALLBACK_CASES: dict[str, tuple[Callable[..., Any], str]] = {
    "on_train_start": (lambda self, trainer: None, "(self, trainer, pl_module)"),
    "on_fit_end": (lambda self: None, "(self, trainer, pl_module)"),
    "on_train_batch_start": (lambda self, batch, batch_idx: None, "(self, trainer, pl_module, batch, batch_idx)"),
    "on_train_batch_end": (
        lambda self, trainer, pl_module, batch, batch_idx: None,
        "(self, trainer, pl_module, outputs, batch, batch_idx)",
    ),
    "on_before_optimizer_step": (lambda self, trainer, pl_module: None, "(self, trainer, pl_module, optimizer)"),
    "on_exception": (lambda self, trainer, pl_module: None, "(self, trainer, pl_module, exception)"),
    "setup": (lambda self, stage: None, "(self, trainer, pl_module, stage)"),
    "on_save_checkpoint": (lambda self, checkpoint: None, "(self, trainer, pl_module, checkpoint)"),
}


@pytest.mark.parametrize("name", CALLBACK_CASES)
def test_a_hook_of_a_callback_that_cannot_be_called(name: str) -> None:
    """Likewise; the commonest mistake is to leave out pl_module."""
    method, proposed = CALLBACK_CASES[name]
    module = Given()
    with pytest.raises(MisconfigurationException, match=r"^Watcher\.") as caught:
        fit(module, given(1), callbacks=callback_with(**{name: method}))
    assert f"Define {name}{proposed}" in str(caught.value)
    assert module.weights == []


#: methods with the names of hooks of 1.x
FORMER: dict[str, tuple[Callable[..., Any], bool]] = {
    "as 1.x passed it": (lambda self: self.events.append("epoch"), True),
    "with a default": (lambda self, outputs=(): self.events.append("epoch"), True),
    "anything": (lambda self, *args: self.events.append("epoch"), True),
    "called by the class itself": (lambda self, outputs: self.events.append(outputs), False),
}


@pytest.mark.parametrize("name", FORMER)
def test_a_method_that_is_a_hook_of_1x_by_name_only(name: str) -> None:
    """R2, R45: 2.x has no ``on_epoch_end``, so classes for it have methods of that name, which no run calls."""
    method, is_hook = FORMER[name]
    module = module_with(on_epoch_end=method)
    fit(module, given(1))
    assert module.events == ["epoch"] * is_hook
    module = module_with(on_epoch_end=method, on_train_epoch_end=lambda self: self.on_epoch_end(*["own"][is_hook:]))
    fit(module, given(1))
    assert module.events == (["epoch"] * 2 if is_hook else ["own"])


def test_a_callback_with_such_a_method() -> None:
    """Likewise; one that takes Trainer and module is the hook."""
    seen: list[Any] = []
    own = callback_with(on_epoch_end=lambda self, loss: seen.append(loss), on_epoch_start=lambda self: seen.append(0))
    hooked = callback_with(on_epoch_end=lambda self, trainer, pl_module: seen.append(type(pl_module).__name__))
    fit(Given(), given(1), callbacks=[own, hooked])
    assert seen == ["Given"]


def test_a_lambda_callback() -> None:
    """Functions have no self."""
    callback = LambdaCallback(on_train_start=lambda trainer: None)
    with pytest.raises(
        MisconfigurationException, match=r"LambdaCallback\.on_train_start\(trainer\) does not"
    ) as caught:
        fit(Given(), given(1), callbacks=callback)
    assert "Define on_train_start(trainer, pl_module)" in str(caught.value)


@pytest.mark.parametrize(("stage", "name"), [("validate", "validation"), ("test", "test"), ("predict", "predict")])
def test_evaluations(stage: str, name: str) -> None:
    """Each run checks its own step and hooks."""
    methods: dict[str, Callable[..., Any]] = {
        f"{name}_step": lambda self: None,
        f"on_{name}_batch_start": lambda self, batch: None,
    }
    for hook, method in methods.items():
        good = {f"{name}_step": lambda self, batch: None}
        with pytest.raises(MisconfigurationException, match=rf"^Model\.{hook}\(.*\[hook-signature\]$"):
            getattr(trainer_for(), stage)(module_with(**{**good, hook: method}), given(1))


def test_hooks_of_other_runs_are_left_alone() -> None:
    """A predict_step that its author calls by himself, in a way of his own, is nobody's concern in a fit."""
    module = module_with(
        predict_step=lambda self, image, threshold, size: None,
        test_step=lambda self: None,
        validation_step=lambda self, batch, batch_idx, threshold: None,  # there is nothing to validate on
        on_test_start=lambda self, folder: None,
    )
    fit(module, given(1))
    assert len(module.weights) == 1


@pytest.mark.parametrize("owner", ["module", "callback"])
@pytest.mark.parametrize(("stage", "name"), [("validate", "validation"), ("test", "test"), ("predict", "predict")])
def test_several_loaders(stage: str, name: str, owner: str) -> None:
    """Their batch hooks get dataloader_idx, so they must take it; with one loader they need not."""
    hook = f"on_{name}_batch_end"
    step = {f"{name}_step": lambda self, batch, batch_idx, dataloader_idx=0: None}
    if owner == "module":
        trainer, module = trainer_for(), module_with(**step, **{hook: lambda self, outputs, batch, batch_idx: None})
    else:
        callback = callback_with(**{hook: lambda self, trainer, pl_module, outputs, batch, batch_idx: None})
        trainer, module = trainer_for(callbacks=callback), module_with(**step)
    getattr(trainer, stage)(module, given(1))
    loaders = [torch.utils.data.DataLoader(given(value)) for value in (1, 2)]  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match=rf"Define {hook}\(self, .*batch_idx, dataloader_idx=0\)"):
        getattr(trainer, stage)(module, loaders)


def decorated(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return method(*args, "injected", **kwargs)

    return wrapper


class Legal(Given):
    """What has a signature that only looks odd."""

    def training_step(self, batch: Any, batch_idx: int, scale: float = 1.0, *more: Any) -> Any:
        return scale * self.loss(batch)

    @decorated
    def on_train_epoch_start(self, injected: str) -> None:  # type: ignore[override]
        self.events.append(injected)

    def on_train_start(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("start")

    @staticmethod
    def on_train_end() -> None:
        """Needs nothing."""

    on_fit_end = functools.partialmethod(lambda self, value: self.events.append(value), "end")

    def on_before_optimizer_step(self, optimizer: Any, optimizer_idx: int) -> None:  # type: ignore[override]
        self.events.append(optimizer_idx)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)

    def setup(self, *, stage: str) -> None:  # type: ignore[override]
        self.events.append(stage)


def test_what_stays_legal() -> None:
    """*args, defaults, keyword-only stage, decorators that inject, partials, mocks, static methods, forms of 1.x."""
    module = Legal()
    module.on_after_backward = MagicMock()  # type: ignore[method-assign]
    module.on_train_epoch_end = functools.partial(module.events.append, "epoch")  # type: ignore[method-assign]
    old = callback_with(
        on_train_batch_end=lambda self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx: None,
        on_before_optimizer_step=lambda self, trainer, pl_module, optimizer, opt_idx: None,
        setup=lambda self, trainer, pl_module, stage=None: None,
        teardown=lambda self, *_: None,
    )
    mock = MagicMock(spec=Callback)
    mock.state_key = "mock"
    fit(module, given(2), callbacks=[old, mock])
    assert module.events == ["fit", "start", "injected", 0, "epoch", "end"]
    assert module.on_after_backward.call_count == mock.on_train_start.call_count == 1


def test_the_library_s_own_hooks_fit() -> None:
    """Every callback and every demo of Lightning, whose forms are those of 2.x, passes as it is."""
    ours = (pytorch_lightning.LightningModule, pytorch_lightning.LightningDataModule, pytorch_lightning.Callback)
    kinds = [getattr(pytorch_lightning.callbacks, name) for name in pytorch_lightning.callbacks.__all__]
    callbacks = [kind.__new__(kind) for kind in kinds if issubclass(kind, pytorch_lightning.Callback)]
    for module in demos():
        for stage in ("fit", "validate", "test", "predict"):
            check_hooks(module, callbacks, stage=stage, bases=(*ours,))


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ("on_train_batch_begin", "on_train_batch_start"),
        ("on_training_epoch_end", "on_train_epoch_end"),
        ("on_validation_epoch_finish", "on_validation_epoch_end"),
        ("on_val_start", "on_validation_start"),
        ("on_train_epochs_end", "on_train_epoch_end"),
        ("on_trian_start", "on_train_start"),
        ("on_test_epoch_ned", "on_test_epoch_end"),
        ("validation_steps", "validation_step"),
        ("val_step", "validation_step"),
        ("validaton_step", "validation_step"),
        ("testing_step", "test_step"),
        ("val_dataloaders", "val_dataloader"),
        ("validation_dataloader", "val_dataloader"),
        ("train_epoch_end", "training_epoch_end"),
        ("configure_callback", "configure_callbacks"),
        ("configure_gradient_cliping", "configure_gradient_clipping"),
        ("on_before_optimizers_step", "on_before_optimizer_step"),
        ("on_epoch_begin", "on_epoch_start"),
    ],
)
def test_a_name_that_is_no_hook_s(found: str, meant: str) -> None:
    """The fit goes on; the name that was probably meant is told, once for all runs of a Trainer."""
    module = module_with(**{found: lambda self, *_: None})
    trainer = trainer_for(max_epochs=1)
    with pytest.warns(LeydenWarning) as caught:
        trainer.fit(module, given(1))
    assert [str(one.message) for one in caught] == [
        f"Model.{found} is the name of no hook, so a run never calls it; is {meant} meant? A name that begins with an "
        "underscore tells it from hooks [hook-misspelt]"
    ]
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, given(1))  # warnings are errors, so this one gives none


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ("on_train_batch_begin", "on_train_batch_start"),
        ("on_training_end", "on_train_end"),
        ("on_exceptions", "on_exception"),
        ("on_save_checkpoints", "on_save_checkpoint"),
        ("on_sanity_check_begin", "on_sanity_check_start"),
    ],
)
def test_a_name_that_is_no_hook_s_of_a_callback(found: str, meant: str) -> None:
    """Likewise for callbacks."""
    with pytest.warns(LeydenWarning, match=rf"Watcher\.{found} is the name of no hook.*is {meant} meant"):
        fit(Given(), given(1), callbacks=callback_with(**{found: lambda self, *_: None}))


def test_a_name_that_is_no_method_s_of_a_datamodule() -> None:
    """A validation that silently never runs."""

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return given(1)

        def validation_dataloader(self) -> Any:
            return given(1)

    with pytest.warns(LeydenWarning, match=r"Data\.validation_dataloader .*is val_dataloader meant"):
        trainer_for(max_epochs=1).fit(Given(), datamodule=Data())


def sgd() -> Any:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


@pytest.mark.parametrize("name", ["train_step", "configure_optimizer"])
def test_the_warning_comes_before_the_error(name: str) -> None:
    """Where the hook that was meant is required, the error alone would only say that it is missing."""
    methods = {"training_step": lambda self, batch: self.loss(batch), "configure_optimizers": lambda self: sgd()}
    real = "training_step" if name == "train_step" else "configure_optimizers"
    methods[name] = methods.pop(real)
    module = type("Model", (LightningModule,), methods)()
    with (
        pytest.warns(LeydenWarning, match=rf"Model\.{name} .*is {real} meant"),
        pytest.raises(MisconfigurationException, match=rf"does not define {real}"),
    ):
        fit(module, given(1))


HELPERS = [
    "training_step_2", "shared_step", "eval_step", "generator_step", "text_step", "predicted_step", "step",
    "train_one", "pretrain_dataloader", "test_data", "on_trial_end", "on_click", "toggle_optimizers",
    "log_epoch_end", "val_loss", "train_val_dataloader", "forward_step", "backwards", "setups", "configure_losses",
    "configure_networks", "optimizer", "on_train_batch_end_extra", "get_train_dataloader", "trace_step",
    "training_stage", "validation_stop", "test_stop",
]  # fmt: skip


@pytest.mark.parametrize("name", HELPERS)
def test_helpers_are_no_misspelt_hooks(name: str) -> None:
    """No false alarms for methods that authors call by themselves."""
    assert list(misspelt_hooks(module_with(**{name: lambda self: None}), bases=BASES)) == []


def test_helpers_beside_the_hook_itself() -> None:
    """Whoever has a training_step may have a train_step as well; so may names with an underscore."""
    module = module_with(
        train_step=lambda self: None,
        validation_step=lambda self, batch, batch_idx: None,
        val_step=lambda self: None,
        _on_train_begin=lambda self: None,
    )
    assert list(misspelt_hooks(module, bases=BASES)) == []


def demos() -> list[Any]:
    """An uninitialised instance of every module and datamodule of Lightning's demos."""
    found = []
    for info in pkgutil.iter_modules(pytorch_lightning.demos.__path__):
        namespace = vars(importlib.import_module(f"pytorch_lightning.demos.{info.name}"))
        for kind in namespace.values():
            bases = (pytorch_lightning.LightningModule, pytorch_lightning.LightningDataModule)
            if isinstance(kind, type) and issubclass(kind, bases) and kind not in bases:
                found.append(kind.__new__(kind))
    return found


def test_no_false_alarms_elsewhere() -> None:
    """Lightning's callbacks, demos, and the examples of this repository have no misspelt hook."""
    others = (pytorch_lightning.LightningModule, pytorch_lightning.LightningDataModule, pytorch_lightning.Callback)
    kinds = [getattr(pytorch_lightning.callbacks, name) for name in pytorch_lightning.callbacks.__all__]
    owners = [kind.__new__(kind) for kind in kinds if issubclass(kind, pytorch_lightning.Callback)] + demos()
    assert len(owners) > 25
    assert {type(owner).__name__: list(misspelt_hooks(owner, bases=others)) for owner in owners if
            list(misspelt_hooks(owner, bases=others))} == {}  # fmt: skip
    for path in (Path(__file__).parent.parent / "examples").glob("*.py"):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        example = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings():
            spec.loader.exec_module(example)
        for kind in vars(example).values():
            if isinstance(kind, type) and issubclass(kind, BASES):
                assert list(misspelt_hooks(kind.__new__(kind), bases=BASES)) == []
