"""What a run stores: laid out once with its space reserved, then filled by position, sealed, published.

    .h5    outputs (N, T, D), lengths (N,), state/... (N, width), model/..., checksums/... in one file
    .npy   outputs alone; the states in an NPZ and the model in a model file next to it
    -      outputs as an NPY stream on standard output; the states in an NPZ if one is named

Only valid steps are written; the padding is zeros because nothing was ever written there. What makes a file one that can be
opened (the HDF5 container, the header of an NPY file) is written last, so that nobody takes a part for the whole.

checksums/NAME (N,) uint32 is the CRC-32 of the bytes of each row of NAME: of its valid steps where NAME has steps.
checksums/container (1,) uint32 is the CRC-32 of all other bytes of the file, this number left out.
"""

import io
import itertools
import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths, Span, Valid
from lstmcli.files.npy import write_header
from lstmcli.files.partial_file import Partial
from lstmcli.files.positioned_file import Data, as_bytes, storing
from lstmcli.files.standard_output import StandardOutput
from lstmcli.files.zip_writer import Npz
from lstmcli.model.model_file import RESULT_FORMAT, RESULT_VERSION, model_image, write_model
from lstmcli.model.tree import Model
from lstmcli.results.paths import Paths
from lstmcli.results.row_checksums import crc32_rows

CACHE = 1 << 19  # bytes
CHECKSUMS = "checksums"
CONTAINER = f"{CHECKSUMS}/container"

Sums = NDArray[np.uint32]
Arrays = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]  # shapes and dtypes by name


class Store(Protocol):
    """Where bytes go: Partial or StandardOutput."""

    def reserve(self, size: int) -> None: ...
    def write(self, data: Data, offset: int) -> None: ...
    def start_sync(self) -> None: ...
    def sync(self) -> None: ...
    def seal(self) -> None: ...
    def publish(self) -> None: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


class Extent(NamedTuple):
    """Bytes of a file."""

    offset: int
    size: int


class Field(NamedTuple):
    """One array of a result: C order, `offset` bytes into its store. Steps are those of arrays (N, T, D), the rest has rows."""

    store: Store
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def extent(self) -> Extent:
        return Extent(self.offset, math.prod(self.shape) * self.dtype.itemsize)

    @property
    def has_steps(self) -> bool:
        return len(self.shape) == 3

    def groups(self, lengths: Lengths) -> Iterator[slice]:
        """Consecutive sequences with about as many bytes as a cache holds."""
        if not len(lengths):
            return
        width = max(1, self.shape[-1] * self.dtype.itemsize)
        sizes = np.cumsum(lengths if self.has_steps else np.ones(len(lengths), np.int64)) * width
        cuts = np.searchsorted(sizes, np.arange(CACHE, sizes[-1], CACHE)) + 1
        # np.unique() would load numpy.ma, which takes longer than a small run.
        yield from itertools.starmap(slice, itertools.pairwise(sorted({0, *cuts.tolist(), len(lengths)})))

    def put(self, first: int, valid: Valid, rows: NDArray[Any]) -> None:
        """Stores the valid steps of the sequences first, first + 1, ..., packed in rows (R, D).

        Where the field has no steps, rows (n, width) are those of the sequences.
        """
        if not self.has_steps:
            self.put_rows(first, rows)
            return
        view = as_bytes(rows)
        for offset, begin, end in self._runs(first, valid):
            self.store.write(view[begin:end], offset)

    def put_rows(self, first: int, rows: NDArray[Any]) -> None:
        rows = np.ascontiguousarray(rows, self.dtype)
        self.store.write(rows, self.offset + first * rows[:1].nbytes)

    def get(self, first: int, valid: Valid) -> NDArray[Any]:
        """Returns what put() has stored."""
        if not self.has_steps:
            rows = np.empty((len(valid.lengths), *self.shape[1:]), self.dtype)
            self._fetch(as_bytes(rows), self.offset + first * rows[:1].nbytes)
            return rows
        rows = np.empty((int(valid.lengths.sum()), self.shape[2]), self.dtype)
        view = as_bytes(rows)
        for offset, begin, end in self._runs(first, valid):
            self._fetch(view[begin:end], offset)
        return rows

    def _fetch(self, view: memoryview, offset: int) -> None:
        assert isinstance(self.store, Partial)
        view[:] = self.store.take(offset, len(view))

    def _runs(self, first: int, valid: Valid) -> Iterator[tuple[int, int, int]]:
        """Gives (offset in the store, begin, end in the packed bytes) of each run of sequences without padding between them."""
        starts, lengths = valid
        width = self.shape[2] * self.dtype.itemsize
        used = np.flatnonzero(lengths)
        if not len(used) or not width:
            return
        ends = np.cumsum(lengths)[used]
        begins = ends - lengths[used]
        places = (first + used) * self.shape[1] + starts[used]  # in rows of the padded array
        cuts = np.flatnonzero(places[1:] != places[:-1] + lengths[used[:-1]]) + 1
        heads, tails = np.r_[0, cuts], np.r_[cuts, len(used)] - 1
        yield from zip(
            (self.offset + places[heads] * width).tolist(),
            (begins[heads] * width).tolist(),
            (ends[tails] * width).tolist(),
            strict=True,
        )


class Facts(NamedTuple):
    """What a result says of its making. Nothing in it may depend on threads, memory, time or place: same run, same bytes."""

    model: Model
    valid: Valid
    attributes: dict[str, Any]


@dataclass(eq=False, repr=False)
class Result:
    """The fields by their names in a result, and the stores that hold them."""

    fields: dict[str, Field]
    stores: list[Store]
    finish: Callable[[Facts], None]  # writes what makes the stores files
    checked: bool  # whether anybody will ask for the checksums
    sums: dict[str, Field]  # where the checksums of the fields go
    running: dict[str, Sums]  # those of the sequences of the last span

    def put(self, span: Span, valid: Valid, arrays: dict[str, NDArray[Any]]) -> int:
        """Stores a span and returns its checksum; called in the order of the spans.

        valid: the steps of all sequences. arrays: packed steps (R, D) of the fields that have steps, and rows (count, width),
        which are final when the span is the last of its sequences, of the others. Those that the result does not hold are
        left out.
        """
        valid = span.valid(valid)
        packed = np.r_[0, np.cumsum(valid.lengths)]
        self._begin(span)
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as writer:  # a group is summed while the one before is written
            for name, field in self._fields_of(span):
                for group in field.groups(valid.lengths):
                    # Right before it is written, so that it comes from memory once.
                    part = arrays[name][packed[group.start] : packed[group.stop]] if field.has_steps else arrays[name][group]
                    places = valid.part(group.start, group.stop)
                    self._sum(name, field, part, places.lengths, group)
                    if writing:
                        writing.result()
                    writing = writer.submit(field.put, span.first + group.start, places, part)
        if writing:
            writing.result()
        return self._end(span)

    def check(self, span: Span, valid: Valid) -> int:
        """Returns the checksum of a stored span from what is in the file; called in the order of the spans."""
        valid = span.valid(valid)
        self._begin(span)
        for name, field in self._fields_of(span):
            for group in field.groups(valid.lengths):
                places = valid.part(group.start, group.stop)
                part = field.get(span.first + group.start, places)
                self._sum(name, field, part, places.lengths, group)
        return self._end(span)

    def _begin(self, span: Span) -> None:
        if span.start == 0:
            self.running = {name: np.zeros(span.count, np.uint32) for name in self.fields}

    def _fields_of(self, span: Span) -> list[tuple[str, Field]]:
        return [(name, field) for name, field in self.fields.items() if field.has_steps or span.last]

    def _sum(self, name: str, field: Field, rows: NDArray[Any], lengths: Lengths, group: slice) -> None:
        if self.checked:
            ends = np.cumsum(lengths) if field.has_steps else np.arange(1, len(lengths) + 1)
            crc32_rows(rows, ends, self.running[name][group])

    def _end(self, span: Span) -> int:
        whole = 0
        for name, sums in self.running.items():
            if span.last and name in self.sums:
                self.sums[name].put_rows(span.first, sums)
            whole = zlib.crc32(as_bytes(sums), whole)
        return whole

    def start_sync(self) -> None:
        for store in self.stores:
            store.start_sync()

    def sync(self) -> None:
        for store in self.stores:
            store.sync()

    def seal(self, facts: Facts) -> None:
        """All is on disk, and every file is one."""
        self.finish(facts)
        for store in self.stores:
            store.seal()

    def publish(self) -> None:
        """The outputs last: when they are there, all is."""
        for store in reversed(self.stores):
            store.publish()

    def close(self) -> None:
        for store in self.stores:
            store.close()

    def discard(self) -> None:
        for store in self.stores:
            store.discard()


def create_result(paths: Paths, arrays: Arrays, facts: Facts, overwrite: bool, resume: bool = False) -> Result:
    """Lays out a result, with all its space taken.

    arrays: "outputs" and "state/..." of those that are stored. facts: with the attributes of which seal() knows the values.
    resume: keeps what an earlier run has stored of it. OutputError, StorageError.
    """
    stores: list[Store] = []
    try:
        if paths.main is not None and paths.main.suffix != ".npy":
            return create_hdf5(paths.main, arrays, facts, overwrite, resume, stores)
        return create_npy(paths, arrays, facts.model, overwrite, resume, stores)
    except BaseException:
        for store in stores:
            store.close() if resume else store.discard()
        raise


def create_hdf5(path: Path, arrays: Arrays, facts: Facts, overwrite: bool, resume: bool, stores: list[Store]) -> Result:
    partial = Partial(path, overwrite, resume)
    stores.append(partial)
    with storing(path), container(arrays, facts) as (_, size, offsets):
        partial.reserve(size)
    fields = {name: Field(partial, offsets[name], *array) for name, array in arrays.items()}
    rows = facts.valid.lengths.shape
    sums = {name: Field(partial, offsets[f"{CHECKSUMS}/{name}"], rows, np.dtype(np.uint32)) for name in arrays}

    kept = [field.extent() for field in fields.values()]
    own = Field(partial, offsets[CONTAINER], (1,), np.dtype(np.uint32))
    steps = {name: Field(partial, offsets[name], rows, values.dtype) for name, values in stored_steps(facts.valid).items()}

    def finish(facts: Facts) -> None:
        with storing(path), container(arrays, facts) as (image, _, _):
            for offset, count in outside(
                [field.extent() for field in (own, *steps.values(), *fields.values(), *sums.values())], size
            ):
                image.seek(offset)
                partial.write(image.read(count), offset)
        for name, values in stored_steps(facts.valid).items():
            steps[name].put_rows(0, values)
        own.put_rows(0, np.array([container_checksum(partial.take, size, [*kept, own.extent()])], np.uint32))

    return Result(fields, stores, finish, True, sums, {})


def stored_steps(valid: Valid) -> dict[str, Lengths]:
    """Returns what a result holds of the valid steps: the starts only where padding does not stand behind all sequences."""
    return {"lengths": valid.lengths} | ({"starts": valid.starts} if valid.starts.any() else {})


@contextmanager
def container(arrays: Arrays, facts: Facts) -> Iterator[tuple[io.BufferedRandom, int, dict[str, int]]]:
    """A result without the values of its arrays, its size, and where the values go."""
    import h5py

    # libhdf5 writes it into memory (a sparse file there), never to the disk: on a full disk it would crash.
    with in_memory() as image:
        with h5py.File(image, "w") as file:
            write_facts(file, facts)
            rows = facts.valid.lengths.shape
            all_arrays = arrays | {name: (rows, values.dtype) for name, values in stored_steps(facts.valid).items()}
            all_arrays |= {CONTAINER: ((1,), np.dtype(np.uint32))}
            all_arrays |= {f"{CHECKSUMS}/{name}": (rows, np.dtype(np.uint32)) for name in arrays}
            offsets = {name: allocate(file, name, *array) for name, array in all_arrays.items()}
        yield image, image.seek(0, os.SEEK_END), offsets


def write_facts(file: Any, facts: Facts) -> None:
    """What a result says of itself, into an empty h5py.File; the lengths are one of its arrays."""
    file.attrs["format"] = RESULT_FORMAT
    file.attrs["format_version"] = RESULT_VERSION
    for name, value in facts.attributes.items():
        file.attrs[name] = value if isinstance(value, np.ndarray | np.integer) else json.dumps(value)
    write_model(file.create_group("model"), facts.model)


def container_checksum(take: Callable[[int, int], bytes], size: int, left_out: Iterable[Extent]) -> int:
    """CRC-32 of a file of `size` bytes without the extents. take(offset, count) gives bytes of it."""
    checksum = 0
    for offset, count in outside(left_out, size):
        checksum = zlib.crc32(take(offset, count), checksum)
    return checksum


def outside(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """The rest of a file of `size` bytes, in pieces of at most 4 MiB."""
    at = 0
    for extent in sorted([*extents, Extent(size, 0)]):
        for offset in range(at, extent.offset, 1 << 22):
            yield Extent(offset, min(extent.offset - offset, 1 << 22))
        at = max(at, extent.offset + extent.size)


def allocate(file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Makes a contiguous dataset whose values are never written by libhdf5; its offset in the file."""
    import h5py

    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # the same run gives the same bytes
    dataset = file.create_dataset(name, shape, dtype, dcpl=properties)
    return dataset.id.get_offset() or 0  # None where the shape has a zero


def in_memory() -> io.BufferedRandom:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("lstmcli", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def create_npy(paths: Paths, arrays: Arrays, model: Model, overwrite: bool, resume: bool, stores: list[Store]) -> Result:
    outputs: Store = StandardOutput() if paths.main is None else Partial(paths.main, overwrite, resume)
    stores.append(outputs)
    shape, dtype = arrays["outputs"]
    header = write_header(shape, dtype)
    outputs.reserve(len(header) + math.prod(shape) * dtype.itemsize)
    if paths.main is None:
        outputs.write(header, 0)
    fields = {"outputs": Field(outputs, len(header), shape, dtype)}
    states = {name.removeprefix("state/"): array for name, array in arrays.items() if name != "outputs"}
    if paths.states is not None:
        npz = Npz(paths.states, states, overwrite, resume)
        stores.append(npz)
        npz.reserve(npz.size)
        fields |= {f"state/{name}": Field(npz, npz.offsets[name], *array) for name, array in states.items()}
    if paths.model is not None:
        stores.append(Partial(paths.model, overwrite, resume))
        image = model_image(model)
        stores[-1].reserve(len(image))
        stores[-1].write(image, 0)

    def finish(facts: Facts) -> None:
        if paths.main is not None:
            outputs.write(header, 0)

    return Result(fields, stores, finish, paths.main is not None, {}, {})
