"""Whether a file is, to the last bit, what was written.

torch writes a zip file, with a CRC-32 of every record, and never looks at these. They are checked here. What they do
not cover, which is headers, padding and the directory with the CRCs themselves, :func:`seal` covers with a digest in
the comment that a zip file may end with; torch and Lightning pass over it::

    header, padding  |record|  header, padding  |record|  ...  directory, end  |comment: version, digest|
    ---- digest ---- | CRC  |  ---- digest ---- | CRC  |  ----------- digest ---------- |

A file without a comment, such as Lightning's, is checked as far as its CRCs go.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from leyden.checkpoint.places import is_remote

_START: Final = b"PK\x03\x04"
#: Followed by the digest in hex. In all 73 bytes: no single flipped bit makes the length in the end record 0.
_VERSION: Final = b"leyden:1:"
_COMMENT_SIZE: Final = len(_VERSION) + 64
_END_SIZE: Final = 22
_CHUNK: Final = 1 << 20


class DamagedError(OSError):
    """A file that is not as it was written; the text says what is wrong."""


class _Record(NamedTuple):
    name: str
    start: int
    end: int
    crc: int


def seal(path: str) -> None:
    """Add the digest to a file of ``torch.save``.

    Raises:
        OSError: that failed, or the file has not become as long as it should.
    """
    with open(path, "r+b") as file:
        size = file.seek(-2, os.SEEK_END) + 2
        file.write(struct.pack("<H", _COMMENT_SIZE) + _VERSION)
        file.write(_digest(file, _records(file), size + len(_VERSION)))
        file.flush()
        if os.fstat(file.fileno()).st_size != size + _COMMENT_SIZE:
            raise DamagedError(f"the file has {os.fstat(file.fileno()).st_size} bytes, not {size + _COMMENT_SIZE}")


def verify(file: Any, *, thorough: bool = True) -> None:
    """Check an open file; its position changes.

    Args:
        file: can be read and sought.
        thorough: whether the contents of records are read as well; else only what lies between them.

    Raises:
        DamagedError: what is wrong with it.
    """
    file.seek(0)
    if file.read(4) != _START:
        raise DamagedError("it is not a file of torch.save")
    size = file.seek(0, os.SEEK_END)
    comment = _comment(file, size)
    records = _records(file)
    if comment and comment != _VERSION + _digest(file, records, size - 64):
        raise DamagedError("what lies between its records is damaged: the digest differs")
    for record in records if thorough else ():
        if _crc(file, record) != record.crc:
            raise DamagedError(f"its record {record.name!r} is damaged: the CRC-32 differs")


def fault_of(path: str, *, thorough: bool = True) -> str | None:
    """What is wrong with a file, or None; at an address that is found out when it is read."""
    if is_remote(path):
        return None
    try:
        with open(path, "rb") as file:
            verify(file, thorough=thorough)
    except OSError as error:
        return str(error)
    return None


def _comment(file: Any, size: int) -> bytes:
    """The comment that the file ends with, if it ends with one of ours or with none."""
    for length, start in ((_COMMENT_SIZE, _VERSION), (0, b"")):
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
            is_stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
            if header[:4] != _START or name != entry.orig_filename or not is_stored or entry.header_offset < place:
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


def _crc(file: Any, record: _Record) -> int:
    crc = 0
    for chunk in _chunks(file, record.start, record.end):
        crc = zlib.crc32(chunk, crc)
    return crc


def _chunks(file: Any, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (chunk := file.read(min(_CHUNK, end - start))):
        yield chunk
        start += len(chunk)
