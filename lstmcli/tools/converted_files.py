"""The files that convert makes of an input: HDF5, NPY, NPZ, and tables of Arrow and Parquet. Each is filled span by span."""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths, Span, Valid, packed_starts
from lstmcli.errors import UsageError
from lstmcli.files.hdf5 import outside
from lstmcli.files.npy import write_header
from lstmcli.files.partial_file import Partial
from lstmcli.files.positioned_file import storing, write_at
from lstmcli.files.zip_writer import Npz
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.results.formats.fields import FLAT, PADDED, PER_SEQUENCE, Field
from lstmcli.results.formats.hdf5_result import allocate, hdf5_in, in_memory, unwritten, write_ids
from lstmcli.results.formats.per_sequence import allocate_each
from lstmcli.results.formats.result import Result, stored_shape

ARROW = ".parquet", ".arrow"
NAME = "sequences"  # of the array in a file that names its arrays
CHUNK_BYTES = 1 << 20  # that are compressed at a time


class Target(NamedTuple):
    """What is to be written."""

    path: Path
    layout: str  # one of LAYOUTS
    shape: tuple[int, int, int]  # (N, T, E)
    dtype: np.dtype[Any]
    lengths: Lengths
    ids: Sequence[str] | None
    overwrite: bool
    token_ids: bool  # E is 1, and no axis of what is stored

    @property
    def valid(self) -> Valid:
        """Padding stands behind each sequence."""
        return Valid(np.zeros_like(self.lengths), self.lengths)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (*stored_shape(self.shape, self.layout, int(self.lengths.sum()))[:-1], *self.step_shape)

    @property
    def step_shape(self) -> tuple[int, ...]:
        return () if self.token_ids else self.shape[2:]

    @property
    def row_bytes(self) -> int:
        return self.shape[2] * self.dtype.itemsize

    def beside(self) -> dict[str, Lengths]:
        """Returns what says where sequences end: lengths, or offsets of a flat array."""
        if self.layout == PADDED:
            return {"lengths": self.lengths}
        return {"offsets": np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])} if self.layout == FLAT else {}

    def field(self, store: Partial, offset: int, begins: Lengths | None = None) -> Field:
        """Returns the array that lies at an offset, or whose sequences begin where `begins` says."""
        if self.layout == FLAT:
            begins = offset + packed_starts(self.lengths) * self.row_bytes
        return Field(store, offset, self.shape, self.dtype, begins)


class PlainHdf5(Result):
    """HDF5: the array `sequences`, with lengths or offsets and ids beside it, or a group of datasets."""

    def __init__(self, target: Target) -> None:
        self.partial = Partial(target.path, target.overwrite)
        try:
            with storing(target.path), in_memory() as image:
                with hdf5_in(image) as file:
                    begins, offset = None, 0
                    if target.layout == PER_SEQUENCE:
                        assert target.ids is not None
                        begins = allocate_each(
                            file, NAME, target.ids, target.lengths, target.step_shape, target.dtype, unwritten()
                        )
                    else:
                        offset = allocate(file, NAME, target.stored_shape, target.dtype)
                    write_beside(file, target)
                field = target.field(self.partial, offset, begins)
                size = image.seek(0, 2)
                self.partial.reserve(size)
                self.pieces = []
                for at, count in outside(field.extents(target.lengths), size):
                    image.seek(at)
                    self.pieces.append((at, image.read(count)))
        except BaseException:
            self.partial.discard()
            raise
        super().__init__([self.partial], {NAME: field}, {}, target.valid, checked=False)

    def seal(self, nonfinite: Nonfinite | None) -> None:
        for at, piece in self.pieces:
            self.partial.write(piece, at)
        super().seal(nonfinite)


def write_beside(file: Any, target: Target) -> None:
    for name, values in target.beside().items():
        file[name] = values
    if target.ids is not None:
        write_ids(file, target.ids)


class UnfailingFile:
    """What libhdf5 writes into, by the descriptor of a file. Where a write fails libhdf5 may crash when it closes the file, so
    it never hears of that: the failure is kept for raise_failure(), and what is written after it is lost."""

    def __init__(self, fd: int) -> None:
        self.fd, self.at = fd, 0
        self.failure: OSError | None = None

    def raise_failure(self) -> None:
        if self.failure:
            raise self.failure

    def read(self, size: int = -1) -> bytes:  # h5py asks whether there is one
        raise NotImplementedError

    def readinto(self, view: memoryview) -> int:
        count = os.preadv(self.fd, [view], self.at)
        self.at += count
        return count

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._attempt(lambda: write_at(self.fd, view, self.at))
        self.at += len(view)
        return len(view)

    def truncate(self, size: int) -> None:
        self._attempt(lambda: os.ftruncate(self.fd, size))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: os.fstat(self.fd).st_size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def flush(self) -> None:
        """All is written already."""

    def _attempt(self, work: Callable[[], object]) -> None:
        if not self.failure:
            try:
                work()
            except OSError as error:
                self.failure = error


class CompressedHdf5(Result):
    """HDF5 in chunks, compressed with gzip."""

    def __init__(self, target: Target) -> None:
        import h5py

        self.target = target
        self.begins = packed_starts(target.lengths)
        self.partial = Partial(target.path, target.overwrite)
        try:
            self.stored = UnfailingFile(self.partial.fd)
            with self.storing():
                self.file = h5py.File(self.stored, "w", rdcc_nbytes=16 * CHUNK_BYTES)
                if target.layout == PER_SEQUENCE:
                    assert target.ids is not None
                    self.file.create_group(NAME)
                    for name, length in zip(target.ids, target.lengths.tolist(), strict=True):
                        self.make(f"{NAME}/{name}", (length, *target.step_shape))
                else:
                    self.make(NAME, target.stored_shape)
                write_beside(self.file, target)
        except BaseException:
            self.partial.discard()
            raise
        super().__init__([self.partial], {}, {}, target.valid, checked=False)

    def make(self, name: str, shape: tuple[int, ...]) -> None:
        how: dict[str, Any] = {}
        if math.prod(shape):
            *before, steps = shape[: len(shape) - len(self.target.step_shape)]  # before: the sequences, where they are padded
            rows = max(1, min(steps, CHUNK_BYTES // self.target.row_bytes))
            how = {
                "chunks": (*(1 for _ in before), rows, *self.target.step_shape),
                "compression": "gzip",
                "shuffle": True,
            }
        self.file.create_dataset(name, shape, self.target.dtype, **how)

    def put(self, span: Span, arrays: dict[str, NDArray[Any]]) -> int:
        target = self.target
        rows = arrays[NAME].astype(target.dtype, copy=False).reshape(-1, *target.step_shape)
        if not len(rows):
            return 0
        with self.storing():
            if target.layout == FLAT:
                at = int(self.begins[span.first]) + span.start
                self.file[NAME][at : at + len(rows)] = rows
                return 0
            ends = np.cumsum(span.lengths(target.lengths)).tolist()
            for row, (begin, end) in enumerate(itertools.pairwise([0, *ends]), span.first):
                where = slice(span.start, span.start + end - begin)
                if end > begin and target.layout == PADDED:
                    self.file[NAME][row, where] = rows[begin:end]
                elif end > begin:
                    assert target.ids is not None
                    self.file[f"{NAME}/{target.ids[row]}"][where] = rows[begin:end]
        return 0

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Raises StorageError where the file cannot be written."""
        with storing(self.target.path):
            yield
            self.stored.raise_failure()

    def seal(self, nonfinite: Nonfinite | None) -> None:
        with self.storing():
            self.file.close()
        super().seal(nonfinite)

    def discard(self) -> None:
        self.file.close()
        super().discard()


class NpyArrays(Result):
    """The array in an NPY file, and its lengths or offsets in another one: NAME.lengths.npy, NAME.offsets.npy."""

    def __init__(self, target: Target) -> None:
        if target.layout == PER_SEQUENCE:
            raise UsageError("--layout per-sequence: an NPY file holds one array; use a name that ends in .npz or .h5")
        header = write_header(target.stored_shape, target.dtype)
        (name, values), *_ = target.beside().items()
        main = Partial(target.path, target.overwrite)
        try:
            beside = Partial(target.path.with_suffix(f".{name}.npy"), target.overwrite)
        except BaseException:
            main.discard()
            raise
        super().__init__([beside, main], {NAME: target.field(main, len(header))}, {}, target.valid, checked=False)
        try:
            main.reserve(len(header) + math.prod(target.stored_shape) * target.dtype.itemsize)
            main.write(header, 0)
            own = write_header(values.shape, values.dtype)
            beside.reserve(len(own) + values.nbytes)
            beside.write(own, 0)
            beside.write(values, len(own))
        except BaseException:
            self.discard()
            raise


class NpzArrays(Result):
    """The array with its lengths or offsets and its ids, or an array for each sequence."""

    def __init__(self, target: Target) -> None:
        others: dict[str, NDArray[Any]] = dict(target.beside())
        if target.layout == PER_SEQUENCE:
            assert target.ids is not None
            arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
                name: ((length, *target.step_shape), target.dtype)
                for name, length in zip(target.ids, target.lengths.tolist(), strict=True)
            }
        else:
            arrays = {NAME: (target.stored_shape, target.dtype)}
            if target.ids is not None:
                others["ids"] = np.array(target.ids, np.str_)
        npz = Npz(target.path, arrays | {name: (v.shape, v.dtype) for name, v in others.items()}, target.overwrite)
        try:
            npz.reserve(npz.size)
            for name, values in others.items():
                npz.write(values.tobytes(), npz.offsets[name])
        except BaseException:
            npz.discard()
            raise
        begins = None
        if target.layout == PER_SEQUENCE:
            begins = np.array([npz.offsets[name] for name in arrays], np.int64)
        field = target.field(npz, npz.offsets.get(NAME, 0), begins)
        super().__init__([npz], {NAME: field}, {}, target.valid, checked=False)


class ArrowTable(Result):
    """A row for each sequence: its id, and its steps as a list of lists of E numbers, or of token ids. Sequences come whole."""

    def __init__(self, target: Target) -> None:
        from lstmcli.results.formats.parquet import Appended, check_installed

        check_installed(str(target.path), "a name that ends in .npz or .h5")
        import pyarrow as pa
        from pyarrow import ipc, parquet

        self.target = target
        number = pa.from_numpy_dtype(target.dtype)
        self.steps = number if target.token_ids else pa.list_(number, target.shape[2])
        self.schema = pa.schema([("id", pa.string()), (NAME, pa.list_(self.steps))])
        self.partial = Partial(target.path, target.overwrite)
        try:
            file = Appended(self.partial)
            if target.path.suffix == ".parquet":
                self.writer = parquet.ParquetWriter(file, self.schema, use_dictionary=False)
            else:
                self.writer = ipc.new_file(pa.PythonFile(file, mode="w"), self.schema)
        except BaseException:
            self.partial.discard()
            raise
        super().__init__([self.partial], {}, {}, target.valid, checked=False)

    def put(self, span: Span, arrays: dict[str, NDArray[Any]]) -> int:
        import pyarrow as pa

        from lstmcli.results.formats.parquet import arrow_numbers, arrow_texts

        assert self.target.ids is not None
        rows = arrays[NAME].astype(self.target.dtype, copy=False)
        ends = np.cumsum(span.lengths(self.target.lengths))
        offsets = arrow_numbers(np.concatenate([[0], ends]).astype(np.int32))
        steps = arrow_numbers(rows)
        if not self.target.token_ids:
            steps = pa.FixedSizeListArray.from_arrays(steps, type=self.steps)
        ids = arrow_texts(self.target.ids[span.first : span.first + span.count])
        self.writer.write_batch(pa.record_batch([ids, pa.ListArray.from_arrays(offsets, steps)], schema=self.schema))
        return 0

    def seal(self, nonfinite: Nonfinite | None) -> None:
        self.writer.close()
        super().seal(nonfinite)
