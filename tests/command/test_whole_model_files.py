"""A whole model in a model file: imported once, drawn, run without a line; and of it `run` takes the LSTMs alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.command import assert_one_line, lstmcli, succeed

from lstmcli import init_model
from lstmcli.model.chain import Chain
from lstmcli.model.chain_file import save_chain
from lstmcli.model.layers import Activation

MODELS = Path(__file__).parents[1] / "data" / "models"


def imported(folder: Path, name: str = "torch_sentiment", suffix: str = ".safetensors") -> np.ndarray:
    """m.h5 and x.npy in the folder, and what PyTorch gave."""
    with np.load(MODELS / f"{name}.npz") as file:
        np.save(folder / "x.npy", file["x"])
        how = ("--chain", str(file["chain"])) if suffix == ".safetensors" else ("--whole",)
        want: np.ndarray = file["predictions_full"]
    out = succeed("model", "import", MODELS / f"{name}{suffix}", *how, "-o", "m.h5", cwd=folder).text
    assert "layers" in out
    return want


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
def test_predict_needs_no_line(suffix: str, tmp_path: Path) -> None:
    want = imported(tmp_path, suffix=suffix)
    succeed("predict", "-i", "x.npy", "-w", "m.h5", "-o", "p.npy", "--lens", "none", cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), want, rtol=0, atol=3e-6)
    assert "readable" in succeed("verify", "m.h5", cwd=tmp_path).text
    done = lstmcli("predict", "-i", "x.npy", "-w", "m.h5", "--chain", "a, b", cwd=tmp_path)
    assert_one_line(done, 2)
    assert "says its layers itself" in done.err


def test_show_draws_all_layers(tmp_path: Path) -> None:
    imported(tmp_path)
    out = succeed("model", "show", "m.h5", cwd=tmp_path).text
    assert "m.h5: chain, ids to vectors of 3" in out
    assert "embedding: embedding, ids to sequences of 6" in out
    assert "forward: cell, 6 to 7" in out
    assert "relu: activation, vectors of 5 to vectors of 5, function relu" in out
    facts = succeed("model", "show", MODELS / "torch_sentiment.onnx", "--whole", "--json", cwd=tmp_path).json
    assert (facts["takes"], facts["gives"], facts["output_size"]) == ("ids", "vectors", 3)
    assert facts["model"]["kind"] == "chain"


def test_run_names_the_tensors_that_it_leaves_out(tmp_path: Path) -> None:
    samples = Path(__file__).parents[2] / "sample_data"
    args = ["run", "-i", samples / "vowels.h5", "-w", samples / "vowels_bilstm.safetensors", "--dry-run"]
    left_out = succeed(*args, "--json", cwd=tmp_path).json["left_out"]
    assert left_out == {"before": [], "after": [], "tensors": ["head.bias (9,)", "head.weight (9, 64)"]}
    summary = succeed(*args, cwd=tmp_path).text
    assert "left out  head.bias (9,), head.weight (9, 64); lstmcli predict runs whole models\n" in summary


def test_run_takes_the_lstms_and_names_the_others(tmp_path: Path) -> None:
    imported(tmp_path, "torch_forecast")
    done = lstmcli("run", "-i", "x.npy", "-w", "m.h5", "-o", "y.npy", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["left_out"]["before"] == []
    assert [text.split()[0] for text in done.json["left_out"]["after"]] == ["pool", "dense"]
    succeed("run", "-i", "x.npy", "-w", MODELS / "torch_forecast.onnx", "-o", "z.npy", cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.load(tmp_path / "z.npy"))
    assert_one_line(lstmcli("run", "-i", "x.npy", "-w", "m.h5", "--select", "other", cwd=tmp_path), 2)


def test_layers_before_the_lstm_are_warned_of(tmp_path: Path) -> None:
    imported(tmp_path)
    np.save(tmp_path / "e.npy", np.ones((2, 3, 6), np.float32))
    done = lstmcli("run", "-i", "e.npy", "-w", "m.h5", "-o", "y.npy", cwd=tmp_path)
    assert done.code == 0
    assert "left out, before the LSTM: embedding 'embedding'" in done.err


def test_lstms_with_layers_between_are_selected_by_name(tmp_path: Path) -> None:
    lower, upper = (init_model(4, [4], seed=seed) for seed in (0, 1))
    save_chain(Chain((lower, Activation("relu"), upper), ("low", "between", "top")), tmp_path / "m.h5")
    np.save(tmp_path / "x.npy", np.ones((2, 3, 4), np.float32))
    done = lstmcli("run", "-i", "x.npy", "-w", "m.h5", cwd=tmp_path)
    assert_one_line(done, 65)
    assert "holds LSTMs with other layers between: low, top; say one of them with --select" in done.err
    done = lstmcli("run", "-i", "x.npy", "-w", "m.h5", "--select", "top", "-o", "y.npy", cwd=tmp_path)
    assert "before the LSTM: stack 'low', activation 'between'" in done.err
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), upper(np.ones((2, 3, 4), np.float32))[0])


def test_check_is_of_lstms_alone(tmp_path: Path) -> None:
    done = lstmcli("model", "import", MODELS / "torch_sentiment.onnx", "--whole", "--check", "x,y", "-o", "m.h5", cwd=tmp_path)
    assert_one_line(done, 2)
    assert not (tmp_path / "m.h5").exists()
