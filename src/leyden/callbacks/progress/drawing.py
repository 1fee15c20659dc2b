"""What a progress bar is drawn with: a terminal's bar, and values read late from the device."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

_BAR: Final = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_SHORT: Final = "{desc}{n_fmt}/{total_fmt} {rate_noinv_fmt}{postfix}"


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
    """The class of our bars: tqdm without its thread, with metrics of constant width, never too wide."""
    in_notebook = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None
    # here, so that runs without a bar do not load it
    base: Any = importlib.import_module("tqdm.notebook" if in_notebook else "tqdm.std").tqdm

    from tqdm.utils import disp_len

    class Tqdm(base):  # type: ignore[misc]
        """A bar that is drawn when it is told to."""

        monitor_interval = 0  # seconds after which tqdm's thread would draw a bar that has not moved

        @staticmethod
        def format_num(number: Any) -> str:
            """A number in the postfix."""
            return with_digits(number)

        if not in_notebook:

            def display(self, msg: str | None = None, pos: int | None = None) -> Any:
                """Draw within the terminal as it is now; without the bar if there is no room for its least."""
                columns, self.nrows = terminal_size(self.fp)
                self.ncols = None  # which makes the bar 10 characters long
                self.bar_format = _BAR
                if disp_len(str(self)) >= columns:
                    self.bar_format = _SHORT
                self.ncols = columns - 1  # the last column would break the line on some terminals
                return super().display(msg, pos)

    return Tqdm


def terminal_size(stream: Any) -> tuple[int, int]:
    """Columns and rows of the terminal behind ``stream``; 80 and 24 where it does not tell (a bare container)."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (AttributeError, OSError, ValueError):
        columns = rows = 0
    return columns or 80, rows or 24


def with_digits(value: Any) -> str:
    """A number with three digits, trailing zeros kept so that a line does not jump; anything else as it is.

    >>> with_digits(0.5), with_digits(1234.5), with_digits(3), with_digits("a")
    ('0.500', '1.23e+03', '3', 'a')
    """
    return f"{value:#.3g}".rstrip(".") if isinstance(value, float) else str(value)


def build_bar(*, description: str, total: float | None, position: int, leave: bool) -> Any:
    """A tqdm bar on standard output.

    Args:
        description: text in front.
        total: number of steps; None or inf if unknown.
        position: row below the current one.
        leave: whether it stays on the screen when it is closed.
    """
    return tqdm_class()(
        desc=f"{description}: ",  # as set_description does
        total=finite(total),
        position=position,
        leave=leave,
        file=sys.stdout,
        bar_format=_BAR,
        mininterval=0,  # the callback has looked at the clock already
        miniters=1,
    )


def restart(bar: Any, total: float | None) -> None:
    """Begin again without drawing, which tqdm's own ``reset`` does."""
    bar.total = finite(total)
    bar.n = bar.last_print_n = 0
    bar.start_t = bar.last_print_t = time.time()


def leave_out(bar: Any, seconds: float) -> None:
    """Do not count the last ``seconds`` in the bar's speed."""
    bar.start_t += seconds
    bar.last_print_t += seconds


def finite(total: float | None) -> int | None:
    """A number of batches as tqdm wants it: None if it is unknown.

    >>> finite(float("inf")), finite(3.0)
    (None, 3)
    """
    return None if total is None or total == float("inf") else int(total)


class LateReader:
    """Reads values one draw late, so that nobody waits for a device.

    A value on the CPU is read at once. Values on a CUDA device are copied into pinned memory while the device
    goes on; they are shown by the next call that finds the copy complete.

    >>> LateReader().read({"loss": torch.tensor(0.5)})
    {'loss': 0.5}
    """

    def __init__(self) -> None:
        self._shown: dict[str, float] = {}
        self._copies: list[tuple[list[str], Tensor, Any]] = []  # names, pinned memory, event behind the copy

    def read(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """The newest values that are here, by name."""
        far = {name: value for name, value in values.items() if value.is_cuda}
        if far:
            self._collect()
            if not self._copies:
                devices = {value.device for value in far.values()}
                self._copies = [_start_copy(far, device) for device in devices]
        shown: dict[str, float] = {}
        for name, value in values.items():
            if name not in far:
                shown[name] = value.item()
            elif name in self._shown:
                shown[name] = self._shown[name]
        return shown

    def _collect(self) -> None:
        if all(copied.query() for _, _, copied in self._copies):
            for names, copy, _ in self._copies:
                self._shown.update(zip(names, copy.tolist(), strict=True))
            self._copies = []


def _start_copy(values: Mapping[str, Tensor], device: torch.device) -> tuple[list[str], Tensor, Any]:
    names = [name for name, value in values.items() if value.device == device]
    with torch.cuda.device(device):
        stacked = torch.stack([values[name].detach().to(torch.float64) for name in names])
        copy = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
        copy.copy_(stacked, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
    return names, copy, copied
