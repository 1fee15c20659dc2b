"""A damaged file is refused, whatever the damage; `tests/corruption.py` has the trials, and runs more of them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

import modes
from corruption import DAMAGES, files, flip, foreign, outcome, trials
from leyden import Trainer
from leyden.checkpoint import integrity, read_checkpoint, write_checkpoint
from leyden.errors import CheckpointError

COUNTS = {"flips": 500, "truncations": 50, "blocks": 100, "additions": 20}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_refused(kind: str, tmp_path: Path) -> None:
    good = files(tmp_path)["leyden"]
    assert trials(kind, good, COUNTS[kind], tmp_path / "bad.ckpt") == {"refused": COUNTS[kind]}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_of_lightning_is_refused_or_is_what_it_was(kind: str, tmp_path: Path) -> None:
    """What no CRC covers, and torch does not read, may change: padding, dates."""
    outcomes = trials(kind, files(tmp_path)["lightning"], COUNTS[kind], tmp_path / "bad.ckpt")
    assert set(outcomes) <= {"refused", "same"}
    assert outcomes["refused"] > COUNTS[kind] / 2


def test_every_bit_of_the_end_and_of_the_first_header(tmp_path: Path) -> None:
    """Where a flipped bit could make one format look like another."""
    good, path = files(tmp_path)["leyden"], tmp_path / "bad.ckpt"
    places = [*range(8 * 30), *range(8 * (len(good) - 100), 8 * len(good))]
    for place in places:
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bad)
        assert outcome(path, None) == "refused", place
    for size in range(len(good) - 100, len(good)):
        path.write_bytes(good[:size])
        assert outcome(path, None) == "refused", size


FOREIGN = dict(foreign())


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_other_kinds(kind: str, tmp_path: Path) -> None:
    (tmp_path / "bad.ckpt").write_bytes(FOREIGN[kind])
    assert outcome(tmp_path / "bad.ckpt", None) == "refused"


def test_the_fault_is_told(tmp_path: Path) -> None:
    write_checkpoint({"state_dict": {"weight": torch.arange(1000.0)}}, tmp_path / "a.ckpt")
    good, path = (tmp_path / "a.ckpt").read_bytes(), tmp_path / "bad.ckpt"
    place = good.index(torch.arange(1000.0).numpy().tobytes())
    for bad, told in (
        (good[: place + 100] + b"\xff" + good[place + 101 :], r"its record '.*data/0' is damaged: the CRC-32 differs"),
        (good[: place - 1] + b"\xff" + good[place:], "between its records is damaged"),
        (good[:-30], "it is cut off"),
        (good + b"x", "something was added"),
        (b"\x00" + good[1:], "not a file of torch.save"),
        (b"", "it is empty"),
    ):
        path.write_bytes(bad)
        with pytest.raises(
            CheckpointError, match=rf"bad\.ckpt' cannot be read.*{told}.*'last' .*\[checkpoint-unreadable\]"
        ):
            read_checkpoint(path)


def test_the_old_format_of_torch_is_told_and_can_be_converted(tmp_path: Path) -> None:
    """It is no damaged file, and no file of another kind."""
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}, "epoch": 3}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="torch before 1.6") as caught:
        read_checkpoint(path)
    assert "torch.save(torch.load(path, weights_only=True), path)" in str(caught.value)
    torch.save(torch.load(path, weights_only=True), path)
    assert read_checkpoint(path)["epoch"] == 3


def test_the_first_version_of_the_comment_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no time."""
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with open(path, "r+b") as file:
        file.seek(-2, 2)
        file.write(struct.pack("<H", 73) + b"leyden:1:")
        end = file.tell()
        file.write(integrity._digest(file, integrity._records(file), end))
    assert (read_checkpoint(path)["epoch"], integrity.sealed_at(str(path))) == (3, None)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="the digest differs"):
        read_checkpoint(path)


def test_nothing_is_touched_by_a_damaged_file(tmp_path: Path) -> None:
    """The module is what it was, and no hook of it is asked to load anything."""
    trainer, module, _ = modes.run("one", [], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    good = (tmp_path / "a.ckpt").read_bytes()
    place = good.index(module.head.weight.detach().numpy().tobytes())
    (tmp_path / "a.ckpt").write_bytes(good[:place] + b"\0\0\0" + good[place + 3 :])
    fresh, asked = modes.build("one"), []
    fresh.on_load_checkpoint = asked.append
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(CheckpointError, match="CRC-32"):
        Trainer(max_epochs=2, enable_progress_bar=False).fit(fresh, modes.DATA, ckpt_path=tmp_path / "a.ckpt")
    assert asked == []
    assert all(torch.equal(before[name], value) for name, value in fresh.state_dict().items())


def test_the_script_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks, torch loads most of the flipped files; then the trials say so."""
    monkeypatch.setattr("leyden.checkpoint.files.verify", lambda file: None)
    outcomes = trials("flips", files(tmp_path)["leyden"], 50, tmp_path / "bad.ckpt")
    assert outcomes["refused"] < 25 < outcomes["loaded with another content"] + outcomes["same"]
    assert flip is DAMAGES["flips"]
