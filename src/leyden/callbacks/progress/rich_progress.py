"""``RichProgressBar``: the bar drawn by rich."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from leyden.callbacks.progress.drawing import finite
from leyden.callbacks.progress.notebook import NotebookOutput, in_notebook
from leyden.callbacks.progress.tqdm_progress import TQDMProgressBar
from leyden.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from rich.style import Style


#: Columns that are left out where there is no room, one after the other.
_DISPENSABLE: Final = ("bar", "time", "speed")
_LEAST_BAR: Final = 10


@dataclass(frozen=True)
class RichProgressBarTheme:
    """Styles of a ``RichProgressBar``, as rich names them.

    Attributes:
        description: "Epoch 3" and the like.
        progress_bar: the part of the bar that is done.
        progress_bar_finished: a bar that is complete.
        progress_bar_pulse: a bar whose length is unknown.
        batch_progress: batches done and in all.
        time: time taken and left.
        processing_speed: batches per second.
        metrics: what was logged for the bar.
        metrics_text_delimiter: stands between two metrics.
        metrics_format: of numbers among them.
    """

    description: str | Style = ""
    progress_bar: str | Style = "#6206E0"
    progress_bar_finished: str | Style = "#6206E0"
    progress_bar_pulse: str | Style = "#6206E0"
    batch_progress: str | Style = ""
    time: str | Style = "dim"
    processing_speed: str | Style = "dim underline"
    metrics: str | Style = "italic"
    metrics_text_delimiter: str = " "
    metrics_format: str = ".3f"


class RichProgressBar(TQDMProgressBar):
    """The default bar in colours: ``pip install 'leyden[rich]'``.

    It is drawn when the default bar would be drawn, and writes the same lines where nothing can be drawn. In a narrow
    terminal numbers go before the bar.

    Args:
        refresh_rate: batches between two drawings; 0 shows nothing. The clock limits all the same.
        leave: whether every epoch leaves its line on the screen; by default the last one does.
        theme: styles.
        console_kwargs: for ``rich.console.Console``.
        refresh_rate_per_second: of 1.5; 0 shows nothing, and the clock decides all else.

    Raises:
        MissingExtraError: rich is not installed.
        InvalidValueError: a number below 0 (``progress-bar-option``).
    """

    def __init__(
        self,
        refresh_rate: int = 1,
        leave: bool = False,
        theme: RichProgressBarTheme | None = None,
        console_kwargs: Mapping[str, Any] | None = None,
        refresh_rate_per_second: int | None = None,
    ) -> None:
        if importlib.util.find_spec("rich") is None:
            raise MissingExtraError("rich", extra="rich")
        super().__init__(refresh_rate=0 if refresh_rate_per_second == 0 else refresh_rate, leave=leave)
        self.theme = theme if theme is not None else RichProgressBarTheme()
        self._console_kwargs = dict(console_kwargs or {})
        self._screen: _Screen | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_screen": None}

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print a line above the bars."""
        if self._screen is None or not self._screen.bars or self._screen.output is not None:
            print(*args, sep=sep, **kwargs)
        else:
            text = sep.join(map(str, args))
            self._screen.console.print(text, markup=False, highlight=False, soft_wrap=True, **kwargs)

    def _draws(self) -> bool:
        return self.is_enabled and (self._open().console.is_terminal or in_notebook())

    def _build(self, description: str, total: float, *, leave: bool = False) -> Any:
        if not self._draws():
            return super()._build(description, total, leave=leave)  # a hidden one
        return _Bar(self._open(), description, total, leave=leave)

    def _open(self) -> _Screen:
        if self._screen is None:
            self._screen = _Screen(self.theme, self._console_kwargs)
        if in_notebook() and self._screen.output is not self._output:
            self._screen.output, self._screen.progress = self._output, None
        return self._screen


class _Screen:
    """The bars that are on the screen now; it begins with the first one and ends with the last."""

    def __init__(self, theme: RichProgressBarTheme, console_kwargs: dict[str, Any]) -> None:
        from rich.console import Console

        self.theme = theme
        self.console: Console = Console(**console_kwargs)
        self.bars: list[_Bar] = []
        self.columns = self._build_columns()
        self.progress: Progress | None = None
        self.output: NotebookOutput | None = None  # rich itself would need widgets for it

    def add(self, bar: _Bar) -> Any:
        """Make room for a bar; returns rich's number of it."""
        from rich.progress import Progress

        if self.progress is None:
            # no thread: the callback says when to draw
            self.progress = Progress(*self.columns.values(), console=self.console, auto_refresh=False)
            if self.output is None:
                self.progress.start()
        self.bars.append(bar)
        return self.progress.add_task("", total=finite(bar.total), visible=False)  # which draws

    def draw(self) -> None:
        """Draw all bars, with the columns that there is room for."""
        if self.progress is None:
            return
        texts: dict[_Bar, dict[str, Any]] = {bar: bar.texts() for bar in self.bars}
        widths = {name: max((len(text[name]) for text in texts.values()), default=0) for name in self.columns}
        names = list(self.columns)
        for name in _DISPENSABLE:
            if sum(widths[name] + 1 for name in names) - 1 <= self.console.width:
                break
            names.remove(name)
        room = self.console.width - sum(widths[name] + 1 for name in names if name != "metrics")
        self.progress.columns = tuple(self.columns[name] for name in names)
        for bar, fields in texts.items():
            fields["metrics"] = bar.metrics_within(room)
            self.progress.update(bar.task, completed=bar.n, total=finite(bar.total), visible=True, **fields)
        if self.output is None:
            self.progress.refresh()
        else:
            progress: Any = self.progress
            self.output.show(progress._repr_mimebundle_((), ()))

    def remove(self, bar: _Bar) -> None:
        """Take a bar off the screen, unless it is to stay."""
        if bar not in self.bars or self.progress is None:
            return
        self.bars.remove(bar)
        if not bar.leave:
            self.progress.remove_task(bar.task)
            self.draw()
        if not self.bars and self.output is None:
            self.progress.live.transient = not self.progress.tasks
            self.progress.stop()
            self.progress = None

    def _build_columns(self) -> dict[str, ProgressColumn]:
        from rich.progress import BarColumn, TextColumn

        theme = self.theme
        styles = {
            "title": theme.description,
            "bar": "",
            "batches": theme.batch_progress,
            "time": theme.time,
            "speed": theme.processing_speed,
            "metrics": theme.metrics,
        }
        columns: dict[str, ProgressColumn] = {
            name: TextColumn(f"{{task.fields[{name}]}}", style=style, markup=False) for name, style in styles.items()
        }
        columns["bar"] = BarColumn(
            complete_style=theme.progress_bar,
            finished_style=theme.progress_bar_finished,
            pulse_style=theme.progress_bar_pulse,
        )
        return columns


class _Bar:
    """A bar of rich with the part of tqdm's interface that the callback uses."""

    def __init__(self, screen: _Screen, description: str, total: float | None, *, leave: bool) -> None:
        self.screen = screen
        self.description = description
        self.total = total
        self.leave = leave
        self.n = self.last_print_n = 0
        self.start_t = self.last_print_t = time.time()
        self.metrics: list[str] = []
        self.task = screen.add(self)
        self.refresh()

    def set_description(self, description: str, refresh: bool = True) -> None:
        """Change the text in front."""
        self.description = description

    def set_postfix(self, metrics: Mapping[str, Any], refresh: bool = True) -> None:
        """Change the values behind."""
        form = self.screen.theme.metrics_format
        self.metrics = [
            f"{name}: {value:{form}}" if isinstance(value, float) else f"{name}: {value}"
            for name, value in metrics.items()
        ]

    def update(self, steps: int) -> bool:
        """Move on, and draw."""
        self.n += steps
        self.refresh()
        return True

    def refresh(self) -> None:
        """Draw."""
        self.screen.draw()

    def close(self) -> None:
        """Leave the screen."""
        self.screen.remove(self)

    def metrics_within(self, room: int) -> str:
        """As many of the metrics as fit into so many characters."""
        text = ""
        for count in range(len(self.metrics), 0, -1):
            text = self.screen.theme.metrics_text_delimiter.join(self.metrics[:count])
            if len(text) <= room:
                return text
        return ""

    def texts(self) -> dict[str, str]:
        """What stands in the columns."""
        seconds, total = max(time.time() - self.start_t, 0.0), finite(self.total)
        speed = self.n / seconds if seconds > 0 else 0.0
        left = "-:--:--" if total is None or not speed else _clock((total - self.n) / speed)
        return {
            "title": self.description,
            "bar": " " * _LEAST_BAR,
            "batches": f"{self.n}/{'--' if total is None else total}",
            "time": f"{_clock(seconds)} / {left}",
            "speed": f"{speed:.2f}it/s",
            "metrics": self.screen.theme.metrics_text_delimiter.join(self.metrics),
        }


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))
