"""``ModelSummary``, ``RichModelSummary`` and ``summarize``."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.utilities.model_summary import summarize as their_summarize
from torch import nn

from leyden import LightningModule
from leyden.callbacks import ModelSummary, RichModelSummary
from leyden.callbacks.model_summary import Summary, summarize
from leyden.errors import InvalidValueError, MissingExtraError
from modes import MODES, build, run


def networks(base: Any) -> Any:
    """Nested, partly frozen, with a parameter of its own, and an example of its input."""

    class Nested(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.example_input_array = torch.zeros(2, 3)
            self.scale = nn.Parameter(torch.ones(5))
            self.body = nn.Sequential(nn.Linear(3, 40), nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 50)))
            self.unused = nn.Linear(2, 2).requires_grad_(False)
            self.body[1].eval()

        def forward(self, x: Any) -> Any:
            return self.body(x)

    return Nested()


@pytest.mark.parametrize("depth", [-1, 1, 2, 3])
@pytest.mark.parametrize("has_example", [True, False])
def test_the_numbers_of_lightning(depth: int, has_example: bool) -> None:
    ours, theirs = networks(LightningModule), networks(pytorch_lightning.LightningModule)
    if not has_example:
        ours.example_input_array = theirs.example_input_array = None
    found, expected = summarize(ours, depth), their_summarize(theirs, depth)
    for name in ("layer_names", "layer_types", "param_nums", "training_modes", "total_training_modes"):
        assert getattr(expected, name) == getattr(found, name), name
    for name in ("total_parameters", "trainable_parameters", "total_flops"):
        assert getattr(expected, name) == getattr(found, name), name
    assert found.model_size == pytest.approx(expected.model_size)
    if has_example:
        assert [str(size) for size in expected.in_sizes] == found.in_sizes
        assert [str(size) for size in expected.out_sizes] == found.out_sizes
        assert [sum(counts.values()) for counts in expected.flop_counts.values()] == found.flops


def test_the_example_leaves_no_trace() -> None:
    module = networks(LightningModule)
    modes, state = [m.training for m in module.modules()], torch.get_rng_state()
    summarize(module, -1)
    assert [m.training for m in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not m._forward_hooks for m in module.modules())


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_the_example_in_all_precisions(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = build("one", example_input_array=torch.zeros(2, 3))
    module.forward = lambda x: module.head(module.backbone(x))
    run("one", [ModelSummary()], module=module, max_epochs=0, precision=precision)
    assert "[2, 1]" in capsys.readouterr().out


def test_the_table() -> None:
    assert str(summarize(networks(LightningModule), 1)).splitlines() == [
        "    Name          Type        Params    Mode    FLOPs    In sizes    Out sizes",
        "--  ------------  ----------  --------  ------  -------  ----------  -----------",
        "0   body          Sequential  2.2 K     train   8.5 K    [2, 3]      [2, 50]",
        "1   unused        Linear      6         train   0        ?           ?",
        "    other params  n/a         5         n/a     n/a      n/a         n/a",
        "2.2 K     trainable parameters",
        "6         other parameters",
        "2.2 K     parameters",
        "0.009     megabytes of parameters",
        "3         modules in train mode",
        "3         modules in eval mode",
        "8.5 K     FLOPs of a forward pass",
    ]


def test_lazy_layers_and_layers_that_are_used_twice() -> None:
    layer = nn.Linear(3, 3)
    assert summarize(nn.Sequential(layer, layer, nn.LazyLinear(4))).total_parameters == 12


@pytest.mark.parametrize("mode", MODES)
def test_is_printed_when_a_fit_starts(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(mode, [ModelSummary(max_depth=2)], max_epochs=1)
    out = capsys.readouterr().out
    assert "backbone.1  BatchNorm1d  8" in out and "29        parameters" in out
    run(mode, [ModelSummary(max_depth=0)], max_epochs=1)
    assert capsys.readouterr().out == ""


def test_another_form(capsys: pytest.CaptureFixture[str]) -> None:
    class Short(ModelSummary):
        @staticmethod
        def summarize(summary_data: Any, total_parameters: int, *args: Any, **kwargs: Any) -> None:
            print(dict(summary_data)["Name"], total_parameters, kwargs)

    run("one", [Short(unit="million")], max_epochs=1)
    assert capsys.readouterr().out == "['backbone', 'head'] 29 {'total_flops': 0, 'unit': 'million'}\n"


def test_rich(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    run("one", [RichModelSummary(max_depth=2, header_style="bold")], max_epochs=1)
    out = capsys.readouterr().out
    assert "backbone.1" in out and "29" in out and "megabytes of parameters" in out


def test_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'leyden\[rich\]'"):
        RichModelSummary()


@pytest.mark.parametrize("depth", [-2, 1.0, True, None])
def test_bad_depth(depth: Any) -> None:
    with pytest.raises(InvalidValueError, match="levels of layers"):
        ModelSummary(depth)
    with pytest.raises(InvalidValueError, match="levels of layers"):
        summarize(build("one"), depth)


@pytest.mark.parametrize(("mode", "depth"), [("top", 1), ("full", -1)])
def test_words_of_1x(mode: str, depth: int) -> None:
    """``ModelSummary(module, mode=...)`` of 1.x, in either place."""
    module: Any = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    expected = summarize(module, max_depth=depth).layer_names
    assert expected == (["0"] if mode == "top" else ["0", "0.0"])
    assert [Summary(module, mode).layer_names, Summary(module, mode=mode).layer_names] == [expected] * 2
    assert summarize(module, mode=mode).layer_names == expected
    with pytest.raises(InvalidValueError, match="max_depth='half'"):
        summarize(module, mode="half")
