"""Cells and trees through the command: the options for new ones, what --save keeps, the memory of models that run backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import files, golden, naive
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed

OPTIONS: dict[str, tuple[list[object], dict[str, Any]]] = {
    "peepholes": (["--peepholes"], {}),
    "projection": (["--projection", 5], {}),
    "cell_clip": (["--cell-clip", 0.1], {"cell_clip": 0.1}),
    "projection_clip": (["--projection", 5, "--projection-clip", 0.02], {"projection_clip": 0.02}),
    "forget_bias": (["--forget-bias", -1], {"forget_bias": -1.0}),
    "activation": (["--activation", "softsign"], {"activation": "softsign"}),
    "all": (
        ["--peepholes", "--projection", 5, "--cell-clip", 0.2, "--projection-clip", 0.1, "--activation", "relu"],
        {"cell_clip": 0.2, "projection_clip": 0.1, "activation": "relu", "forget_bias": 1.0},
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_new_cells(name: str, case: Case, tmp_path: Path) -> None:
    """Every layer has them, both runs below agree with the equations, and the option matters."""
    options, fields = OPTIONS[name]
    inputs = ["--input", case.x_npy, "--lens", case.lens_npy, "--quiet"]
    succeed("model", "init", "--input-size", 20, "--units", "9,4", *options, "--output", "model.h5", cwd=tmp_path)
    succeed("run", *inputs, "--units", "9,4", *options, "--output", "new.h5", cwd=tmp_path)
    succeed("run", *inputs, "--weights", "model.h5", "--output", "read.h5", cwd=tmp_path)
    got = files.read_result(tmp_path / "new.h5")
    files.assert_same_bits(got, files.read_result(tmp_path / "read.h5"))
    model = files.read_model(tmp_path / "model.h5")
    assert isinstance(model, naive.Stack)
    for cell in model.layers:
        assert isinstance(cell, naive.Cell)
        assert all(getattr(cell, field) == value for field, value in fields.items())
        assert (cell.peephole is not None) == ("--peepholes" in options)
        assert cell.width == (5 if "--projection" in options else cell.units)
    agree(got, model, case)
    succeed("run", *inputs, "--units", "9,4", "--output", "plain.h5", cwd=tmp_path)
    outputs, _ = files.read_result(tmp_path / "plain.h5")
    assert outputs is not None
    assert got[0] is not None
    assert got[0].shape != outputs.shape or np.abs(got[0] - outputs).max() > 1e-4


def agree(got: tuple[np.ndarray | None, files.Arrays], model: naive.Node, case: Case) -> None:
    outputs, state = naive.run(model, case.x, case.lengths)
    assert got[0] is not None
    assert golden.relative_error(got[0], outputs) <= 1e-6
    assert got[1].keys() == state.keys()
    assert max(golden.relative_error(got[1][name], value) for name, value in state.items()) <= 1e-6


def test_both_directions_and_residual_layers(case: Case, tmp_path: Path) -> None:
    options = ["--units", "4,4,4", "--bidirectional", "--residual"]
    succeed("run", "--input", case.x_npy, "--lens", case.lens_npy, *options, "--output", "out.h5", cwd=tmp_path)
    with h5py.File(tmp_path / "out.h5") as file:
        model = files.read_node(file["model"])
    assert isinstance(model, naive.Stack)
    assert [type(layer) for layer in model.layers] == [naive.Bidirectional, naive.Residual, naive.Residual]
    agree(files.read_result(tmp_path / "out.h5"), model, case)


def test_initial_weights_are_uniform_within_their_limits(tmp_path: Path) -> None:
    options = ["--input-size", 30, "--units", 50, "--peepholes", "--projection", 20]
    succeed("model", "init", *options, "--output", "model.h5", cwd=tmp_path)
    (cell,) = files.read_model(tmp_path / "model.h5").layers  # type: ignore[union-attr]
    assert isinstance(cell, naive.Cell)
    assert cell.projection is not None
    assert cell.peephole is not None
    limits = [(cell.input_kernel, 6 / (30 + 20 + 200)), (cell.recurrent_kernel, 6 / (30 + 20 + 200))]
    for values, square in [*limits, (cell.projection, 6 / 70), (cell.peephole, 3 / 50)]:
        assert 0.9 * square**0.5 < np.abs(values).max() <= square**0.5 * (1 + 1e-6)
        assert abs(values.mean()) < 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--projection", 0], ["--projection", "0"]),
        (["--projection", -3], ["--projection", "-3"]),
        (["--cell-clip", 0], ["cell_clip", "0.0"]),
        (["--cell-clip", "nan"], ["cell_clip", "nan"]),
        (["--projection", 3, "--projection-clip", -1], ["projection_clip", "-1.0"]),
        (["--projection-clip", 1], ["projection_clip", "no projection"]),
        (["--activation", "swish"], ["swish", "tanh, relu, sigmoid, softsign, softplus, elu, linear"]),
        (["--forget-bias", "inf"], ["forget_bias", "inf"]),
        (["--forget-bias", "1,2"], ["forget_bias", "one number"]),
        (["--residual"], ["layer 1", "takes 4", "puts out 3"]),
        (["--select", "lstm"], ["--select", "--units"]),
    ],
)
def test_bad_options_of_new_cells(options: list[object], words: list[str], case: Case, tmp_path: Path) -> None:
    ran = lstmcli("run", "--input", case.x_npy, "--units", "4,3", *options, cwd=tmp_path)
    assert_one_line(ran, 2, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [["--peepholes"], ["--projection", 3], ["--bidirectional"], ["--residual"]])
def test_options_of_new_cells_are_not_for_weights(option: list[object], case: Case, tmp_path: Path) -> None:
    ran = lstmcli("run", "--input", case.x_npy, "--weights", case.weights, *option, cwd=tmp_path)
    assert_one_line(ran, 2, option[0], "--weights" if option != ["--residual"] else "model.h5 says all about its model itself")


def tree(seed: int) -> naive.Node:
    """Two layers, the top one of both directions with other widths, peepholes and a projection."""
    rng = np.random.default_rng(seed)

    def cell(inputs: int, units: int, width: int | None = None) -> naive.Cell:
        outputs = width or units
        return naive.Cell(
            input_kernel=rng.normal(0, 0.4, (inputs, 4 * units)).astype(np.float32),
            recurrent_kernel=rng.normal(0, 0.4, (outputs, 4 * units)).astype(np.float32),
            peephole=rng.normal(0, 0.4, (3, units)).astype(np.float32),
            projection=rng.normal(0, 0.4, (units, width)).astype(np.float32) if width else None,
        )

    return naive.Stack((naive.Residual(cell(20, 20)), naive.Bidirectional(cell(20, 9, 6), cell(20, 10, 4))))


@pytest.mark.parametrize("memory", ["1GB", "150kB"])
def test_saved_cells_and_layers(memory: str, case: Case, tmp_path: Path) -> None:
    """c at each step is the final c of the sequence cut there; for the backward half, of what is left from there on."""
    model = tree(3)
    assert isinstance(model, naive.Stack)
    files.write_model(tmp_path / "model.h5", model)
    inputs = ["--input", case.x_npy, "--lens", case.lens_npy, "--weights", "model.h5", "--max-memory", memory]
    succeed("run", *inputs, "--save", "cells,layers,states", "--output", "out.h5", cwd=tmp_path)
    succeed("run", *inputs, "--output", "plain.h5", cwd=tmp_path)
    with h5py.File(tmp_path / "out.h5") as file:
        assert "outputs" not in file
        cells, layers = file["cells"][:], [file[f"layers/{k}"][:] for k in range(2)]
    outputs, state = files.read_result(tmp_path / "plain.h5")
    assert outputs is not None
    files.assert_same_bits((layers[1], files.read_result(tmp_path / "out.h5")[1]), (outputs, state))
    below, _ = naive.run(naive.Stack(model.layers[:1]), case.x, case.lengths)
    assert golden.relative_error(layers[0], below) <= 1e-6
    for row, length in enumerate(case.lengths):
        assert not cells[row, length:].any()
        for t in range(length):
            _, ahead = naive.run(model.layers[1].forward, below[[row], : t + 1])  # type: ignore[union-attr]
            _, back = naive.run(naive.Reverse(model.layers[1].backward), below[[row], t:length])  # type: ignore[union-attr]
            want = np.concatenate([ahead["0/c"], back["c"]], axis=-1)[0]
            assert np.abs(cells[row, t] - want).max() <= 2e-6


@pytest.mark.parametrize("saved", ["cells,outputs", "layers,outputs,states"])
def test_npy_holds_no_cells_or_layers(saved: str, case: Case, tmp_path: Path) -> None:
    ran = lstmcli("run", "--input", case.x_npy, "--units", 4, "--save", saved, "--output", "out.npy", cwd=tmp_path)
    assert_one_line(ran, 2, "--save", "out.npy", ".h5")


def test_layers_of_a_tree_that_is_one_layer(case: Case, tmp_path: Path) -> None:
    both = tree(4).layers[1]  # type: ignore[union-attr]
    files.write_model(tmp_path / "model.h5", both)
    inputs = ["--input", case.x_npy, "--lens", case.lens_npy, "--weights", "model.h5"]
    succeed("run", *inputs, "--save", "outputs,layers", "--output", "out.h5", cwd=tmp_path)
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file["layers"]) == ["0"]
        assert file["layers/0"][:].tobytes() == file["outputs"][:].tobytes()


def test_a_sequence_that_must_be_whole_and_does_not_fit(tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.zeros((2, 60_000, 8), np.float32))
    options = ["--input", "x.npy", "--units", 8, "--output", "out.h5"]
    ran = lstmcli("run", *options, "--bidirectional", "--max-memory", "8MB", cwd=tmp_path)
    assert_one_line(ran, 2, "--max-memory", "60,000 steps", "backward")
    assert not (tmp_path / "out.h5").exists()
    needed = int(ran.err.split("expected ")[1].split(" bytes")[0].replace(",", ""))
    succeed("run", *options, "--bidirectional", "--max-memory", needed + 1000, cwd=tmp_path)
    succeed("run", *options, "--max-memory", "8MB", "--overwrite", cwd=tmp_path)
