"""Whole numbers as people write them: a line for each, or with commas and spaces, as a JSON list, or a column of a table."""

import codecs
import csv
import re
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from lstmcli.blocks import Lengths
from lstmcli.errors import DataError, shown
from lstmcli.files.positioned_file import FileBytes, PipeBytes

TEXT_PIECE = LONG_LINE = 1 << 20  # bytes that are read at a time; that a line has which is cut
ID_COLUMNS = ("id", "ids", "key", "keys", "name", "names")
NEAR = 100  # bytes at the end of a text in which a line is cut
BETWEEN = re.compile(rb"[\s,;]+(?=\d)")
PLAIN = re.compile(rb"[0-9\s,;]*")  # what most lines are made of
GAP = re.compile(rb"[,;]\s*[,;]")  # a field that is missing
SEPARATORS = bytes.maketrans(b",;", b"  ")
NUMBER = re.compile(r'"?\s*([+-]?\d{1,18})(\.0*)?\s*"?')


def pieces_of(file: FileBytes) -> Iterator[bytes]:
    """Yields the bytes of a text."""
    size = file.opened.st_size
    return (file.take(at, min(TEXT_PIECE, size - at)) for at in range(0, size, TEXT_PIECE))


def pieces_of_stream(data: PipeBytes) -> Iterator[bytes]:
    """Yields what is left of a stream."""
    return iter(lambda: data.take_next(TEXT_PIECE), b"")


def parse_numbers(
    pieces: Iterable[bytes],
    name: str,
    column: str | None = None,
    known: tuple[str, ...] = (),
    ids: list[str] | None = None,
) -> tuple[Lengths, bool]:
    """Returns the whole numbers of a text, and whether some are written as floats, such as 4.0.

    Between them stand ends of lines, spaces, commas or semicolons; around them may stand the brackets of a list. What follows #
    on a line does not count, nor do empty lines. A first line without a number is a header: of a table the column with the name
    `column` is read, or else the only one that has a known name; what a column of ids beside it holds is added to `ids`. Raises
    DataError for anything else, by its line.

    The text comes in pieces, because lines as Python's objects take a hundred bytes each.
    """
    numbers, reader, before = array("q"), Reader(name, column, known, ids), 0
    for text in whole_lines(pieces):
        if (reader.began or column is None) and reader.place is None and PLAIN.fullmatch(text) and not GAP.search(text):
            try:
                numbers.extend(array("q", map(int, text.translate(SEPARATORS).split())))
                reader.began |= len(numbers) > 0
                before += text.count(b"\n")
                continue
            except OverflowError:
                pass  # its line is looked for
        lines = text.splitlines()
        for reader.line, line in enumerate(lines, before + 1):
            numbers.extend(reader.read(line.decode("utf-8", "backslashreplace")))
        before += len(lines) - (not text.endswith((b"\n", b"\r")))
    return np.frombuffer(numbers, np.int64) if numbers else np.zeros(0, np.int64), reader.floats


class Reader:
    """Reads the lines of a text one after the other."""

    def __init__(self, name: str, column: str | None, known: tuple[str, ...], ids: list[str] | None) -> None:
        self.name, self.column, self.known, self.ids = name, column, known, ids
        self.line = 0  # the number of the one that is read
        self.began = self.floats = False  # whether there was anything yet; whether a number was written as a float
        self.place: int | None = None  # of the column that is read
        self.id_place: int | None = None
        self.separator = ","

    def read(self, line: str) -> list[int]:
        """Returns the numbers of a line. Raises DataError."""
        text = line.partition("#")[0].strip()
        if not text:
            return []
        first, self.began = not self.began, True
        if first and text != "[" and (self.column is not None or is_header(text)):
            self._read_header(text)
            return []
        if self.place is not None:
            row = self._fields(text)
            if self.place >= len(row):
                raise self._error(f"expected {self.place + 1} columns or more", text)
            if self.ids is not None and self.id_place is not None:
                self.ids.extend(row[self.id_place : self.id_place + 1])
            return [self._number(row[self.place], text)]
        text = text.removeprefix("[").removesuffix("]").strip().removesuffix(",").removesuffix(";").strip()
        fields = re.split(r"\s*[,;]\s*|\s+", text) if text else []
        return [self._number(field, line) for field in fields]

    def _read_header(self, text: str) -> None:
        self.separator = next((mark for mark in "\t;," if mark in text), ",")
        columns = [column.strip() for column in self._fields(text)]
        wanted = [k for k, column in enumerate(columns) if column.lower() in self.known]
        if self.column is not None:
            wanted = [k for k, column in enumerate(columns) if column == self.column]
        elif len(columns) == 1:
            wanted = [0]
        if len(wanted) != 1:
            got = "no such column" if self.column is not None else "a table"
            advice = "" if self.column is not None else f"; name the column to read: {self.name}::NAME"
            where = self.name if self.column is None else f"{self.name}::{shown(self.column)}"
            raise DataError(f"{where}: {got}; there is {shown(', '.join(columns[:10]))}{advice}")
        if len(columns) > 1:
            self.place = wanted[0]
            self.id_place = next((k for k, column in enumerate(columns) if column.lower() in ID_COLUMNS), None)

    def _fields(self, text: str) -> list[str]:
        try:
            return next(csv.reader([text], delimiter=self.separator))
        except csv.Error as error:  # a field is too long
            raise self._error(f"expected a line of a table ({error})", text) from error

    def _number(self, field: str, line: str) -> int:
        found = NUMBER.fullmatch(field)
        if not found:
            raise self._error("expected whole numbers", line)
        self.floats |= found[2] is not None
        return int(found[1])

    def _error(self, expected: str, line: str) -> DataError:
        return DataError(f"{self.name}, line {self.line}: {expected}, got {shown(line.strip()[:40])}")


def is_header(text: str) -> bool:
    """Says whether a line holds names alone: of a single column one word, of several no numbers."""
    fields = [field.strip().strip('"') for field in re.split(r"[,;\t]", text)]
    names = [field for field in fields if field]
    if len(names) == 1:
        return re.fullmatch(r"[A-Za-z_][\w-]*", names[0]) is not None
    return bool(names) and not any(re.match(r"[\d.+-]", name) for name in names)


def whole_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cuts a text at ends of lines, and a long line of nothing but numbers between two of them."""
    text, is_first = b"", True
    for piece in pieces:
        text += piece
        if is_first and len(text) >= len(codecs.BOM_UTF8):
            text, is_first = text.removeprefix(codecs.BOM_UTF8), False
        cut = max(text.rfind(b"\n"), text.rfind(b"\r", 0, -1)) + 1  # the last byte may be the half of an end of a line
        if not cut and len(text) > LONG_LINE and PLAIN.fullmatch(text.removeprefix(b"[")):
            cut = max((found.end() for found in BETWEEN.finditer(text, len(text) - NEAR)), default=0)
        if cut:
            yield text[:cut]
            text = text[cut:]
    yield text
