"""A table with a line for each sequence, its id first: predictions, or pooled arrays and final states. Where predictions have
steps, a line for each of these.

The values are stored as they come, in a file of their own beside the table, so that a run can be resumed; the table is written
from them when they are all there. A number in a text is the shortest that gives the same float when it is read again.
"""

import csv
import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import UsageError
from lstmcli.files.partial_file import Partial
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.results.formats.fields import Arrays, Field
from lstmcli.results.formats.paths import TABLES, Paths, values_of
from lstmcli.results.formats.result import Metadata, Result, TableForm

SEQUENCES, STEPS = 4096, 1 << 16  # whose lines are made at a time, at most


class Lines(NamedTuple):
    """Some lines of a table."""

    ids: list[str]  # of windows: those of their series
    firsts: list[int] | None  # of windows: the first step of each
    steps: list[int] | None  # the number of each step in the input, where there is a line for each
    arrays: dict[str, NDArray[Any]]  # rows (lines, width) by name


class TableResult(Result):
    """A result whose file is a table."""

    def __init__(self, paths: Paths, arrays: Arrays, metadata: Metadata, overwrite: bool, resume: bool) -> None:
        """resume: keeps what an earlier run has stored. Raises OutputError, StorageError, and UsageError for other labels."""
        assert paths.main
        self.form, self.ids, self.suffix = metadata.table, metadata.ids, paths.main.suffix
        self.windows = metadata.windows
        if "predictions" in arrays:
            check_form(self.form, arrays["predictions"][0][-1])
        if not TABLES[self.suffix]:
            from lstmcli.results.formats.parquet import check_installed

            check_installed(str(paths.main), "--output NAME.csv")
        sizes = [math.prod(metadata.stored_shape(shape)) * dtype.itemsize for shape, dtype in arrays.values()]
        offsets = [0, *itertools.accumulate(sizes)]
        with ExitStack() as undo:
            self.table = Partial(paths.main, overwrite, resume)
            undo.callback(self.table.close if resume else self.table.discard)
            self.values = Values(values_of(paths.main), True, resume)
            undo.callback(self.values.close if resume else self.values.discard)
            self.values.reserve(offsets.pop())
            undo.pop_all()
        self.starts = metadata.valid.starts
        fields = {
            name: Field(self.values, offset, shape, dtype, metadata.flat_begins(offset, shape, dtype))
            for offset, (name, (shape, dtype)) in zip(offsets, arrays.items(), strict=True)
        }
        super().__init__([self.table, self.values], fields, {}, metadata.placed)

    def seal(self, nonfinite: Nonfinite | None) -> None:
        self.table.reserve(0)
        if separator := TABLES[self.suffix]:
            at = 0
            for piece in self.text(separator):
                self.table.write(data := piece.encode(), at)
                at += len(data)
        else:
            from lstmcli.results.formats.parquet import write_parquet

            names = self.columns() if "predictions" in self.fields else []
            write_parquet(self.table, self.form, self.fields, names, self.lines(), bool(self.windows))
        super().seal(nonfinite)

    def lines(self) -> Iterator[Lines]:
        """Yields all lines of the table, some at a time."""
        lengths = self.valid.lengths
        has_steps = any(field.has_steps for field in self.fields.values())
        ends, first = np.cumsum(lengths), 0
        while first < len(lengths):
            count = SEQUENCES
            if has_steps:
                fitting = int(np.searchsorted(ends, ends[first] - lengths[first] + STEPS, side="right")) - first
                count = max(1, min(count, fitting))
            part = self.valid.part(first, first + count)
            ids, steps, firsts = [self.name(first + k) for k in range(len(part.lengths))], None, None
            if self.windows:
                ids, firsts = self.windows.names(first, len(ids)), self.windows.first_steps[first : first + len(ids)].tolist()
            if has_steps:
                starts = self.starts[first : first + count]
                ids = np.repeat(np.array(ids, object), part.lengths).tolist()
                firsts = np.repeat(firsts, part.lengths).tolist() if firsts is not None else None
                begins = np.cumsum(part.lengths) - part.lengths
                steps = (np.arange(len(ids)) - np.repeat(begins - starts, part.lengths)).tolist()
            yield Lines(ids, firsts, steps, {name: field.get(first, part) for name, field in self.fields.items()})
            first += count

    def columns(self) -> list[str]:
        """Returns the names of the columns of a text after the id and the step."""
        return [column for name, field in self.fields.items() for column in column_names(self.form, name, field.shape[-1])]

    def name(self, sequence: int) -> str:
        return str(self.form.first + sequence) if self.ids is None else self.ids[sequence]

    def text(self, separator: str) -> Iterator[str]:
        """Yields the text of the table."""

        def written(lines: Any) -> str:
            rows = TextRows()
            csv.writer(rows, delimiter=separator, lineterminator="\r\n").writerows(lines)
            return "".join(rows.ended)

        has_steps = any(field.has_steps for field in self.fields.values())
        which = ["series", "first_step"] if self.windows else ["id"]
        yield written([[*which, *(["step"] if has_steps else []), *self.columns()]])
        for ids, firsts, steps, arrays in self.lines():
            numbers = [column for column in (firsts, steps) if column is not None]
            heads = ([name, *map(str, own)] for name, *own in zip(ids, *numbers, strict=True))
            rows = zip(*arrays.values(), strict=True)
            yield written(
                [*head, *(cell for row in each for cell in cells(self.form, row))]
                for head, each in zip(heads, rows, strict=True)
            )


class TextRows:
    """Takes rows of csv.writer and ends them with a line feed alone.

    Told that its lines end with carriage return and line feed, every version of Python quotes what holds either of them: each
    of them ends a line where the table is read.
    """

    def __init__(self) -> None:
        self.ended: list[str] = []

    def write(self, row: str) -> None:
        self.ended.append(row[:-2] + "\n")


class Values(Partial):
    """The values of a table until it has its name."""

    def publish(self) -> None:
        self.name.unlink(missing_ok=True)


def check_form(form: TableForm, classes: int) -> None:
    """Raises UsageError where labels or --top do not fit the number of classes."""
    if form.labels is not None and len(form.labels) != classes:
        raise UsageError(f"--labels: expected {classes} names, one for each class, got {len(form.labels)}")
    if form.top is not None and form.top > classes:
        raise UsageError(f"--top {form.top}: the model has {classes} classes")


def column_names(form: TableForm, name: str, width: int) -> list[str]:
    """Returns the columns of an array."""
    if name != "predictions":
        return [f"{name}/{k}" for k in range(width)]
    if form.top is not None:
        return [f"{what}{place}" for place in range(1, form.top + 1) for what in ("class", "value")]
    if form.labels is not None:
        return list(form.labels)
    return ["prediction"] if width == 1 else [f"p{k}" for k in range(width)]


def cells(form: TableForm, row: NDArray[np.floating]) -> list[str]:
    """Returns the columns of a line after its id."""
    if form.top is None:
        return [str(value) for value in row]
    order = np.argsort(-row, kind="stable")[: form.top].tolist()  # of equal values the class that comes first
    return [cell for k in order for cell in (form.labels[k] if form.labels else str(k), str(row[k]))]
