"""Windows over series: the rows that NumPy's sliding windows have, whatever is read of them, and where each comes from."""

from contextlib import closing

import h5py
import numpy as np
import pytest
from helpers.sources import padded, read

from lstmcli.errors import DataError
from lstmcli.inputs.ragged.open_sequences import open_sequences
from lstmcli.inputs.ragged.windows import Windows, columns
from lstmcli.inputs.valid_steps import read_valid_steps

LENGTHS = [9, 2, 0, 7, 3, 12]
X = padded(LENGTHS, 12, 3)


@pytest.fixture(params=["padded", "ragged", "in front"])
def series(request, tmp_path):
    if request.param == "ragged":
        with h5py.File(tmp_path / "s.h5", "w") as file:
            for k, length in enumerate(LENGTHS):
                file[f"s{k}"] = X[k, :length]
        spec, lens, padding = f"{tmp_path}/s.h5", None, None
    else:
        front = np.full_like(X, np.nan)
        for row, source, length in zip(front, X, LENGTHS, strict=True):
            row[12 - length :] = source[:length]
        np.save(tmp_path / "x.npy", front if request.param == "in front" else X)
        np.save(tmp_path / "l.npy", LENGTHS)
        spec, lens, padding = f"{tmp_path}/x.npy", f"{tmp_path}/l.npy", "pre" if request.param == "in front" else None
    with closing(open_sequences(spec)) as source:
        yield source, read_valid_steps(lens, padding, source)


@pytest.mark.parametrize(("width", "stride"), [(3, 1), (3, 2), (3, 3), (2, 5), (12, 1), (1, 1)])
def test_the_rows(series, width, stride):
    windows = Windows(*series, width, stride)
    places = [(s, at) for s, n in enumerate(LENGTHS) for at in range(0, n - width + 1, stride)]
    wanted = np.array([X[s, at : at + width] for s, at in places])
    count = len(places)
    assert windows.shape == wanted.shape
    assert windows.valid_steps.valid.lengths.tolist() == [width] * count
    np.testing.assert_array_equal(read(windows, 0, 0, [width] * count), wanted.reshape(-1, 3))
    for first in range(count):
        begin = min(1, width - 1)
        parts = [width - begin] * (count - first)
        np.testing.assert_array_equal(read(windows, first, begin, parts), wanted[first:, begin:].reshape(-1, 3))
    rng = np.random.default_rng(0)
    starts = rng.integers(0, width + 1, count)
    lengths = [rng.integers(0, width - at + 1) for at in starts]
    parts = [one[at : at + n] for one, at, n in zip(wanted, starts, lengths, strict=True)]
    np.testing.assert_array_equal(read(windows, 0, starts, lengths), np.concatenate(parts))
    by_series, by_step, _ = columns(windows, 0, count)
    assert list(zip(by_series[:].tolist(), by_step[:].tolist(), strict=True)) == places
    assert columns(windows, count - 1, 1)[1][0:1].tolist() == [places[-1][1]]


def test_overlapping_steps_are_read_once(series, monkeypatch):
    windows = Windows(*series, 3, 1)
    seen = []
    monkeypatch.setattr(windows, "_of_series", lambda series, begin, end, rows: seen.append((series, end - begin)))
    read(windows, 0, 0, [3] * windows.shape[0])
    assert seen == [(k, n) for k, n in enumerate(LENGTHS) if n >= 3]


def test_series_that_are_too_short(series):
    assert "3 of 6 series have fewer steps than a window" in Windows(*series, 4, 1).valid_steps.notes[-1]
    with pytest.raises(DataError, match="expected series of at least 13 steps, the window, got at most 12"):
        Windows(*series, 13, 1)
    with pytest.raises(DataError, match="at least 1000000000000000000000 steps"):
        Windows(*series, 10**21, 1)
    assert Windows(*series, 2, 10**21).shape[0] == 5
    assert Windows(*series, 2, 1).identity() != Windows(*series, 2, 2).identity()
    before = Windows(*series, 2, 1).identity()
    series[0].ids = list("abcdef")  # which are stored as well
    assert Windows(*series, 2, 1).identity() != before
