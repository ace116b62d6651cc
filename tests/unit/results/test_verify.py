"""Rows that are longer than what is read at a time are verified in pieces."""

from __future__ import annotations

import itertools
import shutil
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.command import succeed

from lstmcli.errors import DataError
from lstmcli.results import verify


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(3, 9, 4)).astype(np.float32))
    np.save(folder / "lens.npy", [9, 0, 4])
    succeed("run", "-i", "x.npy", "-l", "lens.npy", "-u", 3, "-o", "out.h5", cwd=folder)
    return folder / "out.h5"


@pytest.mark.parametrize("block", [1 << 24, 50, 7])
def test_every_byte_of_the_outputs(result: Path, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "BLOCK", block)
    assert "all checksums right" in verify.verify(str(result))
    with h5py.File(result) as file:
        offset = file["outputs"].id.get_offset()
    row = 9 * 3 * 4
    copy = shutil.copy(result, tmp_path)
    content = result.read_bytes()
    for sequence, at in itertools.product(range(3), [0, 47, 48, 60, 107]):
        spoiled = bytearray(content)
        spoiled[offset + sequence * row + at] ^= 1
        Path(copy).write_bytes(spoiled)
        what = "checksum" if at < [9, 0, 4][sequence] * 12 else "zeros"
        with pytest.raises(DataError, match=rf"/outputs, row {sequence}: .*{what}"):
            verify.verify(str(copy))


def test_a_long_row_is_not_loaded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, units = 40_000, 8
    np.save(tmp_path / "x.npy", np.ones((1, steps, 1), np.float32))
    succeed("run", "-i", "x.npy", "-u", units, "-o", "out.h5", cwd=tmp_path)
    monkeypatch.setattr(verify, "BLOCK", 1 << 16)
    verify.verify(str(tmp_path / "out.h5"))  # imports take memory too
    tracemalloc.start()
    try:
        verify.verify(str(tmp_path / "out.h5"))
        assert tracemalloc.get_traced_memory()[1] < steps * units * 4 // 2
    finally:
        tracemalloc.stop()
