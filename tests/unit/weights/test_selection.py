"""Which LSTMs of a file are meant, how they are put together, and what the user says of them that the file does not."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files, naive
from helpers import weight_files as wf
from helpers.command import assert_one_line, lstmcli, succeed
from helpers.weight_imports import assert_same, load, refusal, tree

import lstmcli as api

CELLS = [wf.random_cell(4, 4, k) for k in range(12)]  # of one width: only their order tells them apart


def file_of(path: Path, cells: dict[str, naive.Cell]) -> Path:
    """Cells by prefix, each as an LSTM of one layer."""
    return wf.write_safetensors(
        path,
        {f"{name}.{key}": value for name, cell in cells.items() for key, value in wf.torch_parameters(cell, "_l0").items()},
    )


def stack(*numbers: int) -> naive.Stack:
    return naive.Stack(tuple(CELLS[k] for k in numbers))


def three(path: Path) -> Path:
    return file_of(path, {"a": CELLS[0], "b": CELLS[1], "c.lstm": CELLS[2]})


@pytest.mark.parametrize(
    ("select", "numbers"),
    [
        (("a",), (0,)),
        (("b", "a"), (1, 0)),
        (("a", "c", "b"), (0, 2, 1)),
        (("a,b,c.lstm",), (0, 1, 2)),
        (("c.l", "a,b"), (2, 0, 1)),
    ],
)
def test_names_are_a_stack_from_the_bottom_to_the_top(
    select: tuple[str, ...], numbers: tuple[int, ...], tmp_path: Path
) -> None:
    assert_same(tree(three(tmp_path / "m"), select=select), stack(*numbers))


def test_a_pattern_is_a_stack_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    path = file_of(tmp_path / "m", {f"rnns.{k}": CELLS[k] for k in sorted(range(12), key=str)} | {"other": CELLS[0]})
    assert_same(tree(path, select=("rnns.*",)), stack(*range(12)))
    assert_same(tree(path, select=("other", "rnns.1*")), stack(0, 1, 10, 11))
    assert_same(tree(path, select=("rnns.1",)), stack(1))  # not rnns.10 and rnns.11, which begin with it, too
    assert "like 'x*'" in refusal(path, select=("x*",))
    assert "--select 'rnns.*'" in refusal(path, select=("rnns",))  # that is what is meant, if all are


@pytest.mark.parametrize(
    ("select", "want"),
    [
        (("fw=a", "bw=b"), naive.Bidirectional(CELLS[0], CELLS[1])),
        (("bw=b,fw=a",), naive.Bidirectional(CELLS[0], CELLS[1])),
        (("fw=b", "bw=a"), naive.Bidirectional(CELLS[1], CELLS[0])),
        (("fw=a,b", "bw=c,d"), naive.Bidirectional(stack(0, 1), stack(2, 3))),
        (("fw=a", "fw=b", "bw=d", "bw=c"), naive.Bidirectional(stack(0, 1), stack(3, 2))),
    ],
)
def test_two_are_a_pair(select: tuple[str, ...], want: naive.Node, tmp_path: Path) -> None:
    path = file_of(tmp_path / "m", dict(zip("abcd", CELLS, strict=False)))
    assert_same(tree(path, select=select), want)


def test_pairs_in_a_stack(tmp_path: Path) -> None:
    tall = [wf.random_cell(8, 4, 20 + k) for k in range(3)]
    path = file_of(tmp_path / "m", {"a": CELLS[0], "b": CELLS[1], "c": tall[0], "d": tall[1], "e": tall[2]})
    pairs = (naive.Bidirectional(CELLS[0], CELLS[1]), naive.Bidirectional(tall[0], tall[1]))
    assert_same(tree(path, select=("fw=a", "bw=b", "fw=c", "bw=d", "e")), naive.Stack((*pairs, tall[2])))


@pytest.mark.parametrize(
    ("select", "code", "words"),
    [
        ((), 65, "3 LSTMs"),
        (("x",), 65, "begins with 'x'"),
        (("a", "x"), 65, "begins with 'x'"),
        (("a", "a"), 2, "a is named twice"),
        (("a", "*"), 2, "a is named twice"),
        (("fw=a", "bw=a"), 2, "a is named twice"),
        (("fw=a",), 2, "only one of them"),
        (("fw=a", "b", "bw=c"), 2, "only one of them"),
        (("a,",), 2, "an empty one"),
        (("fw=",), 2, "an empty one"),
    ],
)
def test_what_is_meant_must_be_there_once(select: tuple[str, ...], code: int, words: str, tmp_path: Path) -> None:
    assert words in refusal(three(tmp_path / "m"), code, select=select)


def test_widths_that_do_not_fit(tmp_path: Path) -> None:
    path = file_of(tmp_path / "m", {"a": CELLS[0], "b": wf.random_cell(5, 4, 1)})
    assert "puts out 4 features, layer 1 takes 5" in refusal(path, select=("a", "b"))
    assert "forward takes 4 features, backward 5" in refusal(path, select=("fw=a", "bw=b"))


def test_directions_are_merged_as_the_widths_say(tmp_path: Path) -> None:
    below = naive.Bidirectional(CELLS[0], CELLS[1])
    both = naive.Stack((below, naive.Bidirectional(wf.random_cell(8, 4, 7), wf.random_cell(8, 4, 8))))
    other = wf.write_safetensors(tmp_path / "n", wf.torch_state_dict(both))
    tensors = file_of(tmp_path / "o", {"a": CELLS[0], "b": CELLS[1], "c": CELLS[2]})
    assert "--merge" in refusal(tensors, select=("fw=a,bw=b", "c"))
    got = tree(tensors, select=("fw=a,bw=b", "c"), merge="mean")
    assert_same(got, naive.Stack((replace(below, merge="mean"), CELLS[2])))
    assert_same(tree(other, merge="sum"), naive.Stack((below, replace(both.layers[1], merge="sum"))))  # type: ignore[type-var]


def test_what_is_said_of_the_cells(tmp_path: Path) -> None:
    path = wf.write_safetensors(tmp_path / "m", wf.torch_state_dict(stack(0, 1)))
    got = tree(path, cell_clip=(1.0, None), activation="relu", recurrent_activation="hard_sigmoid")
    cells = (replace(CELLS[0], cell_clip=1.0), CELLS[1])
    assert_same(got, naive.Stack(tuple(replace(c, activation="relu", recurrent_activation="hard_sigmoid") for c in cells)))


@pytest.mark.parametrize(
    ("residual", "want"),
    [
        ("upper", naive.Stack((CELLS[0], naive.Residual(CELLS[1]), naive.Residual(CELLS[2])))),
        ("all", naive.Stack(tuple(naive.Residual(cell) for cell in CELLS[:3]))),
        ("0,2", naive.Stack((naive.Residual(CELLS[0]), CELLS[1], naive.Residual(CELLS[2])))),
        ("whole", naive.Residual(stack(0, 1, 2))),
    ],
)
def test_residual_layers(residual: str, want: naive.Node, tmp_path: Path) -> None:
    path = wf.write_safetensors(tmp_path / "m", wf.torch_state_dict(stack(0, 1, 2)))
    assert_same(tree(path, residual=residual), want)


def test_residual_layers_of_each_direction(tmp_path: Path) -> None:
    path = file_of(tmp_path / "m", dict(zip("abcd", CELLS, strict=False)))
    sides = (naive.Stack((CELLS[k], naive.Residual(CELLS[k + 1]))) for k in (0, 2))
    assert_same(tree(path, select=("fw=a,b,bw=c,d",), residual="upper"), naive.Bidirectional(*sides))


def test_residual_options_that_mean_nothing(tmp_path: Path) -> None:
    path = wf.write_safetensors(tmp_path / "m", wf.torch_state_dict(naive.Stack((wf.random_cell(3, 4, 0), CELLS[1]))))
    for residual in ("all", "whole", "0", "2", "x", ""):
        assert "--residual" in refusal(path, 2, residual=residual or "-")


def test_a_sum_of_biases_is_exact_for_float64_alone(tmp_path: Path) -> None:
    """1 + 2^-30 is 1 in float32; with it the gates of float64 differ by 1e-9, those of float32 not at all."""
    tensors = wf.torch_state_dict(stack(0))
    tensors |= {"bias_ih_l0": np.ones(16, "f4"), "bias_hh_l0": np.full(16, 2.0**-30, "f4")}
    path = wf.write_safetensors(tmp_path / "m", tensors)
    plain = wf.write_safetensors(tmp_path / "n", tensors | {"bias_hh_l0": np.zeros(16, "f4")})
    x = np.random.default_rng(0).normal(size=(2, 5, 4))
    got, other = api.load_model(str(path)), api.load_model(str(plain))
    np.testing.assert_array_equal(got(x.astype("f4"))[0], other(x.astype("f4"))[0])
    want = naive.run(naive.Stack((replace(CELLS[0], bias=np.full(16, 1 + 2.0**-30)),)), x)[0]
    np.testing.assert_allclose(got(x)[0], want, rtol=0, atol=1e-13)
    assert np.abs(got(x)[0] - other(x)[0]).max() > 1e-11
    succeed("model", "import", path, "-o", "model.h5", cwd=tmp_path)
    np.testing.assert_array_equal(api.load_model(str(tmp_path / "model.h5"))(x)[0], got(x)[0])


def test_biases_of_half_precision_are_added_as_they_are(tmp_path: Path) -> None:
    tensors = {name: value.astype("f2") for name, value in wf.torch_state_dict(stack(0)).items()}
    tensors |= {"bias_ih_l0": np.ones(16, "f2"), "bias_hh_l0": np.full(16, 2.0**-12, "f2")}
    ((_, cell),) = load(wf.write_safetensors(tmp_path / "m", tensors)).model.cells()
    np.testing.assert_array_equal(cell.bias, np.full(16, 1 + 2.0**-12))


# What was assumed is told, whoever asks.


def checkpoint(folder: Path) -> Path:
    return wf.write_checkpoint(folder / "tf", wf.tensorflow_variables(CELLS[0], "rnn/lstm_cell"))


def test_what_was_assumed_is_told_by_the_command(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path)
    files.write_npy(tmp_path / "x.npy", np.ones((2, 3, 4), "f4"))
    ran = succeed("run", "-q", "-i", "x.npy", "-w", weights, "-o", "quiet.h5", cwd=tmp_path)
    assert "forget_bias 1.0 is assumed" in ran.err
    with h5py.File(tmp_path / "quiet.h5") as file:
        assert any("forget_bias 1.0" in sentence for sentence in json.loads(file.attrs["assumed"]))
    ran = succeed("run", "--json", "-i", "x.npy", "-w", weights, "-o", "json.h5", cwd=tmp_path)
    assert any("forget_bias 1.0" in sentence for sentence in json.loads(ran.text)["assumed"])
    said = ["--forget-bias", 1, "--activation", "tanh", "--cell-clip", "none"]
    ran = succeed("run", "-q", "-i", "x.npy", "-w", weights, "-o", "said.h5", *said, cwd=tmp_path)
    assert ran.err == "" or "assumed" not in ran.err
    with h5py.File(tmp_path / "said.h5") as file:
        assert "assumed" not in file.attrs
    assert_one_line(lstmcli("run", "-i", "x.npy", "-u", 4, "--merge", "sum", cwd=tmp_path), 2, "--merge")


def test_what_was_assumed_is_in_a_merged_result(tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.ones((4, 3, 4), "f4"))
    args = ["-i", "x.npy", "-w", checkpoint(tmp_path)]
    assert "assumed" in succeed("plan", "-q", *args, "--shards", 2, "-o", "plan.json", cwd=tmp_path).err
    for shard in (1, 2):
        succeed("run", "-q", "--plan", "plan.json", "--shard", shard, cwd=tmp_path)
    succeed("merge", "plan.json", "-o", "merged.h5", cwd=tmp_path)
    succeed("run", "-q", *args, "-o", "whole.h5", cwd=tmp_path)
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_what_was_assumed_is_a_warning_in_python(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api.load_model(str(checkpoint(tmp_path)))
    assert "forget_bias 1.0 is assumed" in str(caught[0].message)
    assert {Path(warning.filename).name for warning in caught} == {Path(__file__).name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api.load_model(str(checkpoint(tmp_path)), forget_bias=1.0, activation="tanh", cell_clip=9.0)


def test_slots_of_an_optimizer_are_one_line(tmp_path: Path) -> None:
    tensors = wf.torch_state_dict(stack(0)) | {"head.weight": np.ones((3, 4), "f4")}
    slots = {f"optimizer.state.{k}.exp_avg": np.ones((3, 4), "f4") for k in range(20)}
    text = succeed("model", "import", wf.write_safetensors(tmp_path / "m", tensors | slots), "-o", "m.h5", cwd=tmp_path).text
    assert "head.weight (3, 4)" in text
    assert "20 tensors of an optimizer, such as optimizer.state.0.exp_avg" in text
    assert "state.7" not in text
