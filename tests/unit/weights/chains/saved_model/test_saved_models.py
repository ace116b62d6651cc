"""SavedModels as Keras 3 exports them: their graph as a chain, and what it refuses. data/make_saved_models.py made them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.command import succeed

from lstmcli.engine.chains.prepared_chain import PreparedChain
from lstmcli.errors import DataError
from lstmcli.model.chain import Chain
from lstmcli.weights.chains.load import WholeModel, load_chain
from lstmcli.weights.draft import Choices

ARCHIVE = Path(__file__).parents[4] / "data" / "saved_models.tar.xz"
TOLERANCE = 3e-6

# What each is as a chain, and whether it masks padding itself.
MODELS = {
    "sentiment": ("embedding stack final dense relu dense sigmoid", True),
    "tagger": ("embedding stack dense softmax", True),
    "tagger_open": ("embedding stack dense softmax", True),
    "masking": ("masking stack last dense softmax", True),
    "pooled_mean": ("embedding stack mean dense", True),
    "convolution": ("conv1d max conv1d mean affine stack last dense", False),
    "normalized": ("stack layer_norm flip stack final affine dense gelu dense silu leaky_relu", False),
    "autoencoder": ("stack last repeat stack dense", False),
    "flattened": ("stack flatten dense", False),
    "one_step": ("stack last dense", False),
    "masked_maximum": ("embedding stack unmask max", True),
    "masked_convolution": ("masking unmask conv1d stack last dense", True),
    "masked_flatten": ("embedding stack unmask flatten dense", True),
    "masked_backward": ("embedding stack unmask flip conv1d stack last", True),
}
REFUSED = {
    "gru": "gru_1/while': a loop that is no LSTM",
    "unrolled": "takes a part of what comes out of the input",
    "residual": "takes two inputs",
    "two_inputs": "takes 2 arrays, one, other; expected a model in one line",
    "two_outputs": "puts out 2 arrays, output_0, output_1; expected a model in one line",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved_models")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def load(path: Path) -> WholeModel:
    return load_chain(str(path), Choices())


def kinds(chain: Chain) -> str:
    return " ".join(getattr(layer, "function", layer.kind) for layer in chain.layers)


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_those_of_keras(name: str, folder: Path) -> None:
    with np.load(folder / f"{name}.npz") as file:
        x, want = file["x"], file["predictions"]
    check(load(folder / name).chain, x, want)


def check(chain: Chain, x: np.ndarray, want: np.ndarray) -> None:
    rows = x.reshape(x.shape[0] * x.shape[1], -1).astype(np.int64 if chain.takes_ids else np.float32)
    got, _ = PreparedChain(chain, np.dtype(np.float32), 1)(rows, np.full(len(x), x.shape[1]))
    want = want.reshape(got.shape)
    if chain.has_steps and chain.masks:  # at the others Keras repeats what it had
        got, want = (each[x.reshape(-1) != 0] for each in (got, want))
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("masked")])
def test_files_of_keras_see_masked_steps_alike(name: str, folder: Path) -> None:
    with np.load(folder / f"{name}.npz") as file:
        check(load(folder / f"{name}.keras").chain, file["x"], file["predictions"])


def test_the_command(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "sentiment.npz") as file:
        np.save(tmp_path / "x.npy", file["x"])
        want = file["predictions"]
    succeed("predict", "-i", "x.npy", "-w", folder / "sentiment", "-o", "p.npy", "--quiet", cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_the_chain(name: str, folder: Path) -> None:
    layers, masks = MODELS[name]
    found = load(folder / name)
    assert kinds(found.chain) == layers
    assert found.kind == "a SavedModel"
    assert found.masked is (None if masks else False)
    assert bool(found.assumed) == (name == "tagger_open")


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_node(name: str, folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(folder / name)
    assert REFUSED[name] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "model.save('m.keras')" in str(caught.value)


def test_layers_are_named_by_nodes(folder: Path) -> None:
    names = load(folder / "masking").chain.names
    assert [name.split("/")[1].rstrip("_0123456789") for name in names] == ["masking", "lstm", "lstm", "dense", "dense"]


def test_a_file_of_the_folder_stands_for_it(folder: Path) -> None:
    assert kinds(load(folder / "masking" / "saved_model.pb").chain) == MODELS["masking"][0]


def test_damaged_graphs_are_refused(folder: Path, tmp_path: Path) -> None:
    """Every cut, and bytes that are changed anywhere: a refusal, or a model, never anything else."""
    whole = (folder / "masking" / "saved_model.pb").read_bytes()
    random = np.random.default_rng(0)
    place = tmp_path / "m"
    (place / "variables").mkdir(parents=True)
    for part in (folder / "masking" / "variables").iterdir():
        (place / "variables" / part.name).write_bytes(part.read_bytes())
    for case in range(30):
        data = bytearray(whole[: random.integers(len(whole))] if case % 3 == 0 else whole)
        for at in random.integers(0, len(data), 0 if case % 3 == 0 else 3):
            data[at] = random.integers(256)
        (place / "saved_model.pb").write_bytes(data)
        try:
            load(place)
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
