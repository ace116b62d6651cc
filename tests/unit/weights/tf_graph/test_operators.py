"""Slices in TensorFlow's graphs: what would cut longer sequences is refused, also where those that are traced are shorter."""

from __future__ import annotations

import numpy as np
import pytest

from lstmcli.errors import DataError
from lstmcli.weights.containers.protobuf import Message
from lstmcli.weights.tf_graph.graph import Operation
from lstmcli.weights.tf_graph.operators import slice_, strided_slice

TRACED = np.arange(4 * 6 * 3).reshape(4, 6, 3).view([("element", np.int64)])  # what depends on the model's input


def sliced(starts: list[int], ends: list[int], data: np.ndarray = TRACED, **masks: int) -> np.ndarray:
    """masks: begin, end, ellipsis, new_axis, shrink_axis, as bits."""
    attributes = {f"{name}_mask": Message(bytes([3 << 3, bits]), "a test") for name, bits in masks.items()}
    node = Operation("s", "StridedSlice", [], [], attributes, {}, {}, "", None)
    return strided_slice(node, [data, np.array(starts), np.array(ends), np.ones(len(starts), np.int64)])


@pytest.mark.parametrize(
    ("starts", "ends", "masks"),
    [
        ([0, 0], [0, 7], {"begin": 1, "end": 1}),
        ([0, -7], [0, 0], {"begin": 1, "end": 3}),
        ([0, 0, 0], [0, 7, 0], {"begin": 5, "end": 4, "ellipsis": 1}),
        ([0, 0, 0, 0], [0, 0, 7, 0], {"begin": 15, "end": 9, "new_axis": 2}),
        ([0, 1, 0], [0, 4, 7], {"begin": 1, "end": 1, "shrink_axis": 0}),
    ],
    ids=["end", "begin", "ellipsis", "new-axis", "features"],
)
def test_a_slice_beyond_what_is_there_is_refused(starts: list[int], ends: list[int], masks: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"takes 7 of axis \d at most, which cuts what is longer"):
        sliced(starts, ends, **masks)


def test_slices_within() -> None:
    assert np.array_equal(sliced([0, 1], [0, 6], begin=1, end=1), TRACED[:, 1:6])
    assert np.array_equal(sliced([0, -1], [0, 0], begin=1, end=1, shrink_axis=2), TRACED[:, -1])
    assert np.array_equal(sliced([0, -1], [0, 0], begin=0, end=2, ellipsis=1), TRACED[..., -1:])


def test_slices_of_shapes_end_where_they_end() -> None:
    assert np.array_equal(sliced([0], [9], data=np.arange(3)), np.arange(3))


def test_a_slice_by_sizes_must_be_there() -> None:
    node = Operation("s", "Slice", [], [], {}, {}, {}, "", None)
    begins, sizes = np.array([0, 0, 0]), [4, 6, -1]
    assert np.array_equal(slice_(node, [TRACED, begins, np.array(sizes)]), TRACED)
    with pytest.raises(ValueError):  # noqa: PT011 (it is told as a damaged graph, with its node)
        slice_(node, [TRACED, begins, np.array([4, 7, -1])])
