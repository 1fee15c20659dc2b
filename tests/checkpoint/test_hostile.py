"""Files that want to run code: none of it runs, by whatever route the file comes."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import os
import pickle
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import collect_env

import leyden
import modes
from leyden import Callback, LightningDataModule, LightningModule, Trainer
from leyden.callbacks import ModelCheckpoint
from leyden.checkpoint import export, read_checkpoint
from leyden.checkpoint.encoding import TAG
from leyden.errors import CheckpointError, InvalidValueError, LeydenError, LeydenWarning
from leyden.loggers import CSVLogger


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def pickled(value: Any) -> bytes:
    """A file of torch.save that holds any object."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.ones(1)}, "hyper_parameters": {"x": value}}, buffer)
    return buffer.getvalue()


def raw(program: bytes) -> bytes:
    """A file of torch's whose pickle is a program of opcodes."""
    good = io.BytesIO(pickled(1))
    bad = io.BytesIO()
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, program if entry.filename.endswith("data.pkl") else source.read(entry))
    return bad.getvalue()


def data(**tagged: Any) -> bytes:
    """A file of plain data that asks leyden for an object."""
    return pickled({TAG: tagged.pop("form"), **tagged})


def programs(made: str) -> dict[str, bytes]:
    """Pickles that make a folder when torch reads them unprotected."""
    code, path = f"__import__('os').mkdir({made!r})", made.encode()
    return {
        "a function of the system": pickled(Call(os.mkdir, made)),
        "a command": pickled(Call(os.system, f"mkdir {made}")),
        "a process": pickled(Call(subprocess.check_call, ["mkdir", made])),
        "eval": pickled(Call(eval, code)),
        "exec": pickled(Call(exec, code)),
        "a pickle in a pickle": pickled(Call(pickle.loads, pickle.dumps(Call(os.mkdir, made)))),
        "a partial that is called": pickled(Call(functools.partial(os.mkdir, made))),
        "a list that is mapped": pickled(Call(list, Call(map, os.mkdir, [made]))),
        "torch's own way to run programs": pickled(Call(collect_env.run, f"mkdir {made}")),
        "old opcodes": raw(b"(V" + path + b"\nios\nmkdir\n."),
        "a stack of globals": raw(b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c" + bytes([len(path)]) + path + b"\x85R."),
    }


def requests(made: str) -> dict[str, bytes]:
    """Files that ask leyden or torch for what could run code."""
    closer = {"type": "tempfile:_TemporaryFileCloser", "fields": {"name": made}, "value": None}
    return {
        "torch.load": pickled(Call(torch.load, made)),
        "torch.hub": pickled(Call(torch.hub.load, made)),
        "a partial": pickled(functools.partial(os.mkdir, made)),
        "a module with a method": pickled(Call(torch.nn.Linear, 1, 1, state={"forward": os.mkdir})),
        "data: a name": data(form="name", value="os:mkdir"),
        "data: a name by another module": data(form="name", value="leyden.checkpoint.writing:os.mkdir"),
        "data: eval": data(form="name", value="builtins:eval"),
        "data: a class that runs programs": data(form="name", value="subprocess:Popen"),
        "data: what torch loads by": data(form="name", value="torch:load"),
        "data: what reads any file": data(form="name", value="torch:from_file"),
        "data: a partial": data(form="partial", value=[{TAG: "name", "value": "os:mkdir"}, [made], {}]),
        "data: a factory": data(form="defaultdict", value=[{TAG: "name", "value": "builtins:input"}, []]),
        "data: an object": data(form="object", type="subprocess:Popen", fields={"args": "true"}, value=None),
        "data: what deletes when it goes": data(form="object", **closer),
        "data: addresses": data(form="numpy", dtype="O", shape=[1], value=torch.zeros(8, dtype=torch.uint8)),
        "data: a form that is none": data(form="__init__", value=1),
    }


def hostile(made: str) -> dict[str, bytes]:
    return programs(made) | requests(made)


NAMES = [*hostile("/x")]


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of a folder on a server of this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


class Victim(LightningModule):
    """Takes any hyper-parameters."""

    def __init__(self, x: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0]).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    """Takes any hyper-parameters, too."""

    def __init__(self, x: Any = None) -> None:
        super().__init__()


def trainer_with(*callbacks: Callback) -> Trainer:
    return Trainer(max_epochs=2, callbacks=[*callbacks], enable_progress_bar=False, enable_model_summary=False)


def fit(path: Any, *callbacks: Callback) -> None:
    trainer_with(*callbacks).fit(Victim(), modes.DATA, ckpt_path=path)


def through_last(path: Path) -> None:
    """The newest file in the folder of a callback, whose logger looks for its version there as well."""
    Trainer(
        max_epochs=2,
        callbacks=[ModelCheckpoint(path.parent)],
        logger=CSVLogger(path.parent / "logs"),
        enable_progress_bar=False,
    ).fit(Victim(), modes.DATA, ckpt_path="last")


def through_best(path: Path) -> None:
    """What a callback takes for its best."""
    callback = ModelCheckpoint(path.parent)
    callback.best_model_path = str(path)
    trainer_with(callback).test(Victim(), modes.DATA, ckpt_path="best")


def through_file(path: Path) -> None:
    with path.open("rb") as file:
        read_checkpoint(file)


def through_address(path: Path) -> None:
    with server(path.parent) as address:
        read_checkpoint(f"{address}/{path.name}")


ROUTES: dict[str, Callable[[Path], Any]] = {
    "a path": read_checkpoint,
    "an open file": through_file,
    "bytes": lambda path: read_checkpoint(io.BytesIO(path.read_bytes())),
    "an address": through_address,
    "a file address": lambda path: read_checkpoint(path.as_uri()),
    "load_from_checkpoint": Victim.load_from_checkpoint,
    "a datamodule's": Data.load_from_checkpoint,
    "fit": fit,
    "fit, an address": lambda path: fit(path.as_uri()),
    "validate": lambda path: trainer_with().validate(Victim(), modes.DATA, ckpt_path=path),
    "test": lambda path: trainer_with().test(Victim(), modes.DATA, ckpt_path=path),
    "predict": lambda path: trainer_with().predict(Victim(), modes.DATA, ckpt_path=path),
    "last": through_last,
    "best": through_best,
    "replay": lambda path: leyden.replay(path, Victim()),
    "export": lambda path: export(path, path.with_name("b.ckpt")),
}


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_runs(route: str, tmp_path: Path) -> None:
    """R160, V11: refused for what it is, whatever the file wants and wherever it comes from."""
    made = tmp_path / "made"
    names = NAMES if route == "a path" else NAMES[::4]
    for name in names:
        (tmp_path / "bad.ckpt").write_bytes(hostile(str(made))[name])
        with pytest.raises(CheckpointError, match=r"\[checkpoint-(untrusted|name|content|unreadable)\]"):
            ROUTES[route](tmp_path / "bad.ckpt")
        assert not made.exists(), name


def test_nothing_runs_in_a_file_of_hyper_parameters(tmp_path: Path) -> None:
    """YAML has ways to name functions, too."""
    torch.save({"state_dict": Victim().state_dict()}, tmp_path / "a.ckpt")
    made = tmp_path / "made"
    for text in (f"x: !!python/object/apply:os.mkdir ['{made}']", f"x: !!python/object/new:os.mkdir ['{made}']"):
        (tmp_path / "hparams.yaml").write_text(text)
        with pytest.raises(InvalidValueError, match=r"hparams\.yaml' is no YAML file of plain values: could not deter"):
            Victim.load_from_checkpoint(tmp_path / "a.ckpt", hparams_file=tmp_path / "hparams.yaml")
        assert not made.exists()


class Telling(Callback):
    """Remembers what it is given."""

    def __init__(self) -> None:
        self.states: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        return {"x": 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.states.append(state_dict)


def test_no_state_is_given_to_anybody(tmp_path: Path) -> None:
    """Callbacks and loggers see nothing of a file that is refused, though only another part of it is hostile."""
    callback, logger = Telling(), CSVLogger(tmp_path / "logs")
    trainer = Trainer(max_epochs=1, callbacks=[callback], logger=logger, enable_progress_bar=False)
    trainer.fit(Victim(), modes.DATA)
    content = trainer.dump_checkpoint()
    content["callbacks"]["Other"] = {"x": Call(os.mkdir, str(tmp_path / "made"))}
    torch.save(content, tmp_path / "bad.ckpt")
    before = Path(logger.log_dir, "metrics.csv").exists()
    with pytest.raises(CheckpointError, match="checkpoint-untrusted"):
        fit(tmp_path / "bad.ckpt", callback)
    assert callback.states == []
    assert Path(logger.log_dir, "metrics.csv").exists() == before
    assert not (tmp_path / "made").exists()


TRUSTING: dict[str, Callable[..., Any]] = {
    "fit": lambda path, **trust: trainer_with().fit(Victim(), modes.DATA, ckpt_path=path, **trust),
    "validate": lambda path, **trust: trainer_with().validate(Victim(), modes.DATA, ckpt_path=path, **trust),
    "test": lambda path, **trust: trainer_with().test(Victim(), modes.DATA, ckpt_path=path, **trust),
    "predict": lambda path, **trust: trainer_with().predict(Victim(), modes.DATA, ckpt_path=path, **trust),
    "load_from_checkpoint": Victim.load_from_checkpoint,
    "a datamodule's": Data.load_from_checkpoint,
}


@pytest.mark.parametrize("route", TRUSTING)
def test_trust_is_explicit(route: str, tmp_path: Path) -> None:
    """V11: only ``trust=True`` lets the code in a file run, for one call; to say the opposite too is an error."""
    made, path, call = tmp_path / "made", tmp_path / "a.ckpt", TRUSTING[route]
    trainer = trainer_with()
    trainer.fit(Victim(), modes.DATA)
    content = trainer.dump_checkpoint()
    content["own"] = Call(os.mkdir, str(made))
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"pass trust=True \[checkpoint-untrusted\]"):
        call(path)
    with pytest.raises(InvalidValueError, match=r"\[trust\]"):
        call(path, trust=True, weights_only=True)
    assert not made.exists()
    with contextlib.suppress(NotImplementedError, LeydenError, LeydenWarning):  # there is no such step
        call(path, trust=True)
    assert made.exists()


@pytest.mark.parametrize("name", programs("/x"))
def test_that_they_would(name: str, tmp_path: Path) -> None:
    """The programs do run where somebody trusts them; else the test above would show nothing."""
    (tmp_path / "bad.ckpt").write_bytes(programs(str(tmp_path / "made"))[name])
    with contextlib.suppress(Exception):
        torch.load(tmp_path / "bad.ckpt", weights_only=False)
    assert (tmp_path / "made").exists()


def test_texts_that_look_like_names_stay_texts(tmp_path: Path) -> None:
    """Lightning's command line keeps ``_instantiator`` there, and 2.6.5 imported and called what it said."""
    hparams = {"_instantiator": "os.mkdir", "_class_path": "os.system", "x": "os:mkdir", "_target_": "os.mkdir"}
    torch.save(
        {"state_dict": Victim().state_dict(), "hyper_parameters": hparams, "hparams_name": "kwargs"}, tmp_path / "a"
    )
    loaded = Victim.load_from_checkpoint(tmp_path / "a")
    assert loaded.hparams == {"x": "os:mkdir"}
