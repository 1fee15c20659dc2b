"""What profilers report, where, and what they refuse."""

from __future__ import annotations

import pstats
from pathlib import Path
from typing import Any

import pytest

import leyden
import modes
from leyden import LightningModule, Trainer
from leyden.errors import InvalidTypeError, InvalidValueError
from leyden.profilers import AdvancedProfiler, PassThroughProfiler, PyTorchProfiler, SimpleProfiler, simple


class Module(modes.Steps, LightningModule):
    """One optimizer, all four steps."""

    def __init__(self) -> None:
        super().__init__()
        self.build()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.head(self.backbone(batch[0]))


def trainer(profiler: Any, **arguments: Any) -> Trainer:
    return Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, profiler=profiler, **arguments)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(simple, "perf_counter", lambda: self.now)

    def spend(self, profiler: SimpleProfiler, action: str, seconds: float) -> None:
        with profiler.profile(action):
            self.now += seconds


def test_the_table_of_the_simple_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowest in total first; parts are of the time from the first action on."""
    profiler = SimpleProfiler()
    clock = Clock(monkeypatch)
    for _ in range(4):
        clock.spend(profiler, "often", 0.5)
    clock.spend(profiler, "once", 1.5)
    clock.now += 0.5
    lines = [line.split() for line in profiler.summary().splitlines()]
    assert lines == [
        ["Profiler", "Report"],
        [],
        ["Action", "Mean", "Calls", "Total", "%"],
        ["(ms)", "(s)"],
        ["Total", "5", "4.000", "100.0"],
        ["often", "500.000", "4", "2.000", "50.0"],
        ["once", "1500.000", "1", "1.500", "37.5"],
    ]


def test_the_short_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``extended`` there are mean and total, slowest on average first."""
    profiler = SimpleProfiler(extended=False)
    clock = Clock(monkeypatch)
    for _ in range(4):
        clock.spend(profiler, "often", 0.5)
    clock.spend(profiler, "once", 1.5)
    lines = [line.split() for line in profiler.summary().splitlines()[2:]]
    assert lines[0] == ["Action", "Mean", "Total"]
    assert lines[2:] == [["Total", "3.500"], ["once", "1500.000", "1.500"], ["often", "500.000", "2.000"]]


def test_time_between_two_runs_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The percentages are of the runs, not of the notebook that they are in."""
    profiler = SimpleProfiler()
    clock = Clock(monkeypatch)
    for stage in ("fit", "test"):
        profiler.setup(stage)
        clock.spend(profiler, "work", 1.0)
        profiler.teardown(stage)
        clock.now += 1000
    assert profiler.summary().splitlines()[-1].split() == ["work", "1000.000", "2", "2.000", "100.0"]


def test_an_action_inside_of_itself_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a recursive function; its time is that of the outermost."""
    profiler = SimpleProfiler()
    clock = Clock(monkeypatch)
    with profiler.profile("solve"):
        clock.spend(profiler, "solve", 1.0)
        clock.spend(profiler, "solve", 2.0)
    assert list(profiler.recorded_durations["solve"]) == [3.0]


def test_an_exception_ends_an_action() -> None:
    """And passes unchanged."""
    for profiler in (SimpleProfiler(), AdvancedProfiler(), PyTorchProfiler(), PassThroughProfiler()):
        with pytest.raises(StopIteration), profiler.profile("work"):
            raise StopIteration
        with profiler.profile("work"):
            pass


def test_the_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long names are folded before the method; what tells callbacks apart is left out where there is one of a kind."""
    monkeypatch.setenv("COLUMNS", "80")
    key = "[Callback]ModelCheckpoint{'monitor': 'val/loss', 'mode': 'min', 'every_n_train_steps': 0}"
    other = "[Callback]EarlyStopping{'monitor': '%s', 'mode': 'min'}.on_validation_end"
    long = "[LightningModule]AVeryLongNameForASmallTable.on_validation_epoch_end"
    profiler = SimpleProfiler()
    names = [f"{key}.on_train_epoch_end", other % "val/loss", other % "val/accuracy", long, "x" * 200]
    for name in names:
        with profiler.profile(name):
            pass
    table = profiler.summary()
    assert max(map(len, table.splitlines())) <= 80
    assert "[Callback]ModelCheckpoint{...}.on_train_epoch_end " in table
    assert "\n  .on_validation_epoch_end\n" in table
    assert "val/loss" in table and "val/accuracy" in table


def test_reports_are_printed_at_the_end_of_each_run(capsys: Any) -> None:
    """Titled by the run, after everything else; runs of one profiler are summed up."""
    run = trainer("simple")
    module = Module()
    for method, stage in ((run.fit, "FIT"), (run.validate, "VALIDATE"), (run.test, "TEST"), (run.predict, "PREDICT")):
        method(module, modes.DATA)
        printed = capsys.readouterr().out
        assert f"{stage} Profiler Report\n\nAction" in printed
        assert "run_training_batch" in printed
        assert printed.count("Profiler Report") == 1


def test_reports_in_files(tmp_path: Path, capsys: Any) -> None:
    """A file for each kind of run, to which runs append; nothing is printed. Names are not folded there."""
    for _ in range(2):
        run = trainer(SimpleProfiler(dirpath=tmp_path / "new" / "folder", filename="perf"))
        run.fit(Module(), modes.DATA)
        run.test(Module(), modes.DATA, verbose=False)
    files = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert files == ["fit-perf.txt", "test-perf.txt"]
    text = (tmp_path / "new" / "folder" / "fit-perf.txt").read_text()
    assert text.count("FIT Profiler Report") == 2
    assert "[Strategy]SingleDeviceStrategy.training_step" in text
    assert capsys.readouterr().out == ""


def test_the_default_folder_is_the_loggers(tmp_path: Path) -> None:
    """Without ``dirpath`` files lie beside the logger's; without a logger in ``default_root_dir``."""
    profiler = SimpleProfiler(filename="perf")
    trainer(profiler, logger=leyden.loggers.CSVLogger(tmp_path, "name", 3)).fit(Module(), modes.DATA)
    assert (tmp_path / "name" / "version_3" / "fit-perf.txt").exists()
    trainer(SimpleProfiler(filename="perf"), default_root_dir=tmp_path).fit(Module(), modes.DATA)
    assert (tmp_path / "fit-perf.txt").exists()


def test_several_processes_have_files_of_their_own(tmp_path: Path) -> None:
    """The rank on the machine is part of the name."""
    profiler = SimpleProfiler(tmp_path, "perf")
    profiler.setup("fit", local_rank=1)
    with profiler.profile("work"):
        pass
    profiler.describe()
    assert [path.name for path in tmp_path.iterdir()] == ["fit-perf-1.txt"]


class Breaking(Module):
    def __init__(self, exception: BaseException) -> None:
        super().__init__()
        self.exception = exception

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise self.exception
        return super().training_step(batch, batch_idx)


def test_an_interrupted_run_still_reports(capsys: Any) -> None:
    """Whoever stops a run by hand has seen enough, and wants to see it; an error shows its own text only."""
    for exception, reports in ((KeyboardInterrupt(), 1), (ValueError("mistake"), 0)):
        with pytest.raises(type(exception)):
            trainer("simple").fit(Breaking(exception), modes.DATA)
        assert capsys.readouterr().out.count("FIT Profiler Report") == reports


@pytest.mark.parametrize("kind", [SimpleProfiler, AdvancedProfiler, PyTorchProfiler])
def test_a_profiler_survives_a_run_that_failed(kind: Any, tmp_path: Path, capsys: Any) -> None:
    """What it had bound is given back: the next run has a report of its own."""
    profiler = kind(tmp_path)
    with pytest.raises(ValueError, match="mistake"):
        trainer(profiler).fit(Breaking(ValueError("mistake")), modes.DATA)
    module = Module()
    trainer(profiler).fit(module, modes.DATA)
    assert "run_training_batch" in capsys.readouterr().out
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


def test_the_advanced_profiler_shows_functions(capsys: Any) -> None:
    """Each action has the functions that ran in it, and not those of actions inside of it."""
    trainer("advanced").fit(Module(), modes.DATA)
    sections = capsys.readouterr().out.split("Profile stats for: ")
    assert sections[0] == "FIT Profiler Report\n\n"
    by_action = {section.split("\n")[0]: section for section in sections[1:]}
    assert "(loss)" in by_action["[Strategy]SingleDeviceStrategy.training_step"]
    assert "(run_epoch)" in by_action["run_training_epoch"]
    assert "(loss)" not in by_action["run_training_epoch"]
    assert "Ordered by: cumulative time" in by_action["run_training_batch"]


def test_lines_of_the_advanced_profiler() -> None:
    """An int restricts the number of functions shown."""
    profiler = AdvancedProfiler(line_count_restriction=2)
    with profiler.profile("work"):
        sorted(map(str, range(3)))
    assert "due to restriction <2>" in profiler.summary()


def test_statistics_of_the_advanced_profiler_as_files(tmp_path: Path, capsys: Any) -> None:
    """One for each action, for Python's own tools; also where an action's name could not be that of a file."""
    profiler = AdvancedProfiler(tmp_path, "perf", dump_stats=True)
    module = Module()
    module.on_train_epoch_end = lambda: module.trainer.profiler.profile("a/b").__enter__()
    run = trainer(profiler)
    run.fit(module, modes.DATA)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"fit-perf.txt", "fit-perf-[Strategy]SingleDeviceStrategy.training_step.prof", "fit-perf-a_b.prof"} <= names
    stats = pstats.Stats(str(tmp_path / "fit-perf-run_training_batch.prof"))
    assert any(function == "_update" for _, _, function in stats.stats)
    run.test(module, modes.DATA, verbose=False)
    assert "training_step" not in (tmp_path / "test-perf.txt").read_text()


def test_actions_that_overlap() -> None:
    """What was started first may end first; only the innermost is measured at a time."""
    profiler = AdvancedProfiler()
    profiler.start("first")
    profiler.start("second")
    profiler.stop("first")
    sorted([])
    profiler.stop("second")
    first, second = profiler.summary().split("Profile stats for: ")[1:]
    assert "builtins.sorted" not in first
    assert "builtins.sorted" in second


@pytest.mark.parametrize("kind", [SimpleProfiler, AdvancedProfiler, PyTorchProfiler])
def test_stop_without_start(kind: Any) -> None:
    """It names the action and the remedy, and is a ValueError as in Lightning."""
    profiler = kind()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"stop\('work'\).*not running.*profiler-not-started"):
            profiler.stop("work")
        with profiler.profile("work"):
            pass


def test_unknown_profilers_are_refused() -> None:
    """By name with the known ones; classes and other objects by type. Names are read in any case."""
    with pytest.raises(InvalidValueError, match=r"'simple', 'advanced', 'pytorch'.*trainer-profiler"):
        Trainer(profiler="xla")
    for value in (3, SimpleProfiler):
        with pytest.raises(InvalidTypeError, match="trainer-profiler"):
            Trainer(profiler=value)
    kinds = {"Simple": SimpleProfiler, "advanced": AdvancedProfiler, "PYTORCH": PyTorchProfiler}
    assert {name: type(Trainer(profiler=name).profiler) for name in kinds} == kinds


@pytest.mark.parametrize(
    "build",
    [
        lambda folder: SimpleProfiler(folder, "perf"),
        lambda folder: AdvancedProfiler(folder, dump_stats=True),
        lambda folder: PyTorchProfiler(folder),
    ],
)
@pytest.mark.parametrize("folder", ["file/folder", "s3://bucket/folder"])
def test_a_folder_that_takes_no_files_is_known_before_the_first_step(build: Any, folder: str, tmp_path: Path) -> None:
    """Whatever the profiler wants to write there."""
    (tmp_path / "file").touch()
    module = Module()
    module.training_step = lambda *_: pytest.fail("the fit began")
    with pytest.raises(InvalidValueError, match=r"Profiler .*(cannot write|local folders).*profiler-directory"):
        trainer(build(folder if "://" in folder else str(tmp_path / folder))).fit(module, modes.DATA)
