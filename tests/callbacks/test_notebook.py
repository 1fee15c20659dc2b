"""Progress bars in a notebook: its kernel's part is played here, and once by a real one."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from leyden import Callback
from leyden.callbacks import RichProgressBar, TQDMProgressBar
from leyden.callbacks.progress.notebook import in_notebook
from modes import MODES, build, run

BARS: list[Any] = [
    TQDMProgressBar,
    pytest.param(
        RichProgressBar,
        marks=pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="needs rich"),
    ),
]


class Cell:
    """What a cell shows: its outputs, each with all that it showed one after the other."""

    def __init__(self) -> None:
        self.outputs: list[list[dict[str, str]]] = []

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw and display_id
        self.outputs.append([content])
        return SimpleNamespace(update=lambda content, raw, shown=self.outputs[-1]: shown.append(content))

    def lines(self, output: int = 0, version: int = -1) -> list[str]:
        return self.outputs[output][version]["text/plain"].splitlines()


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    cell = Cell()
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=cell.display))
    return cell


class Slow(Callback):
    """A quarter of a second goes by with every batch, for the bar."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
        self.now, self.fails = 1000.0, fails
        for name in ("monotonic", "time"):
            monkeypatch.setattr(time, name, lambda: self.now)

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.now += 0.25
        if self.fails:
            raise ZeroDivisionError

    def on_validation_batch_start(self, *args: Any) -> None:
        self.now += 0.25


def shown(mode: str) -> Any:
    """A module that logs a value for the bar."""
    module = build(mode)
    step = module.training_step

    def training_step(batch: Any, batch_idx: int, *index: int) -> Any:
        module.log("shown", 0.25, prog_bar=True)
        return step(batch, batch_idx, *index)

    def with_index(batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        return training_step(batch, batch_idx, optimizer_idx)

    module.training_step = with_index if mode == "alternating" else training_step
    return module


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", BARS)
def test_a_fit_is_one_output(
    kind: Any, mode: str, cell: Cell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sanity check, epochs and validations are written over each other; what stays is the last epoch and its values."""
    bar = kind()
    run(mode, [Slow(monkeypatch), bar], module=shown(mode), max_epochs=3, enable_progress_bar=True)
    (versions,) = cell.outputs
    assert any(content["text/plain"].startswith("Sanity Checking") for content in versions)
    both = [lines for i in range(len(versions)) if len(lines := cell.lines(version=i)) == 2]
    assert both and all(row[0].startswith("Epoch") and row[1].startswith("Validation") for row in both)
    assert any("1/2" in row[1] for row in both)
    (last,) = cell.lines()
    assert last.startswith("Epoch 2") and "6/6" in last and "it/s" in last
    assert ("shown=0.250" if kind is TQDMProgressBar else "shown: 0.250") in last
    out = capsys.readouterr().out
    assert "Epoch" not in out and "\r" not in out and "\x1b" not in out


@pytest.mark.parametrize("kind", BARS)
def test_every_epoch_leaves_its_line(kind: Any, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    run("one", [Slow(monkeypatch), kind(leave=True)], max_epochs=3, enable_progress_bar=True)
    assert [line[:7] for line in cell.lines()] == ["Epoch 0", "Epoch 1", "Epoch 2"]


@pytest.mark.parametrize("kind", BARS)
def test_each_run_has_an_output_of_its_own(kind: Any, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after an exception: the next run may be another cell's."""
    bar, slow = kind(), Slow(monkeypatch, fails=True)
    with pytest.raises(ZeroDivisionError):
        run("one", [slow, bar], enable_progress_bar=True)
    slow.fails = False
    trainer, module, _ = run("one", [slow, bar], max_epochs=1, enable_progress_bar=True)
    trainer.validate(module, [module.trainer.fit_loop.data.loader.dataset[0]] * 3, verbose=False)
    words = [cell.lines(output)[-1].split()[0] for output in range(len(cell.outputs))]
    assert [word.rstrip(":") for word in words] == ["Epoch", "Epoch", "Validation"]


@pytest.mark.parametrize("kind", BARS)
def test_lines_are_printed_as_anywhere(
    kind: Any, cell: Cell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = build("one")
    module.on_train_epoch_end = lambda: module.print("between", 2, "epochs")
    run("one", [Slow(monkeypatch), kind()], module=module, max_epochs=2, enable_progress_bar=True)
    assert capsys.readouterr().out.count("between 2 epochs\n") == 2
    assert len(cell.outputs) == 1


@pytest.mark.parametrize("kind", BARS)
def test_copies(kind: Any, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = kind()
    run("one", [Slow(monkeypatch), bar], max_epochs=1, enable_progress_bar=True)
    copy = pickle.loads(pickle.dumps(bar))
    run("one", [Slow(monkeypatch), copy], max_epochs=1, enable_progress_bar=True)
    assert len(cell.outputs) == 2


def test_what_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script whose libraries import ipykernel, and IPython in a terminal."""
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    for shell in (None, SimpleNamespace()):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert not in_notebook()


CODE = """
import torch, leyden
from leyden.callbacks import RichProgressBar, TQDMProgressBar

class Module(leyden.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
    def training_step(self, batch, batch_idx):
        self.log("loss", 0.25, prog_bar=True)
        return self.net(batch).sum()
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", 0.5, prog_bar=True)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

batches = [torch.ones(1, 1)] * 4
for bar in [TQDMProgressBar(), RichProgressBar()]:
    options = dict(logger=False, enable_checkpointing=False, enable_model_summary=False, accelerator="cpu")
    leyden.Trainer(max_epochs=2, callbacks=[bar], **options).fit(Module(), batches, batches)
"""


def test_a_real_kernel() -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("rich")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [output.data for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    assert [set(data) for data in shown] == [{"text/plain"}, {"text/plain", "text/html"}]
    first, second = shown
    assert first["text/plain"].startswith("Epoch 1: 100%|") and first["text/plain"].count("\n") == 0
    assert "4/4" in first["text/plain"] and "loss=0.250, val_loss=0.500" in first["text/plain"]
    assert "Epoch 1" in second["text/html"] and "loss: 0.250 val_loss: 0.500" in second["text/html"]
    assert "Validation" not in second["text/html"]
