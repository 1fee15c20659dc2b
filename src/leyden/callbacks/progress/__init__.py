"""Progress bars: what is running, how far it is, how fast, and the values that were logged for the bar."""

from __future__ import annotations

from leyden.callbacks.progress.progress_bar import ProgressBar
from leyden.callbacks.progress.tqdm_progress import TQDMProgressBar

__all__ = ["ProgressBar", "TQDMProgressBar"]
