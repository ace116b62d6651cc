"""Tables as Parquet, through pyarrow, a row group for some lines at a time.

Pooled arrays and states are a column of lists each, as data sets of embeddings have them; of predictions each class is one.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import UsageError
from lstmcli.files.partial_file import Partial
from lstmcli.results.formats.fields import Field
from lstmcli.results.formats.result import TableForm

if TYPE_CHECKING:
    from lstmcli.results.formats.table_result import Lines


def check_installed(path: str, instead: str) -> None:
    """Raises UsageError where pyarrow is not installed. instead: what needs nothing, for the message."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{path}: {Path(path).suffix} needs pyarrow, which is not installed ({error}); pip install 'lstmcli[parquet]', "
            f"or use {instead}"
        ) from error


class Appended:
    """A Partial as a file that is written from its start to its end."""

    def __init__(self, partial: Partial) -> None:
        self.partial, self.at, self.closed = partial, 0, False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.partial.write(view, self.at)
        self.at += len(view)
        return len(view)

    def tell(self) -> int:
        return self.at

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def write_parquet(
    table: Partial, form: TableForm, fields: Mapping[str, Field], names: Sequence[str], lines: "Iterator[Lines]", windows: bool
) -> None:
    """Writes all lines of a table. names: of the columns of predictions. windows: lines say series and first step."""
    import pyarrow as pa
    from pyarrow import parquet

    has_steps = any(field.has_steps for field in fields.values())
    columns = [pa.field("series" if windows else "id", pa.string())]
    columns += [pa.field(name, pa.int64()) for name, there in (("first_step", windows), ("step", has_steps)) if there]
    for name, field in fields.items():
        number = pa.from_numpy_dtype(field.dtype)
        if name == "predictions":
            numbers = [form.top is None or k % 2 == 1 for k in range(len(names))]  # else each has the name of a class before it
            columns += [pa.field(n, number if one else pa.string()) for n, one in zip(names, numbers, strict=True)]
        else:
            columns.append(pa.field(name, pa.list_(number, field.shape[-1])))
    schema = pa.schema(columns)
    with parquet.ParquetWriter(Appended(table), schema, use_dictionary=False) as writer:
        for ids, firsts, steps, arrays in lines:
            values = [arrow_texts(ids), *(arrow_numbers(np.array(own, np.int64)) for own in (firsts, steps) if own is not None)]
            for name, rows in arrays.items():
                values += values_of(form, name, rows)
            writer.write_batch(pa.record_batch(values, schema=schema))


def values_of(form: TableForm, name: str, rows: NDArray[Any]) -> list[Any]:
    """Returns the columns of an array."""
    import pyarrow as pa

    if name != "predictions":
        return [pa.FixedSizeListArray.from_arrays(arrow_numbers(rows), rows.shape[1])]
    if form.top is None:
        return [arrow_numbers(column) for column in rows.T]
    order = np.argsort(-rows, axis=1, kind="stable")[:, : form.top]  # as in a text
    found = []
    for places in order.T:
        names = [form.labels[k] if form.labels else str(k) for k in places.tolist()]
        found += [arrow_texts(names), arrow_numbers(rows[np.arange(len(rows)), places])]
    return found


# pyarrow.array() would load pandas where it is installed, which takes 45 MB and 0.3 s.


def arrow_numbers(values: NDArray[Any]) -> Any:
    """Returns all values of an array as one of pyarrow."""
    import pyarrow as pa

    return pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype), values.size, [None, pa.py_buffer(np.ascontiguousarray(values))]
    )


def arrow_texts(values: Sequence[str]) -> Any:
    """Returns texts as an array of pyarrow."""
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))
