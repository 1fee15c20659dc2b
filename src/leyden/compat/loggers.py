"""Loggers and callbacks that Lightning has dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leyden.callbacks import DeviceStatsMonitor
from leyden.errors import warn
from leyden.loggers import Logger, TensorBoardLogger

__all__ = ["GPUStatsMonitor", "LoggerCollection", "TestTubeLogger"]


class TestTubeLogger(TensorBoardLogger):
    """TensorBoardLogger: the package test_tube is no longer kept, and what it wrote were TensorBoard's files."""

    __test__ = False  # no test class, whatever its name

    def __init__(
        self,
        save_dir: str,
        name: str = "default",
        description: str | None = None,
        debug: bool = False,
        version: int | None = None,
        create_git_tag: bool = False,
        log_graph: bool = False,
        prefix: str = "",
    ) -> None:
        warn("TestTubeLogger writes TensorBoard's files here; use TensorBoardLogger", code="test-tube")
        super().__init__(save_dir, name, version, log_graph=log_graph, prefix=prefix)


class LoggerCollection(list[Logger]):
    """Several loggers in one: what ``trainer.logger`` was in 1.5. A method is called on each of them.

    >>> LoggerCollection([]).experiment
    []
    """

    save_dir = None

    @property
    def experiment(self) -> list[Any]:
        """What each writes to."""
        return [logger.experiment for logger in self]

    @property
    def name(self) -> str:
        """Their names."""
        return "_".join(str(logger.name) for logger in self)

    @property
    def version(self) -> str:
        """Their versions."""
        return "_".join(str(logger.version) for logger in self)

    def __getattr__(self, name: str) -> Callable[..., None]:
        methods = [getattr(logger, name) for logger in self]  # raises what the first one raises
        if not methods or not all(map(callable, methods)):
            raise AttributeError(f"LoggerCollection has no {name!r}: ask its loggers one by one", name=name, obj=self)

        def call_each(*args: Any, **kwargs: Any) -> None:
            for method in methods:
                method(*args, **kwargs)

        return call_each


class GPUStatsMonitor(DeviceStatsMonitor):
    """Statistics of the GPU; they are those of torch, whatever is asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(cpu_stats=False)
