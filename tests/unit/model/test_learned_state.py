"""A state that a model has learned: every sequence starts from it, unless another start is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.command import assert_one_line, lstmcli, succeed
from helpers.weight_imports import as_naive

from lstmcli.api import Bidirectional, Cell, Model, Reverse, Stack
from lstmcli.errors import DataError
from lstmcli.model.model_file import load_model, save_model

LENGTHS = [5, 0, 3, 1]
X = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)


def cell(features: int, seed: int, *, projection: int | None = None, start: str = "ch") -> Cell:
    made = wf.random_cell(features, 4, seed, projection=projection)
    rng = np.random.default_rng(seed + 100)
    learned = {"c": rng.normal(size=4), "h": rng.normal(size=made.width)}
    starts: dict[str, Any] = {f"initial_{part}": learned[part].astype(np.float32) for part in start}
    weights = {name: value for name, value in vars(made).items() if isinstance(value, np.ndarray)}
    return Cell(**weights, **starts)


def model() -> Model:
    """One direction with half a start, both directions, and one backward; the layer between has none."""
    both = Bidirectional(cell(4, 1), cell(4, 2, projection=2))
    return Stack((cell(3, 0, start="h"), both, cell(6, 3, start=""), Reverse(cell(4, 4))))


def test_every_sequence_starts_from_it() -> None:
    want, states = naive.run(as_naive(model()), X, LENGTHS)
    got, final = model()(X, LENGTHS)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    for name, value in states.items():
        np.testing.assert_allclose(final[name], value, rtol=0, atol=1e-6, err_msg=name)
    without = naive.run(replace(naive_cell := as_naive(cell(3, 0)), initial_c=None, initial_h=None), X, LENGTHS)[0]
    assert np.abs(naive.run(naive_cell, X, LENGTHS)[0] - without).max() > 0.1


def test_a_given_start_comes_before_it() -> None:
    zeros = {name: np.zeros((4, width)) for name, width in model().state_widths().items()}
    got, _ = model()(X, LENGTHS, zeros)
    want, _ = naive.run(as_naive(model()), X, LENGTHS, zeros)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_a_run_starts_from_it_whatever_the_blocks(tmp_path: Path) -> None:
    """The model file keeps it, and a sequence that is cut in time goes on from where it was."""
    causal = Stack((cell(3, 0), cell(4, 1, projection=2)))
    save_model(causal, tmp_path / "m.h5")
    rng = np.random.default_rng(1)
    np.save(tmp_path / "x.npy", rng.normal(size=(2, 90_000, 3)).astype(np.float32))
    np.save(tmp_path / "lens.npy", [90_000, 70_000])
    want, _ = load_model(str(tmp_path / "m.h5"))(np.load(tmp_path / "x.npy"), [90_000, 70_000])
    for k, size in enumerate(("1GB", "1MB")):
        succeed("run", "-i", "x.npy", "-l", "lens.npy", "-w", "m.h5", "-o", f"{k}.h5", "--max-memory", size, cwd=tmp_path)
        with h5py.File(tmp_path / f"{k}.h5") as file:
            np.testing.assert_array_equal(file["outputs"][:], want)
    assert "initial_c" in succeed("model", "show", "m.h5", cwd=tmp_path).text
    assert_one_line(lstmcli("model", "export", "m.h5", "-o", "w.safetensors", cwd=tmp_path), 2, "initial_c")


@pytest.mark.parametrize("name", ["initial_c", "initial_h"])
def test_its_width_is_the_states(name: str) -> None:
    with pytest.raises(DataError, match=name):
        replace(cell(3, 0, projection=2), **{name: np.zeros(3, np.float32)})
