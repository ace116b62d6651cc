"""Weights and options that are too large for the dtype of the computation are refused, as an input is."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files, weight_files
from helpers.command import assert_one_line, lstmcli, succeed

import lstmcli as api
from lstmcli.files.file_kind import open_by_kind
from lstmcli.weights.containers.safetensors import read_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.ones((2, 3, 4), np.float32))
    files.write_model(tmp_path / "model.h5", files.random_model(4, [2]), "float64")
    return tmp_path


@pytest.mark.parametrize("name", ["input_kernel", "recurrent_kernel", "bias", "forget_bias", "cell_clip"])
def test_a_model_file(name: str, folder: Path) -> None:
    with h5py.File(folder / "model.h5", "a") as file:
        cell = file["model/0"]
        if name in cell:
            cell[name][..., 1] = -1e39
        else:
            cell.attrs[name] = 1e39
    run = ("run", "-i", "x.npy", "-w", "model.h5", "-q")
    before = files.snapshot(folder)
    what = "a weight" if name in ("input_kernel", "recurrent_kernel", "bias") else name
    assert_one_line(lstmcli(*run, "-o", "out.h5", cwd=folder), 65, f"{what} of the model, 1e+39, is too large for float32")
    assert files.snapshot(folder) == before
    succeed(*run, "-o", "out.h5", "--dtype", "float64", cwd=folder)


@pytest.mark.parametrize("option", ["--forget-bias", "--cell-clip"])
def test_an_option(option: str, folder: Path) -> None:
    words = ("run", "-i", "x.npy", "-u", 2, option, "1e39", "-o", "out.h5", "-q")
    name = option.removeprefix("--").replace("-", "_")
    assert_one_line(lstmcli(*words, cwd=folder), 65, f"{name} of the model, 1e+39, is too large for float32", "float64")


@pytest.mark.parametrize("layer", ["fc1", "embedding"])
def test_a_whole_model(layer: str, tmp_path: Path) -> None:
    name = "torch_sentiment.safetensors"
    with open_by_kind(str(Path(__file__).parents[1] / "data/models" / name)) as (file, _):
        stored = read_tensors(file)
        tensors = {tensor.name: tensor.read().reshape(tensor.shape).astype(np.float64) for tensor in stored}
    tensors[f"{layer}.weight"][1, 1] = 1e300
    weight_files.write_safetensors(tmp_path / name, tensors)
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.int32))
    chain = "embedding, lstm, final, fc1, relu, fc2, softmax"
    ran = lstmcli("predict", "-i", "x.npy", "-w", name, "--chain", chain, "-o", "out.h5", "-q", cwd=tmp_path)
    assert_one_line(ran, 65, "a weight of the model, 1e+300, is too large for float32")


def test_in_python(folder: Path) -> None:
    with h5py.File(folder / "model.h5", "a") as file:
        file["model/0/bias"][1] = 1e39
    model = api.load_model(str(folder / "model.h5"))
    with pytest.raises(ValueError, match="too large for float32"):
        model(np.ones((2, 3, 4), np.float32))
    model(np.ones((2, 3, 4)))
