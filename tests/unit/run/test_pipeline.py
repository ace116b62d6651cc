"""The pipeline knows no model: it reads, computes and stores every span once, in order, and carries the state along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import files
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lstmcli.blocks import Block, Span, State
from lstmcli.errors import DataError, StoppedError
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.results.journal import StoredSpan
from lstmcli.run.job import Compute, Inputs, Job, NewModel
from lstmcli.run.memory import Limits
from lstmcli.run.opened_job import open_job
from lstmcli.run.pipeline import Pipeline
from lstmcli.run.stop import Stop


class RunningSum:
    """Sums of the features up to each step; the state is the last one."""

    dtype, threads, causal, input_width, input_dtype = np.dtype(np.float64), 1, True, 2, np.dtype(np.float64)
    step_widths, state_forms = {"sums": 2}, {"last": (np.dtype(np.float64), 2)}
    scratch_width, weight_bytes, step_flops, full = 0, 0, 2, 1

    def initial_state(self, count: int, given: State | None) -> State:
        return {"last": np.zeros((count, 2))}

    def run(self, block: Block, arrays: dict[str, Block], state: State) -> None:
        for k, (start, length) in enumerate(zip(block.starts, block.lengths, strict=True)):
            rows = block.rows[start : start + length]
            arrays["sums"].rows[start : start + length] = state["last"][k] + np.cumsum(rows, axis=0)
            state["last"][k] += rows.sum(axis=0)

    def of_sequences(self, state: State) -> dict[str, NDArray[Any]]:
        return {"totals": state["last"]}


class Sink:
    """Keeps what was stored as padded arrays, and where a run could go on."""

    def __init__(self, lengths: NDArray[np.int64], stop: Stop, stop_after: int) -> None:
        self.lengths, self.stop, self.stop_after = lengths, stop, stop_after
        self.sums = np.full((len(lengths), 6, 2), np.nan)
        self.totals = np.full((len(lengths), 2), np.nan)
        self.last: StoredSpan | None = None
        self.flushed = False

    def store(self, span: Span, arrays: dict[str, Any], nonfinite: Nonfinite, state: State | None, read: int) -> None:
        at = 0
        for row, steps in enumerate(span.lengths(self.lengths).tolist(), span.first):
            here = self.sums[row, span.start : span.start + steps]
            assert np.isnan(here).all()
            here[:] = arrays["sums"][at : at + steps]
            at += steps
        if span.last:
            self.totals[span.first : span.first + span.count] = arrays["totals"]
        assert (state is None) == span.last
        self.last = StoredSpan(span, 0, nonfinite, state)
        self.stop_after -= 1
        if self.stop_after == 0:
            self.stop.signal = 15

    def flush(self) -> None:
        self.flushed = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    files.write_npy(folder / "x.npy", X)
    files.write_npy(folder / "lens.npy", LENGTHS)
    bad = X.copy()
    bad[3, 1, 0] = np.nan
    files.write_npy(folder / "bad.npy", bad)
    return folder


X = np.random.default_rng(0).integers(-9, 9, (8, 6, 2)).astype(np.float32)  # integers: sums are exact in any order
LENGTHS = np.array([6, 0, 3, 5, 1, 6, 6, 2])


def job(folder: Path, name: str = "x.npy", nonfinite: str = "warn") -> Job:
    return Job(Inputs(str(folder / name), lens=str(folder / "lens.npy")), NewModel((3,)), Compute(nonfinite=nonfinite))


@given(rows=st.integers(1, 40), sequences=st.integers(1, 9), fill=st.integers(1, 4), stop_after=st.integers(0, 9))
def test_any_blocks_and_a_stop_between_them(folder: Path, rows: int, sequences: int, fill: int, stop_after: int) -> None:
    stop = Stop()
    sink = Sink(LENGTHS, stop, stop_after)
    progress: list[int] = []
    for _ in range(2):
        with open_job(job(folder)) as opened:
            pipeline = Pipeline(
                opened, RunningSum(), Limits(rows, sequences, fill), sink, stop, lambda n, _: progress.append(n)
            )
            told = ""
            try:
                assert pipeline.run(sink.last) == Nonfinite()
            except StoppedError as error:
                told = str(error)
        if not told:
            break
        assert sink.flushed
        assert f"after {np.isfinite(sink.sums[:, :, 0]).sum()} of 29 steps" in told
        stop.signal = None
        progress.clear()
    expected = np.cumsum(X.astype(np.float64), axis=1)
    expected[np.arange(6) >= LENGTHS[:, None]] = np.nan
    np.testing.assert_array_equal(sink.sums, expected)
    np.testing.assert_array_equal(sink.totals, np.nan_to_num(expected, nan=0.0)[np.arange(8), LENGTHS - 1])
    assert sum(progress) == 29


def test_what_is_not_finite_is_counted_or_refused(folder: Path) -> None:
    for policy, found in (("warn", Nonfinite(1, 3, 1)), ("pass", Nonfinite())):
        with open_job(job(folder, "bad.npy", policy)) as opened:
            sink = Sink(LENGTHS, Stop(), 0)
            assert Pipeline(opened, RunningSum(), Limits(4, 2, 1), sink, Stop(), lambda *_: None).run() == found
    with open_job(job(folder, "bad.npy", "error")) as opened, pytest.raises(DataError, match="sequence 3, step 1"):
        Pipeline(opened, RunningSum(), Limits(4, 2, 1), Sink(LENGTHS, Stop(), 0), Stop(), lambda *_: None).run()
