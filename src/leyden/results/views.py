"""The dictionaries of metrics that outlive an epoch: for callbacks, for loggers, for the progress bar."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Views:
    """Metrics by name, as the Trainer shows them during and after a run.

    One object serves all stages of a run, so that a callback finds the validation's metrics beside those of
    the training epoch. ``Results`` writes into it; whoever holds it clears it between runs.

    Attributes:
        callback: ``trainer.callback_metrics``: tensors of shape ``()``.
        logged: ``trainer.logged_metrics``: the same for what goes to loggers.
        progress_bar: what ``trainer.progress_bar_metrics`` shows, not yet read from the device.
        writer: the ``Results`` whose values were shown or whose batch began last.
        warned: codes and names of warnings that this run has given.

    >>> views = Views()
    >>> views.callback
    {}
    """

    __slots__ = ("callback", "logged", "progress_bar", "warned", "writer")

    def __init__(self) -> None:
        self.callback: dict[str, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self.progress_bar: dict[str, Tensor] = {}
        self.writer: Any = None
        self.warned: set[str] = set()

    def clear(self) -> None:
        """Forget all metrics: a new run starts, or the sanity check is over."""
        self.callback.clear()
        self.logged.clear()
        self.progress_bar.clear()
        self.writer = None

    def to_cpu(self) -> None:
        """Move everything off the device; for the end of a run, when the device's memory is handed back."""
        for view in (self.callback, self.logged, self.progress_bar):
            for name, value in view.items():
                view[name] = value.cpu()

    def progress_bar_metrics(self) -> dict[str, float]:
        """What the progress bar shows, as floats. Reads from the device, so it may wait for it."""
        return {name: value.item() for name, value in self.progress_bar.items()}
