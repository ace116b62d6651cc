"""HDF5 files: opened, listed, and read, with what libhdf5 raises turned into this program's errors.

Objects of files that somebody else made are taken through hdf5_safety.
"""

import errno
import math
import os
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError, LstmcliError, StorageError, shown
from lstmcli.files.positioned_file import open_readable

# h5py is imported inside functions because it takes a tenth of a second.

LARGE_CHUNK = 64 << 20  # bytes of a chunk, even where the dataset has fewer
LARGE = 4 << 30  # bytes that a file may make this program take, however little it holds
CHECKSUMS = "checksums"  # the group of them in a result
CONTAINER = f"{CHECKSUMS}/container"  # that of all bytes but the values of the arrays
PIECE = 4 << 20  # bytes that are copied or summed at a time
NAMES_LOOKED_AT = 1000  # of a group that may hold a dataset for each of a million sequences

ENOTSUPP = 524  # what some network file systems answer to flock(); Python has no name for it
# The second is what libhdf5 says of a file that is open already, and was opened without a lock.
NO_LOCKS = rf"unable to lock file, errno = ({errno.ENOLCK}|{ENOTSUPP})\b|file locking flag values don't match"
unlocked: dict[str, None] = {}  # the files that were read without a lock, in their order, till somebody was told of them


class Extent(NamedTuple):
    """Some bytes of a file."""

    offset: int
    size: int


class Entry(NamedTuple):
    """A dataset of a file; shape and dtype are None where numpy has no equivalent."""

    name: str
    shape: tuple[int, ...] | None
    dtype: np.dtype[Any] | None

    def __str__(self) -> str:
        return f"{shown(self.name)} {self.shape} {self.dtype}"


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns whatever h5py raises into StorageError (the system said no) or DataError (the file is bad)."""
    try:
        yield
    except LstmcliError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
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
    """Says what to do after libhdf5 was refused its lock with this errno."""
    if number in (errno.EAGAIN, errno.EACCES):
        return "another program is writing it; run again when that has ended"
    return f"its file system gives no lock (errno {number}); if nothing writes it, set HDF5_USE_FILE_LOCKING=FALSE"


def notes_on_locks() -> list[str]:
    """Returns what to know of files that were read without a lock since it was asked for the last time."""
    if not unlocked:
        return []
    first, *others = unlocked
    unlocked.clear()
    more = f" and {len(others)} more" if others else ""
    return [f"{first}{more}: the file system gives no lock, so it was read without; nothing must write it meanwhile"]


def open_file(path: str) -> Any:
    """Opens an h5py.File to read it: a context manager. Raises MissingInputError, DataError, StorageError.

    Where the file system has no locks, it is read without one; see notes_on_locks().
    """
    import h5py

    os.close(open_readable(path))
    with reading(shown(path)):
        try:
            return h5py.File(path, "r", locking="best-effort")
        except OSError as error:
            if not re.search(NO_LOCKS, str(error)):
                raise
            unlocked[shown(path)] = None
            return h5py.File(path, "r", locking=False)


def open_image(data: bytes, name: str) -> Any:
    """Opens a whole file that is in memory as an h5py.File to read it; name: for messages. Raises DataError."""
    import h5py

    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_file_image(data)
    with reading(name):
        return h5py.File(h5py.h5f.open(name.encode("utf-8", "surrogateescape"), h5py.h5f.ACC_RDONLY, access))


def label(item: Any) -> str:
    """Returns `file::/name` of an h5py object, for messages."""
    import h5py

    # Not item.file.filename, which opens the file once more.
    return f"{shown(os.fsdecode(h5py.h5f.get_name(item.id)))}::{shown(item.name)}"


def entries(file: Any, most: int | None = None) -> list[Entry]:
    """Lists the datasets of an h5py.File or Group that hard links lead to, each object once; most: so many at most."""
    import h5py

    datasets = ((name, item) for name, item in objects(file) if isinstance(item, h5py.Dataset))
    with reading(label(file)):
        return [entry_of(f"/{name}", item) for name, item in islice(datasets, most)]


def objects(file: Any) -> Iterator[tuple[str, Any]]:
    """Yields all groups and datasets of an h5py.File or Group that hard links lead to, each once, by their names.

    Not visititems(), which asks for the sizes of structures: there libhdf5 crashes in some files that are damaged.
    """
    import h5py

    found: dict[int, bytes] = {}  # by their places in the file

    def visit(name: bytes, info: Any) -> None:
        if info.type == h5py.h5l.TYPE_HARD:
            found.setdefault(info.u, name)

    with reading(label(file)):
        if not isinstance(file, h5py.Group):
            raise DataError(f"{label(file)}: expected a group, got a {type(file).__name__.lower()}")
        file.id.links.visit(visit, info=True)
        for name in found.values():
            text = name.decode("utf-8", "surrogateescape")
            yield text, file[text]


def attribute(item: Any, name: str) -> Any:
    """Returns the value of an attribute: text, a number, or an array of them; None: there is none.

    Raises DataError for values of other types: libhdf5 crashes where it follows the references in some that are damaged.
    """
    from h5py import h5a, h5t

    with reading(f"{label(item)}, attribute {shown(name)}"):
        key = name.encode("utf-8", "surrogateescape")
        if not h5a.exists(item.id, key):
            return None
        kind = h5a.open(item.id, key).get_type()
        if kind.get_class() not in (h5t.INTEGER, h5t.FLOAT, h5t.STRING, h5t.ENUM):
            raise DataError(f"{label(item)}, attribute {shown(name)}: expected text or numbers, got another type")
        return item.attrs[name]


def entries_right_in(group: Any) -> list[Entry]:
    """Lists the datasets that hard links in this group lead to, among its first NAMES_LOOKED_AT names."""
    import h5py

    with reading(label(group)):
        names = [name for name in islice(group, NAMES_LOOKED_AT) if isinstance(group.get(name, getlink=True), h5py.HardLink)]
        items = [item for item in map(group.__getitem__, names) if isinstance(item, h5py.Dataset)]
        return [entry_of(item.name, item) for item in items]


def entry_of(name: str, item: Any) -> Entry:
    """Returns the entry of an h5py.Dataset."""
    try:
        return Entry(name, item.shape, item.dtype)
    # ValueError: a float of more bits than NumPy's; RuntimeError: one whose exponent has no bias.
    except (TypeError, ValueError, RuntimeError):
        return Entry(name, item.shape, None)


def listed(found: list[Entry]) -> list[str]:
    """Writes at most ten entries, for a message."""
    more = [f"and {len(found) - 10} more"] if len(found) > 10 else []
    return [*map(str, found[:10]), *more] if found else ["no dataset at all"]


def dtype_of(item: Any) -> np.dtype[Any]:
    """Returns the dtype of a dataset that is stored exactly so. Raises DataError for enums, bfloat16 and what h5py widens."""
    with reading(label(item)):
        dtype: np.dtype[Any] = item.dtype
        if not is_plain(item):
            raise DataError(f"{label(item)}: expected plain numbers of a numpy type, got a special type read as {dtype}")
    return dtype


def is_plain(item: Any) -> bool:
    """Says whether the values of a dataset are stored exactly as its dtype says."""
    import h5py

    return bool(item.id.get_type().equal(h5py.h5t.py_create(item.dtype)))


def storage_size(item: Any) -> int:
    """Returns how many bytes of its file the values of a dataset take. Raises DataError."""
    with reading(label(item)):
        return int(item.id.get_storage_size())


def raw_offset(item: Any) -> int | None:
    """Returns where a contiguous dataset begins in its file, or None for other layouts. Raises DataError if never written."""
    import h5py

    with reading(label(item)):
        properties = item.id.get_create_plist()
        if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_external_count():
            return None
        if item.size == 0:
            return 0
        # With a user block get_offset() is not None for a dataset that has no place yet; its storage size is 0 then.
        if storage_size(item) == 0 or item.id.get_offset() is None:
            raise DataError(f"{label(item)}: was never written; expected {item.shape} values, was its writer stopped?")
        return int(item.id.get_offset())


def header_offset(item: Any) -> int:
    """Returns where the header of a dataset or group lies in its file. Raises DataError.

    Not by h5o.get_info(), which asks for sizes as well, as visititems() does.
    """
    import h5py

    with reading(label(item)):
        return int(h5py.h5g.get_objinfo(item.id).objno[0])


class WrittenChunks:
    """Which chunks of a dataset were written, where some were not: 8 bytes for each."""

    def __init__(self, item: Any) -> None:
        self.chunks = item.chunks
        self.grid = [-(-size // chunk) for size, chunk in zip(item.shape, item.chunks, strict=True)]
        numbers = array("q")
        # Not get_chunk_info_by_coord: it walks through all the chunks for each question.
        item.id.chunk_iter(lambda chunk: numbers.append(self._number(chunk.chunk_offset)))
        self.numbers = np.sort(np.array(numbers, np.int64))

    def _number(self, corner: tuple[int, ...]) -> int:
        number = 0
        for at, size, count in zip(corner, self.chunks, self.grid, strict=True):
            number = number * count + at // size
        return number

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, corner: tuple[int, ...]) -> bool:
        """Whether the chunk whose first element lies at `corner` was written."""
        number = self._number(corner)
        place = int(np.searchsorted(self.numbers, number))
        return place < len(self.numbers) and bool(self.numbers[place] == number)


def written_chunks(item: Any) -> WrittenChunks | None:
    """Returns which chunks were written, or None if all were or the dataset has no chunks.

    libhdf5 gives fill values for the others and says nothing, so a killed writer's file looks like zeros.
    """
    if item.chunks is None:
        return None
    with reading(label(item)):
        grid = math.prod(-(-size // chunk) for size, chunk in zip(item.shape, item.chunks, strict=True))
        return None if item.id.get_num_chunks() == grid else WrittenChunks(item)


class DatasetRows:
    """A dataset read by rows: those of its first axis."""

    def __init__(self, item: Any) -> None:
        """Raises DataError where its chunks are too large, or some of them were never written."""
        self.item, self.name, self.shape, self.dtype = item, label(item), item.shape, dtype_of(item)
        chunk = math.prod(item.chunks or ()) * self.dtype.itemsize
        if chunk > min(LARGE, max(LARGE_CHUNK, 2 * item.nbytes)):
            raise DataError(
                f"{self.name}: has chunks {item.chunks} of {chunk:,} bytes, far more than its {item.nbytes:,} bytes of values; "
                "write it with smaller ones"
            )
        if raw_offset(item) is None and written_chunks(item) is not None:
            raise DataError(f"{self.name}: some of its chunks were never written; was its writer stopped?")

    def rows(self, first: int, count: int) -> NDArray[Any]:
        """Returns rows first .. first + count, as stored. Raises DataError, StorageError."""
        with reading(self.name):
            return np.asarray(self.item[first : first + count])

    def finish(self) -> None:
        """Does nothing: what has checksums has them by rows."""


def read_array(item: Any) -> NDArray[Any]:
    """Returns a whole dataset, as stored. The caller has checked its size. Raises DataError if some was never written."""
    if raw_offset(item) is None and (written := written_chunks(item)) is not None:
        raise DataError(f"{label(item)}: only {len(written)} of its chunks were written; was its writer stopped?")
    with reading(label(item)):
        return np.asarray(item[()])


def container_checksum(take: Callable[[int, int], bytes], size: int, left_out: Iterable[Extent]) -> int:
    """Returns the CRC-32 of a file of `size` bytes without the extents. take(offset, count) gives bytes of it."""
    checksum = 0
    for offset, count in outside(left_out, size):
        checksum = zlib.crc32(take(offset, count), checksum)
    return checksum


def outside(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """Yields the rest of a file of `size` bytes, in pieces."""
    at = 0
    for extent in sorted([*extents, Extent(size, 0)]):
        for offset in range(at, extent.offset, PIECE):
            yield Extent(offset, min(extent.offset - offset, PIECE))
        at = max(at, extent.offset + extent.size)
