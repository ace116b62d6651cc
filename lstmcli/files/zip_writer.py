"""An NPZ file filled by position: a ZIP archive of stored NPY members, laid out before their values are known.

The zipfile module writes a member from its start to its end; here every block of a run adds some rows to each of them.
Layout: APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14-16 (its ends), 4.5.3 (ZIP64).
"""

import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstmcli.files.npy import write_header
from lstmcli.files.partial_file import Partial

MAX32, MAX16 = 0xFFFFFFFF, 0xFFFF
UTF8 = 1 << 11  # APPNOTE.TXT 4.4.4
VERSION = 45  # the first with ZIP64, which is used throughout
DATE = 0x21  # 1980-01-01: the same run gives the same bytes


class Member(NamedTuple):
    """An array of an NPZ and where it lies."""

    name: bytes
    header: int  # where its ZIP header starts
    start: int  # where the NPY file starts
    size: int  # of that


class Npz(Partial):
    """An NPZ whose values go to offsets[name] of each array. Headers, checksums and directory are written when it is sealed."""

    def __init__(
        self, path: Path, arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]], overwrite: bool, resume: bool = False
    ) -> None:
        super().__init__(path, overwrite, resume)
        self.members: list[Member] = []
        self.offsets: dict[str, int] = {}
        self.end = 0
        self.headers: dict[str, bytes] = {}
        for name, (shape, dtype) in arrays.items():
            header = self.headers[name] = write_header(shape, dtype)
            size = len(header) + math.prod(shape) * dtype.itemsize
            member = f"{name}.npy".encode()
            start = self.end + len(local_header(member, size, 0))
            self.members.append(Member(member, self.end, start, size))
            self.offsets[name] = start + len(header)
            self.end = start + size
        self.size = self.end + len(directory([(member, 0) for member in self.members], self.end))

    def seal(self) -> None:
        for name, header in self.headers.items():
            self.write(header, self.offsets[name] - len(header))
        members = [(member, crc32(self.take, member.start, member.size)) for member in self.members]
        for member, checksum in members:
            self.write(local_header(member.name, member.size, checksum), member.header)
        self.write(directory(members, self.end), self.end)
        super().seal()


def crc32(take: Callable[[int, int], bytes], start: int, size: int) -> int:
    """Returns the CRC-32 of some bytes of a file; take(offset, count) gives them."""
    checksum = 0
    for offset in range(start, start + size, 1 << 22):
        checksum = zlib.crc32(take(offset, min(1 << 22, start + size - offset)), checksum)
    return checksum


def directory(members: list[tuple[Member, int]], end: int) -> bytes:
    """Returns what stands behind the members, of which the last one ends at `end`, with their checksums."""
    entries = b"".join(
        struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 3 << 8 | VERSION, VERSION, flags(name), 0, 0, DATE, checksum, MAX32, MAX32,
            len(name), 28, 0, 0, 0, 0o600 << 16, MAX32,
        ) + name + struct.pack("<2H3Q", 1, 24, size, size, header)
        for (name, header, _, size), checksum in members
    )  # fmt: skip
    count = len(members)
    return (
        entries
        + struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 3 << 8 | VERSION, VERSION, 0, 0, count, count, len(entries), end)
        + struct.pack("<4sLQL", b"PK\6\7", 0, end + len(entries), 1)
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, min(count, MAX16), min(count, MAX16), MAX32, MAX32, 0)
    )


def local_header(member: bytes, size: int, checksum: int) -> bytes:
    fixed = struct.pack("<4s5H3L2H", b"PK\3\4", VERSION, flags(member), 0, 0, DATE, checksum, MAX32, MAX32, len(member), 20)
    return fixed + member + struct.pack("<2H2Q", 1, 16, size, size)


def flags(member: bytes) -> int:
    """Returns the general purpose flags: whether the name is UTF-8, and not in the first alphabet that a ZIP could have."""
    return 0 if member.isascii() else UTF8
