"""The headers of HDF5 objects, read by their addresses: libhdf5 opens a dataset in 20 to 60 microseconds, this takes 5.

Only what most files have is understood: headers of version 1, which h5py writes by default, of contiguous datasets. The others
are left to libhdf5. See "Data Object Headers" and the messages in the HDF5 file format specification.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lstmcli.errors import DataError
from lstmcli.files.hdf5 import label
from lstmcli.files.positioned_file import FileBytes

NEAR = 8 << 10  # bytes that are read on the way to the next header, and not skipped
WINDOW = 1 << 20  # bytes read at a time
HEADER = 1 << 10  # bytes read for a header that lies alone
MESSAGES = 256  # of one header, at most
DATASPACE, DATATYPE, EXTERNAL, LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE, MODIFIED = 1, 3, 7, 8, 11, 12, 16, 17, 18
CONTIGUOUS = 1
SHARED = 2  # a flag of a message whose content lies elsewhere
UNDEFINED = (1 << 64) - 1

prefix = struct.Struct("<BxHIIxxxx").unpack_from
message = struct.Struct("<HHBxxx").unpack_from
numbers = struct.Struct("<QQ").unpack_from


class ContiguousDataset(NamedTuple):
    """A contiguous dataset, as its header describes it."""

    shape: tuple[int, ...]
    datatype: bytes  # the message as it stands: where these bytes are the same, so are the types
    address: int | None  # of its values; None: it was never written
    size: int  # bytes of its values
    attributes: tuple[bytes, ...]  # the messages


def read_headers(file: FileBytes, addresses: Sequence[int], base: int = 0) -> Iterator[ContiguousDataset | None]:
    """Yields what the headers at these addresses describe; None for anything but a contiguous dataset that is understood.

    base: the byte from which addresses count. The headers should come in the order of the file, as then many are read at once.
    """
    if not addresses:
        return
    begins = np.asarray(addresses, np.int64) + base
    gaps = np.diff(begins)
    last_of_run = np.append(np.flatnonzero((gaps < 0) | (gaps > NEAR)), len(begins) - 1)
    run_ends = begins[last_of_run[np.searchsorted(last_of_run, np.arange(len(begins)))]] + HEADER
    size, start, window = file.opened.st_size, 0, b""
    like: Pattern | None = None
    for begin, end in zip(begins.tolist(), run_ends.tolist(), strict=True):
        if not (start <= begin and begin + HEADER <= start + len(window)):
            if not 0 <= begin < size:
                yield None
                continue
            start = begin
            window = file.take(begin, min(max(HEADER, min(end - begin, WINDOW)), size - begin))
        at = begin - start
        if like and (found := like.read(window, at)):
            yield found
        else:
            parsed = parse_header(file, window, at, base)
            yield parsed and parsed[0]
            if parsed:
                like = parsed[1]


class Pattern:
    """How a header stands in the file. A writer's headers are much the same: such a one is read in a tenth of the time."""

    def __init__(self, raw: bytes, variable: dict[str, tuple[int, int]], datatype: bytes, base: int) -> None:
        """variable: what may be another number in another header, by its begin and end in the bytes of this one."""
        ends = [0, *(end for _, end in sorted(variable.values()))]
        begins = [*(begin for begin, _ in sorted(variable.values())), len(raw)]
        self.fixed = [(begin, raw[begin:end]) for begin, end in zip(ends, begins, strict=True)]
        self.sizes = struct.Struct(f"<{(variable['sizes'][1] - variable['sizes'][0]) // 8}Q").unpack_from
        self.sizes_at, self.place_at = variable["sizes"][0], variable["place"][0]
        self.datatype, self.base, self.length = datatype, base, len(raw)

    def read(self, block: bytes, at: int) -> ContiguousDataset | None:
        """Reads the header at `at`; None: it is another one."""
        if at + self.length > len(block):
            return None
        for begin, content in self.fixed:
            if not block.startswith(content, at + begin):
                return None
        address, size = numbers(block, at + self.place_at)
        shape = self.sizes(block, at + self.sizes_at)
        return ContiguousDataset(shape, self.datatype, None if address == UNDEFINED else address + self.base, size, ())


def parse_header(file: FileBytes, window: bytes, at: int, base: int) -> tuple[ContiguousDataset, Pattern | None] | None:
    """Reads the header of version 1 that begins at `at` in some bytes of the file. Returns None for what is not understood."""
    shape = datatype = place = None
    attributes: list[bytes] = []
    variable: dict[str, tuple[int, int]] = {}
    first = at
    try:
        version, count, _, length = prefix(window, at)
        if version != 1 or count > MESSAGES:
            return None
        waiting = [(window, at + 16, at + 16 + length)]
        stop = at + 16 + length
        is_whole = True
        while waiting and count:
            block, at, end = waiting.pop(0)
            if end > len(block):
                return None
            while at + 8 <= end and count:
                kind, size, flags = message(block, at)
                at += 8
                count -= 1
                if at + size > end or (kind in (DATASPACE, DATATYPE, LAYOUT) and flags & SHARED):
                    return None
                if kind == DATASPACE:
                    begin, shape = dimensions(block, at, size)
                    variable["sizes"] = begin - first, begin - first + 8 * len(shape)
                    variable["most"] = variable["sizes"][1], at + size - first  # how large they may grow, or nothing
                elif kind == DATATYPE:
                    datatype = block[at : at + size]
                elif kind == LAYOUT:
                    if block[at] not in (3, 4) or block[at + 1] != CONTIGUOUS:
                        return None
                    place = numbers(block, at + 2)
                    variable["place"] = at + 2 - first, at + 18 - first
                elif kind in (EXTERNAL, FILTERS, SYMBOL_TABLE):
                    return None
                elif kind == ATTRIBUTE:
                    attributes.append(block[at : at + size])
                elif kind == MODIFIED:
                    variable["modified"] = at - first, at + size - first
                elif kind == CONTINUATION:
                    offset, length = numbers(block, at)
                    if length > WINDOW or offset + base + length > file.opened.st_size:
                        return None
                    waiting.append((file.take(offset + base, length), 0, length))
                    is_whole = False
                at += size
    except (struct.error, IndexError, ValueError):
        return None
    if shape is None or datatype is None or place is None or count:
        return None
    found = ContiguousDataset(shape, datatype, None if place[0] == UNDEFINED else place[0] + base, place[1], tuple(attributes))
    is_like_others = is_whole and not attributes
    return found, Pattern(window[first:stop], variable, datatype, base) if is_like_others else None


def dimensions(block: bytes, at: int, size: int) -> tuple[int, tuple[int, ...]]:
    """Reads a dataspace message: where its sizes stand, and these. Raises ValueError for what this program does not read."""
    version, rank = block[at], block[at + 1]
    begin = at + {1: 8, 2: 4}.get(version, size)
    if not 1 <= rank <= 3 or begin + 8 * rank > at + size:
        raise ValueError("another dataspace")
    return begin, struct.unpack_from(f"<{rank}Q", block, begin)


def addresses_of(group: Any) -> tuple[list[bytes], "array[int]", bytes | None]:
    """Lists the hard links right in an h5py group, with the addresses of their objects, and the first other link or None."""
    import h5py

    names: list[bytes] = []
    addresses = array("Q")
    others: list[bytes] = []

    def visit(name: bytes, info: Any) -> None:
        if info.type == h5py.h5l.TYPE_HARD:
            names.append(name)
            addresses.append(info.u)
        else:
            others.append(name)

    group.id.links.iterate(visit, info=True)
    if (last := max(addresses, default=0)) >= 1 << 63:
        raise DataError(f"{label(group)}: damaged: an object at byte {last}, past the end of the file")
    return names, addresses, others[0] if others else None


def attribute_name(attribute: bytes) -> bytes:
    """Returns the name of an attribute message, or nothing where it is not understood."""
    version, size = attribute[0], int.from_bytes(attribute[2:4], "little")
    begin = {1: 8, 2: 8, 3: 9}.get(version, len(attribute))
    return attribute[begin : begin + size].rstrip(b"\0")
