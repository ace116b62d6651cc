"""Which steps of the sequences are valid: lengths or a mask, found, read and checked before any work."""

import itertools
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths, Valid
from lstmcli.errors import DataError, LstmcliError, UsageError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import NPY_MAGIC, FileKind, open_by_kind, split_spec
from lstmcli.files.npy import HEADER_LIMIT, NpyArray
from lstmcli.files.positioned_file import FileBytes, PipeBytes
from lstmcli.inputs.source import Source

LENGTHS = ("lengths", "lens", "sequence_length", "seq_len", "seq_lengths", "sequence_lengths")
LENGTH_COLUMNS = (*LENGTHS, "length", "len")  # of a table
MASKS = ("mask", "attention_mask")
IDS = ("ids", "keys", "names", "texts")  # of datasets beside an input or lengths; the first that can be ids counts
TEXT_ROW = 256  # bytes of a text with lengths that a sequence may take
RESULT = "lstmcli-result"  # the format of a file whose lengths may have starts beside them
SAMPLE = 8  # sequences of which two steps are read to see whether padding may stand in front


class Table(Protocol):
    """Lengths or a mask in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self, first: int, count: int) -> NDArray[Any]: ...


class ValidSteps(NamedTuple):
    """The valid steps of an input, and how they were told."""

    valid: Valid
    origin: str | None = None  # the file or dataset; None: nowhere, every sequence is full
    padding: str = "post"  # or "pre"; or "mask", "starts": what said it for each sequence
    notes: tuple[str, ...] = ()


def read_valid_steps(spec: str | None, padding: str | None, source: Source, follow_links: bool = False) -> ValidSteps:
    """Reads which steps of `source` are valid.

    spec: an NPY file, a text with one integer a line, `file.h5::/dataset`, `file.npz::name`, `none`; or None to take what has
    one of the names LENGTHS or MASKS beside an HDF5 or NPZ input (or in the root of an HDF5 file) if there is one.
    padding: "post" or "pre"; None: post, or what the file says.

    Raises DataError for anything but N whole numbers in 0 .. T or a mask (N, T); MissingInputError for no such file; UsageError
    for `-`, and for a padding that says nothing or contradicts a mask.
    """
    if source.lengths is not None:
        if padding is not None:
            raise UsageError(f"--padding {padding}: {source.name} is ragged and has no padding; leave it out")
        return ValidSteps(Valid(np.zeros_like(source.lengths), source.lengths), source.lengths_origin, notes=source.notes)
    if spec == "none":
        return _full(source)
    try:
        if spec is not None:
            found = _named(spec, padding, source, follow_links)
        elif source.lengths_beside is not None:
            found = _named(source.lengths_beside, padding, source, follow_links)
        elif source.dataset is not None:
            found = _beside(source, padding, follow_links)
        else:
            found = _full(source)
    except DataError as error:
        if spec is not None:
            raise
        raise DataError(f"{error}; it lies beside the input, --lens none ignores it") from error
    if found.origin is None and padding == "pre":
        raise UsageError("--padding pre: no lengths are known, so nothing says what is padding; give them with --lens")
    if found.origin is not None and padding is None and found.padding == "post" and _begins_with_zeros(source, found.valid):
        note = (
            f"{source.name}: its sequences begin with zeros, and the steps past their lengths are not zero; "
            "if padding stands in front, give --padding pre"
        )
        return found._replace(notes=(*found.notes, note))
    return found


def _full(source: Source) -> ValidSteps:
    batch, steps, _ = source.shape
    return ValidSteps(Valid(np.zeros(batch, np.int64), np.full(batch, steps, np.int64)))


def _begins_with_zeros(source: Source, valid: Valid) -> bool:
    """Says whether, in a sample of the padded sequences, each first step is zeros and each last step of the padding is not."""
    steps, one = source.shape[1], np.ones(1, np.int64)
    padded = np.flatnonzero((valid.lengths > 0) & (valid.lengths < steps))
    if source.sequential or not len(padded):
        return False
    row = np.empty((1, source.shape[2]))
    try:
        for sequence in padded[:: -(-len(padded) // SAMPLE)].tolist():
            source.read(sequence, 0 * one, one, row)
            if row.any():
                return False
            source.read(sequence, (steps - 1) * one, one, row)
            if not row.any() or not np.isfinite(row).all():
                return False
    except LstmcliError:  # padding may be damaged or not be there; what is valid is read again
        return False
    return True


def _beside(source: Source, padding: str | None, follow: bool) -> ValidSteps:
    file = source.dataset.file
    folders = dict.fromkeys((posixpath.dirname(source.dataset.name), "/"))
    held = [path for kind in (LENGTHS, MASKS) for path in hdf5_safety.beside(source.dataset, kind, follow)]
    if held:
        found = _from_dataset(hdf5_safety.dataset(file, held[0], follow), padding, source)
        masks = [name for name in held[1:] if posixpath.basename(name) in MASKS]
        if masks and found.padding == "post":
            mask = shown(masks[0])
            note = f"{found.origin} is used, and not {mask}, which lies beside it; --lens FILE::{mask} takes that"
            return found._replace(notes=(note,))
        return found
    found = _full(source)
    if fitting := _fitting(file, folders, source):
        note = (
            f"{source.name}: no lengths are known, so all steps are computed; of the size of lengths or of a mask there is "
            f"{', '.join(hdf5.listed(fitting))}: --lens FILE::/dataset takes it, --lens none ends this note"
        )
        return found._replace(notes=(note,))
    return found


def _fitting(file: Any, folders: Iterable[str], source: Source) -> list[hdf5.Entry]:
    """Lists the datasets right in these groups that have the size of lengths or of a mask, and a dtype of theirs."""
    batch, steps, _ = source.shape
    entries = [entry for folder in folders for entry in hdf5.entries_right_in(file[folder])]
    shapes = ((batch,), (batch, 1), (batch, steps))
    return [entry for entry in entries if entry.shape in shapes and entry.dtype is not None and entry.dtype.kind in "biu"]


def _named(spec: str, padding: str | None, source: Source, follow: bool) -> ValidSteps:
    if spec == "-":
        raise UsageError("--lens -: only --input may be -; give a file, or /dev/stdin")
    path, dataset = split_spec(spec)
    with open_by_kind(path, pipes=True) as (file, kind):
        if kind is FileKind.HDF5:
            with hdf5.open_file(path) as container:
                item = hdf5_safety.dataset(container, dataset or likely_name(container), follow)
                found = _from_dataset(item, padding, source)
                if source.ids is not None and (paths := hdf5_safety.beside(item, IDS, follow)):
                    from lstmcli.inputs.beside.ids import check_order, ids_in

                    check_order(ids_in(container, paths, source.shape[0], follow).ids or (), source.ids, hdf5.label(item))
                return found
        if kind is FileKind.ZIP:
            found = _from_npz(file, dataset, padding, source)
            if source.ids is not None and spec != source.lengths_beside:
                from lstmcli.inputs.beside.ids import check_order, ids_in_npz

                check_order(ids_in_npz(file, IDS, source.shape[0]).ids or (), source.ids, str(found.origin))
            return found
        if dataset is not None and kind is not FileKind.OTHER:
            raise DataError(f"{file.name}: {shown(dataset)} is named, but this is no HDF5 file, NPZ or table")
        if kind is FileKind.STREAM:
            return _from_stream(PipeBytes(file.fd, file.name), padding, source)
        if kind is FileKind.NPY:
            array = NpyArray(file.fetch, file.name)
            _check_form(array.name, array.shape, array.dtype, source)
            array.check_size(file.opened.st_size)
            return _from_table(array, padding, source)
        from lstmcli.inputs.beside.number_lines import pieces_of  # loaded for a text alone

        column = dataset.lstrip("/") if dataset else None
        return _from_table(_read_text(pieces_of(file), file.name, column, source), padding, source)


def _from_npz(file: FileBytes, name: str | None, padding: str | None, source: Source) -> ValidSteps:
    from lstmcli.files.zip_reader import NpzMember, npz_names  # loading zipfile takes 10 ms

    names = npz_names(file)
    data = NpzMember(file, names, name.lstrip("/") if name else likely_array(names, file.name))
    array = NpyArray(data.fetch, data.name)
    _check_form(array.name, array.shape, array.dtype, source)
    array.check_size(data.size)
    return _from_table(array, padding, source)


def likely_array(names: list[str], where: str) -> str:
    """Returns the name of the array of an NPZ that holds lengths or a mask, if one is likely. Raises DataError."""
    for name in (*LENGTHS, *MASKS):
        if name in names:
            return name
    raise DataError(f"{where}: expected an NPZ with an array {', '.join((*LENGTHS, *MASKS))}; name another: FILE::NAME")


def likely_name(file: Any) -> str:
    """Returns the name of the dataset that holds lengths or a mask, if one is likely. Raises DataError."""
    found = hdf5.entries(file)
    names = [entry.name for entry in found]
    for name in (f"/{name}" for name in (*LENGTHS, *MASKS)):
        if name in names:
            return name
    fitting = [e for e in found if e.dtype is not None and e.dtype.kind in "iu" and e.shape and len(e.shape) == 1]
    if len(fitting) != 1:
        raise DataError(
            f"{shown(file.filename)}: expected a dataset {', '.join((*LENGTHS, *MASKS))} or one integer dataset of rank 1, "
            f"found {len(fitting)}: ",
            hdf5.listed(fitting or found),
            "; name the one to read: FILE::/dataset",
        )
    return fitting[0].name


def _from_dataset(item: Any, padding: str | None, source: Source) -> ValidSteps:
    _check_form(hdf5.label(item), item.shape, hdf5.dtype_of(item), source)
    found = _from_table(hdf5.DatasetRows(item), padding, source)
    if padding is None and item.name == "/lengths" and hdf5.attribute(item.file, "format") == RESULT and "starts" in item.file:
        starts = hdf5.DatasetRows(hdf5_safety.dataset(item.file, "starts"))
        _check_form(starts.name, starts.shape, starts.dtype, source)
        latest = source.shape[1] - found.valid.lengths
        return found._replace(valid=Valid(_read_whole_numbers(starts, "start", latest), found.valid.lengths), padding="starts")
    return found


def _from_stream(data: PipeBytes, padding: str | None, source: Source) -> ValidSteps:
    begin = data.take_next(len(NPY_MAGIC))
    if begin != NPY_MAGIC:
        from lstmcli.inputs.beside.number_lines import pieces_of_stream  # loaded for a text alone

        pieces = itertools.chain([begin], pieces_of_stream(data))
        return _from_table(_read_text(pieces, data.name, None, source), padding, source)

    def fetch(view: memoryview, offset: int) -> None:
        if offset:
            data.fetch(view, offset)
        else:
            view[:] = begin

    array = NpyArray(fetch, data.name)
    _check_form(array.name, array.shape, array.dtype, source)
    if array.fortran and array.shape == source.shape[:2]:
        raise DataError(f"{data.name}: a mask in Fortran order cannot be read from a pipe; write np.ascontiguousarray(mask)")
    data.size = array.size
    found = _from_table(array, padding, source)
    data.finish()
    return found


class TextNumbers:
    """A Table of numbers (N,) that were written as text; its dtype is that in which they were written."""

    def __init__(self, name: str, values: Lengths, floats: bool) -> None:
        self.name, self.values, self.shape, self.dtype = name, values, values.shape, np.dtype(float if floats else np.int64)

    def rows(self, first: int, count: int) -> Lengths:
        return self.values[first : first + count]


def _text_limit(source: Source) -> int:
    return 2 * HEADER_LIMIT + TEXT_ROW * source.shape[0]


def _read_text(pieces: Iterable[bytes], name: str, column: str | None, source: Source) -> TextNumbers:
    from lstmcli.inputs.beside.number_lines import parse_numbers  # loaded for a text alone

    ids: list[str] | None = None if source.ids is None else []
    values, floats = parse_numbers(_at_most(_text_limit(source), pieces, name, source), name, column, LENGTH_COLUMNS, ids)
    _check_form(name, values.shape, values.dtype, source)
    if ids and source.ids is not None:
        from lstmcli.inputs.beside.ids import check_order

        check_order(ids, source.ids, name)
    return TextNumbers(name, values, floats)


def _at_most(limit: int, pieces: Iterable[bytes], name: str, source: Source) -> Iterator[bytes]:
    for piece in pieces:
        limit -= len(piece)
        if limit < 0:
            raise DataError(f"{name}: expected {source.shape[0]} lengths, got more than {_text_limit(source)} bytes")
        yield piece


def _is_mask(shape: tuple[int, ...], dtype: np.dtype[Any], source: Source) -> bool:
    batch, steps, _ = source.shape
    return shape == (batch, steps) and (dtype.kind == "b" or shape not in ((batch, 1), (1, batch)))


def _check_form(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], source: Source) -> None:
    """Raises DataError, before values are read, unless this can be lengths or a mask."""
    batch, steps, _ = source.shape
    if shape not in ((batch,), (batch, 1), (1, batch), (batch, steps)):
        expected = f"{batch} lengths, one for each sequence of the input"
        if len(shape) == 1:
            raise DataError(f"{name}: expected {expected}, got {shape[0]} of them")
        hint = "; save mask.T" if shape == (steps, batch) else ""
        raise DataError(f"{name}: expected {expected}, or a mask ({batch}, {steps}), got shape {shape}{hint}")
    if dtype.kind not in "iuf" and not _is_mask(shape, dtype, source):
        raise DataError(f"{name}: expected lengths of an integer dtype, got {dtype}")


def _from_table(table: Table, padding: str | None, source: Source) -> ValidSteps:
    """Reads lengths or a mask whose form has been checked."""
    batch, steps, _ = source.shape
    if not _is_mask(table.shape, table.dtype, source):
        lengths = _read_whole_numbers(table, "length", np.array(steps), f" (the steps of {source.name})")
        padding = padding or "post"
        notes = (f"{table.name}: the lengths are written as floats, and all of them are whole",) * (table.dtype.kind == "f")
        return ValidSteps(Valid.of_lengths(lengths, steps, padding), table.name, padding, notes)
    if padding is not None:
        raise UsageError(f"--padding {padding}: {table.name} is a mask, which says itself where padding stands; leave it out")
    from lstmcli.inputs.beside.masks import PIECE, read_mask  # loaded for a mask alone

    rows = max(1, PIECE // max(1, steps))
    parts = [read_mask(table.rows(first, min(rows, batch - first)), table.name, first) for first in range(0, batch or 1, rows)]
    starts, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ValidSteps(Valid(starts, lengths), table.name, "mask")


def _read_whole_numbers(table: Table, what: str, limits: Lengths, why: str = "") -> Lengths:
    """Reads (N,), (N, 1) or (1, N) numbers of any integer or float dtype. Raises DataError unless they are 0 .. limits.

    limits: (N,), or one for all
    """
    name, values = table.name, table.rows(0, table.shape[0]).reshape(-1)
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            _refuse(~np.isfinite(values) | (np.trunc(values) != values), values, name, "expected a whole number")
    # Arrays for each number are made only where one of them is wrong: ten million lengths are 80 MB.
    fit = not values.size or (values.min() >= 0 and (values.max() <= limits if not limits.ndim else (values <= limits).all()))
    if not fit:
        bad = (values < 0) | (values > limits)
        limit = np.broadcast_to(limits, values.shape)[bad.argmax()]
        _refuse(bad, values, name, f"expected 0 <= {what} <= {limit}{why}")
    return values.astype(np.int64, copy=False)


def _refuse(bad: NDArray[np.bool_], values: NDArray[Any], name: str, expected: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{name}, row {row}: {expected}, got {values[row]}; rows like that: {bad.sum()} of {len(bad)}")
