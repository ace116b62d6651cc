"""Makes sample_data/x.h5 and lens.npy: the batch of the original TensorFlow example. The same bytes every time.

python tests/data/make_sample_data.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np

LENGTHS = (4, 9, 10, 5, 10)
STEPS, FEATURES = 10, 20


def make(folder: Path) -> None:
    """x.h5 holds `x` (5, 10, 20) float32, uniform in [0, 1) and zero past each length; lens.npy holds the lengths."""
    lengths = np.array(LENGTHS, np.int64)
    x = np.random.RandomState(0).rand(len(lengths), STEPS, FEATURES).astype("<f4")  # a stream that numpy keeps forever
    x[np.arange(STEPS) >= lengths[:, None]] = 0
    with h5py.File(folder / "x.h5", "w", libver=("earliest", "v108")) as file:
        file.create_dataset("x", data=x, track_times=False)
    np.save(folder / "lens.npy", lengths)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "sample_data")
