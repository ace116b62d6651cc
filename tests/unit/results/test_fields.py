"""Rows of a field lie where the padded array has them, wherever its valid steps begin, and nothing else is touched."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lstmcli.blocks import Valid
from lstmcli.files.partial_file import Partial
from lstmcli.files.positioned_file import Data, as_bytes
from lstmcli.results.formats.fields import Field

STEPS, OFFSET = 7, 40


@given(
    places=st.lists(st.tuples(st.integers(0, STEPS), st.integers(0, STEPS)).map(sorted), min_size=1, max_size=9),
    first=st.integers(0, 3),
    width=st.sampled_from([1, 3, 300]),
    whole=st.booleans(),
)
def test_put_and_get(places: list[list[int]], first: int, width: int, whole: bool, tmp_path_factory) -> None:
    valid = Valid(*(np.array(part, np.int64) for part in zip(*((a, b - a) for a, b in places), strict=True)))
    batch = first + len(places) + 1
    rows = np.random.default_rng(0).normal(size=(int(valid.lengths.sum()), width)).astype(np.float32)
    padded = np.zeros((batch, STEPS, width), np.float32)
    at = 0
    for row, (start, stop) in enumerate(places, first):
        padded[row, start:stop] = rows[at : at + stop - start]
        at += stop - start

    path: Path = tmp_path_factory.mktemp("field") / "out"
    partial = Partial(path, overwrite=False)
    partial.reserve(OFFSET + padded.nbytes)
    field = Field(partial, OFFSET, padded.shape, padded.dtype)
    field.put(first, valid, rows, whole)
    assert path.with_name("out.partial").read_bytes() == bytes(OFFSET) + padded.tobytes()
    np.testing.assert_array_equal(field.get(first, valid), rows, strict=True)
    partial.discard()


def test_groups_cover_all_sequences_once(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "out", overwrite=False)
    steps = np.random.default_rng(1).integers(0, 900, 500)
    field = Field(partial, 0, (500, 900, 64), np.dtype(np.float32))
    groups = list(field.groups(steps))
    assert len(groups) > 50
    assert np.r_[tuple(np.arange(500)[group] for group in groups)].tolist() == list(range(500))
    partial.discard()


def test_steps_that_others_store_stay(tmp_path: Path) -> None:
    """A span that is cut in time has steps of other spans in its gaps."""
    partial = Partial(tmp_path / "out", overwrite=False)
    field = Field(partial, 0, (3, 4, 2), np.dtype(np.float32))
    partial.reserve(math.prod(field.shape) * 4)
    x = np.arange(1, 25, dtype=np.float32).reshape(3, 4, 2)
    for since, until in [(0, 3), (3, 4)]:
        valid = Valid(np.full(3, since), np.full(3, until - since))
        field.put(0, valid, x[:, since:until].reshape(-1, 2))
    assert (tmp_path / "out.partial").read_bytes() == x.tobytes()
    partial.discard()


def test_short_sequences_take_few_writes_and_padding_of_a_page_none(tmp_path: Path) -> None:
    calls = []

    class Counted(Partial):
        def write(self, data: Data, offset: int) -> None:
            calls.append(as_bytes(data).nbytes)
            super().write(data, offset)

    partial = Counted(tmp_path / "out", overwrite=False)
    lengths = np.random.default_rng(0).integers(1, 17, 5000)
    field = Field(partial, 0, (5000, 16, 8), np.dtype(np.float32))
    partial.reserve(math.prod(field.shape) * 4)
    valid = Valid(np.zeros(5000, np.int64), lengths)
    field.put(0, valid, np.ones((int(lengths.sum()), 8), np.float32), whole=True)
    assert len(calls) < 10

    calls.clear()
    field = Field(partial, 0, (10, 64, 64), np.dtype(np.float32))
    field.put(0, Valid(np.zeros(10, np.int64), np.full(10, 4)), np.ones((40, 64), np.float32), whole=True)
    assert calls == [4 * 64 * 4] * 10
    partial.discard()
