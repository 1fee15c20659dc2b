"""``validate``, ``test`` and ``predict``, and the validations inside of a fit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from leyden.assembly import BASES, build_evaluation_step, build_modes
from leyden.data.sources import DataLimits, is_empty, load_evaluation
from leyden.errors import MisconfigurationException, warn
from leyden.hooks.dispatch import Hook, Hooks, overrides
from leyden.loops.evaluate import EvaluationParts
from leyden.loops.predict import PredictParts
from leyden.results.collect import Results
from leyden.results.table import results_table
from leyden.runs import Runs


class Evaluations(Runs):
    """Runs evaluations and predictions."""

    overfit_batches: int | float
    inference_mode: bool

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
            print(results_table(values, stage))
        return values

    def _predict(self, hooks: Hooks, *, given: Any, keeps: bool) -> list[Any] | None:
        module = self._module
        assert module is not None
        module.zero_grad()
        loaders, counts = self._load_evaluation("predict", given)
        self._state.results = None
        parts = PredictParts(
            loaders=loaders,
            limits=counts,
            step=build_evaluation_step(
                module, "predict_step", precision=self._precision, several_loaders=len(loaders) > 1
            ),
            hooks=hooks,
            state=self._state,
            modes=build_modes(module, "predict", hooks),
            gradients=self._without_gradients(),
            transfer=self._transfer(),
            keeps=keeps,
        )
        with self._context():
            return self.predict_loop.run(parts)

    def _evaluation_parts(
        self, name: str, loaders: list[Any], counts: list[int | float], hooks: Hooks, *, in_fit: bool
    ) -> EvaluationParts:
        module, state, several = self._module, self._state, len(loaders) > 1
        assert module is not None
        epoch_end = getattr(module, f"{name}_epoch_end", None)
        results = Results(training=False, several_loaders=several, views=self._views)
        return EvaluationParts(
            name=name,
            loaders=loaders,
            limits=counts,
            step=build_evaluation_step(module, f"{name}_step", precision=self._precision, several_loaders=several),
            hooks=hooks,
            state=state,
            results=results,
            modes=build_modes(module, name, hooks),
            gradients=torch.no_grad if in_fit else self._without_gradients(),
            transfer=self._transfer(),
            write_row=functools.partial(self._write_evaluation_row, results) if self.loggers else None,
            epoch_end=Hook(f"{name}_epoch_end", state, module=epoch_end) if epoch_end is not None else None,
            epoch=self.clocks.epoch,
        )

    def _load_evaluation(self, name: str, given: Any) -> tuple[list[Any], list[int | float]]:
        argument = f"limit_{name}_batches"
        overfit = self.overfit_batches if name == "val" and self._state.stage == "train" else 0
        limits = DataLimits(getattr(self, argument), overfit, argument)
        return load_evaluation(functools.partial(self._ask_for, name, given), limits, name=f"{name}_dataloaders")

    def _without_gradients(self) -> Callable[[], AbstractContextManager[Any]]:
        return torch.inference_mode if self.inference_mode else torch.no_grad

    def _write_evaluation_row(self, results: Results, values: Mapping[str, Any], by_step: bool) -> None:
        if by_step:
            loader = str(results.dataloader_idx)
            count = self._eval_rows[loader] = self._eval_rows.get(loader, -1) + 1
            if values:
                self._write_row(values, count)
        elif values:
            self._write_row({"epoch": self.clocks.epoch, **values}, self.clocks.updates)
