"""Whether a file is, to the last bit, what was written.

torch writes a zip file, with a CRC-32 of every record, and never looks at these. They are checked here. What they do
not cover, which is headers, padding and the directory with the CRCs themselves, :func:`seal` covers with a digest in
the comment that a zip file may end with; torch and Lightning pass over it. The time of writing is there as well, since
that of the file system does not survive a plain copy::

    header, padding  |record|  header, padding  |record|  ...  directory, end  |comment: version, time, digest|
    ---- digest ---- | CRC  |  ---- digest ---- | CRC  |  -------------- digest ------------- |

A file without a comment, such as Lightning's, is checked as far as its CRCs go.
"""

from __future__ import annotations

import hashlib
import os
import queue
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, BinaryIO, Final, NamedTuple

#: CRC-32 of parts of a file, by their start and end.
Crcs = Mapping[tuple[int, int], int]

_START: Final = b"PK\x03\x04"
#: What torch's files began with before they were zip files: a pickled number.
_OLD_START: Final = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
#: Followed by the time in ns, 16 digits of hex, and the digest, 64. No single flipped bit makes a length another one.
_VERSION: Final = b"leyden:2:"
_COMMENT_SIZE: Final = len(_VERSION) + 16 + 64
#: The first version has no time.
_COMMENTS: Final = ((_COMMENT_SIZE, _VERSION), (_COMMENT_SIZE - 16, b"leyden:1:"), (0, b""))
_END_SIZE: Final = 22
#: Smaller ones are not worth telling a thread of.
_PIECE: Final = 1 << 14
#: Small enough to stay in the processor's cache; 1 MiB takes half as long again.
_CHUNK: Final = 1 << 18
_FOLDER: Final = 0x10


class DamagedError(OSError):
    """A file that is not as it was written; the text says what is wrong, ``remedy`` what to do."""

    def __init__(
        self, text: str, remedy: str = "Take an older file; ckpt_path='last' takes the newest whole one"
    ) -> None:
        super().__init__(text)
        self.remedy = remedy


class _Record(NamedTuple):
    name: str
    start: int
    end: int
    crc: int


class ReadBack:
    """A file to write. A thread reads back what is written, while what follows is written.

    Args:
        file: an open one.

    Attributes:
        crcs: what was read back: the CRC-32 by start and end. Small pieces are left out.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.crcs: dict[tuple[int, int], int] = {}
        self.name = file.name
        self._file, self._place = file, 0
        self._again = open(file.name, "rb", buffering=0)  # noqa: SIM115  closed in __exit__
        self._pieces: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> ReadBack:
        with suppress(RuntimeError):  # the interpreter ends, and takes no more threads: nothing is read back here
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pieces.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        self._again.close()

    def write(self, data: Any) -> int:
        """Write, as for torch.save."""
        start, self._place = self._place, self._place + len(data)
        written = self._file.write(data)
        if written >= _PIECE:
            self._file.flush()
            self._pieces.put((start, self._place))
        return written

    def flush(self) -> None:
        """Hand all over to the system."""
        self._file.flush()

    def _follow(self) -> None:
        with suppress(OSError):  # it comes again when the file is verified
            while (piece := self._pieces.get()) is not None:
                self.crcs[piece] = _crc(self._again, *piece)
                if hasattr(os, "posix_fadvise"):  # which lets the system begin to bring it to the disk
                    os.posix_fadvise(self._again.fileno(), piece[0], piece[1] - piece[0], os.POSIX_FADV_DONTNEED)


def seal(path: str) -> None:
    """Add the time and the digest to a file of ``torch.save``."""
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", _COMMENT_SIZE) + _VERSION + b"%016x" % time.time_ns())
        end = file.tell()
        file.write(_digest(file, _records(file), end))


def sealed_at(path: str) -> int | None:
    """When a file of this machine was sealed, in ns; None if it does not say so."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(-_COMMENT_SIZE, os.SEEK_END)
        comment = file.read()
        if comment.startswith(_VERSION):
            with suppress(ValueError):  # it is damaged
                return int(comment[len(_VERSION) : -64], 16)
    return None


def verify(file: Any, *, thorough: bool = True, known: Crcs = MappingProxyType({})) -> None:
    """Check an open file; its position changes.

    Args:
        file: can be read and sought.
        thorough: whether the contents of tensors are read as well.
        known: those that were read already.

    Raises:
        DamagedError: what is wrong with it.
    """
    size = file.seek(0, os.SEEK_END)
    _check_start(file, size)
    comment = _comment(file, size)
    records = _records(file)
    if comment and comment[-64:] != _digest(file, records, size - 64):
        raise DamagedError("what lies between its records is damaged: the digest differs")
    for record in records:
        place = record.start, record.end
        crc = known.get(place) if thorough or "/data/" not in record.name else record.crc
        if (_crc(file, *place) if crc is None else crc) != record.crc:
            raise DamagedError(f"its record {record.name!r} is damaged: the CRC-32 differs")


def _check_start(file: Any, size: int) -> None:
    file.seek(0)
    start = file.read(len(_OLD_START))
    if not size:
        raise DamagedError("it is empty")
    if start == _OLD_START:
        raise DamagedError(
            "it has the format of torch before 1.6, which has no checksums",
            "Convert it: torch.save(torch.load(path, weights_only=True), path)",
        )
    if not start.startswith(_START):
        raise DamagedError("it is not a file of torch.save")


def _comment(file: Any, size: int) -> bytes:
    """The comment that the file ends with, if it ends with one of ours or with none."""
    for length, start in _COMMENTS:
        place = size - length - _END_SIZE
        if place > 0:
            file.seek(place)
            end, comment = file.read(_END_SIZE), file.read(length)
            if end[:4] == b"PK\x05\x06" and end[-2:] == struct.pack("<H", length) and comment.startswith(start):
                return bytes(comment)
    raise DamagedError("its end is not that of a whole file: it is cut off, or something was added")


def _records(file: Any) -> list[_Record]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        records, place = [], 0
        for entry in entries:
            file.seek(entry.header_offset)
            header = file.read(30)
            name_size, extra_size = struct.unpack("<HH", header[26:])
            name = file.read(name_size).decode("utf-8" if entry.flag_bits & 0x800 else "cp437")
            start = entry.header_offset + 30 + name_size + extra_size
            if not (
                header[:4] == _START
                and name == entry.orig_filename
                and entry.header_offset >= place
                and entry.compress_type == zipfile.ZIP_STORED
                and entry.compress_size == entry.file_size
                and not entry.external_attr & _FOLDER  # which torch takes for empty
            ):
                raise ValueError(f"record {entry.filename!r}")
            place = start + entry.file_size
            records.append(_Record(entry.filename, start, place, entry.CRC))
        return records
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, OverflowError) as cause:
        raise DamagedError(f"its directory is damaged ({cause})") from None


def _digest(file: Any, records: list[_Record], end: int) -> bytes:
    """SHA-256, in hex, of what lies between the records, up to ``end``."""
    digest, place = hashlib.sha256(), 0
    for start, after in (*((record.start, record.end) for record in records), (end, end)):
        for chunk in _chunks(file, place, start):
            digest.update(chunk)
        place = after
    file.seek(end)
    return digest.hexdigest().encode()


def _crc(file: Any, start: int, end: int) -> int:
    crc = 0
    for chunk in _chunks(file, start, end):
        crc = zlib.crc32(chunk, crc)
    return crc


def _chunks(file: Any, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (chunk := file.read(min(_CHUNK, end - start))):
        yield chunk
        start += len(chunk)
