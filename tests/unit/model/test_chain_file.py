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


K = np.ones((2, 3, 5), np.float32)
V = np.ones(3, np.float32)
WINDOW = {"size": 2, "stride": 1, "dilation": 1, "padding": "valid"}
FORGED = [
    *(("repeat", {"steps": steps}) for steps in (0, -1, 1 << 31, 1 << 62, 1.5, "x", b"\xff", np.arange(3), V)),
    *(
        ("conv1d", {"kernel": K} | WINDOW | {name: value})
        for name in ("size", "stride", "dilation")
        for value in (0, 1.0, 1 << 40)
    ),
    *(("conv1d", {"kernel": kernel} | WINDOW) for kernel in (K[:1], K[0], np.float32(1), K.astype(int))),
    *(("conv1d", {"kernel": K} | WINDOW | {"bias": bias}) for bias in (V, V[:1], K)),
    *(
        ("conv1d", {"kernel": K} | WINDOW | {"padding": value})
        for value in ([-1, 0], [1], [], [1, 1 << 40], [0.5, 1], "most", 1)
    ),
    *(("pool1d", WINDOW | {"function": "max"} | told) for told in ({"function": "median"}, {"count_padding": 1}, {"size": V})),
    *(("layer_norm", {"width": 3} | told) for told in ({"scale": V[:1]}, {"epsilon": -1.0}, {"epsilon": np.nan}, {"width": V})),
    *(("layer_norm", {"width": 3, "epsilon": value}) for value in ([1.0], "x", True)),
    *(("activation", {"function": "leaky_relu", "alpha": value}) for value in ([], "x", [1.0])),
    *(("activation", told) for told in ({"function": "prelu", "slopes": K}, {"function": 1}, {})),
    *(
        ("attention", {"score": V} | told)
        for told in ({"bias": []}, {"function": "relu"}, {"score": V[:, None]}, {"score": 1.0})
    ),
    *(("affine", {"scale": V, "shift": shift}) for shift in (V[:1], K[0, :, :1], 1.0)),
    *(("dense", {"kernel": K[0]} | told) for told in ({"bias": V}, {"bias": V[:1]}, {"kernel": V}, {"kernel": K})),
    *(("masking", {"value": value}) for value in ([], [0.0, 1.0], "x")),
    ("unmask", {"fill": V}),
    ("pool", {"function": V}),
]


@pytest.mark.parametrize(("kind", "told"), FORGED)
def test_a_forged_layer_is_refused(kind: str, told: dict[str, object], tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5", as_chain([("affine", {"scale": V, "shift": V})]))
    with h5py.File(path, "r+") as file:
        layer = file.create_group("model/1")
        layer.attrs["kind"] = kind
        for name, value in told.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                layer[name] = value
            else:
                layer.attrs[name] = value
        with pytest.raises(DataError, match="/model/1: expected a layer of kind "):
            read_chain(file["model"])
