"""Rows of a field lie where the padded array has them, wherever its valid steps begin, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lstmcli.blocks import Valid
from lstmcli.files.partial_file import Partial
from lstmcli.results.formats.fields import Field

STEPS, WIDTH, OFFSET = 7, 3, 40


@given(
    places=st.lists(st.tuples(st.integers(0, STEPS), st.integers(0, STEPS)).map(sorted), min_size=1, max_size=9),
    first=st.integers(0, 3),
)
def test_put_and_get(places: list[list[int]], first: int, tmp_path_factory) -> None:
    valid = Valid(*(np.array(part, np.int64) for part in zip(*((a, b - a) for a, b in places), strict=True)))
    batch = first + len(places) + 1
    rows = np.random.default_rng(0).normal(size=(int(valid.lengths.sum()), WIDTH)).astype(np.float32)
    padded = np.zeros((batch, STEPS, WIDTH), np.float32)
    at = 0
    for row, (start, stop) in enumerate(places, first):
        padded[row, start:stop] = rows[at : at + stop - start]
        at += stop - start

    path: Path = tmp_path_factory.mktemp("field") / "out"
    partial = Partial(path, overwrite=False)
    partial.reserve(OFFSET + padded.nbytes)
    field = Field(partial, OFFSET, padded.shape, padded.dtype)
    field.put(first, valid, rows)
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
