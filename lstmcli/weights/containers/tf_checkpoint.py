"""TensorFlow's checkpoint files: X.index, a table from names to entries, and X.data-*, the values.

The table is LevelDB's (tensorflow/core/lib/io/format.h): blocks of prefix-compressed keys, each with a masked CRC-32C, an index
block that points to them, and a footer. The entries are protocol buffers (core/protobuf/tensor_bundle.proto).
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown
from lstmcli.files.positioned_file import FileBytes, open_readable
from lstmcli.weights.containers.crc32c import crc32c, unmasked
from lstmcli.weights.containers.model_folder import is_beside
from lstmcli.weights.containers.protobuf import Message, varint
from lstmcli.weights.containers.tensor import DTYPES, Tensor, decode

FOOTER = 48
TRAILER = 5  # bytes after a block: its compression and its checksum
BLOCK_LIMIT = 1 << 28
TYPES = {1: "F32", 2: "F64", 7: "text", 14: "BF16", 19: "F16"}  # core/framework/types.proto


def read_tensors(index: FileBytes, prefix: str, files: ExitStack) -> list[Tensor]:
    """All tensors of a checkpoint; their values, from files that stay open with `files`, are read when they are asked for."""
    where = index.name
    table = dict(read_table(index))
    header = Message(table.pop(b"", b""), where)
    count = header.integer(1)
    if not 0 < count <= 99999 or header.integer(2):
        raise DataError(
            f"{where}: expected a little-endian checkpoint of 1 to 99999 data files, got {count}; the older format "
            "of one file (V1) is not read: save it again with tf.train.Saver(write_version=tf.train.SaverDef.V2)"
        )
    shards: dict[int, FileBytes] = {}

    def shard(number: int) -> FileBytes:
        if not 0 <= number < count:
            raise DataError(f"{where}: damaged: a tensor in data file {number} of {count}")
        if number not in shards:
            path = f"{prefix}.data-{number:05d}-of-{count:05d}"
            if not is_beside(Path(path), Path(f"{prefix}.index")):
                raise DataError(
                    f"{shown(path)}: is a link out of the checkpoint's folder, where nothing is read; copy it there"
                )
            fd = open_readable(path)
            files.callback(os.close, fd)
            shards[number] = FileBytes(fd, shown(path))
        return shards[number]

    tensors = []
    for key, value in table.items():
        name, entry = key.decode("utf-8", "backslashreplace"), Message(value, where)
        shape = tuple(size.integer(1) for size in entry.message(2).messages(2))
        if any(not 0 <= size < 1 << 48 for size in shape):
            raise DataError(f"{where}: damaged: {shown(name)} has shape {shape}")
        dtype = TYPES.get(entry.integer(1), f"type {entry.integer(1)}")
        read = partial(text, entry, name, shard) if dtype == "text" else partial(values, entry, name, shape, dtype, shard)
        tensors.append(Tensor(name, shape, dtype, read))
    return tensors


def values(entry: Message, name: str, shape: tuple[int, ...], dtype: str, shard: Callable[[int], FileBytes]) -> Floats:
    where = f"{entry.where}: {shown(name)}"
    if 7 in entry:
        raise DataError(f"{where}: is partitioned into slices, which are not read; save it again without a partitioner")
    if (size := entry.integer(5)) != math.prod(shape) * DTYPES[dtype].itemsize:
        raise DataError(f"{where}: {dtype} of shape {shape} does not take {size} bytes")
    file, data = stored(entry, name, shard)
    check(data, entry, name, file)
    return decode(data, dtype).reshape(shape)


def text(entry: Message, name: str, shard: Callable[[int], FileBytes]) -> NDArray[Any]:
    """The bytes of a lone text: after its length as a varint, and a checksum of the length as 4 bytes."""
    file, data = stored(entry, name, shard)
    length, at = varint(memoryview(data), 0, file.name)
    if at + 4 + length != len(data):
        raise DataError(f"{file.name}: {shown(name)}: damaged: a text of {length} bytes in {len(data)}")
    check(length.to_bytes(4 if length < 1 << 32 else 8, "little") + data[at:], entry, name, file)
    return np.frombuffer(data, np.uint8)[at + 4 :]


def stored(entry: Message, name: str, shard: Callable[[int], FileBytes]) -> tuple[FileBytes, bytes]:
    offset, size = entry.integer(4), entry.integer(5)
    file = shard(entry.integer(3))
    if offset < 0 or size < 0 or offset + size > file.opened.st_size:
        raise DataError(f"{file.name}: ends at byte {file.opened.st_size}, but {shown(name)} at {offset + size}; it was cut")
    return file, file.take(offset, size)


def check(data: bytes, entry: Message, name: str, file: FileBytes) -> None:
    if crc32c(data) != unmasked(entry.fixed32(6)):
        raise DataError(f"{file.name}: {shown(name)}: wrong checksum, it is damaged; copy the checkpoint again")


def read_table(file: FileBytes) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values. DataError: damaged, or compressed."""
    if file.opened.st_size < FOOTER:
        raise DataError(f"{file.name}: damaged: {file.opened.st_size} bytes, and the end of a table alone has {FOOTER}")
    footer = memoryview(file.take(file.opened.st_size - FOOTER, FOOTER))
    _, at = handle(footer, 0, file.name)
    index, _ = handle(footer, at, file.name)
    for _, place in entries(read_block(file, index), file.name):
        yield from entries(read_block(file, handle(place, 0, file.name)[0]), file.name)


def handle(data: memoryview, at: int, where: str) -> tuple[tuple[int, int], int]:
    """((offset, size) of a block, where that ends)."""
    offset, at = varint(data, at, where)
    size, at = varint(data, at, where)
    return (offset, size), at


def read_block(file: FileBytes, place: tuple[int, int]) -> memoryview:
    offset, size = place
    if size > BLOCK_LIMIT or offset + size + TRAILER > file.opened.st_size:
        raise DataError(f"{file.name}: damaged: a block of {size} bytes at byte {offset}, the file has {file.opened.st_size}")
    data = memoryview(file.take(offset, size + TRAILER))
    if crc32c(data[: size + 1]) != unmasked(int.from_bytes(data[size + 1 :], "little")):
        raise DataError(f"{file.name}: wrong checksum of the block at byte {offset}, it is damaged; copy the checkpoint again")
    if data[size]:
        raise DataError(
            f"{file.name}: its table is compressed (type {data[size]}), which TensorFlow's Saver never does; save it again"
        )
    return data[:size]


def entries(block: memoryview, where: str) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a block: each key is a number of bytes of the one before, and the rest of its own."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise DataError(f"{where}: damaged: a block of {len(block)} bytes with {restarts} restarts")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at, where)
        fresh, at = varint(block, at, where)
        size, at = varint(block, at, where)
        if shared > len(key) or fresh + size > end - at:
            raise DataError(f"{where}: damaged: an entry of {fresh} + {size} bytes, where {end - at} are left")
        key = key[:shared] + bytes(block[at : at + fresh])
        yield key, block[at + fresh : at + fresh + size]
        at += fresh + size
