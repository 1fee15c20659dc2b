"""16-mixed and bf16-mixed: float32 parameters, autocast in the step methods, loss scaling for float16."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, final

import torch

from leyden.errors import InvalidValueError, MisconfigurationException
from leyden.precision.base import Precision
from leyden.precision.scaling import LossScale


@final
class MixedPrecision(Precision):
    """Autocast in forward; gradients and updates in the parameters' own type.

    Give it as ``Trainer(plugins=MixedPrecision("16-mixed", "cpu", scaler=...))`` to choose the scaler or to run
    float16 with loss scaling on the CPU.

    Args:
        precision: "16-mixed" or "bf16-mixed".
        device: device type that autocast is for: "cpu", "cuda", ...
        scaler: loss scaler for "16-mixed"; None makes a ``torch.amp.GradScaler`` with torch's defaults.

    Raises:
        InvalidValueError: another precision.
        MisconfigurationException: a scaler for "bf16-mixed", whose range needs none.
    """

    autocasts = True

    def __init__(self, precision: str, device: str, scaler: torch.amp.GradScaler | None = None) -> None:
        if precision not in ("16-mixed", "bf16-mixed"):
            raise InvalidValueError(
                f"MixedPrecision({precision!r}): the precision must be '16-mixed' or 'bf16-mixed'", code="precision"
            )
        if precision == "bf16-mixed" and scaler is not None:
            raise MisconfigurationException(
                "'bf16-mixed' scales no loss, so it takes no scaler; drop it or use '16-mixed'",
                code="precision-scaler",
            )
        self.precision = precision
        self.device_type = torch.device(device).type
        self._dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
        if precision == "16-mixed":
            self.loss_scale = LossScale(scaler or torch.amp.GradScaler(self.device_type))

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler; None for "bf16-mixed"."""
        return self.loss_scale.scaler if self.loss_scale is not None else None

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast to the half type on the device."""
        return torch.autocast(self.device_type, dtype=self._dtype)
