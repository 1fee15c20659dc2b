"""Where the batches of a fit come from: its loader, asked for when it is needed, and the running epoch of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from leyden.data.loaders import Batches, Copier
from leyden.errors import OrderError
from leyden.hooks.dispatch import Watch
from leyden.optimization.clocks import Clocks

Load = Callable[[], tuple[Any, int | float]]


@final
class TrainingData:
    """The training loader of a fit.

    Args:
        clocks: tell the epoch and the batch.

    Attributes:
        loader: the loader; None before it was asked for.
        num_batches: batches of an epoch; inf if unknown.
        loaded_in: epoch in which the loader was asked for.
        batches: the running epoch's.
        before: what the order of the running epoch's data comes from.
    """

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self.loader: Any = None
        self.num_batches: int | float = 0
        self.loaded_in: int | None = None
        self.batches: Batches | None = None
        self.before: Any = None
        self._load: Load = _not_connected
        self._reload_every = 0
        self._mark: Callable[[Any], Any] | None = None
        self._copier: Copier | None = None

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch in hand is the epoch's last."""
        return self.batches is not None and self.batches.is_last

    @property
    def batches_left(self) -> float:
        """Batches of this epoch from the one in hand on; inf if the loader's length is unknown."""
        return 1 if self.is_last_batch else self.num_batches - self._clocks.batch_idx

    def connect(
        self,
        load: Load,
        *,
        reload_every: int = 0,
        mark: Callable[[Any], Any] | None = None,
        copier: Copier | None = None,
    ) -> None:
        """Say where the loader comes from; it is asked for when it is first needed.

        Args:
            load: returns the training loader and the number of its batches (inf if unknown).
            reload_every: epochs between two calls of ``load``; 0 loads once.
            mark: returns what the order of a loader's data comes from; asked before every epoch.
            copier: brings batches to the device ahead of time.
        """
        self._load, self._reload_every, self._mark, self._copier = load, reload_every, mark, copier
        self.loaded_in = None

    def disconnect(self) -> None:
        """Forget where the loader came from; it and the number of its batches stay to be read."""
        self._load, self.loaded_in = _not_connected, None
        if self.batches is not None:
            self.batches.close()

    def load(self) -> None:
        """Ask for the loader, unless it is there and still good."""
        epoch = self._clocks.epoch
        if self._load is _not_connected and self.loader is not None:
            return  # the fit is over, and its loader is still known
        if self.loaded_in is not None and not (self._reload_every and epoch - self.loaded_in >= self._reload_every):
            return
        self.loader, self.num_batches = self._load()
        self.loaded_in = epoch

    def reload(self) -> None:
        """Ask for the loader anew, because something that it is made from has changed."""
        self.loaded_in = None
        self.load()

    def begin(self, watch: Watch) -> Batches:
        """Begin the batches of an epoch."""
        self.before = self._mark(self.loader) if self._mark is not None else None
        return self.open(self.loader, self.num_batches, watch)

    def open(self, loader: Any, num_batches: int | float, watch: Watch) -> Batches:
        """Make the batches of an epoch, or of what is left of one, the running ones."""
        self.batches = Batches(loader, num_batches, copier=self._copier, watch=watch)
        return self.batches


def _not_connected() -> tuple[Any, int | float]:
    raise OrderError("the training loader is known from trainer.fit(...) on", code="loader-before-fit")
