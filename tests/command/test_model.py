"""Model files: new weights, what `model show` says, and files that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files, naive
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed


def init(folder: Path, *args: object) -> Path:
    succeed("model", "init", "--input-size", 20, "--units", "64,32", *args, "-o", "model.h5", cwd=folder)
    return folder / "model.h5"


def test_init_follows_the_format(tmp_path: Path) -> None:
    with h5py.File(init(tmp_path, "--seed", 0)) as file:
        assert (file.attrs["format"], file.attrs["format_version"]) == ("lstmcli-model", 1)
        assert file["model"].attrs["kind"] == "stack"
        assert set(file["model"]) == {"0", "1"}
        for name, features, units in [("0", 20, 64), ("1", 64, 32)]:
            cell = file["model"][name]
            assert cell.attrs["kind"] == "cell"
            assert cell.attrs["units"] == units
            assert cell.attrs["forget_bias"] == 1.0
            assert (cell.attrs["activation"], cell.attrs["recurrent_activation"]) == ("tanh", "sigmoid")
            assert cell.attrs["gate_order"] == "i,f,g,o"
            assert set(cell) == {"input_kernel", "recurrent_kernel", "bias"}
            assert cell["input_kernel"].shape == (features, 4 * units)
            assert cell["recurrent_kernel"].shape == (units, 4 * units)
            assert cell["bias"].shape == (4 * units,)


def test_init_draws_one_glorot_uniform_over_the_joint_kernel(tmp_path: Path) -> None:
    with h5py.File(init(tmp_path, "--seed", 0)) as file:
        for name, features, units in [("0", 20, 64), ("1", 64, 32)]:
            cell = file["model"][name]
            limit = np.sqrt(6 / (features + units + 4 * units))
            for kernel in (cell["input_kernel"][:], cell["recurrent_kernel"][:]):
                assert 0.99 * limit < np.abs(kernel).max() <= limit * (1 + 1e-6)
                assert kernel.min() < -0.99 * limit
                assert abs(kernel.mean()) < 0.05 * limit
                assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
                assert np.unique(kernel).size > 0.99 * kernel.size
            assert not cell["bias"][:].any()


def test_same_seed_gives_the_same_file_and_another_seed_other_weights(tmp_path: Path) -> None:
    def weights(*args: object) -> tuple[bytes, np.ndarray]:
        path = init(tmp_path, *args)
        with h5py.File(path) as file:
            kernel = file["model/0/input_kernel"][:]
        content = path.read_bytes()
        path.unlink()
        return content, kernel

    default, zero, one = weights(), weights("--seed", 0), weights("--seed", 1)
    assert default[0] == zero[0]
    assert not np.isclose(zero[1], one[1]).all(axis=0).any()


def test_init_keeps_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"precious")
    ran = lstmcli("model", "init", "--input-size", 20, "--units", 7, "-o", "model.h5", cwd=tmp_path)
    assert_one_line(ran, 73, "model.h5")
    assert files.snapshot(tmp_path) == {"model.h5": b"precious"}


@pytest.mark.parametrize("args", [["--units", "0"], ["--units", "x"], ["--units", "7", "--input-size", "0"], []])
def test_init_usage_errors(args: list[str], tmp_path: Path) -> None:
    ran = lstmcli("model", "init", "--input-size", 20, *args, "-o", "model.h5", cwd=tmp_path)
    assert_one_line(ran, 2)
    assert list(tmp_path.iterdir()) == []


def test_units_and_seed_are_the_initialised_model(case: Case, tmp_path: Path) -> None:
    init(tmp_path, "--seed", 3)
    args = ["run", "--input", case.x_npy, "--lens", case.lens_npy]
    succeed(*args, "--units", "64,32", "--seed", 3, "--output", "units.h5", cwd=tmp_path)
    succeed(*args, "--weights", "model.h5", "--output", "weights.h5", cwd=tmp_path)
    files.assert_same_bits(files.read_result(tmp_path / "units.h5"), files.read_result(tmp_path / "weights.h5"))


def test_show(tmp_path: Path) -> None:
    init(tmp_path)
    text = succeed("model", "show", "model.h5", cwd=tmp_path).text
    for word in ("64", "32", "20", "cell"):
        assert word in text.lower(), f"{word} is not in:\n{text}"
    parameters = 4 * 64 * (20 + 64 + 1) + 4 * 32 * (64 + 32 + 1)
    assert str(parameters) in text.replace(",", "").replace("_", ""), text


def test_show_a_result(case: Case, tmp_path: Path) -> None:
    text = succeed("model", "show", case.folder / "result.h5", cwd=tmp_path).text
    assert "21" in text
    assert "5" in text


def test_show_options_of_cells_and_trees(case: Case, tmp_path: Path) -> None:
    cell = case.model.layers[0]
    assert isinstance(cell, naive.Cell)
    options = {"peephole": np.ones((3, 21)), "cell_clip": 0.25, "activation": "relu"}
    cell = replace(cell, input_kernel=np.ones((21, 84)), **options)  # type: ignore[arg-type]
    files.write_model(tmp_path / "model.h5", naive.Bidirectional(cell, naive.Residual(cell)))
    text = succeed("model", "show", "model.h5", cwd=tmp_path).text
    for word in ("bidirectional", "residual", "peephole", "0.25", "relu"):
        assert word in text.lower(), f"{word} is not in:\n{text}"


def test_lone_cell_is_a_stack_of_one(case: Case, tmp_path: Path) -> None:
    files.write_model(tmp_path / "cell.h5", case.model.layers[0])
    files.write_model(tmp_path / "stack.h5", naive.Stack(case.model.layers[:1]))
    for name in ("cell", "stack"):
        args = ["--input", case.x_npy, "--lens", case.lens_npy, "--weights", f"{name}.h5"]
        succeed("run", *args, "--output", f"{name}.out.h5", cwd=tmp_path)
    got = files.read_result(tmp_path / "cell.out.h5")
    assert got[1].keys() == {"0/c", "0/h"}
    files.assert_same_bits(got, files.read_result(tmp_path / "stack.out.h5"))


@pytest.mark.parametrize("change", [{"bias": None}, {"forget_bias": 0.0}, {"forget_bias": -2.5}])
def test_plain_options_of_a_cell(change: dict[str, object], case: Case, tmp_path: Path) -> None:
    model = naive.Stack(tuple(replace(cell, **change) for cell in case.model.layers))  # type: ignore[type-var, arg-type]
    files.write_model(tmp_path / "model.h5", model)
    args = ["--input", case.x_npy, "--lens", case.lens_npy, "--weights", "model.h5"]
    succeed("run", *args, "--output", "out.h5", cwd=tmp_path)
    outputs, state = files.read_result(tmp_path / "out.h5")
    want, want_state = naive.run(model, case.x, case.lengths)
    assert outputs is not None
    assert np.abs(outputs - want).max() <= 1e-6
    assert np.abs(want - case.outputs).max() > 1e-3
    assert all(np.abs(state[path] - value).max() <= 1e-6 for path, value in want_state.items())


CELL = naive.Cell(np.ones((20, 28)), np.ones((7, 28)), np.ones(28))


@pytest.mark.parametrize(
    ("field", "value", "known"), [("activation", "swish", "softplus"), ("recurrent_activation", "relu", "hard_sigmoid")]
)
def test_unknown_activation(field: str, value: str, known: str, case: Case, tmp_path: Path) -> None:
    files.write_model(tmp_path / "model.h5", replace(CELL, **{field: value}))  # type: ignore[arg-type]
    ran = lstmcli("run", "--input", case.x_npy, "--weights", "model.h5", cwd=tmp_path)
    assert_one_line(ran, 65, "model.h5", field, value, known)


def edit(path: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def put(name: str, value: np.ndarray) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return change


def attribute(group: str, name: str, value: object) -> Callable[[h5py.File], object]:
    return lambda file: file[group].attrs.__setitem__(name, value)


F4 = np.float32
DAMAGE: dict[str, tuple[Callable[[h5py.File], object], list[str]]] = {
    "no format": (lambda file: file.attrs.__delitem__("format"), []),
    "another format": (attribute("/", "format", "something-else"), ["something-else"]),
    "a later version": (attribute("/", "format_version", 99), ["99"]),
    "no model": (lambda file: file.__delitem__("model"), ["model"]),
    "unknown kind": (attribute("model", "kind", "gru"), ["gru"]),
    "layers out of order": (lambda file: file.move("model/1", "model/2"), []),
    "no kernel": (lambda file: file.__delitem__("model/0/input_kernel"), ["input_kernel"]),
    "kernel of three gates": (put("model/0/input_kernel", np.ones((20, 63), F4)), ["input_kernel", "(20, 63)"]),
    "kernel transposed": (put("model/0/recurrent_kernel", np.ones((84, 21), F4)), ["recurrent_kernel", "(84, 21)"]),
    "kernel of rank 1": (put("model/0/input_kernel", np.ones(1680, F4)), ["input_kernel"]),
    "kernel of integers": (put("model/0/input_kernel", np.ones((20, 84), int)), ["input_kernel"]),
    "layers that do not fit": (put("model/1/input_kernel", np.ones((20, 20), F4)), ["20", "21"]),
    "short bias": (put("model/1/bias", np.ones(15, F4)), ["bias"]),
    "units that differ": (attribute("model/0", "units", 22), ["22"]),
    "gate order of TensorFlow": (attribute("model/0", "gate_order", "i,j,f,o"), ["i,j,f,o"]),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_model_files(what: str, case: Case, tmp_path: Path) -> None:
    change, words = DAMAGE[what]
    files.write_model(tmp_path / "model.h5", case.model)
    edit(tmp_path / "model.h5", change)
    before = files.snapshot(tmp_path)
    ran = lstmcli("run", "--input", case.x_npy, "--weights", "model.h5", "--output", "out.h5", cwd=tmp_path)
    assert_one_line(ran, 65, "model.h5", *words)
    assert files.snapshot(tmp_path) == before


def test_residual_of_unequal_widths(case: Case, tmp_path: Path) -> None:
    files.write_model(tmp_path / "model.h5", naive.Stack((naive.Residual(CELL),)))
    args = ["run", "--input", case.x_npy, "--weights", "model.h5", "--output", "out.h5"]
    assert_one_line(lstmcli(*args, cwd=tmp_path), 65, "model.h5", "residual", "20", "7")


def test_weights_of_another_input_size(case: Case, tmp_path: Path) -> None:
    files.write_model(tmp_path / "model.h5", files.random_model(12, [7]))
    ran = lstmcli("run", "--input", case.x_npy, "--weights", "model.h5", "--output", "out.h5", cwd=tmp_path)
    assert_one_line(ran, 65, "12", "20")
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]


@pytest.mark.parametrize("command", [["run", "--input", "x.npy", "--weights"], ["model", "show"]])
def test_missing_and_foreign_weights(command: list[str], case: Case, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(case.x_npy.read_bytes())
    before = files.snapshot(tmp_path)
    assert_one_line(lstmcli(*command, "missing.h5", cwd=tmp_path), 66, "missing.h5")
    assert_one_line(lstmcli(*command, "x.npy", cwd=tmp_path), 65, "x.npy")
    assert files.snapshot(tmp_path) == before


@pytest.mark.parametrize("offset", [8, 16, 24, 32, 40])
def test_a_damaged_heap_of_texts(offset: int, case: Case, tmp_path: Path) -> None:
    """libhdf5 walks one with an object of no size for ever."""
    data = bytearray(case.weights.read_bytes())
    start = data.index(b"GCOL")
    data[start + offset : start + offset + 8] = bytes(8)
    (tmp_path / "model.h5").write_bytes(data)
    ran = lstmcli("model", "show", "model.h5", cwd=tmp_path)
    assert ran.code in (0, 65), ran.err
    assert len(ran.err.splitlines()) == (ran.code != 0)
