"""safetensors: u64 length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes without gaps."""

import json
import math
import re
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown
from lstmcli.files.partial_file import write_whole
from lstmcli.files.positioned_file import FileBytes
from lstmcli.weights.containers.tensor import DTYPES, Tensor, decode

SPACE = re.compile(r"[ \t\n\r]*")
HEADER_LIMIT = 100_000_000  # bytes; that of the safetensors library
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor where it lies."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int  # of its values in the file


def read_tensors(file: FileBytes) -> list[Tensor]:
    """All tensors; their values are read when they are asked for. DataError for a header that does not fit the file."""
    return [
        Tensor(entry.name, entry.shape, entry.dtype, partial(values, file, entry.dtype, entry.shape, entry.offset))
        for entry in read_entries(file)
    ]


def read_entries(file: FileBytes) -> list[Entry]:
    """All tensors, where they lie. DataError for a header that does not fit the file."""
    size = file.opened.st_size
    length = int.from_bytes(file.take(0, 8), "little")
    if length > min(HEADER_LIMIT, size - 8):
        raise DataError(f"{file.name}: damaged: a header of {length} bytes in a file of {size}")
    begin = 8 + length
    entries: list[Entry] = []
    names, places = set(), array("q")  # places: begin and end of each tensor
    for name, entry in parse(file.take(8, length), file.name):
        if name in names:
            raise DataError(f"{file.name}: damaged safetensors header: a name stands twice")
        names.add(name)
        if name == "__metadata__":
            continue
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
                len(entry) == 3 and dtype in BITS and all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, start, end))
            ):
                pass
            case _:
                raise DataError(f"{file.name}: damaged: tensor {shown(name)} is described as {shown(str(entry))[:100]}")
        if end - start != math.prod(shape) * BITS[dtype] // 8:
            raise DataError(f"{file.name}: tensor {shown(name)}: {dtype} {tuple(shape)} does not take {end - start} bytes")
        places.extend((start, end))
        entries.append(Entry(name, tuple(shape), sys.intern(dtype), begin + start))
    # The library demands the same: no byte without a tensor, no byte with two.
    at = 0
    spans = np.array(places, np.int64).reshape(-1, 2)
    for start, end in spans[np.lexsort((spans[:, 1], spans[:, 0]))]:
        if start != at:
            raise DataError(f"{file.name}: damaged: tensors overlap or leave a gap at byte {begin + at}")
        at = int(end)
    if begin + at != size:
        raise DataError(f"{file.name}: expected {begin + at} bytes for its tensors, got {size}")
    return entries


def parse(header: bytes, where: str) -> Iterator[tuple[str, Any]]:
    """Yields the names of a header and what they are, one after the other: all at once takes 20 times the header's bytes."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice")
        return found

    try:
        text, read = header.decode(), json.JSONDecoder(object_pairs_hook=unique).raw_decode
        mark, at = next_mark(text, 0, "{")
        first = after_space(text, at)
        if text[first : first + 1] == "}":
            mark, at = next_mark(text, at, "}")
        while mark != "}":
            name, at = read(text, after_space(text, at))
            if not isinstance(name, str):
                raise ValueError(f"expected a name before character {at}")
            _, at = next_mark(text, at, ":")
            entry, at = read(text, after_space(text, at))
            yield name, entry
            mark, at = next_mark(text, at, ",}")
        if after_space(text, at) != len(text):
            raise ValueError(f"expected the end at character {at}")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: damaged safetensors header: {shown(str(error))[:200]}") from error


def next_mark(text: str, at: int, expected: str) -> tuple[str, int]:
    """Returns the next character but space, which must be one of those expected, and where it ends. Raises ValueError."""
    at = after_space(text, at)
    mark = text[at : at + 1]
    if not mark or mark not in expected:
        raise ValueError(f"expected {' or '.join(expected)} at character {at}")
    return mark, at + 1


def after_space(text: str, at: int) -> int:
    return at + len(SPACE.match(text, at)[0])  # type: ignore[index]


def values(file: FileBytes, dtype: str, shape: tuple[int, ...], offset: int) -> Floats:
    data = np.empty(math.prod(shape) * DTYPES[dtype].itemsize, np.uint8)
    file.fetch(data.data, offset)
    return decode(data, dtype).reshape(shape)


def save(tensors: Mapping[str, Floats], path: Path, overwrite: bool) -> None:
    """Writes a file, whole or not at all. Raises OutputError or StorageError."""
    names = {np.dtype("f2"): "F16", np.dtype("f4"): "F32", np.dtype("f8"): "F64"}
    entries, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": names[tensor.dtype], "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the values are aligned
    contents = [np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")) for tensor in tensors.values()]
    write_whole(path, [struct.pack("<Q", len(text)) + text, *contents], overwrite)
