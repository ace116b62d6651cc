"""Text with a whole number in each line, which comes in pieces."""

from __future__ import annotations

import codecs
import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmcli.errors import DataError
from lstmcli.inputs.beside import number_lines
from lstmcli.inputs.beside.number_lines import parse_numbers
from lstmcli.inputs.ragged.flat import read_numbers
from lstmcli.tools.inspect.data import about_text


def outcome(pieces: list[bytes]) -> tuple[list[int], bool] | str:
    try:
        numbers, floats = parse_numbers(pieces, "lens.txt")
    except DataError as error:
        return str(error)
    return numbers.tolist(), floats


LINES = [b"1\n", b"23\r\n", b"-7\n", b" 4 \r", b"\n", b"x\n", b"5, 6\n", b"8.0\n", b"9 # nine\n", b"11"]


@given(lines=st.lists(st.sampled_from(LINES)), cuts=st.lists(st.integers(0, 60), max_size=5), marked=st.booleans())
def test_pieces_change_nothing(lines: list[bytes], cuts: list[int], marked: bool) -> None:
    text = codecs.BOM_UTF8 * marked + b"".join(lines)
    places = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    assert outcome([text[a:b] for a, b in itertools.pairwise(places)]) == outcome([text])


def test_a_line_takes_little_more_memory_than_its_number() -> None:
    piece = b"12\n" * (number_lines.TEXT_PIECE // 30)
    pieces = [piece] * (3_000_000 // len(piece))
    tracemalloc.start()
    try:
        found, _ = parse_numbers(pieces, "lens.txt")
        assert tracemalloc.get_traced_memory()[1] < 30 * len(found)
    finally:
        tracemalloc.stop()
    assert np.array_equal(found, np.full(len(found), 12))


def test_a_field_that_is_too_long_for_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text in ("a" * 200_000 + ",length\n1,3\n", "a,length\n" + "x" * 200_000 + ",3\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="expected a line of a table"):
            read_numbers(f"{path}::length", "--lens")
    path.write_text("a" * 200_000 + ",b\n1,x\n")
    with pytest.raises(DataError, match="expected a line of a table"):
        about_text(str(path))
