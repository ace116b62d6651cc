"""A result in one HDF5 file: outputs (N, T, D), lengths (N,), state/... (N, D), model/..., checksums/... and attributes.

starts (N,) is there where valid steps do not begin at 0, and ids (N,), strings, where the input says them. In the flat layout
outputs are (R, D), R steps in all, and offsets (N + 1,) say where each sequence begins and the last one ends. In the layout
per-sequence outputs are a group with a dataset (length, D) for each sequence, named by its id.

What makes it a file that can be opened, the container, is written last, so that nobody takes a part for the whole.

checksums/NAME (N,) uint32 is the CRC-32 of the bytes of each row of NAME: of its valid steps where NAME has steps.
checksums/container (1,) uint32 is the CRC-32 of all other bytes of the file, this number left out.
"""

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lstmcli.blocks import Lengths
from lstmcli.files.hdf5 import CHECKSUMS, CONTAINER, Extent, container_checksum, outside
from lstmcli.files.partial_file import Partial
from lstmcli.files.positioned_file import storing
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.model.model_file import RESULT_FORMAT, RESULT_VERSION, write_model
from lstmcli.model.tree import Model, as_chain
from lstmcli.results.formats.fields import FLAT, PER_SEQUENCE, Arrays, Field
from lstmcli.results.formats.result import Metadata, Result

CHECKSUM = np.dtype(np.uint32)
Place = tuple[int, Lengths | None]  # of an array in the file: Field.offset and Field.begins
ROWS = 1 << 20  # of lengths and the like that are stored at a time
KEPT = 1 << 20  # bytes of a file whose container is kept till its end: to make it again takes 2 % of a short run


class Hdf5Result(Result):
    """A result in an HDF5 file, laid out with all its space taken."""

    def __init__(self, path: Path, arrays: Arrays, metadata: Metadata, overwrite: bool, resume: bool) -> None:
        """resume: keeps what an earlier run has stored. Raises OutputError or StorageError."""
        self.path, self.arrays, self.metadata = path, arrays, metadata
        self.partial = Partial(path, overwrite, resume)
        try:
            with storing(path), container(arrays, metadata) as (image, self.size, places):
                self.partial.reserve(self.size)
                rows = metadata.valid.lengths.shape

                def field(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Field:
                    offset, begins = places[name]
                    return Field(self.partial, offset, shape, dtype, begins)

                sums = {name: field(f"{CHECKSUMS}/{name}", rows, CHECKSUM) for name in arrays}
                fields = {name: field(name, *array) for name, array in arrays.items()}
                self.own_checksum = field(CONTAINER, (1,), CHECKSUM)
                self.valid_steps = {name: field(name, v.shape, v.dtype) for name, v in stored_steps(metadata).items()}
                super().__init__([self.partial], fields, sums, metadata.placed)
                self.kept = list(self.pieces(image)) if self.size < KEPT else None
        except BaseException:
            self.partial.close() if resume else self.partial.discard()
            raise

    def pieces(self, image: io.BufferedRandom) -> Iterator[tuple[bytes, int]]:
        """Yields all bytes of a container but the values of its arrays, and where they go."""
        arrays = (self.own_checksum, *self.valid_steps.values(), *self.fields.values(), *self.checksums.values())
        for offset, count in outside(self.extents(arrays), self.size):
            image.seek(offset)
            yield image.read(count), offset

    def extents(self, fields: Iterable[Field]) -> list[Extent]:
        return [extent for field in fields for extent in field.extents(self.valid.lengths)]

    def seal(self, nonfinite: Nonfinite | None) -> None:
        metadata = self.metadata._replace(nonfinite=nonfinite)
        with storing(self.path):
            if self.kept and nonfinite == self.metadata.nonfinite:
                for piece, offset in self.kept:
                    self.partial.write(piece, offset)
            else:
                with container(self.arrays, metadata) as (image, _, _):
                    for piece, offset in self.pieces(image):
                        self.partial.write(piece, offset)
        for name, values in stored_steps(metadata).items():
            for first in range(0, len(values), ROWS):
                self.valid_steps[name].put_rows(first, values[first : first + ROWS])
        summed_elsewhere = self.extents((*self.fields.values(), self.own_checksum))
        checksum = container_checksum(self.partial.take, self.size, summed_elsewhere)
        self.own_checksum.put_rows(0, np.array([checksum], np.uint32))
        super().seal(nonfinite)


def stored_steps(metadata: Metadata) -> dict[str, Any]:
    """Returns what a result holds of the valid steps: the starts only where padding does not stand behind all sequences."""
    starts, lengths = metadata.valid
    found: dict[str, Any] = {"lengths": lengths} | ({"starts": starts} if starts.any() else {})
    if metadata.windows:
        found |= {"series": metadata.windows.series, "first_step": metadata.windows.first_steps}
    if metadata.layout == FLAT:
        found["offsets"] = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return found


@contextmanager
def container(arrays: Arrays, metadata: Metadata) -> Iterator[tuple[io.BufferedRandom, int, dict[str, Place]]]:
    """Makes a result without the values of its arrays. Yields the file, its size, and the places of the values by name."""
    # libhdf5 writes it into memory (a sparse file there), never to the disk: on a full disk it would crash.
    with in_memory() as image:
        with hdf5_in(image) as file:
            write_metadata(file, metadata)
            rows = metadata.valid.lengths.shape
            others: Arrays = {name: (values.shape, values.dtype) for name, values in stored_steps(metadata).items()}
            others |= {CONTAINER: ((1,), CHECKSUM)}
            others |= {f"{CHECKSUMS}/{name}": (rows, CHECKSUM) for name in arrays}
            places = {name: place(file, name, array, metadata) for name, array in arrays.items()}
            places |= {name: (allocate(file, name, *array), None) for name, array in others.items()}
        yield image, image.seek(0, os.SEEK_END), places


def place(file: Any, name: str, array: tuple[tuple[int, ...], np.dtype[Any]], metadata: Metadata) -> Place:
    """Makes room for an array in the layout of the result."""
    shape, dtype = array
    if metadata.layout == PER_SEQUENCE and len(shape) == 3:
        from lstmcli.results.formats.per_sequence import allocate_each

        assert metadata.ids is not None
        return 0, allocate_each(file, name, metadata.ids, metadata.valid.lengths, shape[2:], dtype, unwritten())
    offset = allocate(file, name, metadata.stored_shape(shape), dtype)
    return offset, metadata.flat_begins(offset, shape, dtype)


def write_metadata(file: Any, metadata: Metadata) -> None:
    """Writes attributes and model into an empty h5py.File; the valid steps are among its arrays."""
    file.attrs["format"] = RESULT_FORMAT
    file.attrs["format_version"] = RESULT_VERSION
    for name, value in metadata.attributes.items():
        file.attrs[name] = json.dumps(value)
    if (found := metadata.nonfinite) is not None:
        file.attrs["nonfinite_steps"] = np.int64(found.steps)
        file.attrs["nonfinite_first"] = np.array([found.row, found.step], np.int64)
    if metadata.ids is not None:
        write_ids(file, metadata.ids)
    if metadata.windows and metadata.windows.series_ids is not None:
        write_ids(file, metadata.windows.series_ids, "series_ids")
    group = file.create_group("model")
    if chain := as_chain(metadata.model):
        from lstmcli.model.chain_file import write_chain

        write_chain(group, chain)
    else:
        assert isinstance(metadata.model, Model)
        write_model(group, metadata.model)


def write_ids(file: Any, ids: Sequence[str], name: str = "ids") -> None:
    """Writes the ids of all sequences, or of series, as variable-length strings in UTF-8."""
    import h5py

    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)  # the same run gives the same bytes
    file.create_dataset(name, data=np.array(ids, object), dtype=h5py.string_dtype(), dcpl=properties)


def allocate(file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Makes a contiguous dataset whose values libhdf5 never writes. Returns its offset in the file."""
    dataset = file.create_dataset(name, shape, dtype, dcpl=unwritten())
    return dataset.id.get_offset() or 0  # None where the shape has a zero


def unwritten() -> Any:
    """Returns how a contiguous dataset is made whose values libhdf5 never writes, and that says no time."""
    import h5py

    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # the same run gives the same bytes
    return properties


def in_memory() -> io.BufferedRandom:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("lstmcli", os.MFD_CLOEXEC), "w+b")
    import tempfile  # its own imports take a millisecond, and Linux does without

    return tempfile.TemporaryFile()


@contextmanager
def hdf5_in(image: io.BufferedRandom) -> Iterator[Any]:
    """Yields an h5py.File that is written into `image`. Raises OSError where the system refuses that."""
    import h5py

    try:
        with h5py.File(image, "w") as file:
            yield file
    except SystemError as error:
        # On Python 3.13: libhdf5 goes on and calls h5py again, where the error of the first call is still set.
        found: BaseException | None = error
        while found and not isinstance(found, OSError):
            found = found.__cause__ or found.__context__
        raise found or error from None
