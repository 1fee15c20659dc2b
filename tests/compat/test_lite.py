"""``LightningLite`` of 1.5 to 1.9: its arguments, ``run``, ``save`` and ``load``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from leyden.compat.names import find
from leyden.errors import LeydenWarning, MisconfigurationException
from leyden.fabric import Fabric
from leyden.fabric.lite import LightningLite


class Lite(LightningLite):
    def run(self, folder: Path, rate: float = 0.1) -> Any:  # type: ignore[override]
        torch.manual_seed(3)
        layer = torch.nn.Linear(2, 1)
        model, optimizer = self.setup(layer, torch.optim.SGD(layer.parameters(), lr=rate))
        for batch in self.setup_dataloaders(DataLoader(torch.ones(4, 2), batch_size=2), replace_sampler=False):
            optimizer.zero_grad()
            self.backward(model(batch).sum())
            optimizer.step()
        self.save({"model": model.state_dict(), "rate": rate}, folder / "lite.pt")
        return self.load(filepath=folder / "lite.pt"), layer.state_dict()


def twin() -> dict[str, Any]:
    torch.manual_seed(3)
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(2, 2)).sum().backward()
        optimizer.step()
    return layer.state_dict()


@pytest.mark.parametrize("arguments", [{"gpus": 0}, {"accelerator": "cpu", "devices": 1, "precision": 32}])
def test_a_loop_of_1x(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """``run`` gives what it returns, and trains as a loop by hand; the content stands before the file's name."""
    read, state = Lite(**arguments).run(tmp_path, rate=0.5)
    assert read["rate"] == 0.5
    for name, wanted in twin().items():
        assert torch.equal(state[name], wanted) and torch.equal(read["model"][name], wanted)


def test_arguments_by_position() -> None:
    """In the order of 1.x."""
    with pytest.warns(LeydenWarning, match="precision-spelling"):
        lite = LightningLite("cpu", None, 1, 1, "bf16", None, None, None)
    assert isinstance(lite, Fabric) and lite.device == torch.device("cpu")
    with lite.autocast():
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16


@pytest.mark.parametrize("arguments", [{"gpus": 2}, {"tpu_cores": 8}])
def test_other_devices_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException):
        LightningLite(**arguments)


@pytest.mark.parametrize("place", ["lite", "lite.lite"])
def test_its_names(place: str) -> None:
    assert find("pytorch", place, "LightningLite") is LightningLite
