"""HDF5 files of other people, taken passively: such a file cannot make this program read another file or load code.

Refused: external and soft links (a soft link inside the file too: it may lead through an external one), datasets in
external storage, virtual datasets, unless `follow` says that they are wanted; and filters other than the four below. libhdf5
itself is trusted with the bytes.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lstmcli.errors import DataError, shown
from lstmcli.files.hdf5 import entries, label, listed, open_file, reading

# h5py is imported inside functions because it takes a tenth of a second.

HEAP_MAGIC, HEAP_HEADER, HEAP_OBJECT = b"GCOL", 16, 16  # of a global heap; bytes
LOCAL_MAGIC, LOCAL_HEADER, LOCAL_BLOCK = b"HEAP", 32, 16  # of a local heap, and the smallest free block in it
PIECE = 1 << 24  # bytes searched at a time
MAX_DEFLATE = 1032  # times that deflate can make data larger
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
# Filters that are refused, by whether h5repack undoes them: those of libhdf5 itself (their decoders have been attacked with
# damaged files), and plugins.
BUILT_IN = {4: "szip", 5: "n-bit", 6: "scale-offset"}
PLUGINS = {
    305: "LZO", 307: "bzip2", 32001: "Blosc", 32004: "LZ4", 32008: "bitshuffle", 32013: "ZFP", 32015: "zstd",
    32017: "SZ", 32026: "Blosc2",
}  # fmt: skip


def find(group: Any, name: str, follow: bool = False) -> Any:
    """Returns the group or dataset `name`, or None if there is none.

    follow: links are followed, into other files too; otherwise raises DataError where a link on the way is not a hard link.
    """
    import h5py

    item = group
    with reading(f"{label(group)}, object {shown(name)}"):
        for part in filter(None, name.split("/")):
            key = part.encode("utf-8", "surrogateescape")
            if not isinstance(item, h5py.Group) or not item.id.links.exists(key):
                return None
            linked = item.id.links.get_info(key).type != h5py.h5l.TYPE_HARD
            if linked and not follow:
                raise DataError(
                    f"{label(item)}: {shown(part)} is a soft or external link, which are not followed; "
                    "name the dataset that it points to, copy it into the file, or allow it with --follow-links"
                )
            try:
                item = item[part]
            except (KeyError, OSError) as error:
                if not linked:
                    raise
                link = item.get(part, getlink=True)
                target = f"{getattr(link, 'filename', '')}::{link.path}"
                raise DataError(f"{label(item)}: {shown(part)} is a link to {shown(target)}, which cannot be opened") from error
    return item


def dataset(file: Any, name: str, follow: bool = False) -> Any:
    """Returns the h5py.Dataset `name` of a file or group, checked to be readable without plugins and to hold its own data.

    follow: its data may lie in other files, which are all there. Raises DataError.
    """
    import h5py

    item = find(file, name, follow)
    if not isinstance(item, h5py.Dataset):
        got = "no such dataset" if item is None else f"expected a dataset, got a {type(item).__name__.lower()}"
        where = f"{label(file).rstrip('/')}/{shown(name.lstrip('/'))}"
        raise DataError(f"{where}: {got}; there is {listed(entries(file))}")
    where = label(item)
    with reading(where):
        properties = item.id.get_create_plist()
        if item.shape is None:
            raise DataError(f"{where}: expected an array, got a dataset without a shape")
        if item.is_virtual or properties.get_external_count():
            if not follow:
                raise DataError(
                    f"{where}: its data lies in other files, which are not read; "
                    "copy it into one file (h5repack), or allow it with --follow-links"
                )
            check_others(item)
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        if unknown := sorted(set(filters) - set(FILTERS)):
            raise DataError(f"{where}: {filter_advice(unknown[0])}")
    return item


def filter_advice(number: int) -> str:
    """Says that a filter is not read, and what undoes it."""
    name = BUILT_IN.get(number) or PLUGINS.get(number, "a plugin")
    got = f"compressed with {name} (filter {number}); expected {', '.join(FILTERS.values())}"
    if number in BUILT_IN:
        return f"{got}, convert it with: h5repack -f GZIP=4"
    return f"{got}, copy it in Python with: import h5py, hdf5plugin; ...create_dataset(name, data=old[name], compression='lzf')"


def other_files(item: Any) -> list[Path]:
    """Lists the files that hold the data of a virtual dataset, or of one in external storage."""
    properties = item.id.get_create_plist()
    if item.is_virtual:
        names = [source.file_name for source in item.virtual_sources() if source.file_name != "."]
    else:
        names = [os.fsdecode(properties.get_external(k)[0]) for k in range(properties.get_external_count())]
    folder = Path(item.file.filename).parent
    return [folder / name for name in dict.fromkeys(names)]


def check_others(item: Any) -> None:
    """Raises DataError where libhdf5 would give fill values: for missing files and datasets, and for values in no file."""
    where = label(item)
    for path in other_files(item):
        if not path.is_file():
            raise DataError(f"{where}: {shown(str(path))} holds part of it, but is missing")
    if not item.is_virtual:
        return
    for source in dict.fromkeys((source.file_name, source.dset_name) for source in item.virtual_sources()):
        with open_file(item.file.filename if source[0] == "." else str(Path(item.file.filename).parent / source[0])) as file:
            if find(file, source[1]) is None:
                raise DataError(f"{where}: {shown(source[1])} in {shown(source[0])} holds part of it, but is missing")
    if sum(source.vspace.get_select_npoints() for source in item.virtual_sources()) < item.size:
        raise DataError(f"{where}: some of its values are in none of its files")


def refuse_links(file: Any) -> None:
    """Raises DataError for the first soft or external link, where all of a file is searched and none must be overlooked."""
    import h5py

    def visit(name: bytes, info: Any) -> bytes | None:
        return None if info.type == h5py.h5l.TYPE_HARD else name

    with reading(label(file)):
        found = file.id.links.visit(visit, info=True)
    if found is not None:
        name = shown(found.decode("utf-8", "backslashreplace"))
        raise DataError(
            f"{label(file)}{name}: is a soft or external link, which are not followed; copy into the file what it points to"
        )


def check_heaps(take: Callable[[int, int], bytes], size: int, where: str) -> None:
    """Raises DataError unless libhdf5 comes to the end of every heap: global ones, of texts, and local ones, of groups' names.

    In a global heap libhdf5 walks from object to object by their sizes, and stays at a free one of size 0 forever; in a local
    one from free block to free block, and takes memory for each, forever where they form a ring (H5HG and H5HL in the file
    format). take(offset, count): bytes of the file, which has `size`.
    """
    for begin in range(0, size, PIECE):
        piece = take(begin, min(PIECE + LOCAL_HEADER, size - begin))
        at = piece.find(HEAP_MAGIC)
        while at >= 0:
            start = begin + at
            end = start + int.from_bytes(piece[at + 8 : at + HEAP_HEADER], "little")
            if end <= size and piece[at + 4 : at + 5] == b"\1":
                heap, place = take(start, end - start), HEAP_HEADER
                while place + HEAP_OBJECT <= len(heap):
                    index, length = struct.unpack_from("<H6xQ", heap, place)
                    step = HEAP_OBJECT + -(-length // 8) * 8 if index else length
                    if step < HEAP_OBJECT or step > len(heap) - place:
                        raise DataError(f"{where}: damaged: the heap of texts at byte {start} does not add up")
                    place += step
            at = piece.find(HEAP_MAGIC, at + 1)
        at = piece.find(LOCAL_MAGIC)
        while at >= 0:
            check_free_blocks(
                take, size, piece[at : at + LOCAL_HEADER], f"{where}: damaged: the heap of names at byte {begin + at}"
            )
            at = piece.find(LOCAL_MAGIC, at + 1)


def check_free_blocks(take: Callable[[int, int], bytes], size: int, header: bytes, what: str) -> None:
    """Raises DataError where the free blocks of a local heap form a ring."""
    if len(header) < LOCAL_HEADER or header[4:8] != bytes(4):
        return  # the magic in other data
    length, free, address = struct.unpack_from("<3Q", header, 8)
    left = length // LOCAL_BLOCK
    while free + LOCAL_BLOCK <= length and address + length <= size:
        if not left:
            raise DataError(f"{what} does not come to an end")
        left -= 1
        (free,) = struct.unpack("<Q", take(address + free, 8))
