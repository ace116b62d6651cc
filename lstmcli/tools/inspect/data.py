"""Facts of inputs, lengths, masks, and arrays of any kind."""

import csv
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from lstmcli.blocks import dtype_name, holds_floats
from lstmcli.errors import DataError, LstmcliError, UsageError, shown
from lstmcli.files import hdf5
from lstmcli.files.file_kind import FileKind, is_several, open_by_kind, split_spec
from lstmcli.files.npy import NpyArray
from lstmcli.inputs.beside.masks import read_mask
from lstmcli.inputs.ragged.flat import read_numbers
from lstmcli.inputs.source import Source
from lstmcli.inputs.valid_steps import read_valid_steps
from lstmcli.tools.inspect.lengths import about_lengths, about_padding
from lstmcli.tools.inspect.stored import Listing, hdf5_arrays, how_stored, stored
from lstmcli.tools.inspect.values import sample_rows, sample_steps, zeros_at_the_ends
from lstmcli.tools.sequences import open_floats_or_ids

Facts = dict[str, Any]
IDS = 5  # shown
MASK_BYTES = 1 << 30  # of a mask that is read to see its lengths
TABLE_BYTES = 1 << 16  # of a table whose columns are read


def about_data(spec: str, lens: str | None) -> Facts:
    """Returns the facts of sequences, lengths or a mask, or else of all arrays of a file."""
    if lens is None and (found := about_lone_array(spec)):
        return found
    listing = arrays_of(spec)
    if listing and all(array["name"].rpartition("/")[2] in ("c", "h") for array in listing.arrays):
        return listing.facts() | {"what": "final states, as --initial-state takes them", "notes": []}
    try:
        return about_sequences(spec, lens)
    except (DataError, UsageError) as error:
        if lens is not None or listing is None:
            raise
        what = f"{listing.total} array{'s' * (listing.total != 1)}, and not sequences that run would take"
        return listing.facts() | {"what": what, "notes": [str(error)]}


def about_sequences(spec: str, lens: str | None) -> Facts:
    """Returns the facts of an input. Raises DataError for what is none."""
    with closing(open_floats_or_ids(spec, lens)) as source:
        steps = read_valid_steps(lens, None, source)
        valid, notes = steps.valid, list(steps.notes)
        batch, longest, width = source.shape
        ragged = source.lengths is not None
        form = "sequences without padding" if ragged else "padded sequences"
        facts: Facts = {
            "what": f"{form}, {'token ids' if source.token_ids else f'{width} features at a step'}",
            "sequences": {
                "name": source.name,
                "shape": [batch, longest] if source.token_ids else [batch, longest, width],
                "dtype": dtype_name(source.dtype),
                "layout": layout_of(source),
                "ragged": ragged,
                "token_ids": source.token_ids,
            },
            "lengths": about_lengths(valid.lengths) | {"from": steps.origin},
            "padding": None if ragged else about_padding(valid, longest),
            "ids": {"from": source.ids_origin, "first": list(source.ids[:IDS]), "count": batch} if source.ids else None,
            "values": sample_steps(source, valid),
            "cost": cost_of_input(int(valid.lengths.sum()), width, source),
        }
        if steps.origin is None and (ends := zeros_at_the_ends(source)) is not None:
            for end, where, advice in (("last", "end", "--lens"), ("first", "begin", "--lens, and --padding pre,")):
                if ends[end]:
                    count = f"{ends[end]} of {ends['looked_at']} sequences looked at {where} with zeros"
                    notes.append(f"{count}: if that is padding, {advice} says so; no lengths are known")
        listing = arrays_of(spec)
        return facts | (listing.facts() if listing else {}) | {"notes": notes}


def layout_of(source: Source) -> str:
    dataset = getattr(source, "dataset", None)
    if dataset is not None:
        return how_stored(dataset)
    return "contiguous" if source.lengths is None else "a sequence after the other, or each by itself"


def cost_of_input(steps: int, width: int, source: Source) -> Facts:
    """Returns what reading takes, and what an LSTM layer of 128 units, as an example, would."""
    units = 128
    size = source.dtype.itemsize
    return {
        "steps": steps,
        "bytes_read": steps * width * size,
        "example_units": units,
        "example_gflop": None if source.token_ids else 2 * 4 * units * (width + units) * steps / 1e9,
        "example_output_bytes": steps * units * 4,
    }


def arrays_of(spec: str) -> Listing | None:
    """Lists the arrays of an HDF5 file, an NPZ or an NPY file; None for other files."""
    path, name = split_spec(spec)
    if name is not None or is_several(path):
        return None
    try:
        with open_by_kind(path) as (file, kind):
            if kind is FileKind.HDF5:
                with hdf5.open_file(path) as container:
                    return hdf5_arrays(container)
            if kind is FileKind.NPY:
                array = NpyArray(file.fetch, file.name)
                return Listing([stored("", array.shape, array.dtype, order(array))], 1)
            if kind is FileKind.ZIP:
                from lstmcli.files.zip_reader import npz_forms

                forms = npz_forms(file)
                return Listing([stored(one, shape, dtype, "") for one, (shape, dtype) in forms.items()], len(forms))
    except LstmcliError:
        return None
    return None


def order(array: NpyArray) -> str:
    return "Fortran order" if array.fortran and len(array.shape) > 1 else "C order"


def about_lone_array(spec: str) -> Facts | None:
    """Returns the facts of an NPY file with lengths, a mask, or an array of a rank that no input has; None for others."""
    path, name = split_spec(spec)
    if name is not None or is_several(path):
        return None
    with open_by_kind(path) as (file, file_kind):
        if file_kind is not FileKind.NPY:
            return None
        array = NpyArray(file.fetch, file.name)
        array.check_size(file.opened.st_size)
        rank, kind = len(array.shape), array.dtype.kind
        listing = Listing([stored("", array.shape, array.dtype, order(array))], 1)
        if rank == 2 and kind in "biuf" and array.size <= MASK_BYTES and (valid := as_mask(array)):
            found = {"what": "a mask: 1 where a step is valid", "lengths": about_lengths(valid.lengths) | {"from": file.name}}
            return listing.facts() | found | {"padding": about_padding(valid, array.shape[1]), "notes": []}
        if rank == 3 or (rank == 2 and kind in "iu"):
            return None
        values = sample_rows(array) if (kind in "biu" or holds_floats(array.dtype)) and rank in (1, 2) else None
    if rank == 2 and holds_floats(array.dtype):
        note = "run takes it as one sequence; with --lens, whose sum is the number of rows, as several one after the other"
        return listing.facts() | {"what": "a flat array of rows", "values": values, "notes": [note]}
    if rank == 1 and kind in "iuf":
        return listing.facts() | {"values": values} | about_numbers(spec)
    return listing.facts() | {"what": f"an array of rank {rank}", "values": values, "notes": []}


def as_mask(array: NpyArray) -> Any:
    """Returns the valid steps of a mask, or None where this is none."""
    if array.dtype.kind != "b" and not np.isin(array.rows(0, min(64, array.shape[0])), (0, 1)).all():
        return None
    try:
        return read_mask(array.rows(0, array.shape[0]), array.name)
    except DataError:
        return None


def about_numbers(spec: str) -> Facts:
    """Returns the facts of numbers that may be lengths, or offsets."""
    numbers, where = read_numbers(spec, "--lens")
    offsets = len(numbers) > 1 and numbers[0] == 0 and (np.diff(numbers) >= 0).all() and numbers[-1] > 0
    what, lengths = f"{len(numbers):,} lengths", numbers
    if offsets:
        what, lengths = f"offsets of {len(numbers) - 1:,} sequences", np.diff(numbers)
    return {"what": what, "lengths": about_lengths(lengths) | {"from": where}, "notes": []}


def about_text(spec: str) -> Facts:
    """Returns the facts of a text with lengths, or of a table. Raises DataError for another text."""
    try:
        return about_numbers(spec)
    except DataError as error:
        with open_by_kind(split_spec(spec)[0]) as (file, _):
            begin = file.take(0, min(file.opened.st_size, TABLE_BYTES)).decode("utf-8-sig", "replace")
            whole = file.opened.st_size <= TABLE_BYTES
        lines = begin.splitlines()
        separator = next((mark for mark in "\t,;" if lines and mark in lines[0]), None)
        if separator is None:
            raise DataError(f"{shown(spec)}: a text that is neither a table nor lengths: {error}") from error
        try:
            columns = next(csv.reader(lines[:1], delimiter=separator))
        except csv.Error:  # a field is too long
            raise error from None
        count = f"{len(lines) - 1:,} lines below them" if whole else "more lines than were looked at"
        return {"what": f"a table of {len(columns)} columns, {count}", "columns": columns, "notes": []}


def about_arrow_table(spec: str) -> Facts | None:
    """Returns the facts of a table of Arrow or Parquet without sequences, as a run writes it; None: it is another file."""
    from lstmcli.inputs.ragged.arrow import Batches, is_arrow, reading

    path = split_spec(spec)[0]
    if is_several(path):
        return None
    with ExitStack() as files:
        file, _ = files.enter_context(open_by_kind(path))
        begin = file.take(0, min(file.opened.st_size, TABLE_BYTES))
        if not is_arrow(begin):
            return None
        try:
            with reading(file.name):
                columns = Batches(path, begin, files).schema.names
        except ModuleNotFoundError as error:
            raise UsageError(f"{file.name}: Arrow and Parquet need pyarrow: pip install 'lstmcli[parquet]'") from error
    return {"what": f"a table of {len(columns)} columns", "columns": columns, "notes": []}
