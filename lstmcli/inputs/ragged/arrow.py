"""Sequences in a column of an Arrow IPC file or stream, or of Parquet: list<list<float>>, or lists of fixed-size lists.

A batch of the file, or some rows of a row group of Parquet, are decoded at a time. Opening goes through all of them once, for
the lengths.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths
from lstmcli.errors import DataError, LstmcliError, UsageError, shown
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.beside.ids import as_id
from lstmcli.inputs.ragged.placed import DECODED, Sequences
from lstmcli.inputs.source import STAGING

MAGIC = {b"ARROW1": "Arrow IPC", b"PAR1": "Parquet", b"\xff\xff\xff\xff": "an Arrow stream"}
SURE = ("id", "ids", "key", "keys")
IDS = (*SURE, "name", "names")
VALUES = 1 << 18  # of a row group that are decoded at a time, on average


def is_arrow(begin: bytes) -> bool:
    """Says whether a file begins as Arrow IPC or Parquet does."""
    return begin.startswith(tuple(MAGIC))


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns whatever pyarrow raises into DataError."""
    import pyarrow as pa

    try:
        yield
    except LstmcliError:
        raise
    except (pa.ArrowException, OSError, MemoryError, OverflowError, ValueError, IndexError, KeyError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{where}: damaged, or not something this program reads; pyarrow says: {shown(text)[:200]}") from error


class Batches:
    """The batches of a file, by number: those of Arrow, and some rows each of a row group of Parquet.

    A stream and a row group are read forward alone: to go back to a batch costs those before it as well.
    """

    def __init__(self, path: str, begin: bytes, files: ExitStack) -> None:
        import pyarrow as pa

        self.file = files.enter_context(pa.OSFile(path))  # not mapped: a mapped file that shrinks kills the process
        self.kind = next(kind for magic, kind in MAGIC.items() if begin.startswith(magic))
        self.begins = [0]  # the number of the first batch of each row group, as far as they were read
        self.batches: Iterator[Any] = iter(())  # from number `at` on, with these columns
        self.at, self.columns = 0, [""]
        if self.kind == "Parquet":
            from pyarrow import parquet

            self.reader: Any = parquet.ParquetFile(self.file, buffer_size=STAGING)
            self.schema = self.reader.schema_arrow
        else:
            from pyarrow import ipc

            self.reader = ipc.open_stream(self.file) if self.kind == "an Arrow stream" else ipc.open_file(self.file)
            self.schema = self.reader.schema

    def load(self, number: int, columns: list[str]) -> Any:
        """Returns some columns of a batch, the one with the sequences first; None: there is no such batch."""
        if self.kind == "Arrow IPC":
            return self.reader.get_batch(number).select(columns) if number < self.reader.num_record_batches else None
        group = bisect_right(self.begins, number) - 1
        if columns != self.columns or not self.begins[group] <= self.at <= number:
            self.at, self.columns = self.begins[group], columns
            self.batches = self._of_groups(group) if self.kind == "Parquet" else self._of_stream()
        batch = None
        while self.at <= number:
            if (batch := next(self.batches, None)) is None:
                return None
            self.at += 1
        return batch

    def _of_stream(self) -> Iterator[Any]:
        from pyarrow import ipc

        self.file.seek(0)
        yield from (batch.select(self.columns) for batch in ipc.open_stream(self.file))

    def _of_groups(self, first: int) -> Iterator[Any]:
        """Yields the batches from a row group on. pyarrow takes five times the bytes of what it decodes at once."""
        about = self.reader.metadata
        for number in range(first, about.num_row_groups):
            if number == len(self.begins):
                self.begins.append(self.at)
            group = about.row_group(number)
            leaves = [group.column(k) for k in range(group.num_columns)]
            values = max(
                (leaf.num_values for leaf in leaves if leaf.path_in_schema.startswith(f"{self.columns[0]}.")), default=0
            )
            rows = max(1, min(group.num_rows, group.num_rows * VALUES // max(1, values)))
            yield from self.reader.iter_batches(rows, row_groups=[number], columns=self.columns, use_threads=False)


def in_table(file: FileBytes, path: str, begin: bytes, name: str | None, token_ids: bool, files: ExitStack) -> Sequences:
    """Returns the sequences of a column; name: of the column, where several can be meant. Raises DataError."""
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise UsageError(f"{file.name}: Arrow and Parquet need pyarrow: pip install 'lstmcli[parquet]'") from error
    with reading(file.name):
        batches = Batches(path, begin, files)
        column = column_of(batches.schema, name, token_ids, file.name)
        id_column = next((n for n in IDS if n in batches.schema.names and is_id(batches.schema.field(n).type)), None)
        width, dtype, takes_ids = form_of(batches.schema.field(column).type)
        lengths: list[Lengths] = []
        ids: list[str] = []
        largest = number = rows = 0
        while (batch := batches.load(number, [column, *([id_column] if id_column else [])])) is not None:
            batch.validate(full=True)
            offsets, values = flat(batch.column(0), f"{file.name}::{shown(column)}", rows, width)
            if len(values):  # without any step nothing says how wide it would be
                width = values.shape[1]
            largest = max(largest, values.size)
            lengths.append(np.diff(offsets))
            if id_column:
                found = batch.column(1).to_pylist()
                if None in found:
                    row = rows + found.index(None)
                    raise DataError(f"{file.name}::{shown(id_column)}, row {row}: expected an id, got a null")
                ids += [as_id(str(one)) for one in found]
            rows += batch.num_rows
            number += 1
    sure = id_column in SURE and not pa.types.is_integer(batches.schema.field(id_column).type)
    if not sure and len(set(ids)) < len(ids):
        ids = []  # but something else, such as the speaker
    counts = np.concatenate([np.empty(0, np.int64), *lengths])
    width = width or int(not counts.any())
    if not rows:
        raise DataError(f"{file.name}: expected sequences in column {shown(column)}, got no rows")
    ends = np.cumsum([len(part) for part in lengths])
    loaded: dict[int, tuple[Lengths, NDArray[Any]]] = {}

    def decode(sequence: int, first: int, count: int) -> NDArray[Any]:
        number = int(np.searchsorted(ends, sequence, side="right"))
        before = int(ends[number]) - len(lengths[number])
        if number not in loaded:
            loaded.clear()
            with reading(file.name):
                batch = batches.load(number, [column])
                if batch is None or batch.num_rows != len(lengths[number]):
                    raise DataError(f"{file.name}: was changed while it was read; run again when nothing writes to it")
                batch.validate(full=True)
                loaded[number] = flat(batch.column(0), f"{file.name}::{shown(column)}", before, width)
        offsets, values = loaded[number]
        at = int(offsets[sequence - before]) + first
        return values[at : at + count]

    places = np.full(rows, DECODED, np.int64)
    label, size = f"{file.name}::{shown(column)}", file.opened.st_size
    return Sequences(file, label, ids or None, counts, width, [dtype], places, size, decode, largest, takes_ids)


def column_of(schema: Any, name: str | None, token_ids: bool, where: str) -> str:
    """Returns the name of the column with the sequences. Raises DataError."""
    listed = ", ".join(f"{shown(field.name)} {field.type}" for field in list(schema)[:10])
    if name is not None:
        if name not in schema.names:
            raise DataError(f"{where}: no column {shown(name)}; there is {listed}")
        return name
    forms = {field.name: form_of(field.type) for field in schema}
    fitting = [column for column, (_, dtype, ids) in forms.items() if dtype != np.dtype(object) and not ids]
    fitting = fitting or [column for column, (_, dtype, ids) in forms.items() if ids and token_ids]
    if len(fitting) != 1:
        raise DataError(f"{where}: expected one column of lists of lists of floats, got {listed}; name it: {where}::COLUMN")
    return str(fitting[0])


def is_id(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_view = getattr(pa.types, "is_string_view", lambda kind: False)  # of pyarrow 16
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view(kind) or pa.types.is_integer(kind))


def is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def form_of(kind: Any) -> tuple[int, np.dtype[Any], bool]:
    """Returns the width that a type says, or 0; the dtype, object for what are no sequences; whether they are token ids."""
    import pyarrow as pa

    kind = getattr(kind, "storage_type", kind)
    none = (0, np.dtype(object), False)
    if not is_list(kind):
        return none
    inner = kind.value_type
    if pa.types.is_integer(inner):
        return 1, dtype_of(inner), True
    if not is_list(inner) or not pa.types.is_floating(inner.value_type):
        return none
    width = inner.list_size if pa.types.is_fixed_size_list(inner) else 0
    return width, dtype_of(inner.value_type), False


def dtype_of(kind: Any) -> np.dtype[Any]:
    """Returns NumPy's dtype of a type of numbers; kind.to_pandas_dtype() needs pandas in PyArrow up to 20."""
    import pyarrow as pa

    found: np.dtype[Any] = pa.array([], kind).to_numpy().dtype
    return found


def flat(column: Any, where: str, before: int, width: int) -> tuple[Lengths, NDArray[Any]]:
    """Returns where the sequences of a batch begin and end, and their steps one after the other (R, width).

    before: the number of its first sequence; width: that of the steps, 0: not known yet. Raises DataError for nulls.
    """
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    column = getattr(column, "storage", column)
    if column.null_count:
        row = before + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{where}, row {row}: expected a sequence, got a null")
    if pa.types.is_fixed_size_list(column.type):
        offsets = np.arange(len(column) + 1, dtype=np.int64) * column.type.list_size
        steps = column.flatten()
    else:
        offsets = array_of(column.offsets).astype(np.int64)
        steps = column.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
        offsets = offsets - offsets[0]
    values = steps
    if is_list(steps.type):
        if not pa.types.is_fixed_size_list(steps.type) and len(steps):
            widths = np.diff(array_of(steps.offsets))
            width = width or int(widths[0])
            bad = np.flatnonzero(widths != width)
            if len(bad):
                row = before + int(np.searchsorted(offsets, bad[0], side="right")) - 1
                raise DataError(f"{where}, row {row}: expected steps of {width} features, got one of {widths[bad[0]]}")
        values = steps.flatten()
    if steps.null_count or values.null_count:
        raise DataError(f"{where}, rows {before} to {before + len(column) - 1}: a step or a value is a null")
    return offsets, array_of(values).reshape(len(steps), -1 if len(steps) else max(width, 1))


def array_of(numbers: Any) -> NDArray[Any]:
    """Returns numbers of pyarrow, none of them a null, where they lie. Its to_numpy() loads pandas as well: 45 MB, 0.3 s."""
    return np.from_dlpack(numbers)
