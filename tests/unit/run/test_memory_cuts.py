"""Blocks: every valid step once, in order, within the limits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lstmcli.run.memory import Limits, cut_into_spans


@given(
    lengths=st.lists(st.integers(0, 30), max_size=40),
    rows=st.integers(1, 200),
    sequences=st.integers(1, 20),
    fill=st.integers(1, 12),
    chunk=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_every_step_once_and_in_order(lengths, rows, sequences, fill, chunk):
    lengths = np.array(lengths, np.int64)
    limits = Limits(rows, sequences, fill)
    done = np.zeros(len(lengths), np.int64)  # steps of each sequence that were planned
    reached = 0  # sequences whose last span was planned
    for span in cut_into_spans(lengths, limits, chunk):
        steps = span.lengths(lengths)
        here = slice(span.first, span.first + span.count)
        assert span.first == reached
        assert 0 < span.count <= sequences
        assert steps.sum() <= rows
        assert (done[here] == np.minimum(lengths[here], span.start)).all()
        done[here] += steps
        if span.last:
            reached += span.count
    assert reached == len(lengths)
    assert (done == lengths).all()


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=60), rows=st.integers(9, 100), chunk=st.integers(1, 8))
def test_cuts_lie_between_chunks_where_they_can(lengths, rows, chunk):
    lengths = np.array(lengths, np.int64)
    limits = Limits(rows, 1000, 1)
    for span in cut_into_spans(lengths, limits, (chunk, 1)):
        end = span.first + span.count
        if end < len(lengths) and end % chunk:
            assert span.first // chunk == end // chunk  # not even one edge of a chunk was in reach
