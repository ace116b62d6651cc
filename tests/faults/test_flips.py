"""One flipped bit, anywhere in a small file: the right exit code, no traceback and no signal."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.command import SECONDS, succeed
from helpers.flips import FILES, KINDS

SCRIPT = Path(__file__).parents[1] / "helpers" / "flips.py"
CHECKED = ("result", "npz")  # with checksums: no flip may pass
SAMPLE = 150  # flips


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flips")
    x = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    with h5py.File(folder / "x.h5", "w", libver="latest") as file:
        file.create_dataset("x", data=x, chunks=(2, 2, 2), maxshape=(None, None, 2), compression="gzip")
    np.save(folder / "x.npy", x)
    succeed("run", "-i", "x.npy", "-u", 1, "-o", "result.h5", cwd=folder)
    succeed("run", "-i", "x.npy", "-u", 1, "-o", "s.npy", "--states", "states.npz", cwd=folder)
    (folder / "s.model.h5").rename(folder / "model.h5")
    with h5py.File(folder / "keras.h5", "w") as file:
        keras(file.create_group, x)
    texts = np.array(["first", "", "third of them"], object)
    with h5py.File(folder / "ids.h5", "w") as file:
        file["x"], file["ids"], file["chunks/x"] = x, texts, x
        file.create_dataset("chunks/names", data=texts, maxshape=(None,), compression="gzip")
    return folder


def keras(group: Callable[[str], h5py.Group], x: np.ndarray) -> None:
    """The weights of a layer as Keras 2 writes them, with names as texts of variable length."""
    layer = group("lstm")
    names = [f"lstm/lstm_cell/{name}:0" for name in ("kernel", "recurrent_kernel", "bias")]
    for name, shape in zip(names, ((2, 4), (1, 4), (4,)), strict=True):
        layer.create_dataset(name, data=np.resize(x, shape))
    layer.attrs["weight_names"] = names
    layer.parent.attrs["layer_names"] = ["lstm"]
    layer.parent.attrs["keras_version"] = "2.12.0"


def flip(folder: Path, kind: str, first: int, step: int) -> None:
    call = [sys.executable, str(SCRIPT), kind, str(first), str(step)]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=20 * SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    *bad, codes = done.stdout.splitlines()
    assert not bad, "\n".join(bad[:20])
    assert ast.literal_eval(codes).keys() <= ({"65"} if kind in CHECKED else {"0", "65"})


@pytest.mark.parametrize("kind", KINDS)
def test_some(kind: str, small_files: Path) -> None:
    flip(small_files, kind, 1, 8 * (small_files / FILES[kind]).stat().st_size // SAMPLE | 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit(kind: str, small_files: Path) -> None:
    flip(small_files, kind, 0, 1)
