"""From the files that people have to predictions, with one command and no line of Python: proteins, and token ids."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
from helpers.command import lstmcli, succeed
from helpers.weight_files import write_safetensors

MODELS = Path(__file__).parents[1] / "data" / "models"


def test_a_dataset_for_each_protein_and_a_training_checkpoint(tmp_path: Path) -> None:
    """Embeddings as bio_embeddings and UniProt write them; a .pt with an optimizer's state and a Namespace in it."""
    with np.load(MODELS / "torch_pooled.npz") as file:
        x, lengths, want, line = file["x"], file["lens"], file["predictions"], str(file["chain"])
    with h5py.File(tmp_path / "embeddings.h5", "w") as file:
        for k, length in enumerate(lengths):
            file[f"P{k:05}"] = x[k, :length]
            file[f"P{k:05}"].attrs["original_id"] = f"sp|P{k:05}|PROT{k}_HUMAN"
    weights = ("-i", "embeddings.h5", "-w", MODELS / "torch_pooled.pt")
    proposed = lstmcli("predict", *weights, cwd=tmp_path)
    assert proposed.code == 2
    assert "--chain '" in proposed.err
    ran = lstmcli("predict", *weights, "--chain", line, "-o", "classes.csv", cwd=tmp_path)
    assert ran.code == 0, ran.err
    with (tmp_path / "classes.csv").open(newline="") as table:
        head, *rows = csv.reader(table)
    assert head == ["id", "p0", "p1"]
    assert [row[0] for row in rows] == [f"sp|P{k:05}|PROT{k}_HUMAN" for k in range(len(lengths))]
    assert np.abs(np.array([row[1:] for row in rows], float) - want).max() <= 3e-6


def test_an_optimizer_in_a_checkpoint_is_no_news(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"lstm.weight_ih_l0": (12, 4), "lstm.weight_hh_l0": (12, 3), "aux.weight": (2, 3)}
    tensors = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    slots = {f"optimizer_state_dict.state.{k}.exp_avg": value for k, value in enumerate(tensors.values())}
    write_safetensors(tmp_path / "m.safetensors", tensors | slots)
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4), np.float32))
    ran = lstmcli("predict", "-i", "x.npy", "-w", "m.safetensors", "--chain", "lstm, mean", "-o", "p.npy", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "not in the chain: aux.weight (2, 3)\n" in ran.err


def test_token_ids_padded_in_front_and_a_keras_model(tmp_path: Path) -> None:
    """As pad_sequences and Embedding(mask_zero=True) leave them: nothing has to be said of the padding."""
    with np.load(MODELS / "sentiment.npz") as file:
        np.save(tmp_path / "tokens.npy", file["x"])
        want, lengths = file["predictions"], file["lens"]
        assert str(file["padding"]) == "pre"
    model = ("-i", "tokens.npy", "-w", MODELS / "sentiment.keras")
    out = succeed("predict", *model, "-o", "predictions.csv", cwd=tmp_path).text
    assert "all full: no lengths given; of these the model's mask hides some" in out
    with (tmp_path / "predictions.csv").open(newline="") as table:
        head, *rows = csv.reader(table)
    assert head == ["id", "prediction"]
    assert np.abs(np.array([row[1:] for row in rows], float) - want).max() <= 3e-6
    np.save(tmp_path / "lens.npy", lengths)
    succeed("predict", *model, "-l", "lens.npy", "--padding", "pre", "-o", "same.csv", cwd=tmp_path)
    assert (tmp_path / "same.csv").read_bytes() == (tmp_path / "predictions.csv").read_bytes()
    wrong = lstmcli("predict", *model, "-l", "lens.npy", "-o", "wrong.csv", cwd=tmp_path)
    assert "give --padding pre" in wrong.err
