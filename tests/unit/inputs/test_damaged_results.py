"""A damaged result as weights or as an initial state: refused, or what was damaged is not read."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.command import LSTMCLI

from lstmcli.errors import DataError
from lstmcli.inputs.beside.initial_state import open_states
from lstmcli.model.model_file import load_model
from lstmcli.weights.draft import Choices
from lstmcli.weights.load import load_weights

WIDTHS = {"0/c": 3, "0/h": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """out.h5 and out.states.npz of 5 sequences."""
    folder = tmp_path_factory.mktemp("results")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(5, 4, 2)).astype(np.float32))
    for name in ("out.h5", "out.npy"):
        subprocess.run([*LSTMCLI, "run", "-i", "x.npy", "-u", "3", "-o", name, "-q"], cwd=folder, check=True)
    return folder


def model_of(path: Path) -> list[Any]:
    return [weight.tobytes() for weight in load_model(str(path)).arrays()]


def weights_of(path: Path) -> list[Any]:
    model = load_weights(str(path), Choices()).model
    return [model.config(), *(weight.tobytes() for weight in model.arrays())]


def states_of(path: Path) -> list[Any]:
    """In two blocks, as a run reads them."""
    with closing(open_states(str(path), WIDTHS, 5, np.dtype(np.float32))) as states:
        return [rows.tobytes() for first, count in ((0, 2), (2, 3)) for rows in states.read(first, count).values()]


def flipped(content: bytes, step: int) -> Iterator[bytes]:
    """Copies with one bit changed, somewhere in each `step` bytes."""
    rng = np.random.default_rng(1)
    for at in range(0, len(content) - step, step):
        copy = bytearray(content)
        copy[at + int(rng.integers(step))] ^= 1 << int(rng.integers(8))
        yield bytes(copy)


@pytest.mark.parametrize(
    ("name", "read", "step"),
    [("out.h5", model_of, 23), ("out.h5", weights_of, 23), ("out.h5", states_of, 11), ("out.states.npz", states_of, 1)],
)
def test_flipped_bits(name: str, read: Callable[[Path], list[Any]], step: int, folder: Path, tmp_path: Path) -> None:
    content = (folder / name).read_bytes()
    want, refused, path = read(folder / name), 0, tmp_path / name
    for copy in flipped(content, step):
        path.write_bytes(copy)
        try:
            assert read(path) == want
        except DataError:
            refused += 1
    assert refused > len(content) // step // 4


@pytest.mark.parametrize(
    "dataset", ["model/0/recurrent_kernel", "model/0/bias", "state/0/c", "state/0/h", "checksums/state/0/h"]
)
def test_a_flipped_value(dataset: str, folder: Path, tmp_path: Path) -> None:
    with h5py.File(folder / "out.h5") as file:
        offset = file[dataset].id.get_offset()
    content = bytearray((folder / "out.h5").read_bytes())
    content[offset + 2] ^= 4
    (tmp_path / "out.h5").write_bytes(content)
    if dataset.startswith("state"):
        assert model_of(tmp_path / "out.h5") == model_of(folder / "out.h5")
    else:
        with pytest.raises(DataError, match="are not what was written"):
            model_of(tmp_path / "out.h5")
    with pytest.raises(DataError, match=f"/{dataset}, row 0: its bytes|its structure, lengths, model"):
        states_of(tmp_path / "out.h5")


def test_states_in_a_file_of_somebody_else_have_no_checksums(tmp_path: Path) -> None:
    files.write_h5(tmp_path / "start.h5", **{"state/0/c": np.ones((5, 3)), "state/0/h": np.ones((1, 3))})
    assert states_of(tmp_path / "start.h5")[0] == np.ones((2, 3), np.float32).tobytes()
