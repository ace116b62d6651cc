"""Blocks as the docstring of block_limits says, and a note where --max-memory cannot be kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import files
from helpers.command import lstmcli

from lstmcli.errors import UsageError
from lstmcli.inputs.open_input import open_source
from lstmcli.model.new_weights import init_model
from lstmcli.run.computation import LstmComputation
from lstmcli.run.job import Compute
from lstmcli.run.memory import BLOCK_BYTES, block_limits, memory_note, program_bytes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("memory") / "x.npy"
    files.write_npy(path, np.zeros((2, 3, 128), np.float32))
    return open_source(str(path))


LENGTHS = np.full(2000, 50)


def computation(bidirectional: bool = False) -> LstmComputation:
    return LstmComputation(init_model(128, [128], bidirectional=bidirectional), Compute(), 2)


def test_the_example(source) -> None:
    assert block_limits(computation(), source, LENGTHS, 10**9, streams=False).rows == BLOCK_BYTES // 2048 == 15625
    limits = block_limits(computation(), source, LENGTHS, 135_000_000, streams=False)
    left = 135_000_000 - program_bytes(computation(), source)
    assert limits.rows == left * 9 // 10 // 2048 < 15625
    assert limits.sequences == left // 10 // 3328
    assert block_limits(computation(), source, LENGTHS, 10**9, streams=True).fill == 1


def test_the_longest_sequence_must_fit_where_it_cannot_be_cut(source) -> None:
    both, lengths = computation(bidirectional=True), np.array([3, 40_000])
    assert block_limits(both, source, lengths, 10**9, streams=False).rows >= 40_000
    with pytest.raises(UsageError, match="40,000 steps"):
        block_limits(both, source, lengths, 140_000_000, streams=False)


def test_a_limit_that_cannot_be_kept_is_told(source, tmp_path: Path) -> None:
    assert memory_note(computation(), source, 200_000_000) is None
    note = memory_note(computation(), source, 50_000_000)
    assert note is not None
    assert "--max-memory 50,000,000" in note
    files.write_npy(tmp_path / "x.npy", np.zeros((2, 3, 4), np.float32))
    ran = lstmcli("run", "-i", "x.npy", "-u", 3, "--max-memory", "1MB", cwd=tmp_path)
    assert ran.code == 0
    assert "--max-memory 1,000,000 cannot be kept" in ran.err
