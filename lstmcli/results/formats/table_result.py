"""Predictions as a table: a line for each sequence, or for each of its steps, with its id first.

The values are stored as they come, in a file of their own beside the table, so that a run can be resumed; the table is written
from them when they are all there. A number in it is the shortest that gives the same float when it is read again.
"""

import csv
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import UsageError
from lstmcli.files.partial_file import Partial
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.results.formats.fields import Arrays, Field
from lstmcli.results.formats.paths import TABLES, Paths, values_of
from lstmcli.results.formats.result import Metadata, Result, TableForm

LINES = 4096  # sequences whose lines are made at a time


class TableResult(Result):
    """A result whose file is a table."""

    def __init__(self, paths: Paths, arrays: Arrays, metadata: Metadata, overwrite: bool, resume: bool) -> None:
        """resume: keeps what an earlier run has stored. Raises OutputError, StorageError, and UsageError for other labels."""
        assert paths.main
        self.form, self.ids, self.separator = metadata.table, metadata.ids, TABLES[paths.main.suffix]
        shape, dtype = arrays["predictions"]
        check_form(self.form, shape[-1])
        self.table = Partial(paths.main, overwrite, resume)
        self.values = Values(values_of(paths.main), True, resume)
        try:
            self.values.reserve(math.prod(metadata.stored_shape(shape)) * dtype.itemsize)
        except BaseException:
            for store in (self.table, self.values):
                store.close() if resume else store.discard()
            raise
        self.starts = metadata.valid.starts
        fields = {"predictions": Field(self.values, 0, shape, dtype, metadata.flat_begins(0, shape, dtype))}
        super().__init__([self.table, self.values], fields, {}, metadata.placed)

    def seal(self, nonfinite: Nonfinite | None) -> None:
        self.table.reserve(0)
        at = 0
        for piece in self.pieces():
            self.table.write(data := piece.encode(), at)
            at += len(data)
        super().seal(nonfinite)

    def pieces(self) -> Iterator[str]:
        """Yields the text of the table."""
        field, valid = self.fields["predictions"], self.valid
        head = ["id", *(["step"] if field.has_steps else []), *column_names(self.form, field.shape[-1])]
        yield self.text([head])
        for first in range(0, len(valid.lengths), LINES):
            part = valid.part(first, first + LINES)
            rows = field.get(first, part)
            names = [self.name(first + k) for k in range(len(part.lengths))]
            if field.has_steps:
                starts = self.starts[first : first + LINES].tolist()
                steps = zip(names, starts, part.lengths.tolist(), strict=True)
                heads = [[name, step] for name, start, length in steps for step in range(start, start + length)]
            else:
                heads = [[name] for name in names]
            yield self.text([*head, *cells(self.form, row)] for head, row in zip(heads, rows, strict=True))

    def name(self, sequence: int) -> str:
        return str(self.form.first + sequence) if self.ids is None else self.ids[sequence]

    def text(self, lines: Any) -> str:
        written = io.StringIO()
        csv.writer(written, delimiter=self.separator, lineterminator="\n").writerows(lines)
        return written.getvalue()


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


def column_names(form: TableForm, classes: int) -> list[str]:
    if form.top is not None:
        return [f"{what}{place}" for place in range(1, form.top + 1) for what in ("class", "value")]
    if form.labels is not None:
        return list(form.labels)
    return ["prediction"] if classes == 1 else [f"p{k}" for k in range(classes)]


def cells(form: TableForm, row: NDArray[np.floating]) -> list[str]:
    """Returns the columns of a line after its id."""
    if form.top is None:
        return [str(value) for value in row]
    order = np.argsort(-row, kind="stable")[: form.top].tolist()  # of equal values the class that comes first
    return [cell for k in order for cell in (form.labels[k] if form.labels else str(k), str(row[k]))]
