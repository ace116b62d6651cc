"""TensorFlow 1: the names of its variables, what a checkpoint does not hold, and damaged tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import golden, naive, speech
from helpers import weight_files as wf
from helpers.command import assert_one_line, lstmcli, succeed
from helpers.weight_imports import assert_same, load, refusal, tree


def cell(features: int, units: int, seed: int, **options: Any) -> naive.Cell:
    return replace(wf.random_cell(features, units, seed, **options), forget_bias=1.0)


ONE = cell(3, 5, 0)
FULL = cell(3, 5, 1, projection=2, peephole=True)
FW, BW = cell(3, 5, 2), cell(3, 5, 3)
TWO = cell(5, 4, 4)
CELLS = {
    "rnn/lstm_cell": ONE,
    "rnn/basic_lstm_cell": ONE,
    "my/scope/rnn/lstm_cell": ONE,
    "lstm_cell": ONE,
    "rnn/lstm_cell_1": ONE,
    "lstm_fused_cell": ONE,
    "lstm_block_wrapper": ONE,
    "rnn/full/lstm_cell": FULL,
}


@pytest.mark.parametrize("scope", CELLS)
def test_one_cell(scope: str, tmp_path: Path) -> None:
    variables = wf.tensorflow_variables(CELLS[scope], scope)
    slots = {f"{name}/{slot}": value + 1 for name, value in variables.items() for slot in ("Adam", "Adam_1", "Momentum")}
    path = wf.write_checkpoint(tmp_path / "m", variables | slots | {"global_step": np.array(7)})
    assert_same(tree(path), naive.Stack((CELLS[scope],)))
    assert len(load(path).left_out) == len(slots) + 1


@pytest.mark.parametrize(("kernel", "bias"), [("weights", "biases"), ("W_0", "B")])
def test_names_of_old_versions(kernel: str, bias: str, tmp_path: Path) -> None:
    path = wf.write_checkpoint(tmp_path / "m", wf.tensorflow_variables(ONE, "RNN/MultiRNNCell/Cell0/LSTMCell", kernel, bias))
    assert_same(tree(path), naive.Stack((ONE,)))


def stack(scope: str, *cells: naive.Cell, name: str = "lstm_cell") -> wf.Arrays:
    found: wf.Arrays = {}
    for k, one in enumerate(cells):
        found |= wf.tensorflow_variables(one, f"{scope}/multi_rnn_cell/cell_{k}/{name}")
    return found


def test_more_than_ten_layers_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    cells = tuple(cell(4, 4, k) for k in range(12))
    assert_same(tree(wf.write_checkpoint(tmp_path / "m", stack("rnn", *cells))), naive.Stack(cells))


def test_bidirectional_cells(tmp_path: Path) -> None:
    variables = wf.tensorflow_variables(BW, "bidirectional_rnn/bw/lstm_cell") | wf.tensorflow_variables(
        FW, "bidirectional_rnn/fw/lstm_cell"
    )
    assert_same(tree(wf.write_checkpoint(tmp_path / "m", variables)), naive.Bidirectional(FW, BW))


def test_bidirectional_of_stacks(tmp_path: Path) -> None:
    variables = stack("x/bidirectional_rnn/fw", FW, TWO) | stack("x/bidirectional_rnn/bw", BW, TWO)
    want = naive.Bidirectional(naive.Stack((FW, TWO)), naive.Stack((BW, TWO)))
    assert_same(tree(wf.write_checkpoint(tmp_path / "m", variables)), want)


def test_stack_of_bidirectional_pairs(tmp_path: Path) -> None:
    variables: wf.Arrays = {}
    pairs = [(FW, BW), (cell(10, 4, 5), cell(10, 4, 6))]
    for k, pair in enumerate(pairs):
        for direction, one in zip(("fw", "bw"), pair, strict=True):
            variables |= wf.tensorflow_variables(
                one, f"stack_bidirectional_rnn/cell_{k}/bidirectional_rnn/{direction}/lstm_cell"
            )
    want = naive.Stack(tuple(naive.Bidirectional(*pair) for pair in pairs))
    assert_same(tree(wf.write_checkpoint(tmp_path / "m", variables)), want)


def test_cudnn_has_its_forget_bias_in_its_bias(tmp_path: Path) -> None:
    scope = "cudnn_lstm/rnn/multi_rnn_cell/cell_0/cudnn_compatible_lstm_cell"
    variables = wf.tensorflow_variables(ONE, scope) | {f"{scope}/bias_cudnn_{k}": np.ones(20, "f4") for k in (0, 1)}
    path = wf.write_checkpoint(tmp_path / "m", variables)
    assert_same(tree(path), naive.Stack((replace(ONE, forget_bias=0.0),)))
    assert any("forget_bias 0.0 is assumed" in note for note in load(path).assumed)


def test_what_a_checkpoint_does_not_hold_is_said(tmp_path: Path) -> None:
    path = wf.write_checkpoint(tmp_path / "m", stack("rnn", FULL, cell(2, 4, 7)))
    said = load(path, forget_bias=0.5, cell_clip=(10.0, None), projection_clip=3.0, activation="relu")
    first, second = (each for _, each in said.model.cells())
    assert (first.forget_bias, first.cell_clip, first.projection_clip, first.activation) == (0.5, 10.0, 3.0, "relu")
    assert (second.forget_bias, second.cell_clip, second.projection_clip, second.activation) == (0.5, None, None, "relu")
    assert said.assumed == ()
    assert "forget_bias 1.0 is assumed" in load(path).assumed[0]
    assert "2 layers" in refusal(path, 2, cell_clip=(1.0, 2.0, 3.0))
    assert "--cell-clip" in refusal(path, 2, cell_clip=0.0)
    assert "--cell-clip" in refusal(path, 2, cell_clip=float("nan"))
    assert "--forget-bias" in refusal(path, 2, forget_bias=float("inf"))
    assert "--projection-clip" in refusal(wf.write_checkpoint(tmp_path / "n", stack("rnn", ONE)), 2, projection_clip=1.0)


def test_the_command_takes_a_number_for_each_layer(tmp_path: Path) -> None:
    args = ["model", "import", speech.CHECKPOINT, "-o", "m.h5", "--overwrite"]
    assert "none are assumed" not in succeed(*args, "--cell-clip", "10,none", cwd=tmp_path).text
    assert_one_line(lstmcli(*args, "--cell-clip", "10,none,3", cwd=tmp_path), 2, "--cell-clip", "2 layers")
    assert_one_line(lstmcli(*args, "--cell-clip", "-1", cwd=tmp_path), 2, "--cell-clip")


def test_several_are_listed_and_one_is_selected(tmp_path: Path) -> None:
    path = wf.write_checkpoint(
        tmp_path / "m", stack("encoder/rnn", ONE, TWO) | wf.tensorflow_variables(FULL, "decoder/rnn/lstm_cell")
    )
    text = refusal(path)
    for word in ("2 LSTMs", "--select", "encoder/rnn", "decoder/rnn", "(8, 20)"):
        assert word in text
    assert_same(tree(path, select="enc"), naive.Stack((ONE, TWO)))
    assert_same(tree(path, select="decoder/rnn"), naive.Stack((FULL,)))


@pytest.mark.parametrize("missing", ["kernel", "bias", "w_f_diag"])
def test_missing_variables_are_named(missing: str, tmp_path: Path) -> None:
    variables = wf.tensorflow_variables(FULL, "rnn/lstm_cell")
    del variables[f"rnn/lstm_cell/{missing}"]
    assert missing in refusal(wf.write_checkpoint(tmp_path / "m", variables))


def test_gaps_are_named(tmp_path: Path) -> None:
    variables = stack("rnn", ONE, TWO)
    without = {name: value for name, value in variables.items() if "cell_0" not in name}
    assert "cell_0, 1" in refusal(wf.write_checkpoint(tmp_path / "m", without))
    assert "fw and bw" in refusal(
        wf.write_checkpoint(tmp_path / "n", wf.tensorflow_variables(FW, "bidirectional_rnn/fw/lstm_cell"))
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("kernel", (5, 20)),
        ("kernel", (8, 19)),
        ("bias", (18,)),
        ("bias", (20, 1)),
        ("projection/kernel", (4, 2)),
        ("projection/bias", (2,)),
    ],
)
def test_variables_that_do_not_fit(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    changed = {f"rnn/lstm_cell/{name}": np.ones(shape, "f4")}
    refusal(wf.write_checkpoint(tmp_path / "m", wf.tensorflow_variables(ONE, "rnn/lstm_cell") | changed))


def test_variables_of_integers(tmp_path: Path) -> None:
    changed = {"rnn/lstm_cell/kernel": np.ones((8, 20), "i8")}
    assert "floating point" in refusal(
        wf.write_checkpoint(tmp_path / "m", wf.tensorflow_variables(ONE, "rnn/lstm_cell") | changed)
    )


VARIABLES = wf.tensorflow_variables(ONE, "rnn/lstm_cell")


def test_what_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    assert "compressed" in refusal(wf.write_checkpoint(tmp_path / "a", VARIABLES, compression=1))
    assert "little-endian" in refusal(wf.write_checkpoint(tmp_path / "b", VARIABLES, header=wf.field(1, 1) + wf.field(2, 1)))
    assert "V1" in refusal(wf.write_checkpoint(tmp_path / "c", VARIABLES, header=wf.field(2, 0)))
    objects = {"model/kernel/.ATTRIBUTES/VARIABLE_VALUE": wf.field(1, 1)}
    assert "TensorFlow 2" in refusal(wf.write_checkpoint(tmp_path / "d", VARIABLES, extra=objects))
    slices = {
        "rnn/lstm_cell/kernel": wf.field(1, 1)
        + wf.field(2, b"".join(wf.field(2, wf.field(1, n)) for n in (8, 20)))
        + wf.field(7, b"")
    }
    assert "partition" in refusal(wf.write_checkpoint(tmp_path / "e", VARIABLES, extra=slices))
    gru = {"rnn/gru_cell/gates/kernel": np.ones((8, 10), "f4")}
    assert "rnn/gru_cell/gates/kernel (8, 10)" in refusal(wf.write_checkpoint(tmp_path / "f", gru))


def entry(dtype: int = 1, shape: tuple[int, ...] = (8, 20), **fields: int) -> bytes:
    numbers = {"shard": 3, "offset": 4, "size": 5}
    sizes = b"".join(wf.field(2, wf.field(1, n)) for n in shape)
    return wf.field(1, dtype) + wf.field(2, sizes) + b"".join(wf.field(numbers[name], value) for name, value in fields.items())


ENTRIES = {
    "no checksum": (entry(size=640), "field 6 is missing"),
    "another size": (entry(size=644), "644"),
    "beyond the end": (entry(size=640, offset=1 << 40), "cut"),
    "before the beginning": (entry(size=640, offset=-8), "cut"),
    "another data file": (entry(size=640, shard=1), "data file 1 of 1"),
    "terabytes": (entry(shape=(1 << 20, 1 << 21), size=1 << 43), "cut"),
    "a negative shape": (entry(shape=(-8, 20), size=640), "shape"),
    "another message": (wf.field(2, 5), "damaged"),
    "no message": (b"\xff" * 20, "damaged"),
}


@pytest.mark.parametrize("what", ENTRIES)
def test_entries_that_lie(what: str, tmp_path: Path) -> None:
    value, word = ENTRIES[what]
    assert word in refusal(wf.write_checkpoint(tmp_path / "m", VARIABLES, extra={"rnn/lstm_cell/kernel": value}))


def test_data_file_missing_cut_or_damaged(tmp_path: Path) -> None:
    path = wf.write_checkpoint(tmp_path / "m", VARIABLES)
    data = tmp_path / "m.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    assert "cut" in refusal(path)
    data.write_bytes(whole[:10] + bytes([whole[10] ^ 1]) + whole[11:])
    assert "checksum" in refusal(path)
    data.unlink()
    assert "m.data-00000-of-00001" in refusal(path, 66)
    assert_one_line(lstmcli("model", "show", path, cwd=tmp_path), 66, "m.data-00000-of-00001")


@pytest.mark.parametrize("name", [name for name in golden.NAMES if name not in ("residual", "float64")])
def test_goldens_by_way_of_a_checkpoint(name: str, tmp_path: Path) -> None:
    """TensorFlow's own variables, under its own names."""
    with np.load(golden.FOLDER / f"{name}.npz") as file:
        variables = {key.removeprefix("w:"): file[key] for key in file.files if key.startswith("w:")}
    want = golden.load(name).model
    cells = want.forward.layers if isinstance(want, naive.Bidirectional) else want.layers  # type: ignore[union-attr]
    if any(isinstance(one, naive.Residual) for one in cells):
        pytest.skip("a checkpoint does not say that a layer is residual")
    said = {
        "forget_bias": [one.forget_bias for one in cells],
        "cell_clip": [one.cell_clip for one in cells],
        "activation": cells[0].activation,
    }
    if any(one.projection_clip and one.projection is not None for one in cells):
        said["projection_clip"] = [one.projection_clip for one in cells]
    got = tree(
        wf.write_checkpoint(tmp_path / "m", variables),
        **{key: value for key, value in said.items() if value != [None] * len(cells)},
    )
    case = golden.load(name)
    outputs, state = naive.run(got, case.x, case.lens, case.initial)
    if isinstance(got, naive.Bidirectional) and not isinstance(got.forward, naive.Stack):
        case.state.update({path.replace("/0/", "/"): value for path, value in case.state.items()})
        outputs, _ = naive.run(
            got, case.x, case.lens, {path.replace("/0/", "/"): value for path, value in case.initial.items()}
        )
    assert golden.relative_error(outputs, case.outputs) <= case.tolerance
    assert all(golden.relative_error(value, case.state[path]) <= case.tolerance for path, value in state.items())


def test_values_outside_of_the_folder_are_refused_by_name(tmp_path: Path) -> None:
    """A checkpoint whose files are all links to one other folder, as in the cache of a model hub, is read."""
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    path = wf.write_checkpoint(folder / "m", wf.tensorflow_variables(ONE, "rnn/lstm_cell"))
    data = next(folder.glob("m.data-*"))
    data.rename(elsewhere / "blob")
    data.symlink_to(elsewhere / "blob")
    assert "out of the checkpoint's folder" in refusal(path)
    assert data.name in refusal(path)
    path.rename(elsewhere / "index")
    path.symlink_to(elsewhere / "index")
    assert_same(tree(path), naive.Stack((ONE,)))
