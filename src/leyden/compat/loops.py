"""Lightning's evaluation loop, for libraries that put one of their own in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leyden.errors import InvalidValueError
from leyden.loops.evaluate import EvaluationLoop
from leyden.results import results_table


class EvaluationLoopWithReport(EvaluationLoop):
    """An evaluation whose report may be overridden: ``trainer.test_loop = TheirLoop(trainer, fn, stage)``.

    Args:
        trainer: whose loop it becomes.
        *place: what it runs, which the place that it is put into says.
        inference_mode: as the Trainer has it, which knows it itself.
        **others: such as ``verbose``, which ``trainer.test`` is told.

    Raises:
        InvalidValueError: ``inference_mode`` is not the Trainer's (``evaluation-loop``).
    """

    def __init__(self, trainer: Any, *place: Any, inference_mode: bool = True, **others: Any) -> None:
        super().__init__()
        if inference_mode != trainer.inference_mode:
            text = (
                f"an evaluation loop with inference_mode={inference_mode} needs a Trainer with the same; pass it there"
            )
            raise InvalidValueError(text, code="evaluation-loop")

    def show(self, values: list[dict[str, float]], stage: str) -> None:
        """Let the report have tensors, as Lightning's gets."""
        self._print_results([{name: torch.tensor(value) for name, value in row.items()} for row in values], stage)

    @staticmethod
    def _print_results(results: list[dict[str, Tensor]], stage: str) -> None:
        print(results_table([{name: float(value) for name, value in row.items()} for row in results], stage))
