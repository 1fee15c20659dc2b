"""The collector behind ``self.log``: one object per stage of a run.

From the second call on, ``log`` is a dictionary lookup, a comparison of the options, a read and an addition.
On the CPU the read is nearly free; a value on another device is copied there, and nothing waits for it. What
users see (tensors, keys with suffixes, floats for the progress bar) is made when somebody looks.

What can be seen changes with the phase:

    before the first batch     what hooks at the start of the epoch logged
    from batch to batch        the last values of what is logged on_step
    after the last batch       the epoch's values of what is logged on_epoch, beside the last step values
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from leyden.errors import MisconfigurationException, OrderError, warn
from leyden.hooks.events import LOGGING, LogRule
from leyden.results.entry import Entry, Reduce
from leyden.results.options import (
    LOADER_SUFFIX,
    Options,
    check_batch_size,
    check_name,
    check_same,
    resolve_options,
    wrong_shape,
)
from leyden.results.reduce import Number
from leyden.results.views import Views
from leyden.tree import first_batch_size

_Entries = dict[tuple[str, str], Entry]


class Results:
    """What ``self.log`` collects in one stage: the training, or one evaluation.

    Args:
        training: whether this is the training stage, whose step values callbacks can see.
        several_loaders: whether keys get the suffix ``/dataloader_idx_i``.
        reduce: ``reduce(tensor, op, group)`` over processes; None in a run of a single process.
        views: the run's dictionaries of metrics, shared by its stages; by default fresh ones.
        rules: which hook may log what.
        metrics: returns the metric objects of the module by name, for checkpoints.

    Attributes:
        training: see above.
        views: see above.
        logs_by_step: whether anything is logged on_step, so that there may be a row for a step.

    >>> results = Results(training=True)
    >>> results.log("training_step", "loss", 1.0, on_epoch=True, batch_size=2)
    >>> results.log("training_step", "loss", 4.0, on_epoch=True, batch_size=1)
    >>> results.end_epoch()
    >>> results.callback_metrics()
    {'loss': tensor(2.), 'loss_epoch': tensor(2.)}
    """

    __slots__ = (
        "_batch",
        "_batch_size",
        "_by_loader",
        "_closed",
        "_dataloader_idx",
        "_entries",
        "_metrics",
        "_reduce",
        "_rules",
        "_several_loaders",
        "_stepping",
        "logs_by_step",
        "training",
        "views",
    )

    def __init__(
        self,
        *,
        training: bool,
        several_loaders: bool = False,
        reduce: Reduce | None = None,
        views: Views | None = None,
        rules: Mapping[str, LogRule] = LOGGING,
        metrics: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.training = training
        self.logs_by_step = False
        self.views = Views() if views is None else views
        self._several_loaders = several_loaders
        self._reduce = reduce
        self._rules = rules
        self._metrics = metrics
        self._batch: Any = None
        self._batch_size: int | None = None
        self._stepping = False
        self._dataloader_idx: int | None = None
        self._entries: _Entries = {}  # of the current loader; under None of the hooks around all loaders
        self._by_loader: dict[int | None, _Entries] = {None: self._entries}
        self._closed: dict[int, dict[str, Tensor]] = {}  # epoch rows of the loaders that are through

    @property
    def batch(self) -> Any:
        """The current batch, from which the batch size is inferred. Setting one begins a step."""
        return self._batch

    @batch.setter
    def batch(self, batch: Any) -> None:
        self._batch = batch
        self._batch_size = None
        if batch is not None:
            self._stepping = True
            if self.views.writer is not self:
                self._take_over()

    @property
    def dataloader_idx(self) -> int | None:
        """Index of the current one of several dataloaders; setting another closes the current."""
        return self._dataloader_idx

    @dataloader_idx.setter
    def dataloader_idx(self, index: int | None) -> None:
        if index == self._dataloader_idx or not self._several_loaders:
            return
        if self._dataloader_idx is not None:
            self._close_loader(self._dataloader_idx)
        self._dataloader_idx = index
        self._entries = self._by_loader.setdefault(index, {})

    def log(
        self,
        hook: str | None,
        name: str,
        value: Any,
        *,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | Tensor | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Take in one value of one key; ``hook`` is the hook that runs, the rest is as in ``LightningModule.log``.

        Raises:
            OrderError: outside of a hook, or in one that cannot log (``log-hook``).
            MisconfigurationException: options that are impossible, or other than before (``log-options``).
            InvalidValueError: a value that cannot be logged (``log-value``, ``log-shape``, ``log-dict``).
        """
        given = (prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, sync_dist_group,
                 add_dataloader_idx, metric_attribute, rank_zero_only)  # fmt: skip
        entry = self._entries.get((hook, name))  # type: ignore[arg-type]  # nothing is found under the hook None
        if entry is None or entry.given != given:
            entry = self._open(hook, name, Options(*given))

        kind = type(value)
        if kind is Tensor and value.dtype is entry.source and value.is_cpu:
            try:
                number = value.item()
            except RuntimeError:
                if value.numel() != 1:
                    raise wrong_shape(name, value) from None
                raise
        elif kind is entry.source:
            number = value
        else:
            self._take(entry, value, batch_size)
            return

        entry.last = number
        entry.fresh = True
        if entry.on_epoch:
            if batch_size is None and self._batch_size is not None:
                entry.add(number, self._batch_size)
            else:
                entry.add(number, self._weight(entry, batch_size))

    def publish(self) -> None:
        """Bring the views up to date, without waiting for the device. What shows them calls it first."""
        if self.views.writer is not self:
            self._take_over()
        self.write()

    def write(self) -> None:
        """Write what can be seen now into the views."""
        for entry in self._entries.values():
            if entry.fresh:
                self._show(entry, by_step=self._stepping)

    def callback_metrics(self) -> dict[str, Tensor]:
        """``trainer.callback_metrics``: always the same dictionary, brought up to date."""
        self.publish()
        return self.views.callback

    def logged_metrics(self) -> dict[str, Tensor]:
        """``trainer.logged_metrics``, likewise."""
        self.publish()
        return self.views.logged

    def progress_bar_metrics(self) -> dict[str, float]:
        """``trainer.progress_bar_metrics`` as floats. Waits for the device if values live on one."""
        self.publish()
        return self.views.progress_bar_metrics()

    def progress_bar_tensors(self) -> dict[str, Tensor]:
        """The same without waiting: tensors where they are, for a bar that copies them ahead of time."""
        self.publish()
        return self.views.progress_bar

    def step_metrics(self) -> dict[str, Number]:
        """A logger's row for this step: last values of what the current loader logs on_step."""
        row: dict[str, Number] = {}
        for entry in self._entries.values():
            if entry.fresh and entry.on_step and entry.options.logger:
                value = entry.step_number()
                if value is not None:
                    row[entry.step_key] = value
        return row

    def epoch_metrics(self) -> dict[str, Tensor]:
        """A logger's row for the epoch: all loaders and the hooks around them. For after ``end_epoch``."""
        row: dict[str, Tensor] = {}
        for closed in self._closed.values():
            row.update(closed)
        row.update(self._epoch_row())
        return row

    def evaluation_results(self) -> list[dict[str, float]]:
        """What ``validate`` and ``test`` return: a dict per loader, with what epoch hooks logged. Waits."""
        around = self._epoch_row()
        count = max(self._closed) + 1 if self._closed else 1
        rows = [{**self._closed.get(index, {}), **around} for index in range(count)]
        return [{name: value.item() for name, value in row.items()} for row in rows]

    def end_epoch(self) -> None:
        """The last batch is through: from now on the epoch's values are shown.

        All processes must call it, since values logged with ``sync_dist`` are reduced here.
        """
        if self.views.writer is self:
            self.publish()  # else a validation came after the last step, and has the last word
        self.dataloader_idx = None
        self.batch = None
        self._stepping = False
        self._settle()

    def reset(self) -> None:
        """Forget the epoch, having shown its values. Keys and their options stay."""
        self.publish()
        for entries in self._by_loader.values():
            for entry in entries.values():
                entry.restart()
        self._closed.clear()
        self._dataloader_idx = None
        self._entries = self._by_loader[None]
        self.batch = None
        self._stepping = False

    def state_dict(self) -> dict[str, Any]:
        """The epoch so far, in plain types and tensors, for a checkpoint in the middle of it. Reads from the device.

        Metric objects are told by their name in the module, and keep their states themselves; what is logged with any
        others is left out.
        """
        names = {id(metric): name for name, metric in self._metrics().items()}
        return {
            "stepping": self._stepping,
            "dataloader_idx": self._dataloader_idx,
            "closed": {index: dict(row) for index, row in self._closed.items()},
            "entries": [
                {"hook": hook, "name": name, "dataloader_idx": index, "metric": names.get(id(entry.metric))}
                | entry.state_dict()
                for index, entries in self._by_loader.items()
                for (hook, name), entry in entries.items()
                if entry.fresh and (entry.metric is None or id(entry.metric) in names)
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the epoch whose ``state_dict`` this is."""
        self._stepping, metrics = state["stepping"], self._metrics()
        self._closed = {index: dict(row) for index, row in state.get("closed", {}).items()}
        for saved in state["entries"]:
            options = Options(**saved["options"])
            entry = self._build(saved["hook"], saved["name"], None, options, saved["dataloader_idx"])
            entry.load_state_dict(saved)
            entry.metric = metrics.get(saved.get("metric"))
            self._by_loader.setdefault(saved["dataloader_idx"], {})[entry.hook, entry.name] = entry
        self._dataloader_idx = state.get("dataloader_idx")
        self._entries = self._by_loader.setdefault(self._dataloader_idx, {})

    def _take_over(self) -> None:
        """Another stage begins to write: what the one before has not shown yet comes first."""
        before, self.views.writer = self.views.writer, self
        if before is not None:
            before.write()

    def _take(self, entry: Entry, value: Any, batch_size: Any) -> None:
        """The long way: a key's first value, one on a device, a synchronised one, a metric object."""
        entry.take(value, self._weight(entry, batch_size))
        if isinstance(value, Tensor) and entry.on_epoch and not value.is_floating_point():
            self._warn_once(
                f"self.log({entry.name!r}, ...) in {entry.hook} got a tensor of dtype {value.dtype}, which "
                "is converted to floating point to be reduced; log value.float() to say that this is meant",
                code="log-integer",
                subject=entry.name,
            )
        if entry.is_collective and not self._stepping:
            entry.settle()

    def _weight(self, entry: Entry, batch_size: Any) -> Number:
        """Weight of one value in a mean; 1 for every other reduction, which ignores it."""
        if not entry.weighted:
            return 1
        if batch_size is not None:
            whole = type(batch_size) is int and batch_size >= 0
            return batch_size if whole else check_batch_size(entry.name, batch_size)
        if self._batch is None or entry.metric is not None:
            return 1
        if self._batch_size is None:
            self._batch_size = self._infer_batch_size(entry)
        return self._batch_size

    def _infer_batch_size(self, entry: Entry) -> int:
        size = first_batch_size(self._batch)
        if size is not None:
            return size
        self._warn_once(
            f"self.log({entry.name!r}, ...) in {entry.hook}: the batch, a {type(self._batch).__name__}, "
            "holds no tensor that tells its size, so all batches count alike in the mean; "
            "pass self.log(..., batch_size=...)",
            code="log-batch-size",
        )
        return 1

    def _open(self, hook: str | None, name: str, given: Options) -> Entry:
        """The entry of a key that is new, restored, or whose options are spelt in another way than before."""
        rule = None if hook is None else self._rules.get(hook)
        if hook is None or rule is None:
            where = "outside of any hook" if hook is None else f"in {hook}, where no step or epoch is running"
            raise OrderError(
                f"self.log({name!r}, ...) was called {where}; call it in a hook such as training_step, "
                "or write to self.logger directly",
                code="log-hook",
            )
        options = resolve_options(hook, name, given, rule)
        entry = self._entries.get((hook, name))
        if entry is None or entry.given is None:
            restored = entry
            entry = self._new_entry(hook, name, given, options)
            if restored is not None:
                entry.load_state_dict(restored.state_dict())
                entry.metric = restored.metric
        else:
            check_same(hook, name, entry.options, options)
            entry.given = given  # equal in effect: torch.mean for "mean", on_step=True where it is the default
        return entry

    def _new_entry(self, hook: str, name: str, given: Options, options: Options) -> Entry:
        check_name(name, options)
        if not options.add_dataloader_idx:
            self._check_unique(hook, name)
        entry = self._build(hook, name, given, options, self._dataloader_idx)
        if self._reduce is not None and entry.on_epoch and not options.sync_dist and not options.rank_zero_only:
            self._warn_once(
                f"self.log({name!r}, ..., on_epoch=True) without sync_dist=True: each process keeps the "
                "value of its own part of the data; pass sync_dist=True for the value over all of them, "
                "or rank_zero_only=True if only rank 0 logs it",
                code="log-sync-dist",
            )
        self._entries[hook, name] = entry
        return entry

    def _build(
        self, hook: str, name: str, given: Options | None, options: Options, dataloader_idx: int | None
    ) -> Entry:
        suffixed = options.add_dataloader_idx and dataloader_idx is not None
        self.logs_by_step = self.logs_by_step or bool(options.on_step)
        synced = options.sync_dist and not options.rank_zero_only
        return Entry(
            hook,
            name,
            given=given,
            options=options,
            suffix=f"{LOADER_SUFFIX}{dataloader_idx}" if suffixed else "",
            reduce=self._reduce if synced else None,
        )

    def _check_unique(self, hook: str, name: str) -> None:
        for index, entries in self._by_loader.items():
            other = entries.get((hook, name))
            if other is not None and index != self._dataloader_idx and not other.options.add_dataloader_idx:
                raise MisconfigurationException(
                    f"self.log({name!r}, ..., add_dataloader_idx=False) was called in {hook} for dataloader "
                    f"{index} and for {self._dataloader_idx}; without the suffix each needs its own name",
                    code="log-options",
                )

    def _show(self, entry: Entry, *, by_step: bool) -> None:
        value = None
        if by_step and entry.on_step:
            value = entry.step_value()
        elif not by_step and entry.on_epoch:
            value = entry.epoch_value()
        if value is None:
            return
        key = entry.step_key if by_step else entry.epoch_key
        if self.training or not by_step:
            self.views.callback[entry.key] = value
            self.views.callback[key] = value
        if entry.options.logger:
            self.views.logged[key] = value
        if entry.options.prog_bar:
            self.views.progress_bar[key] = value

    def _close_loader(self, index: int) -> None:
        self.publish()
        self._settle()
        for entry in self._entries.values():
            if entry.fresh:
                self._show(entry, by_step=False)
        self._closed[index] = self._epoch_row()

    def _settle(self) -> None:
        for entry in self._entries.values():
            if entry.fresh and entry.is_collective:
                entry.settle()

    def _epoch_row(self) -> dict[str, Tensor]:
        return {
            entry.epoch_key: entry.epoch_value()
            for entry in self._entries.values()
            if entry.fresh and entry.on_epoch and entry.options.logger
        }

    def _warn_once(self, message: str, *, code: str, subject: str = "") -> None:
        key = f"{code} {subject}"
        if key not in self.views.warned:
            self.views.warned.add(key)
            warn(message, code=code)
