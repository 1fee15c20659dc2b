"""What a progress bar is drawn with: a terminal's bar, and values read late from the device."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

#: Below this width there is no room for a bar beside the numbers.
_NARROW: Final = 72
_BAR: Final = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_SHORT: Final = "{desc}: {n_fmt}/{total_fmt} {rate_noinv_fmt}{postfix}"


def is_interactive(stream: Any) -> bool:
    """Whether a line on ``stream`` can be drawn over: a terminal or a notebook, not a file or a pipe."""
    if "ipykernel" in sys.modules:
        return True
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # not a stream at all, or a closed one
        return False


@functools.cache
def tqdm_class() -> Any:
    """tqdm's bar, tuned: no thread of its own, metrics of constant width, never wider than the terminal."""
    in_notebook = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None
    if in_notebook:
        from tqdm.notebook import tqdm
    else:
        from tqdm.std import tqdm
    from tqdm.utils import disp_trim

    class Tqdm(tqdm):  # type: ignore[type-arg,misc,valid-type]
        """A bar that is drawn when it is told to."""

        monitor_interval = 0  # the thread that it would start wakes bars that have not been drawn for long

        @staticmethod
        def format_num(number: float) -> str:
            """Three digits, trailing zeros kept, so that the line does not jump.

            A str is returned as it is.
            """
            if isinstance(number, str):
                return number
            if isinstance(number, int):
                return str(number)
            return f"{number:#.3g}".rstrip(".")

        @property
        def format_dict(self) -> Any:
            """What tqdm formats a line with; a narrow terminal gets the numbers only."""
            fields = super().format_dict
            if not in_notebook and fields["ncols"] is not None and fields["ncols"] < _NARROW:
                fields["bar_format"] = _SHORT
            return fields

        def __str__(self) -> str:
            fields = self.format_dict
            line: str = self.format_meter(**fields)
            return str(disp_trim(line, fields["ncols"])) if fields["ncols"] else line

    return Tqdm


def build_bar(*, description: str, total: float | None, position: int, leave: bool) -> Any:
    """A tqdm bar on standard output.

    Args:
        description: text in front.
        total: number of steps; None or inf if unknown.
        position: row below the current one.
        leave: whether it stays on the screen when it is closed.
    """
    return tqdm_class()(
        desc=description,
        total=finite(total),
        position=position,
        leave=leave,
        file=sys.stdout,
        dynamic_ncols=True,
        bar_format=_BAR,
        mininterval=0,  # the callback has looked at the clock already
        miniters=1,
    )


def finite(total: float | None) -> int | None:
    """A number of batches as tqdm wants it: None if it is unknown.

    >>> finite(float("inf")), finite(3.0)
    (None, 3)
    """
    return None if total is None or total == float("inf") else int(total)


class LateReader:
    """Reads values one draw late, so that nobody waits for a device.

    A value on the CPU is read at once. Values on a CUDA device are copied into pinned memory while the device goes
    on; they are shown by the next call that finds the copy complete.

    >>> LateReader().read({"loss": torch.tensor(0.5)})
    {'loss': 0.5}
    """

    def __init__(self) -> None:
        self._shown: dict[str, float] = {}
        self._names: list[str] = []
        self._copy: Tensor | None = None
        self._copied: Any = None

    def read(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """The newest values that are here, by name."""
        far = {name: value for name, value in values.items() if value.is_cuda}
        if far:
            self._collect()
            if self._copy is None:
                self._start(far)
        shown: dict[str, float] = {}
        for name, value in values.items():
            if not value.is_cuda:
                shown[name] = value.item()
            elif name in self._shown:
                shown[name] = self._shown[name]
        return shown

    def _start(self, values: dict[str, Tensor]) -> None:
        by_device: dict[torch.device, list[Tensor]] = {}
        names: dict[torch.device, list[str]] = {}
        for name, value in values.items():
            by_device.setdefault(value.device, []).append(value.detach().to(torch.float64))
            names.setdefault(value.device, []).append(name)
        device = next(iter(by_device))  # a second device has its turn when this copy is through
        for candidate in by_device:
            if not set(names[candidate]) <= set(self._shown):
                device = candidate
        stacked = torch.stack(by_device[device])
        self._names = names[device]
        self._copy = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
        self._copy.copy_(stacked, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(device))

    def _collect(self) -> None:
        if self._copy is not None and self._copied.query():
            self._shown.update(zip(self._names, self._copy.tolist(), strict=True))
            self._copy = None
