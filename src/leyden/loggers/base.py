"""``Logger``: what a run asks of a logger, and what loggers have in common."""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from leyden.errors import MissingExtraError
from leyden.rank import rank_zero_only


class Logger(ABC):
    """Writes what a run logs. Derive from it to bring another back end.

    A run calls, in this order: ``log_hyperparams`` (if there are any), ``log_graph`` and ``save`` before anything is
    trained; ``log_metrics`` for each row; ``finalize`` at its end. A logger may serve several runs one after another.
    ``log_metrics`` must be quick: it stands between two batches.
    """

    @property
    @abstractmethod
    def name(self) -> str | None:
        """Name of the experiment."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """Number or id of this run within the experiment."""

    @property
    def root_dir(self) -> str | None:
        """Folder of all versions of the experiment; None if nothing lies on this machine."""
        return None

    @property
    def log_dir(self) -> str | None:
        """Folder of this version; None if nothing lies on this machine."""
        return None

    @property
    def save_dir(self) -> str | None:
        """Folder of all experiments; None if nothing lies on this machine."""
        return None

    @property
    def group_separator(self) -> str:
        """Stands between a group and a name in keys that callbacks make up."""
        return "/"

    @property
    def experiment(self) -> Any:
        """The back end's own object, for all that this interface does not offer."""
        return None

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one row.

        Args:
            metrics: numbers by name.
            step: place of the row on the x-axis.
        """

    @abstractmethod
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Write hyper-parameters: a dict, a Namespace or a dataclass."""

    def log_graph(self, model: Any, input_array: Any = None) -> None:  # noqa: B027  optional
        """Write the model's graph, where the back end has a place for it.

        Args:
            model: the module.
            input_array: an input of its ``forward``; default its ``example_input_array``.
        """

    def save(self) -> None:  # noqa: B027  optional
        """Bring everything to where it survives the end of the process."""

    def finalize(self, status: str) -> None:
        """A run ends.

        Args:
            status: "success" or "failed".
        """
        self.save()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: which run this is, and how far its rows are; whatever came so far survives a kill."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  optional
        """A fit goes on with the last checkpoint of an earlier start; called before anything is written.

        Args:
            state: what ``state_dict`` returned then.
        """

    def rewind(self, state: Mapping[str, Any]) -> None:  # noqa: B027  optional
        """A fit goes on from a checkpoint: drop the rows that were written after it, for they will come again.

        Args:
            state: what ``state_dict`` returned then, maybe in another folder.
        """

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:  # noqa: B027  optional
        """A callback has written a checkpoint."""

    def __getstate__(self) -> dict[str, Any]:
        # Connections, threads and open files stay with the original; a copy opens its own when it needs one.
        return {**self.__dict__, "_experiment": None} if "_experiment" in self.__dict__ else self.__dict__


class DummyExperiment:
    """Takes every call and every item, and does nothing: what other ranks than the first hold."""

    def nothing(self, *args: Any, **kwargs: Any) -> None:
        """Accept everything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):  # copy and pickle ask for these, and must learn that there is no such method
            raise AttributeError(name)
        return self.nothing

    def __getitem__(self, index: Any) -> DummyExperiment:
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        pass


class DummyLogger(Logger):
    """Writes nothing, so that code that uses ``self.logger`` runs where nothing is to be written.

    >>> DummyLogger().experiment.add_image("sample", None)
    """

    def __init__(self) -> None:
        self._dummy = DummyExperiment()

    @property
    def name(self) -> str:
        """Nothing."""
        return ""

    @property
    def version(self) -> str:
        """Nothing."""
        return ""

    @property
    def experiment(self) -> DummyExperiment:
        """Takes every call."""
        return self._dummy

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def __getitem__(self, index: int) -> DummyLogger:
        return self

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._dummy.nothing


def rank_zero_experiment(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a getter of ``experiment`` return the real one in the first process and a dummy in the others."""

    @functools.wraps(function)
    def experiment(self: Any) -> Any:
        return function(self) if rank_zero_only.rank == 0 else DummyExperiment()

    return experiment


def require(package: str, *, extra: str) -> None:
    """Refuse to go on without an optional package, before any work is done.

    Raises:
        MissingExtraError: naming the ``pip install`` line.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, extra=extra)


def prepare_row(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """``metrics`` with tensors as numbers and ``prefix`` before every key.

    >>> prepare_row({"loss": 0.5}, "gan")
    {'gan-loss': 0.5}
    """
    start = f"{prefix}-" if prefix else ""
    return {f"{start}{key}": v.item() if isinstance(v, Tensor) else v for key, v in metrics.items()}
