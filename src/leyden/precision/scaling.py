"""Loss scaling for float16: one scaler, one verdict and one change of scale per window.

torch's ``GradScaler`` couples unscaling, the verdict and the step of *one* optimizer. leyden needs them apart: clipping
between unscale and step, one verdict for a Joint, one change of scale for all optimizers of a window, several
evaluations of one closure. The arithmetic and the state are torch's scaler's own; only the order is decided here.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor


@final
class LossScale:
    """A ``GradScaler`` whose parts are called one by one.

    Args:
        scaler: holds the scale and its growth state; its ``state_dict`` is what a checkpoint keeps.

    Attributes:
        pending: whether a verdict was reached that has not changed the scale yet.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler
        self.pending = False
        self._still_scaled: dict[int, Any] = {}

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        return self.scaler.scale(loss)

    def gradients_made(self, optimizers: list[Any]) -> None:
        """Remember that the gradients of these optimizers carry the scale from now on."""
        for optimizer in optimizers:
            self._still_scaled[id(optimizer)] = optimizer

    def forget(self) -> None:
        """The run is over: no gradients carry the scale any more."""
        self._still_scaled.clear()

    def is_scaled(self, optimizer: Any) -> bool:
        """Whether the gradients of ``optimizer`` carry the scale."""
        return id(optimizer) in self._still_scaled

    def unscale(self, optimizer: Any) -> bool:
        """Divide the gradients by the scale, in place.

        Returns:
            Whether all of them are finite. This reads one number from the device, as torch's scaler does at its step.
        """
        scaler = self.scaler
        self._still_scaled.pop(id(optimizer), None)
        if not scaler.is_enabled():  # torch's way to switch scaling off; such a scaler has no state either
            return True
        # A closure is evaluated several times within one update; torch would refuse the second unscale_.
        scaler._per_optimizer_states.pop(id(optimizer), None)
        scaler.unscale_(optimizer)
        found = scaler._found_inf_per_device(optimizer).values()
        if found:
            self.pending = True
        return not any(flag.item() for flag in found)

    def update(self) -> None:
        """Let the verdicts since the last update change the scale.

        Gradients that still carry the old scale (an optimizer that accumulates while another steps) are brought to the
        new one, so that they are unscaled rightly when their turn comes.
        """
        if not self.pending:
            return
        self.pending = False
        before = self.scaler.get_scale() if self._still_scaled else 0.0
        self.scaler.update()
        if not self._still_scaled:
            return
        ratio = self.scaler.get_scale() / before
        if ratio != 1.0:
            gradients = {id(g): g for o in self._still_scaled.values() for g in _gradients(o)}
            for gradient in gradients.values():
                gradient.mul_(ratio)


def _gradients(optimizer: Any) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
