"""Texts in datasets and attributes. libhdf5 does not follow what they point to: in a damaged file it crashes, or never ends.

A text of variable length is stored as its length, the address of a global heap, and the number of an object in that heap. See
"Global Heap" in the HDF5 file format specification. libhdf5 reads these references; the heaps are read here.
"""

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.hdf5_safety import HEAP_HEADER, HEAP_MAGIC, objects_of
from lstmcli.files.positioned_file import FileBytes

REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("number", "<u4")])
VARIABLE_LENGTH, TEXT = 9, 1  # the class of a datatype, and what its values are
LARGEST = 64 << 20  # bytes of a heap; libhdf5 makes one larger than 4 KiB only for a text that is


def read_texts(item: Any) -> list[str]:
    """Returns the texts of a dataset, those that are no UTF-8 escaped. Raises DataError for others, and where damaged."""
    import h5py

    where = hdf5.label(item)
    with hdf5.reading(where):
        kind = h5py.check_string_dtype(item.dtype)
        if kind is None:
            raise DataError(f"{where}: expected texts, got {item.dtype}")
        if item.size == 0:
            return []
        sizes = item.file.id.get_create_plist().get_sizes()
        is_plain = sizes == (8, 8) and (item.chunks or hdf5.raw_offset(item) is not None)
        if kind.length is None and is_plain:
            data = FileBytes(item.file.id.get_vfd_handle(), where)
            return from_heaps(data, references(item, data), item.file.userblock_size)
        if kind.length is None:  # in other files, or in a form that is seldom written: all heaps are looked at beforehand
            for path in [item.file.filename, *map(str, hdf5_safety.other_files(item))]:
                with hdf5.open_file(path) as file:
                    data = FileBytes(file.id.get_vfd_handle(), shown(path))
                    hdf5_safety.check_heaps(data.take, data.opened.st_size, data.name)
        return [str(value) for value in item.asstr("utf-8", "backslashreplace")[...].ravel()]


def references(item: Any, data: FileBytes) -> NDArray[Any]:
    """Returns the references (N,) that a dataset of texts consists of. Raises DataError where they are not in the file."""
    if item.chunks:
        return decoded_chunks(item)
    offset = hdf5.raw_offset(item)
    assert offset is not None
    count = item.size * REFERENCE.itemsize
    if offset + count > data.opened.st_size:
        raise DataError(f"{data.name}: ends at byte {offset + count}, past the end of the file; it was cut")
    return np.frombuffer(data.take(offset, count), REFERENCE)


def decoded_chunks(item: Any) -> NDArray[Any]:
    """Returns the references in a dataset of chunks: decoded by libhdf5 as those of a dataset of plain bytes, in memory."""
    import h5py

    size = math.prod(item.chunks) * REFERENCE.itemsize
    if size > max(hdf5.LARGE_CHUNK, 2 * item.size * REFERENCE.itemsize):
        raise DataError(f"{hdf5.label(item)}: has chunks {item.chunks}, far more than its {item.shape} texts")
    made, plain = item.id.get_create_plist(), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plain.set_chunk(item.chunks)
    for number in range(made.get_nfilters()):
        plain.set_filter(*made.get_filter(number)[:3])
    with h5py.File("texts", "w", driver="core", backing_store=False) as memory:
        opaque = h5py.h5t.py_create(np.dtype(f"V{REFERENCE.itemsize}"))
        copied = h5py.h5d.create(memory.id, b"texts", opaque, h5py.h5s.create_simple(item.shape), plain)
        for number in range(item.id.get_num_chunks()):
            chunk = item.id.get_chunk_info(number)
            if chunk.size > max(hdf5.LARGE_CHUNK, item.file.id.get_filesize()):
                raise DataError(f"{hdf5.label(item)}: a chunk of {chunk.size} bytes is larger than the file")
            mask, content = item.id.read_direct_chunk(chunk.chunk_offset)
            copied.write_direct_chunk(chunk.chunk_offset, content, mask)
        del copied  # which still has in mind that the last chunk went through all filters
        return np.asarray(memory["texts"][...]).view(REFERENCE).ravel()


def reference_in(attribute: bytes) -> bytes:
    """Returns the reference to the text that an attribute message holds; nothing where it holds something else.

    See "The Attribute Message" in the file format specification.
    """
    if len(attribute) < 9 or attribute[0] not in (1, 2, 3) or (attribute[0] > 1 and attribute[1]):  # 1: shared elsewhere
        return b""
    sizes = struct.unpack_from("<3H", attribute, 2)  # of name, datatype and dataspace
    name, datatype, space = (-(-size // 8) * 8 for size in sizes) if attribute[0] == 1 else sizes
    begin = (9 if attribute[0] == 3 else 8) + name
    kind, value = attribute[begin : begin + datatype], attribute[begin + datatype + space :]
    is_text = len(kind) >= 8 and kind[0] & 15 == VARIABLE_LENGTH and kind[1] & 15 == TEXT
    is_single = REFERENCE.itemsize <= len(value) < REFERENCE.itemsize + 8  # messages fill multiples of 8 bytes
    return value[: REFERENCE.itemsize] if is_text and is_single else b""


def from_heaps(data: FileBytes, found: NDArray[Any], base: int) -> list[str]:
    """Returns the texts that references (N,) lead to. base: the byte from which addresses count. Raises DataError."""
    lengths = found["length"].astype(np.int64)
    if lengths.sum() > data.opened.st_size:  # every text has a place of its own
        raise DataError(f"{data.name}: damaged: its texts are longer than the file")
    texts = [""] * len(found)
    order = np.argsort(found["heap"], kind="stable")  # so that every heap is read once
    order = order[lengths[order] > 0]
    heap, begin, objects = b"", -1, {}
    for row, address, number, length in zip(
        order.tolist(), found["heap"][order].tolist(), found["number"][order].tolist(), lengths[order].tolist(), strict=True
    ):
        if address != begin:
            begin, heap = address, read_heap(data, address + base)
            objects = objects_of(heap, f"{data.name}: damaged: the heap of texts at byte {address + base}")
        place, size = objects.get(number, (0, 0))
        if length > size:
            raise DataError(
                f"{data.name}, text {row}: damaged: its {length} bytes are not in the heap at byte {address + base}"
            )
        texts[row] = heap[place : place + length].partition(b"\0")[0].decode("utf-8", "backslashreplace")
    return texts


def read_heap(data: FileBytes, begin: int) -> bytes:
    """Returns the bytes of the global heap that begins here. Raises DataError where there is none."""
    left = data.opened.st_size - begin
    header = data.take(begin, HEAP_HEADER) if left >= HEAP_HEADER else b""
    size = int.from_bytes(header[8:], "little")
    if not header.startswith(HEAP_MAGIC + b"\1") or not HEAP_HEADER <= size <= min(left, LARGEST):
        raise DataError(f"{data.name}: damaged: no heap of texts at byte {begin}")
    return data.take(begin, size)
