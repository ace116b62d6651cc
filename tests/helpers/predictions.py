"""Compares what `lstmcli predict` computes with what a framework did."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.command import succeed

MODELS = 100  # random ones, of each kind of file
TOLERANCE = 3e-6  # of max(1, largest value)


def assert_predicts(folder: Path, weights: str, x: np.ndarray, want: np.ndarray, *args: object, masks: bool = False) -> None:
    """masks: what is predicted as zeros, for steps that the model hides, is not compared: Keras repeats there what it had."""
    np.save(folder / "x.npy", x)
    succeed("predict", "-i", "x.npy", "-w", weights, "-o", "p.npy", "--overwrite", "--quiet", *args, cwd=folder)
    got = np.load(folder / "p.npy")
    assert got.shape == want.shape
    compared = got.any(axis=-1) if masks and got.ndim == 3 else np.ones(len(got), bool)
    error = np.abs(got - want)[compared].max(initial=0)
    assert error <= TOLERANCE * max(1.0, float(np.abs(want).max(initial=0)))
