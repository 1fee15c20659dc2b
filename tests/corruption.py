"""Damaged files: none may be read, and each must be refused by name and fault.

    python tests/corruption.py --flips 10000 --truncations 200 --blocks 1000 --additions 200

Every trial takes a good file, damages it in one place and reads it. A file of leyden must be refused. One of Lightning
has CRCs but no digest over what lies between its records; it must be refused, or else have the content that it had.
"""

from __future__ import annotations

import argparse
import io
import pickle
import random
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from leyden.checkpoint import read_checkpoint, write_checkpoint
from leyden.errors import CheckpointError
from sameness import differences

Damage = Callable[[random.Random, bytes], bytes]


def content() -> dict[str, Any]:
    """A small checkpoint with something of everything."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 16)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": {"lr": 0.1, "folder": Path("runs"), "sizes": (3, 4)},
        "empty": torch.zeros(0),
    }


def flip(source: random.Random, good: bytes) -> bytes:
    place = source.randrange(len(good) * 8)
    bad = bytearray(good)
    bad[place // 8] ^= 1 << place % 8
    return bytes(bad)


def truncate(source: random.Random, good: bytes) -> bytes:
    return good[: source.randrange(len(good))]


def zero(source: random.Random, good: bytes) -> bytes:
    """Zero a block that was not zero."""
    while True:
        size = 2 ** source.randrange(13)
        start = source.randrange(len(good))
        bad = good[:start] + bytes(min(size, len(good) - start)) + good[start + size :]
        if bad != good:
            return bad


def add(source: random.Random, good: bytes) -> bytes:
    return good + source.randbytes(source.randrange(1, 200))


DAMAGES: dict[str, Damage] = {"flips": flip, "truncations": truncate, "blocks": zero, "additions": add}


def foreign() -> Iterator[tuple[str, bytes]]:
    """Files of other kinds."""
    yield "empty", b""
    yield "text", b"epoch: 3\n" * 100
    yield "zeros", bytes(10_000)
    yield "picture", b"\x89PNG\r\n\x1a\n" + bytes(1000)
    yield "photograph", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(1000)
    header = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    yield "safetensors", len(header).to_bytes(8, "little") + header + bytes(4)
    yield "pickle", pickle.dumps({"state_dict": {}})
    yield "only the start of a zip file", b"PK\x03\x04"
    yield "only the end of a zip file", b"PK\x05\x06" + bytes(18)
    for name, members in (("zip file", {"notes.txt": b"hello"}), ("zip file of nothing", {})):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        yield name, buffer.getvalue()
    for name, value, options in (
        ("torch's old format", {"state_dict": {}}, {"_use_new_zipfile_serialization": False}),
        ("weights alone", {"weight": torch.ones(2)}, {}),
        ("numbers", [1, 2], {}),
    ):
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)  # type: ignore[arg-type]
        yield name, buffer.getvalue()


def outcome(path: Path, expected: Any) -> str:
    """What reading a file comes to: "refused", "same", or what is wrong about it."""
    try:
        read = read_checkpoint(path)
    except CheckpointError as error:
        return "refused" if str(path) in str(error) else f"refused without its name: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "same" if not differences(expected, read) else "loaded with another content"


def trials(kind: str, good: bytes, count: int, path: Path, *, seed: int = 0) -> Counter[str]:
    """Outcomes of reading a file that is damaged in ``count`` ways."""
    source, outcomes = random.Random(seed), Counter[str]()
    path.write_bytes(good)
    expected = read_checkpoint(path)
    for _ in range(count):
        path.write_bytes(DAMAGES[kind](source, good))
        outcomes[outcome(path, expected)] += 1
    return outcomes


def files(folder: Path) -> dict[str, bytes]:
    """A file of leyden, and one as Lightning writes it."""
    write_checkpoint(content(), folder / "a.ckpt")
    torch.save({**content(), "hyper_parameters": {"lr": 0.1}}, folder / "b.ckpt")
    return {"leyden": (folder / "a.ckpt").read_bytes(), "lightning": (folder / "b.ckpt").read_bytes()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, count in (("flips", 10_000), ("truncations", 200), ("blocks", 1000), ("additions", 200)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for writer, good in files(folder).items():
            for kind in DAMAGES:
                counts = trials(kind, good, getattr(arguments, kind), folder / "bad.ckpt", seed=arguments.seed)
                allowed = {"refused"} if writer == "leyden" else {"refused", "same"}
                wrong += sum(count for what, count in counts.items() if what not in allowed)
                print(f"{writer:10s} {kind:12s} {dict(counts)}", flush=True)
        outcomes = {}
        for kind, data in foreign():
            (folder / "bad.ckpt").write_bytes(data)
            outcomes[kind] = outcome(folder / "bad.ckpt", None)
        wrong += sum(what != "refused" for what in outcomes.values())
        print(f"foreign    {len(outcomes)} kinds  {dict(Counter(outcomes.values()))}")
    print("0 wrong" if not wrong else f"{wrong} WRONG")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
