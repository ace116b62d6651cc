"""The shapes of lstmcli bench, and what every contender is given of one."""

from __future__ import annotations

import numpy as np
import pytest

from lstmcli.tools.bench.cases import CASES, Batch, Case


@pytest.mark.parametrize("case", CASES)
def test_lengths_of_a_case(case: Case) -> None:
    lengths = case.lengths()
    assert (len(lengths), lengths.max()) == (case.batch, case.time)
    assert lengths.min() >= 1
    assert abs(lengths.mean() / case.time - case.fill) < 0.06
    assert (lengths == case.lengths()).all()
    assert np.issubdtype(lengths.dtype, np.integer)


@pytest.mark.parametrize(
    ("case", "weights"),
    [
        (Case(4, 6, 5, (3,), 1.0), 4 * 3 * (5 + 3)),
        (Case(4, 6, 5, (3,), 1.0, projection=2), 4 * 3 * (5 + 2) + 3 * 2),
        (Case(4, 6, 5, (3, 7), 1.0, bidirectional=True), 2 * (4 * 3 * (5 + 3) + 4 * 7 * (6 + 7))),
        (Case(4, 6, 5, (3,), 1.0, vocabulary=11), 4 * 3 * (5 + 3)),
    ],
)
def test_an_operation_is_counted_for_the_product_and_the_sum_of_each_weight(case: Case, weights: int) -> None:
    assert case.flops() == 2 * weights * 4 * 6


@pytest.mark.parametrize("vocabulary", [None, 11])
def test_a_batch_is_the_same_in_every_process_and_zero_in_the_padding(vocabulary: int | None) -> None:
    case = Case(4, 6, 5, (3,), 0.5, vocabulary=vocabulary)
    x, again = (Batch(case, 1, "float32").x for _ in range(2))
    assert (x == again).all()
    assert x.shape == ((4, 6) if vocabulary else (4, 6, 5))
    padding = np.arange(6) >= case.lengths()[:, None]
    assert padding.any()
    assert not x[padding].any()
    assert x[~padding].any()


def test_buckets_are_sorted_trimmed_and_put_back() -> None:
    batch = Batch(Case(8, 20, 2, (3,), 0.5), 1, "float32")
    longest = []

    def run(x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        longest.append(x.shape[1])
        assert x.shape[1] == lengths.max()
        return np.repeat(x[:, :, :1], 3, axis=2)

    outputs = batch.in_buckets(4, batch.x, np.zeros, run)()
    assert longest == sorted(longest)
    assert len(longest) == 4
    assert (outputs[batch.valid] == batch.x[batch.valid][:, :1]).all()
