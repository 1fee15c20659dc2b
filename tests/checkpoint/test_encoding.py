"""Whatever a checkpoint holds is plain data in the file, and what it was when it is read."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import os
import re
import subprocess
import sys
import threading
import types
import zoneinfo
from argparse import Namespace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning
import torch
from torch import nn

import leyden
import modes
from leyden import LightningModule, Trainer
from leyden.checkpoint import read_checkpoint, write_checkpoint
from leyden.checkpoint.encoding import TAG, decode, encode
from leyden.errors import CheckpointError, LeydenWarning
from leyden.hparams import AttributeDict

called: list[str] = []


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Word(str, enum.Enum):
    A = "a"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


@dataclasses.dataclass
class Config:
    width: int
    activation: Any = nn.ReLU
    inner: Any = None

    def __post_init__(self) -> None:
        called.append("__post_init__")
        self.total = self.width * 2


@dataclasses.dataclass(frozen=True)
class Frozen:
    __slots__ = ("name", "sizes")
    name: str
    sizes: tuple[int, ...]


class Point(NamedTuple):
    x: int
    y: Any


class Settings:
    """Neither a dataclass nor anything else."""

    def __init__(self, values: Any) -> None:
        called.append("__init__")
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and vars(self) == vars(other)


class Special(dict[str, Any]):
    pass


def swish(x: Any) -> Any:
    return x


class Holder:
    @staticmethod
    def scale(x: Any) -> Any:
        return x


VALUES: dict[str, Any] = {
    "path": Path("/a/b"),
    "pure paths": [PurePosixPath("a"), PureWindowsPath("c:/a")],
    "enum": [Color.RED, Color.BLUE, Word.A],
    "flags": [Rights.READ, Rights.READ | Rights.RUN, Rights(0)],
    "scalars of numpy": [np.float64(1.5), np.int8(3), np.bool_(True), np.str_("\u00e9"), np.datetime64("2020-01-01")],
    "long double": np.longdouble(1) / 3,
    "dtypes of numpy": [np.dtype("float32"), np.dtype([("a", "i4"), ("b", "f8", (2,))]), np.float32],
    "time": [datetime.timedelta(1, 2, 3), datetime.date(2020, 1, 2), datetime.time(1, 2, 3, 4)],
    "moments": [
        datetime.datetime(2020, 1, 1, 2, 3, 4, 5, fold=1),
        datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        datetime.datetime(2020, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        datetime.timezone(datetime.timedelta(hours=2), "X"),
    ],
    "sets": [{1, 2}, {Path("a"), 1}, frozenset({1, frozenset({2})}), set()],
    "tuple": (1, (2, Path("x"))),
    "native": [1 + 2j, None, True, b"\0\xff", bytearray(b"x"), 2**200, float("inf"), "\u00fc"],
    "of torch": [torch.bfloat16, torch.device("cpu"), torch.Size([1, 2]), torch.strided],
    "namespaces": [Namespace(a=1, b=Path("p")), types.SimpleNamespace(x=[1, 2])],
    "dataclasses": [Config(3, nn.GELU, Frozen("a", (2,))), Frozen("b", ())],
    "named tuple": Point(1, Path("q")),
    "mappings": [collections.OrderedDict(a=1, b=Path("z")), collections.Counter("aab"), AttributeDict(a=Path("k"))],
    "default": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2], maxlen=3),
    "classes": [nn.ReLU, Config, int, torch.optim.Adam, np.float32, LightningModule, Color],
    "functions": [
        swish,
        Holder.scale,
        torch.relu,
        nn.functional.gelu,
        nn.functional.max_pool2d,
        nn.init.xavier_normal_,
    ],
    "keys": {Path("a"): 1, (1, Color.RED): 2, 3: 4, None: 5},
    "our own key": {TAG: "path", "value": "not one"},
    "ranges": [range(3), slice(1, None, 2), decimal.Decimal("1.10")],
    "objects": [Settings([1, Path("r")]), Special(a=Path("s"))],
}


def there_and_back(value: Any, folder: Path) -> Any:
    write_checkpoint({"state_dict": {}, "hyper_parameters": {"value": value}}, folder / "a.ckpt")
    assert torch.load(folder / "a.ckpt", weights_only=True)["state_dict"] == {}
    return read_checkpoint(folder / "a.ckpt")["hyper_parameters"]["value"]


@pytest.mark.parametrize("name", VALUES)
def test_what_is_saved_is_loaded(name: str, tmp_path: Path) -> None:
    """R160: by default, as plain data, and without a call of the user's code."""
    called.clear()
    value = VALUES[name]
    read = there_and_back(value, tmp_path)
    assert read == value
    assert type(read) is type(value)
    for first, second in zip(value, read, strict=True) if isinstance(value, list) else ():
        assert type(first) is type(second)
    assert called == []


def test_what_an_equality_does_not_tell(tmp_path: Path) -> None:
    config, default, moment, mode = there_and_back(
        [VALUES["dataclasses"][0], VALUES["default"], VALUES["moments"][0], Word.A], tmp_path
    )
    assert (config.total, config.inner) == (6, Frozen("a", (2,)))
    assert default["new"] == []
    assert (moment.fold, mode is Word.A) == (1, True)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        np.array(3),
        np.zeros((0, 3), np.float32),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["ab", "c"]),
        np.array(["2020-01-01"], "M8[D]"),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays(array: Any, tmp_path: Path) -> None:
    read = there_and_back(array, tmp_path)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    assert np.array_equal(read, array)
    assert read.flags.writeable


def test_partial(tmp_path: Path) -> None:
    read = there_and_back(functools.partial(torch.optim.SGD, lr=0.1), tmp_path)
    assert (read.func, read.args, read.keywords) == (torch.optim.SGD, (), {"lr": 0.1})


def test_modules(tmp_path: Path) -> None:
    """A loss or a backbone among the hyper-parameters, with its weights."""
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    read, loss = there_and_back([net, nn.CrossEntropyLoss(weight=torch.arange(3.0))], tmp_path)
    x = torch.randn(4, 2)
    assert torch.equal(read(x), net(x))
    assert [type(p) for p in read.parameters()] == [nn.Parameter] * 4
    assert torch.equal(loss.weight, torch.arange(3.0))


def test_what_is_shared_stays_shared(tmp_path: Path) -> None:
    shared = Settings([1])
    first, second, third = there_and_back([shared, {"a": shared}, [shared.values]], tmp_path)
    assert first is second["a"]
    assert first.values is third[0]


def test_configurations(tmp_path: Path) -> None:
    """OmegaConf's, with interpolations; in a part those that leave it have their values."""
    conf = pytest.importorskip("omegaconf").OmegaConf
    config = conf.create({"lr": 0.1, "rate": "${lr}", "net": {"sizes": [1, "${lr}"], "folder": Path("a")}})
    conf.set_struct(config, True)
    whole, part = there_and_back([config, config.net], tmp_path)
    assert (whole, type(whole), conf.is_struct(whole)) == (config, type(config), True)
    assert conf.to_container(whole)["rate"] == "${lr}"
    assert conf.to_container(part) == {"sizes": [1, 0.1], "folder": Path("a")}


def test_tensors_stay_what_they_are(tmp_path: Path) -> None:
    """Views of one storage are stored once, parameters are parameters, versions of state_dict are kept."""
    weight = torch.arange(10.0)
    state = nn.BatchNorm1d(2).state_dict()
    read = there_and_back([weight, weight[2:4], nn.Parameter(weight), state], tmp_path)
    assert read[0].untyped_storage().data_ptr() == read[1].untyped_storage().data_ptr()
    assert isinstance(read[2], nn.Parameter)
    assert read[3]._metadata == state._metadata
    assert (tmp_path / "a.ckpt").stat().st_size < 5000


def generator() -> Any:
    yield 1


def local() -> Any:
    class Local:
        pass

    return Local


REFUSED: dict[str, Any] = {
    "an open file": sys.stdout,
    "a local class": local(),
    "an object of a local class": local()(),
    "a partial of a lambda": functools.partial(lambda x: x),
    "a lambda": lambda x: x,
    "a lock": threading.Lock(),
    "a generator": generator(),
    "an object": object(),
    "a function of the system": os.system,
    "eval": eval,
    "a class that runs programs": subprocess.Popen,
    "a function that loads": torch.load,
    "a function that fetches": torch.hub.load,
    "a method": Settings([]).__eq__,
    "an array of objects": np.array([object()]),
    "an exception": ValueError("x"),
    "a pattern": re.compile("a"),
    "a module": os,
    "a local function": (lambda: lambda: 0)(),
    "a tensor of a class": torch.ones(2).as_subclass(type("Mine", (torch.Tensor,), {})),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_is_refused_when_it_is_saved(name: str, tmp_path: Path) -> None:
    """By its place, and nothing is written."""
    content = {"state_dict": {}, "hyper_parameters": {"net": {"act": REFUSED[name]}}}
    with pytest.raises(
        CheckpointError, match=r"^hyper_parameters\['net'\]\['act'\](\[0\])? is .*\[checkpoint-object\]"
    ):
        write_checkpoint(content, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_places() -> None:
    inner = Config(1, inner=[{Path("a"): lambda: 0}])
    for value, place in (
        ({"callbacks": {"Mine{}": [1, (2, {"x": generator()})]}}, r"callbacks\['Mine{}'\]\[1\]\[1\]\['x'\]"),
        ({"hyper_parameters": Namespace(config=inner)}, r"hyper_parameters\['config'\]\.inner\[0\]\[0\]\[1\]"),
    ):
        with pytest.raises(CheckpointError, match=f"^{place} is "):
            encode(value)
    loop: list[Any] = [1]
    loop.append(loop)
    with pytest.raises(CheckpointError, match=r"^hyper_parameters\[1\] holds itself"):
        encode({"hyper_parameters": loop})


def test_what_the_user_allows(tmp_path: Path) -> None:
    """``torch.serialization.add_safe_globals`` says so, for leyden as for torch."""
    with torch.serialization.safe_globals([re.compile]):
        assert there_and_back([re.compile], tmp_path) == [re.compile]
    with pytest.raises(CheckpointError, match=r"names re:compile, which a file may not do.*\[checkpoint-name\]"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt", weights_only=False)["hyper_parameters"]["value"] == [re.compile]


def test_a_name_that_is_not_known_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not imported; who trusts the file has it imported."""
    (tmp_path / "elsewhere.py").write_text("def act(x): return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = {"state_dict": {}, "hyper_parameters": {"act": {TAG: "name", "value": "elsewhere:act"}}}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*names elsewhere:act; import elsewhere before"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert "elsewhere" not in sys.modules
    read = read_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert read["hyper_parameters"]["act"](3) == 3
    del sys.modules["elsewhere"]


@pytest.mark.parametrize(
    "value",
    [
        {TAG: "no such form", "value": 1},
        {TAG: "path"},
        {TAG: "timedelta", "value": "x"},
        {TAG: "enum", "type": f"{__name__}:Color", "value": ["GREEN"]},
        {TAG: "numpy", "dtype": "O", "shape": [1], "value": torch.zeros(8, dtype=torch.uint8)},
        {TAG: "numpy", "dtype": "f8", "shape": [1 << 40], "value": torch.zeros(8, dtype=torch.uint8)},
        {TAG: ["name"], "value": "x"},
        {TAG: "object", "type": 3, "fields": {}, "value": None},
    ],
)
def test_damaged_data(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"hyper_parameters\['x'\] cannot be built.*\[checkpoint-content\]"):
        decode({"hyper_parameters": {"x": value}})


def test_data_that_is_nested_too_deeply() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(CheckpointError, match="too deeply"):
        decode(value)
    while value:  # or its destruction would recurse
        value = value[0]


class Wide(LightningModule):
    """Has hyper-parameters of many kinds."""

    def __init__(self, folder: Any = None, color: Any = None, lr: Any = 0.1, act: Any = nn.ReLU, **more: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=float(self.hparams.lr))


GIVEN: dict[str, Any] = {"folder": Path("a"), "color": Color.RED, "lr": np.float32(0.1), "config": Config(3), "n": {1}}


def test_load_from_checkpoint(tmp_path: Path) -> None:
    """R160: Path, enum, numpy and a class among the hyper-parameters, with no argument given."""
    trainer = Trainer(max_epochs=1, enable_progress_bar=False)
    trainer.fit(Wide(**GIVEN), modes.DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Wide.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.hparams == {"act": nn.ReLU, **GIVEN}
    assert type(loaded.hparams.lr) is np.float32


def test_lightning_reads_the_file(tmp_path: Path) -> None:
    """As plain data: it resumes, and its load_from_checkpoint gets dicts where leyden gets objects."""
    trainer = Trainer(max_epochs=1, enable_progress_bar=False)
    trainer.fit(Wide(**GIVEN), modes.DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")

    class Theirs(pytorch_lightning.LightningModule):  # type: ignore[misc]
        __init__ = None
        training_step, configure_optimizers = Wide.training_step, lambda self: torch.optim.SGD(self.parameters(), 0.1)

        def __init__(self, **hparams: Any) -> None:  # noqa: F811
            super().__init__()
            self.save_hyperparameters()
            self.layer = nn.Linear(3, 1)

    loaded = Theirs.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.hparams["folder"] == {TAG: "path", "value": "a"}
    assert loaded.hparams["n"] == {1}  # what 2.6.6 would write in a form that is read stays that
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    theirs = pytorch_lightning.Trainer(max_epochs=2, accelerator="cpu", **silent)
    data = torch.utils.data.DataLoader(modes.DATA, batch_size=None)
    theirs.fit(Theirs(), data, ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True)
    assert theirs.current_epoch == 2


def test_a_bad_hyper_parameter_shows_before_the_first_step(tmp_path: Path) -> None:
    module = Wide(act=lambda x: x)
    trainer = Trainer(
        max_epochs=1, enable_progress_bar=False, callbacks=[leyden.callbacks.ModelCheckpoint(tmp_path / "run")]
    )
    with pytest.raises(CheckpointError, match=r"^hyper_parameters\['act'\] is the function .*<lambda>"):
        trainer.fit(module, modes.DATA)
    assert trainer.clocks.micro_batches == 0


def test_a_module_as_a_hyper_parameter_is_saved(tmp_path: Path) -> None:
    """Many have a loss there; the advice to leave it out is given where it is kept."""
    with pytest.warns(LeydenWarning, match="hparams-module"):
        module = Wide(loss=nn.MSELoss())
    trainer = Trainer(max_epochs=1, enable_progress_bar=False)
    trainer.fit(module, modes.DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(LeydenWarning, match="hparams-module"):
        assert isinstance(Wide.load_from_checkpoint(tmp_path / "a.ckpt").hparams.loss, nn.MSELoss)
