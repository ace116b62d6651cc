"""HDF5 files of other people, taken passively: such a file cannot make this program read another file or load code.

Refused: external and soft links (a soft link inside the file too: it may lead through an external one), datasets in
external storage, virtual datasets, unless `follow` says that they are wanted; and filters other than the four below. libhdf5
itself is trusted with the bytes.
"""

import math
import os
import posixpath
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lstmcli.errors import DataError, LstmcliError, shown
from lstmcli.files.file_kind import HDF5_MAGIC
from lstmcli.files.hdf5 import NAMES_LOOKED_AT, entries, label, listed, open_file, raw_offset, reading, written_chunks
from lstmcli.files.positioned_file import is_file

# h5py is imported inside functions because it takes a tenth of a second.

HEAP_MAGIC, HEAP_HEADER, HEAP_OBJECT = b"GCOL", 16, 16  # of a global heap; bytes
LOCAL_MAGIC, LOCAL_HEADER, LOCAL_BLOCK = b"HEAP", 32, 16  # of a local heap, and the smallest free block in it
PIECE = 1 << 20  # bytes searched at a time, which stay in the cache: half the time of pieces of 16 MB
ORIGIN = "${ORIGIN}"  # the folder of a file, in the variables that say where libhdf5 looks for the others
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
                    "name the dataset that it points to, copy it into the file, or allow it with lstmcli run --follow-links"
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


def beside(item: Any, names: Iterable[str], follow: bool = False) -> list[str]:
    """Lists what there is of these names in the folder of an h5py object, and then in the root of its file, as paths."""
    folders = dict.fromkeys((posixpath.dirname(item.name), "/"))
    paths = (posixpath.join(folder, name) for folder in folders for name in names)
    return [path for path in paths if find(item.file, path, follow) is not None]


def dataset(file: Any, name: str, follow: bool = False, above: tuple[str, ...] = ()) -> Any:
    """Returns the h5py.Dataset `name` of a file or group, checked to be readable without plugins and to hold its own data.

    follow: its data may lie in other files, which are all there. above: as in other_files(). Raises DataError.
    """
    import h5py

    item = find(file, name, follow)
    if not isinstance(item, h5py.Dataset):
        got = "no such dataset" if item is None else f"expected a dataset, got a {type(item).__name__.lower()}"
        where = f"{label(file).rstrip('/')}/{shown(name.lstrip('/'))}"
        raise DataError(f"{where}: {got}; there is ", listed(entries(file, NAMES_LOOKED_AT)))
    where = label(item)
    with reading(where):
        properties = item.id.get_create_plist()
        if item.shape is None:
            raise DataError(f"{where}: expected an array, got a dataset without a shape")
        if item.is_virtual or properties.get_external_count():
            if not follow:
                raise DataError(
                    f"{where}: its data lies in other files, which are not read; "
                    "copy it into one file (h5repack), or allow it with lstmcli run --follow-links"
                )
            other_files(item, above)
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


def other_files(item: Any, above: tuple[str, ...] = ()) -> list[Path]:
    """Lists the files that hold the values of a dataset besides its own: external storage, the sources of a virtual dataset,
    and what these are made of.

    above: labels of the virtual datasets that this one is a source of. Raises DataError where libhdf5 would give zeros or
    fill values without a word: for a file or dataset that is missing, cut or not all written, and for values in none of them.
    """
    with reading(label(item)):
        properties = item.id.get_create_plist()
        if properties.get_external_count():
            return external_files(item, properties)
        return virtual_sources(item, above) if item.is_virtual else []


def external_files(item: Any, properties: Any) -> list[Path]:
    """Lists the files of raw bytes that a dataset in external storage consists of, checked to hold all of them."""
    where, left, found = label(item), item.nbytes, []
    for name, offset, size in map(properties.get_external, range(properties.get_external_count())):
        path = external_place(os.fsdecode(name), item.file)
        taken = min(size, left)
        if not is_file(path):
            raise DataError(
                f"{where}: {shown(str(path))} holds part of it, but is missing; it is looked for from the working folder, as "
                "libhdf5 does, or from the file's with HDF5_EXTFILE_PREFIX='${ORIGIN}'"
            )
        if path.stat().st_size < offset + taken:
            raise DataError(
                f"{where}: {shown(str(path))} holds {taken} bytes of it from byte {offset} on, but ends at byte "
                f"{path.stat().st_size}; it was cut"
            )
        found.append(path)
        left -= taken
    if left:
        raise DataError(f"{where}: {left} bytes of its values are in none of its files")
    return found


def external_place(name: str, file: Any) -> Path:
    """Returns where libhdf5 looks for external storage: from the working folder, whichever folder the file lies in."""
    prefix = os.environ.get("HDF5_EXTFILE_PREFIX", "")
    return Path(prefix.replace(ORIGIN, str(Path(file.filename).parent)), name)


def virtual_sources(item: Any, above: tuple[str, ...]) -> list[Path]:
    """Lists the files that a virtual dataset shows as one, and those below, checked to hold all of its values."""
    import h5py

    where, file = label(item), item.file
    if where in above:
        raise DataError(f"{where}: is a virtual dataset that is made of itself")
    mappings: dict[tuple[str, str], list[Any]] = {}
    for source in item.virtual_sources():
        mappings.setdefault((source.file_name, source.dset_name), []).append(source)
    covered, found = h5py.h5s.create_simple(item.shape), []
    covered.select_none()
    for (file_name, name), parts in mappings.items():
        blocks = [block for part in parts for block in blocks_of(part.vspace)]
        if "%b" in (file_name + name).replace("%%", "") or any(
            h5py.h5s.UNLIMITED in (*block.counts, *block.size) for block in blocks
        ):
            raise DataError(f"{where}: is virtual over as many rows or files as there are; make it again with a fixed number")
        path = Path(file.filename)
        if file_name != ".":
            path = place_of(file_name.replace("%%", "%"), file, "HDF5_VDS_PREFIX")
            if not is_file(path):
                raise DataError(f"{where}: {shown(str(path))} holds part of it, but is missing")
            found.append(path)
        with open_file(str(path)) as source:
            if find(source, name, follow=True) is None:
                raise DataError(f"{where}: {shown(name)} in {shown(file_name)} holds part of it, but is missing")
            values = dataset(source, name, follow=True, above=(*above, where))
            check_written(values)
            found += other_files(values, (*above, where))
            for part in parts:
                if not is_within(part, values.shape):
                    raise DataError(f"{where}: takes rows of {label(values)} that are not there; its shape is {values.shape}")
        for block in blocks:
            covered.select_hyperslab(block.start, block.counts, block.stride, block.size, op=h5py.h5s.SELECT_OR)
    if covered.get_select_npoints() < item.size:
        raise DataError(f"{where}: some of its values are in none of its files")
    return list(dict.fromkeys(found))


class Blocks(NamedTuple):
    """Blocks of `size`, as many as `counts` along each axis, one every `stride`: a hyperslab."""

    start: tuple[int, ...]
    stride: tuple[int, ...]
    counts: tuple[int, ...]
    size: tuple[int, ...]


def blocks_of(space: Any) -> list[Blocks]:
    """Returns what is selected of a dataspace. Where its shape is not known, all of it is the empty list."""
    import h5py

    if space.get_select_type() != h5py.h5s.SEL_HYPERSLABS:  # all, or none where the shape has a zero
        one = (1,) * len(space.shape)
        return [Blocks((0,) * len(one), one, one, space.shape)] if one and space.get_select_npoints() else []
    if space.is_regular_hyperslab():
        return [Blocks(*space.get_regular_hyperslab())]
    blocks = [(tuple(first.tolist()), tuple((last - first + 1).tolist())) for first, last in space.get_select_hyper_blocklist()]
    return [Blocks(first, (1,) * len(first), (1,) * len(first), size) for first, size in blocks]


def is_within(mapping: Any, shape: tuple[int, ...]) -> bool:
    """Says whether a source of this shape has all that a mapping takes of it."""
    blocks = blocks_of(mapping.src_space)
    if not blocks:  # all of it: libhdf5 does not store which shape that was
        return bool(math.prod(shape) == mapping.vspace.get_select_npoints())
    return all(
        len(block.start) == len(shape)
        and all(s + (n - 1) * step + size <= end for s, step, n, size, end in zip(*block, shape, strict=True))
        for block in blocks
    )


def check_written(item: Any) -> None:
    """Raises DataError where some of a dataset's values were never written, or are not in the file any more."""
    offset = raw_offset(item)
    if offset is not None and offset + item.nbytes > item.file.id.get_filesize():
        raise DataError(f"{label(item)}: ends at byte {offset + item.nbytes}, past the end of the file; it was cut")
    if offset is None and written_chunks(item) is not None:
        raise DataError(f"{label(item)}: some of its chunks were never written; was its writer stopped?")


def place_of(name: str, file: Any, variable: str) -> Path:
    """Returns where libhdf5 finds a file that `file` names: the first of the places that it looks at which has one.

    variable: of the environment, with folders to look into first.
    """
    folder = Path(file.filename).parent
    prefixes = [prefix.replace(ORIGIN, str(folder)) for prefix in os.environ.get(variable, "").split(":") if prefix]
    tail = Path(name).name if Path(name).is_absolute() else name
    places = [*map(Path, prefixes), folder, Path(), Path(os.path.realpath(file.filename)).parent]
    found = [Path(name)] * Path(name).is_absolute() + [place / tail for place in places]
    return next((path for path in found if is_file(path)), found[0] if Path(name).is_absolute() else folder / name)


def files_behind(path: str) -> set[Path]:
    """Returns all files that the links and datasets of an HDF5 file lead to, and those lead to; other files lead nowhere."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        with suppress(LstmcliError), open_file(waiting.pop()) as file, reading(label(file)):
            new = set(named_files(file)) - found
            found |= new
            waiting += map(str, new)
    return found


def named_files(file: Any) -> Iterator[Path]:
    """Yields the files that the links and datasets of an h5py.File name."""
    import h5py

    links: list[tuple[bytes, int]] = []
    file.id.links.visit(lambda name, info: links.append((name, info.type)), info=True)
    for name, kind in links:
        if kind == h5py.h5l.TYPE_EXTERNAL:
            yield place_of(os.fsdecode(file.id.links.get_val(name)[0]), file, "HDF5_EXT_PREFIX")
        elif kind == h5py.h5l.TYPE_HARD and isinstance(item := file[name], h5py.Dataset):
            properties = item.id.get_create_plist()
            for number in range(properties.get_external_count()):
                yield external_place(os.fsdecode(properties.get_external(number)[0]), file)
            for source in item.virtual_sources() if item.is_virtual else ():
                yield place_of(source.file_name.replace("%%", "%"), file, "HDF5_VDS_PREFIX")


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
    places = [0, *(512 << k for k in range(40) if 512 << k < size)]  # of the superblock, from which addresses count
    base = next((at for at in places if take(at, min(len(HDF5_MAGIC), size - at)) == HDF5_MAGIC), 0)
    for begin in range(0, size, PIECE):
        piece = take(begin, min(PIECE + LOCAL_HEADER, size - begin))
        at = piece.find(HEAP_MAGIC)
        while at >= 0:
            start = begin + at
            end = start + int.from_bytes(piece[at + 8 : at + HEAP_HEADER], "little")
            if end <= size and piece[at + 4 : at + 5] == b"\1":
                objects_of(take(start, end - start), f"{where}: damaged: the heap of texts at byte {start}")
            at = piece.find(HEAP_MAGIC, at + 1)
        at = piece.find(LOCAL_MAGIC)
        while at >= 0:
            what = f"{where}: damaged: the heap of names at byte {begin + at}"
            check_free_blocks(take, size, piece[at : at + LOCAL_HEADER], base, what)
            at = piece.find(LOCAL_MAGIC, at + 1)


def objects_of(heap: bytes, where: str) -> dict[int, tuple[int, int]]:
    """Returns where the objects of a global heap lie in it, and their sizes, by their numbers. Raises DataError."""
    objects: dict[int, tuple[int, int]] = {}
    place = HEAP_HEADER
    while place + HEAP_OBJECT <= len(heap):
        number, size = struct.unpack_from("<H6xQ", heap, place)
        step = HEAP_OBJECT + -(-size // 8) * 8 if number else size
        if step < HEAP_OBJECT or step > len(heap) - place:
            raise DataError(f"{where} does not add up")
        if number:
            objects[number] = place + HEAP_OBJECT, size
        place += step
    return objects


def check_free_blocks(take: Callable[[int, int], bytes], size: int, header: bytes, base: int, what: str) -> None:
    """Raises DataError where the free blocks of a local heap form a ring. base: the byte from which addresses count."""
    if len(header) < LOCAL_HEADER or header[4:8] != bytes(4):
        return  # the magic in other data
    length, free, address = struct.unpack_from("<3Q", header, 8)
    address += base
    left = length // LOCAL_BLOCK
    while free + LOCAL_BLOCK <= length and address + length <= size:
        if not left:
            raise DataError(f"{what} does not come to an end")
        left -= 1
        (free,) = struct.unpack("<Q", take(address + free, 8))
