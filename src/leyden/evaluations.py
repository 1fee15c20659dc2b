"""``validate``, ``test`` and ``predict``, and the validations inside of a fit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import torch

from leyden import checkpoint, data  # what copies ahead is imported where it is wanted
from leyden import hooks as checks
from leyden.assembly import BASES, build_evaluation_step, build_modes, own_hook
from leyden.data.combined import given_by_user
from leyden.data.loaders import Copier
from leyden.data.sources import DataLimits, is_empty, load_evaluation
from leyden.errors import MisconfigurationException, warn
from leyden.hooks.dispatch import Hook, Hooks, overrides, unprofiled, watch_batches
from leyden.loops.evaluate import EvaluationParts
from leyden.results.collect import Results
from leyden.results.entry import metric_objects
from leyden.runs import Runs
from leyden.strategies import Strategy

#: What waiting for a batch is called in a profile.
_NEXT: Final = {
    "validation": "[_EvaluationLoop].val_next",
    "test": "[_EvaluationLoop].test_next",
    "predict": "[_PredictionLoop].predict_next",
}


class Evaluations(Runs):
    """Runs evaluations and predictions."""

    overfit_batches: int | float
    inference_mode: bool
    _given: dict[str, Any]  # what the call was given for each kind of loader, None if nothing

    def _evaluate(self, hooks: Hooks, *, stage: str, given: Any, verbose: bool) -> list[dict[str, float]]:
        name = "validation" if stage == "validate" else "test"
        if not overrides(self._module, f"{name}_step", BASES):
            raise MisconfigurationException(
                f"trainer.{stage} needs {name}_step, which {type(self._module).__qualname__} does not define",
                code="hook-missing",
            )
        assert self._module is not None
        self._module.zero_grad()
        loaders, counts = self._load_evaluation("val" if stage == "validate" else "test", given)
        loop = self.validate_loop if stage == "validate" else self.test_loop
        if is_empty(counts):
            warn(f"trainer.{stage} has no batches to run", code="evaluation-empty")
            return []
        with self._context():
            values = loop.run(self._evaluation_parts(name, loaders, counts, hooks, in_fit=False))
        if verbose and self.is_global_zero and any(values):
            loop.show(values, stage)
        return values

    def _predict(self, hooks: Hooks, *, given: Any, keeps: bool) -> list[Any] | None:
        assert self._module is not None
        self._module.zero_grad()
        loaders, counts = self._load_evaluation("predict", given)
        parts = self._evaluation_parts("predict", loaders, counts, hooks, in_fit=False)
        writers: list[Any] = [callback for callback in self.callbacks if hasattr(callback, "write_on_epoch_end")]
        by_epoch = any(writer.interval.on_epoch for writer in writers)
        parts.keeps = keeps or by_epoch
        parts.records = "epoch" if by_epoch else "batch" if writers else ""
        with self._context():
            predictions = self.predict_loop.run(parts)
        return predictions if keeps else None

    def _evaluation_parts(
        self, name: str, loaders: list[Any], counts: list[int | float], hooks: Hooks, *, in_fit: bool
    ) -> EvaluationParts:
        module, state, several = self._module, self._state, len(loaders) > 1
        assert module is not None
        results = None
        if name != "predict":
            metrics = functools.partial(metric_objects, module)
            results = Results(training=False, several_loaders=several, views=self._views, metrics=metrics)
        epoch_end, profile = own_hook(module, f"{name}_epoch_end"), self._profile
        if epoch_end is not None:
            epoch_end = Hook(f"{name}_epoch_end", state, module=profile(module, f"{name}_epoch_end", epoch_end))
        step = build_evaluation_step(module, f"{name}_step", precision=self._precision, several_loaders=several)
        return EvaluationParts(
            name=name,
            loaders=loaders,
            limits=counts,
            step=profile(self.strategy, f"{name}_step", step),
            hooks=hooks,
            state=state,
            results=results,
            modes=build_modes(module, name, hooks),
            gradients=torch.no_grad if in_fit else self._without_gradients(),
            transfer=self._transfer(),
            copier=self._build_copier(),
            watch=watch_batches(profile, _NEXT[name]),
            write_row=self._write_evaluation_row if self.loggers else None,
            rows=self._eval_rows,
            epoch_end=epoch_end,
            epoch=self.clocks.epoch,
            keeps=epoch_end is not None,
            returns=not in_fit,
            mark=checkpoint.mark if in_fit and not self.barebones else None,
        )

    def _load_evaluation(self, name: str, given: Any, *, in_fit: bool = False) -> tuple[list[Any], list[int | float]]:
        argument = f"limit_{name}_batches"
        overfit = self.overfit_batches if in_fit else 0
        value = self._ask_for(name, given)
        self._given[name] = given
        loop = {"val": self.validate_loop, "test": self.test_loop, "predict": self.predict_loop}[name]
        loop.dataloaders = given_by_user(value)
        limits = DataLimits(getattr(self, argument), overfit, argument)
        loaders, counts = load_evaluation(value, limits, name=f"{name}_dataloaders")
        loop.num_batches = counts
        if len(loaders) > 1:
            stage = "validation" if name == "val" else name
            checks.check_batch_hooks(self._module, self.callbacks, stage, bases=BASES)
        return loaders, counts

    def _build_copier(self) -> Copier | None:
        """What copies batches to the device ahead of time; the user's own hooks see each batch first, so not then."""
        device, owners = self.strategy.root_device, (self.datamodule, self._module)
        hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        own = overrides(self.strategy, "batch_to_device", (Strategy,))
        if device.type != "cuda" or own or any(overrides(owner, name, BASES) for owner in owners for name in hooks):
            return None
        copier = data.build_copier(device)
        if self._profile is not unprofiled:
            copier.send = self._profile(self.strategy, "copy_batch_ahead", copier.send)  # type: ignore[method-assign]
        return copier

    def _without_gradients(self) -> Callable[[], AbstractContextManager[Any]]:
        return torch.inference_mode if self.inference_mode else torch.no_grad

    def _write_evaluation_row(self, values: Mapping[str, Any], step: int | None) -> None:
        if values and step is None:
            self._write_row({"epoch": self.clocks.epoch, **values}, self.clocks.updates)
        elif values and step is not None:
            self._write_row(values, step)
