"""``PyTorchProfiler``: torch's own profiler beside a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerAction, schedule

import modes
from leyden import LightningModule, Trainer
from leyden.errors import InvalidTypeError, InvalidValueError
from leyden.profilers import PyTorchProfiler, pytorch


class Module(modes.Steps, LightningModule):
    """One optimizer, and a part that the user names."""

    def __init__(self) -> None:
        super().__init__()
        self.build()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with self.trainer.profiler.profile("mine"):
            return super().training_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.head(self.backbone(batch[0]))


def fit(profiler: PyTorchProfiler, num_batches: int = modes.BATCHES, **arguments: Any) -> Module:
    module = Module()
    given: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, **arguments}
    Trainer(profiler=profiler, **given).fit(module, modes.DATA[:num_batches])
    return module


def rows(table: str) -> dict[str, int]:
    """Calls by name, out of torch's table."""
    entries = (line.rsplit(maxsplit=6) for line in table.splitlines() if line.strip() and line[-3].isdigit())
    return {entry[0].strip(): int(entry[-1]) for entry in entries if entry[-1].isdigit()}


WIDE = {"max_name_column_width": 200}


def test_the_trace_holds_the_users_record(tmp_path: Path) -> None:
    """And actions and submodules, as many times as batches are recorded: the third to the fifth."""
    fit(PyTorchProfiler(tmp_path, "perf", row_limit=-1, table_kwargs=WIDE))
    (trace,) = tmp_path.glob("fit-perf.*.pt.trace.json")
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    for name in (
        "[pl][profile]mine",
        "[pl][profile]run_training_batch",
        "[pl][profile][Strategy]SingleDeviceStrategy.training_step",
        "[pl][module]torch.nn.modules.linear.Linear: backbone.0",
    ):
        assert names.count(name) == 3, name
    assert "ProfilerStep#2" in names and "ProfilerStep#1" not in names
    table = (tmp_path / "fit-perf.txt").read_text()
    assert table.startswith("FIT Profiler Report\n\n")
    counts = rows(table)
    assert counts["[pl][profile]mine"] == counts["ProfilerStep*"] == 3
    assert counts["[pl][module]torch.nn.modules.linear.Linear: head"] == 3


def test_a_step_of_the_schedule_is_a_batch(tmp_path: Path) -> None:
    """Of the run: those of the sanity check and of validations inside of a fit are part of training batches."""
    steps: list[int] = []

    def plan(step: int) -> ProfilerAction:
        steps.append(step)
        return ProfilerAction.NONE

    profiler = PyTorchProfiler(schedule=plan, export_to_chrome=False)
    module = Module()
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, profiler=profiler)
    for run, batches in ((trainer.fit, 6), (trainer.validate, 4), (trainer.predict, 2)):
        steps.clear()
        more = {"val_dataloaders": modes.DATA} if run == trainer.fit else {}
        run(module, modes.DATA[:batches], **more)
        assert max(steps) == batches


def test_all_cycles_of_a_schedule_are_in_the_table(capsys: Any, tmp_path: Path) -> None:
    """Each cycle has a trace; the table sums them up."""
    cycles = schedule(wait=0, warmup=1, active=2, repeat=0)
    fit(PyTorchProfiler(tmp_path, schedule=cycles, row_limit=-1, table_kwargs=WIDE))
    assert len(list(tmp_path.glob("fit.*.pt.trace.json"))) == 2
    assert rows(capsys.readouterr().out)["[pl][profile]mine"] == 4


def test_no_schedule_records_everything(capsys: Any) -> None:
    """From the set-up to the end, the sanity check included."""
    profiler = PyTorchProfiler(schedule=None, export_to_chrome=False, row_limit=-1, table_kwargs=WIDE)
    fit(profiler)
    counts = rows(capsys.readouterr().out)
    assert counts["[pl][profile]mine"] == modes.BATCHES
    assert counts["[pl][profile][LightningModule]Module.configure_optimizers"] == 1
    assert counts["[pl][profile]run_training_epoch"] == 1


@pytest.mark.filterwarnings("ignore:Incorrect schedule")  # torch's word on a run that ends while it warms up
@pytest.mark.parametrize("batches", [0, 1])
def test_a_run_that_is_too_short_says_so(batches: int, capsys: Any) -> None:
    """The default schedule leaves two batches out."""
    profiler = PyTorchProfiler(export_to_chrome=False)
    fit(profiler, batches, limit_train_batches=batches)
    assert "Nothing was recorded" in capsys.readouterr().out


def test_submodules_may_be_left_out(capsys: Any) -> None:
    """And no hook stays on the module either way."""
    for recorded in (True, False):
        profiler = PyTorchProfiler(record_module_names=recorded, export_to_chrome=False, row_limit=-1)
        module = fit(profiler)
        assert ("[pl][module]" in capsys.readouterr().out) is recorded
        assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


def test_an_exception_inside_of_a_submodule_ends_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records end in the reverse of the order in which they begin, also where forward raises."""
    running: list[str] = []

    class Record:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            running.append(self.name)

        def __exit__(self, *exception: Any) -> None:
            assert running.pop() == self.name

    class Catching(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            with pytest.raises(RuntimeError):
                self.head(torch.ones(1, 99))
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr(pytorch, "record_function", Record)
    profiler = PyTorchProfiler(schedule=lambda step: ProfilerAction.NONE, export_to_chrome=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, profiler=profiler)
    trainer.fit(Catching(), modes.DATA)
    assert running == []


def test_an_error_of_a_trace_handler_passes_unchanged() -> None:
    """As one of a full disk; torch's profiler is not stopped a second time, which would crash the process."""

    def fail(profile: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fit(PyTorchProfiler(on_trace_ready=fail))


def test_options_of_torchs_profiler(capsys: Any, tmp_path: Path) -> None:
    """They are passed on; a user's ``on_trace_ready`` takes the place of the traces."""
    ready: list[Any] = []
    profiler = PyTorchProfiler(
        tmp_path / "unused",
        group_by_input_shapes=True,
        sort_by_key="self_cpu_time_total",
        row_limit=3,
        profile_memory=True,
        on_trace_ready=ready.append,
    )
    fit(profiler)
    table = capsys.readouterr().out
    assert "Input Shapes" in table and "Self CPU Mem" in table
    assert len(ready) == 1
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        ({"sort_by_key": "time"}, InvalidValueError, "profiler-sort-key"),
        ({"sort_by_key": "input_shapes"}, InvalidValueError, "profiler-sort-key"),
        ({"schedule": 3}, InvalidTypeError, "profiler-schedule"),
        ({"schedule": lambda step: 3}, InvalidTypeError, "profiler-schedule"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], kind: type[Exception], code: str) -> None:
    """They are refused when the profiler is made, by name."""
    with pytest.raises(kind, match=rf"{next(iter(arguments))}.*\[{code}\]"):
        PyTorchProfiler(**arguments)


def test_keys_to_sort_by_are_torchs(capsys: Any) -> None:
    """Every key that is let through is a column of torch's."""
    for key in ("count", "cpu_time", "cuda_time", "self_cuda_memory_usage", "self_device_time_total"):
        fit(PyTorchProfiler(sort_by_key=key, export_to_chrome=False, row_limit=1))
    assert capsys.readouterr().out.count("FIT Profiler Report") == 5


def test_marks_for_nsys(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """With ``emit_nvtx`` torch marks the timeline of a CUDA device and measures nothing."""
    marks: list[str] = []

    class Marks:
        def __init__(self, record_shapes: bool) -> None:
            pass

        def __enter__(self) -> None:
            marks.append("begin")

        def __exit__(self, *exception: Any) -> None:
            marks.append("end")

    monkeypatch.setattr(pytorch, "emit_nvtx_marks", Marks)
    fit(PyTorchProfiler(emit_nvtx=True))
    assert marks == ["begin", "end"]
    assert capsys.readouterr().out == ""
