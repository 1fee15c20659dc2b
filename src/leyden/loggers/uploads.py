"""Which checkpoints a logger sends to its back end, and when."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

from leyden.errors import InvalidValueError

Upload = Callable[[str, float | None, list[str]], None]


class CheckpointUploads:
    """Sends each checkpoint once, and again if its file was written anew.

    Args:
        when: False sends nothing; True the ones that are left at the end of a run, or each at once from a callback
            that keeps all of them (``save_top_k=-1``); "all" each at once.
        upload: called with path, score and aliases ("latest", "best").
    """

    def __init__(self, when: bool | str, upload: Upload) -> None:
        if when not in (True, False, "all"):
            raise InvalidValueError(f"log_model={when!r} must be True, False or 'all'", code="logger-log-model")
        self.when: Final = when
        self._upload = upload
        self._sent: dict[str, float] = {}
        self._waiting: list[Any] = []

    def after_save(self, callback: Any) -> None:
        """``callback`` has written a checkpoint."""
        if self.when == "all" or (self.when is True and callback.save_top_k == -1):
            self._send(callback)
        elif self.when is True and callback not in self._waiting:
            self._waiting.append(callback)

    def at_end(self) -> None:
        """A run has ended."""
        for callback in self._waiting:
            self._send(callback)

    def _send(self, callback: Any) -> None:
        scores = {
            callback.last_model_path: callback.current_score,
            callback.best_model_path: callback.best_model_score,
            **callback.best_k_models,
        }
        times = {path: os.path.getmtime(path) for path in scores if path and os.path.exists(path)}
        for path in sorted(times, key=times.__getitem__):
            if self._sent.get(path) == times[path]:
                continue
            score = scores[path]
            aliases = ["latest", "best"] if path == callback.best_model_path else ["latest"]
            self._upload(path, score.item() if isinstance(score, Tensor) else score, aliases)
            self._sent[path] = times[path]
