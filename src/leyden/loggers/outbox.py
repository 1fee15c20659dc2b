"""Rows on their way to a back end that is slower than a small step."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, final

#: Rows that may wait; more than that and the run waits for the back end, not memory for the run.
_MOST: Final = 10_000


@final
class Outbox:
    """Takes rows at once, and gives them to a back end in a thread of its own, in order.

    An exception in the run, or the end of the process, loses nothing that was put here; a kill what still waits.

    Args:
        write: is given rows, oldest first, and is never called twice at the same time. What it raises is raised by
            the next call of ``put`` or ``flush``.
        interval: seconds in which rows are gathered; None gives each to the back end as soon as it comes.
    """

    def __init__(self, write: Callable[[list[Any]], None], *, interval: float | None) -> None:
        self._write = write
        self._interval = interval
        self._begin()

    def _begin(self) -> None:
        self._rows: deque[Any] = deque()
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_over = False
        self._error: Exception | None = None

    def put(self, row: Any) -> None:
        """Take a row; returns at once, unless very many wait."""
        self._rows.append(row)
        if self._thread is None:
            self._is_over = False
            self._thread = threading.Thread(target=self._run, name="leyden-outbox", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        if self._interval is None:
            self._wake.set()
        if self._error is not None or len(self._rows) > _MOST:
            self.flush()

    def flush(self) -> None:
        """Write what waits, and return when it is written."""
        self._write_waiting()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Write what waits and end the thread; the next row begins another one."""
        thread, self._thread = self._thread, None
        if thread is not None:
            atexit.unregister(self.close)
            self._is_over = True
            self._wake.set()
            thread.join()
        self.flush()

    def _run(self) -> None:
        while not self._is_over:
            self._wake.wait(self._interval)
            self._wake.clear()
            self._write_waiting()

    def _write_waiting(self) -> None:
        with self._writing:
            rows = [self._rows.popleft() for _ in range(len(self._rows))]
            try:
                if rows:
                    self._write(rows)
            except Exception as error:  # it belongs to the run, not to this thread
                self._error = error

    def __getstate__(self) -> dict[str, Any]:
        return {"_write": self._write, "_interval": self._interval}  # rows stay with the original

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()
