"""HDF5 files of other people, opened passively: such a file cannot make this program read another file or load code.

Refused: external and soft links (a soft link inside the file too: it may lead through an external one), datasets in
external storage, virtual datasets, unless `follow` says that they are wanted; and filters other than the four below. libhdf5
itself is trusted with the bytes.
"""

import errno
import math
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError, LstmcliError, MissingInputError, StorageError, shown

# h5py is imported inside functions because it takes a tenth of a second.

HEAP_MAGIC, HEAP_HEADER, HEAP_OBJECT = b"GCOL", 16, 16  # of a global heap; bytes
PIECE = 1 << 24  # bytes searched at a time
MAX_DEFLATE = 1032  # times that deflate can make data larger
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}


class Entry(NamedTuple):
    """A dataset of a file; shape and dtype are None where numpy has no equivalent."""

    name: str
    shape: tuple[int, ...] | None
    dtype: np.dtype[Any] | None

    def __str__(self) -> str:
        return f"{shown(self.name)} {self.shape} {self.dtype}"


def open_readable(path: str) -> int:
    """A new file descriptor. MissingInputError: no such file, a directory, no permission."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MissingInputError(f"{shown(path)}: cannot be opened: {reason}") from error
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise MissingInputError(f"{shown(path)}: expected a file, got a directory")
    return fd


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns whatever h5py raises into StorageError (the system said no) or DataError (the file is bad)."""
    try:
        yield
    except LstmcliError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        text = shown(" ".join(str(error).split()))
        # h5py's types say little: a failed read(2) may come as a KeyError that has its errno in the text alone.
        if locked := re.search(r"unable to lock file, errno = (\d+)", text):
            raise StorageError(f"{where}: {lock_advice(int(locked[1]))}") from error
        if failed := re.search(r"errno = ([1-9]\d*),.* offset = (\d+)", text):
            reason = os.strerror(int(failed[1]))
            raise StorageError(f"{where}: reading at byte {failed[2]} failed: {reason}") from error
        if getattr(error, "errno", None) or re.search(r"errno = [1-9]", text):
            raise StorageError(f"{where}: reading failed: {text}") from error
        raise DataError(f"{where}: damaged, or not something this program reads; libhdf5 says: {text}") from error


def lock_advice(number: int) -> str:
    """What to do after libhdf5 was refused its lock with this errno."""
    if number in (errno.EAGAIN, errno.EACCES):
        return "another program is writing it; run again when that has ended"
    return f"its file system gives no lock (errno {number}); if nothing writes it, set HDF5_USE_FILE_LOCKING=FALSE"


def open_file(path: str) -> Any:
    """An h5py.File, read-only; close it, or use it as a context manager."""
    import h5py

    os.close(open_readable(path))
    with reading(shown(path)):
        return h5py.File(path, "r", locking="best-effort")


def open_image(data: bytes, name: str) -> Any:
    """An h5py.File, read-only, of a whole file in memory; `name` is for messages."""
    import h5py

    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_file_image(data)
    with reading(name):
        return h5py.File(h5py.h5f.open(name.encode("utf-8", "surrogateescape"), h5py.h5f.ACC_RDONLY, access))


def label(item: Any) -> str:
    """`file::/name` of an h5py object, for messages."""
    import h5py

    # Not item.file.filename, which opens the file once more.
    return f"{shown(os.fsdecode(h5py.h5f.get_name(item.id)))}::{shown(item.name)}"


def entries(file: Any) -> list[Entry]:
    """All datasets of an h5py.File or Group that hard links lead to, each object once."""
    import h5py

    found: list[Entry] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            try:
                dtype = item.dtype
            except TypeError:
                dtype = None
            found.append(Entry(f"/{name}", item.shape, dtype))

    with reading(label(file)):
        file.visititems(visit)
    return found


def listed(found: list[Entry]) -> str:
    """At most ten entries, for a message."""
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return ", ".join(map(str, found[:10])) + more if found else "no dataset at all"


def find(group: Any, name: str, follow: bool = False) -> Any:
    """The group or dataset `name`, or None if there is none; DataError where a link on the way is not a hard link.

    follow: links are followed, into other files too.
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


def check_heaps(take: Callable[[int, int], bytes], size: int, where: str) -> None:
    """DataError unless libhdf5 comes to the end of every global heap, where texts of any length lie.

    It walks from object to object by their sizes, and stays at a free one of size 0 forever (H5HG in the HDF5 file format).
    take(offset, count): bytes of the file, which has `size`.
    """
    for begin in range(0, size, PIECE):
        piece = take(begin, min(PIECE + HEAP_HEADER, size - begin))
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


def refuse_links(file: Any) -> None:
    """DataError names the first soft or external link, where all of a file is searched and none must be overlooked."""
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


def dataset(file: Any, name: str, follow: bool = False) -> Any:
    """The h5py.Dataset `name` of a file or group, readable without plugins, and checked to hold its own data.

    follow: or to have it in other files that are all there.
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
            raise DataError(
                f"{where}: compressed with filter {unknown[0]}; expected {', '.join(FILTERS.values())}, "
                "convert it with: h5repack -f GZIP=4"
            )
    return item


def other_files(item: Any) -> list[Path]:
    """Those that hold the data of a virtual dataset, or of one in external storage."""
    properties = item.id.get_create_plist()
    if item.is_virtual:
        names = [source.file_name for source in item.virtual_sources() if source.file_name != "."]
    else:
        names = [os.fsdecode(properties.get_external(k)[0]) for k in range(properties.get_external_count())]
    folder = Path(item.file.filename).parent
    return [folder / name for name in dict.fromkeys(names)]


def check_others(item: Any) -> None:
    """DataError where libhdf5 would give fill values: for files and datasets that are missing, and for values in no file."""
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


def dtype_of(item: Any) -> np.dtype[Any]:
    """dtype of a dataset whose stored bytes are exactly that; DataError for enums, bfloat16 and what h5py widens."""
    import h5py

    with reading(label(item)):
        dtype: np.dtype[Any] = item.dtype
        if not item.id.get_type().equal(h5py.h5t.py_create(dtype)):
            raise DataError(f"{label(item)}: expected plain numbers of a numpy type, got a special type read as {dtype}")
    return dtype


def raw_offset(item: Any) -> int | None:
    """Byte offset in the file of a contiguous dataset; None for other layouts. DataError if it was never written."""
    import h5py

    with reading(label(item)):
        properties = item.id.get_create_plist()
        if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_external_count():
            return None
        if item.size == 0:
            return 0
        # With a user block get_offset() is not None for a dataset that has no place yet; its storage size is 0 then.
        if item.id.get_storage_size() == 0 or item.id.get_offset() is None:
            raise DataError(f"{label(item)}: was never written; expected {item.shape} values, was its writer stopped?")
        return int(item.id.get_offset())


def written_chunks(item: Any) -> set[tuple[int, ...]] | None:
    """First elements of the chunks that were written; None when all were, or the dataset has no chunks.

    libhdf5 gives fill values for the others and says nothing, so a killed writer's file looks like zeros.
    """
    if item.chunks is None:
        return None
    found: set[tuple[int, ...]] = set()
    with reading(label(item)):
        grid = math.prod(-(-size // chunk) for size, chunk in zip(item.shape, item.chunks, strict=True))
        if item.id.get_num_chunks() == grid:
            return None
        # Not get_chunk_info_by_coord: it walks through all the chunks for each question.
        item.id.chunk_iter(lambda chunk: found.add(chunk.chunk_offset))
    return found


def read_array(item: Any) -> NDArray[Any]:
    """A whole dataset, as stored. DataError if a part of it was never written. The caller has checked its size."""
    if raw_offset(item) is None and (written := written_chunks(item)) is not None:
        raise DataError(f"{label(item)}: only {len(written)} of its chunks were written; was its writer stopped?")
    with reading(label(item)):
        return np.asarray(item[()])
