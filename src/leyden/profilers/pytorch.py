"""``PyTorchProfiler``: the operations of torch, on CPU and GPU, by ``torch.profiler``."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import emit_nvtx as emit_nvtx_marks
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerAction, profile, schedule, tensorboard_trace_handler

from leyden.errors import InvalidTypeError, InvalidValueError
from leyden.profilers.profiler import Profiler, not_started


class PyTorchProfiler(Profiler):
    """Runs ``torch.profiler`` beside a run: ``Trainer(profiler="pytorch")``.

    Every action, and every call of a submodule, is a record in its table and its trace: "[pl][profile]my action",
    "[pl][module]torch.nn.modules.linear.Linear: encoder.0". A step of the profiler's schedule is a batch of the run
    with what comes before it; validations inside of a fit belong to the step that they fall into.

    Args:
        dirpath: folder for files; None takes the first logger's, or ``default_root_dir`` without one.
        filename: the table is appended to ``<stage>-<filename>.txt`` there; None prints it.
        group_by_input_shapes: whether an operation has a line for each shape of its inputs.
        emit_nvtx: whether records are sent to NVIDIA's nsys, under which the script then must run
            (``nsys profile --capture-range=none python script.py``), instead of being measured by torch.
        export_to_chrome: whether each cycle of the schedule is written as ``<stage>-<filename>.<time>.pt.trace.json``,
            for chrome://tracing, Perfetto or TensorBoard.
        row_limit: lines of the table; -1 for all.
        sort_by_key: column that the table is sorted by, as "self_cpu_time_total", "cuda_memory_usage", "count". None
            takes "cuda_time_total" where CUDA is available, else "cpu_time_total".
        record_module_names: whether calls of submodules are recorded.
        table_kwargs: further arguments of torch's ``EventList.table``.
        **profiler_kwargs: arguments of ``torch.profiler.profile``. The default of ``schedule`` leaves out one batch,
            warms up in one and records three; ``schedule=None`` records everything, which takes memory. With
            ``on_trace_ready`` the traces are yours to write.

    Raises:
        InvalidValueError: an unknown ``sort_by_key`` (``profiler-sort-key``).
        InvalidTypeError: a ``schedule`` that is none (``profiler-schedule``).

    >>> profiler = PyTorchProfiler(filename="operations", export_to_chrome=False, row_limit=10, profile_memory=True)
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        emit_nvtx: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        record_module_names: bool = True,
        table_kwargs: Mapping[str, Any] | None = None,
        **profiler_kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        self._group_by_input_shapes = group_by_input_shapes
        self._emit_nvtx = emit_nvtx
        self._row_limit = row_limit
        self._sort_by_key = sort_by_key or f"{'cuda' if torch.cuda.is_available() else 'cpu'}_time_total"
        self._record_module_names = record_module_names
        self._table_kwargs = dict(table_kwargs or {})
        _check(self._sort_by_key, profiler_kwargs.get("schedule"))
        # acc_events: torch's table is of the last cycle otherwise.
        defaults = {"schedule": schedule(wait=1, warmup=1, active=3, repeat=1), "acc_events": True}
        self._profiler_kwargs = {**defaults, "record_shapes": group_by_input_shapes, **profiler_kwargs}
        self._exports = export_to_chrome and "on_trace_ready" not in profiler_kwargs and not emit_nvtx
        self._writes_files |= self._exports
        self._records: dict[str, list[Any]] = {}
        self._hooks: list[Any] = []
        self._profile: Any = None
        self._is_on = False
        self._batch = ""

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Start torch's profiler."""
        super().setup(stage, local_rank, log_dir)
        self._batch = {"fit": "run_training_batch", "validate": "validation_step"}.get(stage, f"{stage}_step")
        if self._record_module_names and self._lightning_module is not None:
            self._hooks = _record_calls(self._lightning_module)
        if self._exports:
            self._profiler_kwargs["on_trace_ready"] = tensorboard_trace_handler(*os.path.split(self._path("")))
        build: Any = functools.partial(profile, **self._profiler_kwargs)
        if self._emit_nvtx:
            build = functools.partial(emit_nvtx_marks, record_shapes=self._group_by_input_shapes)
        self._profile = build()
        self._profile.__enter__()
        self._is_on = True

    def start(self, action_name: str) -> None:
        """Begin a record."""
        _enter(self._records.setdefault(action_name, []), f"[pl][profile]{action_name}")

    def stop(self, action_name: str) -> None:
        """End a record; at the end of a batch the schedule takes a step.

        Raises:
            InvalidValueError: it was not started (``profiler-not-started``).
        """
        if not self._records.get(action_name):
            raise not_started(action_name)
        _leave(self._records[action_name])
        if self._is_on and not self._emit_nvtx and action_name.rpartition(".")[2] == self._batch:
            self._is_on = False  # if this fails, torch's profiler is in no state to be stopped: it may crash
            self._profile.step()
            self._is_on = True

    def summary(self) -> str:
        """Torch's table of the operations in all recorded batches; ends the recording."""
        if self._profile is None or self._emit_nvtx:
            return ""
        self._end()
        has_begun = self._profile.profiler is not None
        events: Any = self._profile.key_averages(self._group_by_input_shapes) if has_begun else None
        if not events:
            return (
                f"{self._title()}Nothing was recorded: the run had no more batches than the schedule leaves out. "
                "PyTorchProfiler(schedule=None) records everything.\n"
            )
        table = events.table(sort_by=self._sort_by_key, row_limit=self._row_limit, **self._table_kwargs)
        return f"{self._title()}{table}"

    def teardown(self, stage: str | None) -> None:
        """End the recording and forget it; the module's hooks are taken back."""
        super().teardown(stage)
        self._end()
        self._profile = None
        self._records.clear()
        while self._hooks:
            self._hooks.pop().remove()

    def _end(self) -> None:
        """Stop what records, once."""
        if self._is_on:
            self._is_on = False
            self._profile.__exit__(None, None, None)


def _check(sort_by_key: str, plan: Any) -> None:
    if not isinstance(getattr(FunctionEventAvg(), sort_by_key.replace("cuda", "device"), None), int | float):
        raise InvalidValueError(
            f"PyTorchProfiler(sort_by_key={sort_by_key!r}) must be a column of torch's table, as 'cpu_time_total', "
            "'self_cuda_time_total', 'cpu_memory_usage' or 'count'",
            code="profiler-sort-key",
        )
    if plan is not None and not (callable(plan) and isinstance(plan(0), ProfilerAction)):
        raise InvalidTypeError(
            f"PyTorchProfiler(schedule={plan!r}) must map the number of a batch to a torch.profiler.ProfilerAction, as "
            "torch.profiler.schedule(wait=1, warmup=1, active=3) does",
            code="profiler-schedule",
        )


def _record_calls(module: nn.Module) -> list[Any]:
    """Let every call of a submodule be a record; returns what takes the hooks back."""
    handles = []
    for name, child in module.named_modules():
        if name and not isinstance(child, torch.jit.ScriptModule):
            records: list[Any] = []  # a module may call itself
            label = f"[pl][module]{type(child).__module__}.{type(child).__name__}: {name}"
            handles.append(child.register_forward_pre_hook(functools.partial(_enter, records, label)))
            handles.append(child.register_forward_hook(functools.partial(_leave, records), always_call=True))
    return handles


def _enter(records: list[Any], label: str, *_: Any) -> None:
    records.append(record_function(label))
    records[-1].__enter__()


def _leave(records: list[Any], *_: Any) -> None:
    if records:
        records.pop().__exit__(None, None, None)
