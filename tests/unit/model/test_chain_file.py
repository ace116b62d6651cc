"""Whole models in a model file: written, read again, and refused when they are damaged."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.random_chains import as_chain, random_layers

from lstmcli.errors import DataError
from lstmcli.model.chain import Chain
from lstmcli.model.chain_file import is_chain, read_chain, write_chain
from lstmcli.model.tree import Model


def written(path: Path, chain: Chain) -> Path:
    with h5py.File(path, "w") as file:
        write_chain(file.create_group("model"), chain)
    return path


def weights(layer: object) -> dict[str, np.ndarray]:
    if isinstance(layer, Model):
        return {f"{path}/{name}": weight for path, cell in layer.cells() for name, weight in cell.weights().items()}
    found: dict[str, np.ndarray] = layer.weights()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("seed", range(30))
def test_what_was_written_is_read(seed: int, tmp_path: Path) -> None:
    chain = as_chain(random_layers(np.random.default_rng(seed), steps=9)[0])
    with h5py.File(written(tmp_path / "m.h5", chain)) as file:
        assert is_chain(file["model"])
        again = read_chain(file["model"])
    assert again.config() == chain.config()
    assert again.names == chain.names
    for one, other in zip(chain.layers, again.layers, strict=True):
        assert weights(one).keys() == weights(other).keys()
        for name, weight in weights(one).items():
            assert (weight.dtype, weight.tobytes()) == (weights(other)[name].dtype, weights(other)[name].tobytes())


def test_a_damaged_chain_is_refused(tmp_path: Path) -> None:
    chain = as_chain([("dense", {"kernel": np.ones((2, 3), np.float32)}), ("activation", {"function": "relu"})])
    path = written(tmp_path / "m.h5", chain)
    for change, words in [
        (lambda f: f["model/1"].attrs.modify("function", "sine"), "expected one of linear"),
        (lambda f: f["model/1"].attrs.modify("kind", "sine"), "expected kind stack"),
        (lambda f: f["model/0"].__delitem__("kernel"), "expected a layer of kind dense"),
        (lambda f: f["model"].move("0", "2"), "model/0: expected the group of a layer"),
    ]:
        with h5py.File(path, "r+") as file:
            change(file)
            with pytest.raises(DataError, match=r"m\.h5") as caught:
                read_chain(file["model"])
            assert words in str(caught.value)
        written(path, chain)
