"""What a progress bar is drawn with: a terminal's bar, and values read late from the device."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from leyden.callbacks.progress.notebook import COLUMNS, NotebookOutput, in_notebook

_BAR: Final = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
#: What is tried one after the other where there is no room for a bar of 10 characters.
_SHORTER: Final = ("{desc}{n_fmt}/{total_fmt} {rate_noinv_fmt}{postfix}", "{desc}{n_fmt}/{total_fmt}{postfix}")


def is_interactive(stream: Any) -> bool:
    """Whether a line on ``stream`` can be drawn over: a terminal or a notebook, not a file or a pipe."""
    if in_notebook():
        return True
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # not a stream at all, or a closed one
        return False


@functools.cache
def tqdm_class() -> Any:
    """The class of our bars: tqdm without its thread, with metrics of constant width, never too wide."""
    from tqdm.std import tqdm  # here, so that runs without a bar do not load it
    from tqdm.utils import disp_len

    class Tqdm(tqdm):  # type: ignore[type-arg]
        """A bar that is drawn when it is told to, in a terminal or in ``output``, a notebook's."""

        postfix: Any
        monitor_interval = 0  # seconds after which tqdm's thread would draw a bar that has not moved

        def __init__(self, *args: Any, output: NotebookOutput | None = None, **kwargs: Any) -> None:
            self.output = output
            super().__init__(*args, **kwargs)  # which draws

        @staticmethod
        def format_num(number: Any) -> str:
            """A number in the postfix."""
            return with_digits(number)

        def display(self, msg: str | None = None, pos: int | None = None) -> Any:
            """Draw within the terminal as it is now, leaving out what there is no room for."""
            columns, self.nrows = terminal_size(self.fp) if self.output is None else (COLUMNS, 24)
            self.ncols = None  # which makes the bar 10 characters long
            metrics = self.postfix
            for self.bar_format in (_BAR, *_SHORTER):
                if disp_len(str(self)) < columns:
                    break
            while self.postfix and disp_len(str(self)) >= columns:
                self.postfix = self.postfix.rpartition(", ")[0]  # half a number would be another one
            self.ncols = columns - 1  # the last column would break the line on some terminals
            try:
                if self.output is None:
                    return super().display(msg, pos)
                self.output.show_row(self, str(self))
            finally:
                self.postfix = metrics

        def update(self, n: float | None = 1) -> bool | None:
            """Count, also where nothing is shown."""
            if self.disable:
                self.n += n or 0
            return super().update(n)

        def clear(self, nolock: bool = False) -> None:
            """Make room for a printed line, which a notebook has anyway."""
            if self.output is None:
                super().clear(nolock)

        def close(self) -> None:
            """Leave the screen."""
            if self.output is None or self.disable:
                super().close()
                return
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]
            self.output.show_row(self, str(self) if self.leave else None)

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


def build_bar(
    *,
    description: str,
    total: float | None,
    position: int,
    leave: bool,
    output: NotebookOutput | None = None,
    hidden: bool = False,
) -> Any:
    """A tqdm bar on standard output, or in a notebook.

    Args:
        description: text in front.
        total: number of steps; None or inf if unknown.
        position: row below the current one.
        leave: whether it stays on the screen when it is closed.
        output: where it is drawn in a notebook.
        hidden: whether it is never drawn, and only counts.
    """
    return tqdm_class()(
        output=output,
        disable=hidden,
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
    if hasattr(bar, "start_t"):  # a hidden one has no clock
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
