"""Matrices of Kaldi: an .ark, which holds them one after the other by key, or an .scp, which says where each lies.

Binary matrices of floats and doubles are read in place; compressed ones (CM, CM2, CM3) and those written as text are decoded. A
command in an .scp is refused: nothing is run. See src/matrix/kaldi-matrix.cc and compressed-matrix.cc of Kaldi.
"""

import os
import re
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError, shown
from lstmcli.files.file_kind import open_by_kind
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.ragged.placed import DECODED, Found

KEY_LIMIT = 4096  # bytes
PIECE = 8 << 10  # bytes of a text read at first, and then as many again as there are
PLAIN: dict[bytes, np.dtype[Any]] = {
    b"FM": np.dtype("<f4"),
    b"DM": np.dtype("<f8"),
    b"FV": np.dtype("<f4"),
    b"DV": np.dtype("<f8"),
}
COMPRESSED = {b"CM": 1, b"CM2": 2, b"CM3": 1}  # bytes of a value
TEXT_LIMIT = 256 << 20  # bytes of a matrix in a text
BINARY = re.compile(rb"[^\s\0]+ \0B(?:[FD][MV]|CM[23]?) ", re.DOTALL)
TEXT = re.compile(rb"[^\s\0]+\s+\[")
PLACE = re.compile(rb"(\S+)\s+(.+?)\s*")


def is_ark(begin: bytes) -> bool:
    """Says whether a file begins as an .ark does."""
    return bool(BINARY.match(begin) or TEXT.match(begin))


def is_scp(begin: bytes) -> bool:
    """Says whether a file begins as an .scp does: with a key and a file with a place in it, or a command."""
    line = begin.split(b"\n")[0]
    return bool(re.fullmatch(rb"[^\s\0]+[ \t]+[^\0]*(:\d+(\[.*\])?|\|)\s*", line))


def in_ark(file: FileBytes, path: str) -> list[Found]:
    """Returns the matrices of an .ark. Raises DataError."""
    found, at, size = [], 0, file.opened.st_size
    while at < size:
        head = file.take(at, min(KEY_LIMIT, size - at))
        match = re.match(rb"\s*([^\s\0]+) ?", head)
        if not match:
            if not head.strip():
                break
            raise DataError(f"{file.name}, byte {at}: expected the key of a matrix, got {shown(repr(head[:20]))}")
        key = match[1].decode("utf-8", "surrogateescape")
        one, at = matrix_at(file, path, key, at + match.end())
        found.append(one)
    return found


def matrix_at(file: FileBytes, path: str, key: str, at: int) -> tuple[Found, int]:
    """Returns the matrix that begins at a byte, and the byte behind it. Raises DataError."""
    where, size = f"{file.name}::{shown(key)}", file.opened.st_size
    if not 0 <= at < size:
        raise DataError(f"{where}: expected a matrix at byte {at}, the file ends at {size}")
    head = file.take(at, min(64, size - at))
    if not head.startswith(b"\0B"):
        return text_at(file, path, key, where, at)
    kind, _, rest = head[2:].partition(b" ")
    begin = at + 2 + len(kind) + 1
    try:
        if kind in PLAIN:
            dtype = PLAIN[kind]
            if kind.endswith(b"M"):
                rows, columns = numbered(rest, 2)
                shape: tuple[int, ...] = (rows, columns)
                begin += 10
            else:
                shape = numbered(rest, 1)
                begin += 5
            end = begin + dtype.itemsize * int(np.prod(shape, dtype=object))
            if end > size:
                raise DataError(f"{where}: {shape} of {dtype} ends at byte {end}, the file at {size}")
            return Found(where, key, shape, dtype, begin), end
        if kind in COMPRESSED:
            low, scale, rows, columns = struct.unpack_from("<ffii", rest)
            begin += 16
            end = begin + rows * columns * COMPRESSED[kind] + (8 * columns if kind == b"CM" else 0)
            if min(rows, columns) < 0 or end > size:
                raise DataError(f"{where}: {(rows, columns)} of {kind.decode()} ends at byte {end}, the file at {size}")
            read = partial(decompressed, path, kind, low, scale, (rows, columns), begin, end)
            return Found(where, key, (rows, columns), np.dtype(np.float32), DECODED, read), end
    except (struct.error, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}, byte {at}: damaged matrix of Kaldi") from error
    raise DataError(f"{where}: expected a matrix or vector of floats (FM, DM, FV, DV, CM), got {shown(repr(kind[:8]))}")


def numbered(head: bytes, count: int) -> tuple[int, ...]:
    """Reads sizes, each an int32 behind its own size. Raises ValueError."""
    parts = struct.unpack_from("<" + "bi" * count, head)
    if set(parts[::2]) != {4} or min(parts[1::2]) < 0:
        raise ValueError("no sizes")
    return parts[1::2]


def decompressed(
    path: str, kind: bytes, low: float, scale: float, shape: tuple[int, int], begin: int, end: int
) -> NDArray[Any]:
    """Returns a compressed matrix, in the float32 operations of Kaldi."""
    rows, columns = shape
    with open_by_kind(path) as (file, _):
        content = file.take(begin, end - begin)
    low32, scale32 = np.float32(low), np.float32(scale)
    if kind != b"CM":
        values = np.frombuffer(content, "<u2" if kind == b"CM2" else "u1").reshape(shape).astype(np.float32)
        return low32 + values * (scale32 * np.float32(1 / (65535 if kind == b"CM2" else 255)))
    points = np.frombuffer(content, "<u2", 4 * columns).reshape(columns, 4).astype(np.float32)
    p0, p25, p75, p100 = (low32 + scale32 * np.float32(1 / 65535) * points).T[:, :, None]
    codes = np.frombuffer(content, "u1", offset=8 * columns).reshape(columns, rows).astype(np.float32)
    lower = p0 + (p25 - p0) * codes * np.float32(1 / 64)
    middle = p25 + (p75 - p25) * (codes - 64) * np.float32(1 / 128)
    upper = p75 + (p100 - p75) * (codes - 192) * np.float32(1 / 63)
    values = np.where(codes <= 64, lower, np.where(codes <= 192, middle, upper)).T
    return np.asarray(values, np.float32)


def text_at(file: FileBytes, path: str, key: str, where: str, at: int) -> tuple[Found, int]:
    """Returns a matrix that is written as text: [ and a line for each row, and ]."""
    size = file.opened.st_size
    content, end = b"", at
    while b"]" not in content:
        if end >= size or len(content) > TEXT_LIMIT:
            raise DataError(f"{where}: expected a matrix [ ... ] in a text, which has no end")
        content += file.take(end, min(max(PIECE, len(content)), size - end))  # there may be many short ones, or a long one
        end = at + len(content)
    content = content[: content.index(b"]") + 1]
    values = text_matrix(content, where)
    stop = at + len(content)
    return Found(where, key, values.shape, values.dtype, DECODED, lambda: again(path, at, stop, where)), stop


def again(path: str, at: int, stop: int, where: str) -> NDArray[Any]:
    with open_by_kind(path) as (file, _):
        return text_matrix(file.take(at, stop - at), where)


def text_matrix(content: bytes, where: str) -> NDArray[Any]:
    body = content.strip().removeprefix(b"[").removesuffix(b"]")
    lines = [line.split() for line in body.splitlines() if line.strip()]
    try:
        values = np.array([[float(number) for number in line] for line in lines], np.float32)
    except ValueError as error:
        raise DataError(f"{where}: expected rows of as many numbers each in a text: {shown(str(error))[:100]}") from error
    return values.reshape(len(lines), -1 if lines else 0)


def places_in_scp(content: bytes, where: str, folder: Path) -> list[tuple[str, str, int]]:
    """Returns key, file and byte of each line of an .scp. Raises DataError for commands and for parts of matrices."""
    places = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        match = PLACE.fullmatch(line)
        if not match:
            raise DataError(f"{where}, line {number}: expected KEY FILE:BYTE, got {shown(os.fsdecode(line[:60]))}")
        key, place = match[1].decode("utf-8", "surrogateescape"), os.fsdecode(match[2])
        if place.endswith("|") or place.startswith("|"):
            raise DataError(
                f"{where}, line {number}: {shown(key)} is a command, and nothing is run; write it into an .ark first"
            )
        if place.endswith("]"):
            raise DataError(f"{where}, line {number}: {shown(key)} is a part of a matrix; write it into an .ark first")
        path, _, at = place.rpartition(":")
        if not path or not at.isdecimal() or len(at) > 18:
            path, at = place, "0"
        if not Path(path).is_absolute() and not Path(path).exists():
            path = str(folder / path)
        places.append((key, path, int(at)))
    return places
