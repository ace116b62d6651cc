"""Sequences as some rows each of one array (R, E): from begins[s] on, as many as the length of s."""

from contextlib import ExitStack
from typing import Any

import numpy as np

from lstmcli.blocks import Lengths, packed_starts
from lstmcli.errors import DataError, UsageError
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import FileKind, open_by_kind, split_spec
from lstmcli.files.npy import NpyArray
from lstmcli.inputs.beside.ids import ids_in, ids_in_npz
from lstmcli.inputs.source import Rows, Source, StoredArray
from lstmcli.inputs.valid_steps import IDS, LENGTH_COLUMNS, Table, TextNumbers, likely_array, likely_name

TEXT_LIMIT = 64 << 20  # bytes of offsets or lengths in a text
SUMMED = 1 << 14  # numbers below 2^48 whose sum fits an int64


class FlatSequences(Source):
    """Sequences of a flat array, whose rows are read through a source of its own.

    That source has a row as a sequence of E steps of one feature, (R, E, 1), so that any run of rows lies together in it.
    """

    def __init__(self, rows: Source, begins: Lengths, lengths: Lengths, origin: str, files: ExitStack) -> None:
        """origin: where the lengths come from. Raises DataError."""
        count, width, _ = rows.shape
        steps = int(lengths.max(initial=0))
        array = StoredArray(rows.data, rows.name, (len(lengths), steps, width), rows.dtype, dataset=rows.dataset)
        array = array._replace(token_ids=rows.token_ids, archive=rows.archive)
        super().__init__(array, files, count * width * rows.dtype.itemsize + 8 * len(lengths))
        self.flat, self.begins, self.lengths, self.lengths_origin = rows, begins, lengths, origin

    @property
    def decoded_at_once(self) -> int:
        return self.flat.decoded_at_once

    def identity(self) -> dict[str, Any]:
        import hashlib  # takes 5 ms, and who looks at a result needs none

        begins = hashlib.sha256(self.begins.tobytes()).hexdigest()[:16]
        return self.flat.identity() | {"begins": begins}

    def _read(self, first: int, starts: Lengths, lengths: Lengths, rows: Rows) -> None:
        width = self.shape[2]
        used = np.flatnonzero(lengths)
        begins = self.begins[first + used] + starts[used]
        counts = lengths[used]
        places = packed_starts(counts)
        cuts = np.flatnonzero(begins[1:] != begins[:-1] + counts[:-1]) + 1  # sequences that lie together come as one run
        heads, tails = np.r_[0, cuts], np.r_[cuts, len(used)] - 1
        for head, tail in zip(heads.tolist(), tails.tolist(), strict=True):
            at, count = int(places[head]), int(places[tail] + counts[tail] - places[head])
            whole = np.full(count, width)
            self.flat._read(int(begins[head]), 0 * whole, whole, rows[at : at + count].reshape(-1, 1))

    def finish(self) -> None:
        self.flat.finish()


def from_lengths(lengths: Lengths, shape: tuple[int, ...], name: str, where: str) -> Lengths:
    """Returns where each sequence begins, one after the other. Raises DataError unless the lengths add up to the rows."""
    total = sum(int(part.sum()) for part in np.array_split(lengths, len(lengths) // SUMMED + 1))
    if total != shape[0]:
        raise DataError(
            f"{where}: expected shape (sequences, steps, features), or (rows, features) with lengths that add up to the rows, "
            f"got {shape}; the lengths of {name} add up to {total}"
        )
    return packed_starts(lengths)


def from_offsets(offsets: Lengths, rows: int, name: str, where: str) -> tuple[Lengths, Lengths]:
    """Returns where each sequence begins, and its length. Raises DataError for offsets (N + 1,) that are none of these rows."""
    if not len(offsets):
        raise DataError(f"{name}: expected offsets, one more than there are sequences, got none")
    back = np.flatnonzero(np.diff(offsets) < 0)
    if len(back):
        row = int(back[0]) + 1
        raise DataError(f"{name}, row {row}: expected offsets that never go back, got {offsets[row]} after {offsets[row - 1]}")
    if offsets[0] != 0 or offsets[-1] != rows:
        raise DataError(
            f"{name}: expected offsets from 0 to the {rows} rows of {where}, got {offsets[0]} to {offsets[-1]}; "
            "starts alone need --lens as well"
        )
    return offsets[:-1], np.diff(offsets)


def from_starts(starts: Lengths, lengths: Lengths, rows: int, name: str, where: str) -> Lengths:
    """Returns where each sequence begins. starts: (N,), or offsets (N + 1,).

    Raises DataError where one ends beyond the rows, or has rows of another one.
    """
    if len(starts) == len(lengths) + 1:
        from_offsets(starts, rows, name, where)
        ends, starts = starts[1:], starts[:-1]
    else:
        ends = np.full(len(lengths), rows)
    if len(starts) != len(lengths):
        raise DataError(f"{name}: expected {len(lengths)} starts, one for each length, or one more, got {len(starts)}")
    beyond = np.flatnonzero(starts + lengths > ends)
    if len(beyond):
        row = int(beyond[0])
        raise DataError(
            f"{name}, row {row}: the sequence from {starts[row]} on with {lengths[row]} steps goes beyond row {ends[row]} "
            f"of {where}"
        )
    used = np.flatnonzero(lengths)
    order = used[np.argsort(starts[used], kind="stable")]
    overlap = np.flatnonzero((starts + lengths)[order[:-1]] > starts[order[1:]])
    if len(overlap):
        one, other = sorted(order[overlap[0] : overlap[0] + 2].tolist())
        raise DataError(
            f"{name}, row {other}: the sequence from {starts[other]} on has steps of that in row {one}, from {starts[one]} on; "
            "--window makes overlapping ones"
        )
    return starts


def read_numbers(spec: str, option: str, ids: list[str] | None = None, follow_links: bool = False) -> tuple[Lengths, str]:
    """Returns the numbers in an NPY, NPZ or HDF5 file or a text, and where they lie.

    option: --lens or --offsets, for messages. ids: gets the ids that lie beside them, if any. Raises UsageError for `-`,
    MissingInputError, DataError and StorageError.
    """
    path, name = split_spec(spec)
    if path == "-":
        raise UsageError(f"{option} -: only --input may be -; give a file")
    with open_by_kind(path) as (file, kind):
        if kind is FileKind.HDF5:
            with hdf5.open_file(path) as container:
                default = "offsets" if option == "--offsets" else likely_name
                found = name or (default if isinstance(default, str) else default(container))
                item = hdf5_safety.dataset(container, found, follow_links)
                numbers, where = numbers_of(hdf5.DatasetRows(item))
                if ids is not None and (paths := hdf5_safety.beside(item, IDS, follow_links)):
                    ids += ids_in(container, paths, len(numbers), follow_links).ids or ()
                return numbers, where
        if kind is FileKind.ZIP:
            from lstmcli.files.zip_reader import NpzMember, npz_names  # loading zipfile takes 10 ms

            names = npz_names(file)
            found = name or ("offsets" if option == "--offsets" else likely_array(names, file.name))
            member = NpzMember(file, names, found.lstrip("/"))
            array = NpyArray(member.fetch, member.name)
            array.check_size(member.size)
            numbers, where = numbers_of(array)
            if ids is not None:
                ids += ids_in_npz(file, IDS, len(numbers)).ids or ()
            return numbers, where
        if name is not None and kind is not FileKind.OTHER:
            raise DataError(f"{file.name}: {name} is named, but this is no HDF5 file, NPZ or table")
        if kind is FileKind.NPY:
            array = NpyArray(file.fetch, file.name)
            array.check_size(file.opened.st_size)
            return numbers_of(array)
        if file.opened.st_size > TEXT_LIMIT:
            raise DataError(f"{file.name}: expected a text of at most {TEXT_LIMIT} bytes, got {file.opened.st_size}")
        from lstmcli.inputs.beside.number_lines import parse_numbers, pieces_of  # loaded for a text alone

        known = LENGTH_COLUMNS if option == "--lens" else ("offsets", "starts")
        values, floats = parse_numbers(pieces_of(file), file.name, name.lstrip("/") if name else None, known, ids)
        return numbers_of(TextNumbers(file.name, values, floats))


def numbers_of(table: Table) -> tuple[Lengths, str]:
    """Returns whole numbers from 0 on. Raises DataError for other values, ranks and dtypes."""
    size = max(table.shape, default=0)
    if table.shape not in ((size,), (size, 1), (1, size)):
        raise DataError(f"{table.name}: expected one number for each sequence, got shape {table.shape}")
    if table.dtype.kind not in "iuf":
        raise DataError(f"{table.name}: expected whole numbers, got {table.dtype}")
    if 8 * size > hdf5.LARGE:
        raise DataError(f"{table.name}: {size} numbers are more than this program reads at once")
    values = table.rows(0, table.shape[0]).reshape(size)
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= 0) & (values < 1 << 48) & (values == np.trunc(values)))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{table.name}, row {row}: expected a whole number from 0 on, got {values[row]}")
    return values.astype(np.int64), table.name
