"""``RichProgressBar``: the bar drawn by rich."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from leyden.callbacks.progress.drawing import finite
from leyden.callbacks.progress.tqdm_progress import TQDMProgressBar
from leyden.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.style import Style


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

    It is drawn when the default bar would be drawn, and writes the same lines where nothing can be drawn.

    Args:
        refresh_rate: batches between two drawings; 0 shows nothing. The clock limits all the same.
        leave: whether every epoch leaves its line on the screen; by default the last one does.
        theme: styles.
        console_kwargs: for ``rich.console.Console``.

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
    ) -> None:
        if importlib.util.find_spec("rich") is None:
            raise MissingExtraError("rich", extra="rich")
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self.theme = theme if theme is not None else RichProgressBarTheme()
        self._console_kwargs = dict(console_kwargs or {})
        self._screen: _Screen | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_screen": None}

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print a line above the bars."""
        if self._screen is None or not self._screen.bars:
            print(*args, sep=sep, **kwargs)
        else:
            text = sep.join(map(str, args))
            self._screen.console.print(text, markup=False, highlight=False, soft_wrap=True, **kwargs)

    def _draws(self) -> bool:
        if not self.is_enabled:
            return False
        if self._screen is None:
            self._screen = _Screen(self.theme, self._console_kwargs)
        console = self._screen.console
        return console.is_terminal or console.is_jupyter

    def _build(self, description: str, total: float, *, leave: bool = False) -> Any:
        if self._screen is None:
            self._screen = _Screen(self.theme, self._console_kwargs)
        return _Bar(self._screen, description, total, leave=leave)


class _Screen:
    """The bars that are on the screen now; it begins with the first one and ends with the last."""

    def __init__(self, theme: RichProgressBarTheme, console_kwargs: dict[str, Any]) -> None:
        from rich.console import Console

        self.theme = theme
        self.console: Console = Console(**console_kwargs)
        self.bars: list[_Bar] = []
        self.progress: Progress | None = None

    def add(self, bar: _Bar) -> Any:
        """Make room for a bar; returns rich's number of it."""
        if self.progress is None:
            self.progress = self._build()
            self.progress.start()
        self.bars.append(bar)
        return self.progress.add_task(bar.description, total=finite(bar.total), **bar.fields())

    def remove(self, bar: _Bar) -> None:
        """Take a bar off the screen, unless it is to stay."""
        if bar not in self.bars or self.progress is None:
            return
        self.bars.remove(bar)
        if not bar.leave:
            self.progress.remove_task(bar.task)
        if not self.bars:
            self.progress.live.transient = not self.progress.tasks
            self.progress.stop()
            self.progress = None

    def _build(self) -> Progress:
        from rich.progress import BarColumn, Progress, TextColumn

        theme = self.theme

        def text(field: str, style: Any) -> TextColumn:
            return TextColumn(f"{{task.{field}}}", style=style, markup=False)

        return Progress(
            text("description", theme.description),
            BarColumn(
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
            ),
            text("fields[batches]", theme.batch_progress),
            text("fields[time]", theme.time),
            text("fields[speed]", theme.processing_speed),
            text("fields[metrics]", theme.metrics),
            console=self.console,
            auto_refresh=False,  # no thread: the callback says when to draw
        )


class _Bar:
    """A bar of rich with the part of tqdm's interface that the callback uses."""

    def __init__(self, screen: _Screen, description: str, total: float | None, *, leave: bool) -> None:
        self.screen = screen
        self.description = description
        self.total = total
        self.leave = leave
        self.n = self.last_print_n = 0
        self.start_t = self.last_print_t = time.time()
        self.metrics = ""
        self.task = screen.add(self)
        self.refresh()

    def set_description(self, description: str, refresh: bool = True) -> None:
        """Change the text in front."""
        self.description = description

    def set_postfix(self, metrics: Mapping[str, Any], refresh: bool = True) -> None:
        """Change the values behind."""
        theme = self.screen.theme
        self.metrics = theme.metrics_text_delimiter.join(
            f"{name}: {value:{theme.metrics_format}}" if isinstance(value, float) else f"{name}: {value}"
            for name, value in metrics.items()
        )

    def update(self, steps: int) -> bool:
        """Move on, and draw."""
        self.n += steps
        self.refresh()
        return True

    def refresh(self) -> None:
        """Draw."""
        progress = self.screen.progress
        if progress is not None:
            total = finite(self.total)
            progress.update(self.task, description=self.description, completed=self.n, total=total, **self.fields())
            progress.refresh()

    def close(self) -> None:
        """Leave the screen."""
        self.screen.remove(self)

    def fields(self) -> dict[str, Any]:
        """The texts behind the bar."""
        seconds, total = max(time.time() - self.start_t, 0.0), finite(self.total)
        speed = self.n / seconds if seconds > 0 else 0.0
        left = "-:--:--" if total is None or not speed else _clock((total - self.n) / speed)
        return {
            "batches": f"{self.n}/{'--' if total is None else total}",
            "time": f"{_clock(seconds)} / {left}",
            "speed": f"{speed:.2f}it/s",
            "metrics": self.metrics,
        }


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))
