"""What the fixture `case` is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import files, naive


@dataclass(frozen=True)
class Case:
    """A batch with clean padding, a model, and what the command made of them: the result that others must repeat."""

    folder: Path
    x: np.ndarray  # (N, T, E) float32
    lengths: np.ndarray  # (N,) int64
    model: naive.Stack
    outputs: np.ndarray
    state: files.Arrays

    @property
    def x_npy(self) -> Path:
        return self.folder / "x.npy"

    @property
    def lens_npy(self) -> Path:
        return self.folder / "lens.npy"

    @property
    def weights(self) -> Path:
        return self.folder / "model.h5"

    @property
    def inputs(self) -> list[str]:
        """The words of a command that say so."""
        return ["--input", str(self.x_npy), "--lens", str(self.lens_npy), "--weights", str(self.weights)]

    @property
    def result(self) -> tuple[np.ndarray, files.Arrays]:
        return self.outputs, self.state
