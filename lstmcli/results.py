"""What a run stores: laid out once with its space reserved, then filled by position, then published.

    .h5    outputs (N, T, D), lengths (N,), state/... (N, width), model/... in one file
    .npy   outputs alone; the states in an NPZ and the model in a model file next to it
    -      outputs as an NPY stream on standard output; the states in an NPZ if one is named

Only valid steps are written; the padding is zeros because nothing was ever written there.
"""

import errno
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lstmcli.model import Floats, Model
from lstmcli.model_file import FORMAT_VERSION, RESULT_FORMAT, model_image, write_model
from lstmcli.npy import write_header
from lstmcli.npz import Npz
from lstmcli.partial import Data, Partial, Stream

Arrays = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]  # shapes and dtypes by name


class Store(Protocol):
    """Where bytes go: Partial or Stream."""

    def reserve(self, size: int) -> None: ...
    def write(self, data: Data, offset: int) -> None: ...
    def publish(self) -> None: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


@dataclass(frozen=True)
class Field:
    """One array of a result: C order, `offset` bytes into its store."""

    store: Store
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def put(self, first: int, rows: NDArray[Any]) -> None:
        """Stores rows first, first + 1, ..."""
        rows = np.ascontiguousarray(rows, self.dtype)
        self.store.write(rows, self.offset + first * rows[:1].nbytes)

    def put_steps(self, first: int, start: int, lengths: NDArray[np.int64], rows: Floats) -> None:
        """Stores steps start .. start + lengths[s] of the sequences first, first + 1, ..., packed in rows (R, D)."""
        if not len(rows):
            return
        ends = np.cumsum(lengths)
        begins = ends - lengths
        # Where each sequence goes, in rows of the padded array; sequences without padding between them are one write.
        places = (first + np.arange(len(lengths))) * self.shape[1] + start
        breaks = np.flatnonzero(places[1:] != places[:-1] + lengths[:-1]) + 1
        for head, tail in zip([0, *breaks], [*breaks, len(lengths)], strict=True):
            if len(run := rows[begins[head] : ends[tail - 1]]):
                self.store.write(run, self.offset + int(places[head]) * run[0].nbytes)


@dataclass(frozen=True)
class Facts:
    """What a result says of its making. Nothing in it may depend on threads, memory, time or place: same run, same bytes."""

    model: Model
    lengths: NDArray[np.int64]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The fields by their names in a result, and the stores that hold them."""

    fields: dict[str, Field]
    stores: list[Store]

    def publish(self) -> None:
        """The outputs last: when they are there, all is."""
        for store in reversed(self.stores):
            store.publish()
        for store in self.stores:
            store.close()

    def discard(self) -> None:
        for store in self.stores:
            store.discard()


def create_result(
    path: Path | None, states_path: Path | None, model_path: Path | None, arrays: Arrays, facts: Facts, overwrite: bool
) -> Result:
    """Lays out a result, with all its space taken.

    path: OUT.h5, OUT.npy, or None for standard output. arrays: "outputs" and "state/..." of those that are stored.
    states_path, model_path: where states and model go if `path` is not HDF5; None: nowhere. OutputError, StorageError.
    """
    stores: list[Store] = []
    try:
        if path is not None and path.suffix != ".npy":
            return create_hdf5(path, arrays, facts, overwrite, stores)
        return create_npy(path, states_path, model_path, arrays, facts.model, overwrite, stores)
    except BaseException:
        for store in stores:
            store.discard()
        raise


def create_hdf5(path: Path, arrays: Arrays, facts: Facts, overwrite: bool, stores: list[Store]) -> Result:
    import h5py

    partial = Partial(path, overwrite)
    stores.append(partial)
    # libhdf5 writes the empty container into memory (a sparse file there), never to the disk: on a full disk it would crash.
    with in_memory() as image:
        with h5py.File(image, "w") as file:
            file.attrs["format"] = RESULT_FORMAT
            file.attrs["format_version"] = FORMAT_VERSION
            for name, value in facts.attributes.items():
                file.attrs[name] = json.dumps(value)
            write_model(file.create_group("model"), facts.model)
            offsets = {name: allocate(file, name, *array) for name, array in arrays.items()}
            offsets["lengths"] = allocate(file, "lengths", facts.lengths.shape, facts.lengths.dtype)
        size = image.seek(0, os.SEEK_END)
        partial.reserve(size)
        for offset, piece in written(image, size):
            partial.write(piece, offset)
    fields = {name: Field(partial, offsets[name], *array) for name, array in arrays.items()}
    Field(partial, offsets["lengths"], facts.lengths.shape, facts.lengths.dtype).put(0, facts.lengths)
    return Result(fields, stores)


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


def written(image: io.BufferedRandom, size: int) -> Iterator[tuple[int, bytes]]:
    """Offsets and bytes of a sparse file's pieces that are not holes."""
    end = 0
    while True:
        try:
            start = os.lseek(image.fileno(), end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = min(os.lseek(image.fileno(), start, os.SEEK_HOLE), size)
        for offset in range(start, end, 1 << 24):
            yield offset, os.pread(image.fileno(), min(end - offset, 1 << 24), offset)


def create_npy(
    path: Path | None,
    states_path: Path | None,
    model_path: Path | None,
    arrays: Arrays,
    model: Model,
    overwrite: bool,
    stores: list[Store],
) -> Result:
    outputs: Store = Stream() if path is None else Partial(path, overwrite)
    stores.append(outputs)
    shape, dtype = arrays["outputs"]
    header = write_header(shape, dtype)
    outputs.reserve(len(header) + math.prod(shape) * dtype.itemsize)
    outputs.write(header, 0)
    fields = {"outputs": Field(outputs, len(header), shape, dtype)}
    states = {name.removeprefix("state/"): array for name, array in arrays.items() if name != "outputs"}
    if states_path is not None:
        npz = Npz(states_path, states, overwrite)
        stores.append(npz)
        fields |= {f"state/{name}": Field(npz, npz.offsets[name], *array) for name, array in states.items()}
    if model_path is not None:
        stores.append(Partial(model_path, overwrite))
        image = model_image(model)
        stores[-1].reserve(len(image))
        stores[-1].write(image, 0)
    return Result(fields, stores)
