"""ONNX's graphs: nodes in branches, loops and functions, and what stands between two layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.onnx_files import call, constant, function, graph, lstm, with_graphs, write
from helpers.weight_imports import assert_same, load, refusal, tree

CELL = wf.random_cell(3, 4, 0)
BACK = wf.random_cell(3, 4, 1)


def test_lstms_in_branches(tmp_path: Path) -> None:
    """Each branch with names of its own, which may be those of the other."""
    top = wf.random_cell(3, 2, 7)
    narrow, wide = (lstm(0, [cell]) for cell in (CELL, top))
    wide_node = wide[0].replace(b"lstm0", b"other")
    both = {"then_branch": graph([narrow[0]], narrow[1], ["Y0"]), "else_branch": graph([wide_node], wide[1], ["Y0"])}
    path = write(tmp_path / "a", with_graphs("If", ["rate"], ["Z"], "If_0", **both))
    text = refusal(path)
    for word in ("2 LSTMs", "lstm0", "other", "--select"):
        assert word in text
    assert_same(tree(path, select="other"), naive.Stack((top,)))
    assert "If_0/else_branch" in load(path, select="other").notes[0]
    relu = graph([wf.onnx_node("Relu", ["X"], ["R"])], (), ["R"])
    one = with_graphs("If", ["rate"], ["Z"], "If_0", then_branch=relu, else_branch=both["else_branch"])
    assert_same(tree(write(tmp_path / "b", one)), naive.Stack((top,)))
    known = write(tmp_path / "c", constant("rate", np.array(1)), with_graphs("If", ["rate"], ["Z"], "If_0", **both))
    assert_same(tree(known), naive.Stack((CELL,)))  # the other branch is never taken


def test_weights_around_a_branch(tmp_path: Path) -> None:
    node, tensors = lstm(0, [CELL])
    branch = graph([node], (), ["Y0"])
    outer = with_graphs("If", ["rate"], ["Z"], "If_0", then_branch=branch, else_branch=graph([], (), ["X"]))
    assert_same(tree(write(tmp_path / "a", (outer, tensors))), naive.Stack((CELL,)))


def test_an_lstm_in_a_loop_must_be_asked_for(tmp_path: Path) -> None:
    node, tensors = lstm(0, [CELL])
    loop = with_graphs("Loop", ["M", "", "s"], ["Z"], "decode", body=graph([node], (), ["Y0"]))
    path = write(tmp_path / "a", (loop, tensors))
    text = refusal(path)
    for word in ("Loop 'decode'", "--select lstm0"):
        assert word in text
    assert_same(tree(path, select="lstm0"), naive.Stack((CELL,)))
    top = lstm(1, [wf.random_cell(3, 2, 7)])
    assert_same(tree(write(tmp_path / "b", (loop, tensors), top)), naive.Stack((wf.random_cell(3, 2, 7),)))


def test_functions_of_the_model(tmp_path: Path) -> None:
    """Called twice, one inside the other, with an attribute handed on and a weight that is folded in the function."""
    top = wf.random_cell(4, 4, 3)
    reference = wf.field(1, "hidden_size") + wf.field(20, 2) + wf.field(21, "units")
    inner = wf.onnx_node("LSTM", ["a", "w", "turned", "b"], ["y"], "inner") + wf.field(5, reference)
    turn = wf.onnx_node("Transpose", ["r"], ["turned"], perm=[0, 2, 1])
    names = ["a", "w", "r", "b"]
    layer = function("Layer", names, ["y"], [turn, inner], ["units"])
    outer = function("Flat", names, ["z"], [call("Layer", names, ["y"], "in", units=4), wf.onnx_node("Squeeze", ["y"], ["z"])])
    tensors = []
    for k, cell in enumerate((CELL, top)):
        weights = wf.onnx_weights([cell])
        weights["R"] = np.ascontiguousarray(weights["R"].swapaxes(1, 2))
        tensors += [wf.onnx_tensor(f"{name}{k}", value) for name, value in weights.items()]
    nodes = [call("Flat", ["Z0", "W1", "R1", "B1"], ["Z1"], "second"), call("Flat", ["X", "W0", "R0", "B0"], ["Z0"], "first")]
    path = wf.write_onnx(tmp_path / "a", nodes, tensors)
    path.write_bytes(path.read_bytes() + layer + outer)
    assert_same(tree(path), naive.Stack((CELL, top)))
    deep = [
        function(f"F{k}", ["a"], ["y"], [call(f"F{k + 1}", ["a"], ["q"]), call(f"F{k + 1}", ["q"], ["y"])]) for k in range(30)
    ]
    path = wf.write_onnx(tmp_path / "b", [call("F0", ["X"], ["Y"])], [])
    path.write_bytes(path.read_bytes() + b"".join(deep))
    assert "nodes" in refusal(path)
    path.write_bytes(path.read_bytes() + function("F30", ["a"], ["y"], [call("F0", ["a"], ["y"])]))
    refusal(path)


def test_nodes_of_one_name(tmp_path: Path) -> None:
    """Are told apart by their outputs, which have names of their own."""
    one, other = lstm(0, [CELL]), lstm(1, [BACK])
    path = write(tmp_path / "a", one, (other[0].replace(b"lstm1", b"lstm0"), other[1]))
    text = refusal(path)
    for word in ("2 LSTMs", "Y0", "Y1"):
        assert word in text
    assert_same(tree(path, select="Y1"), naive.Stack((BACK,)))
    assert "Y0" in refusal(write(tmp_path / "b", one, (one[0].replace(b"lstm0", b"lstm1"), [])))
    assert "W0" in refusal(write(tmp_path / "c", one, (other[0], one[1][:1])))


# What stands between two layers.

BOTH = [CELL, BACK]


def turned(*perm: int) -> bytes:
    return wf.onnx_node("Transpose", ["Y0"], ["t"], perm=list(perm))


def shaped(operator: str, name: str, target: str, *numbers: int) -> tuple[bytes, list[bytes]]:
    return wf.onnx_node(operator, [name, f"{target}.n"], [target]), [wf.onnx_tensor(f"{target}.n", np.array(numbers))]


BETWEEN = {
    "keras2onnx": (
        [CELL],
        [turned(2, 1, 0, 3), shaped("Squeeze", "t", "s", 1), wf.onnx_node("Transpose", ["s"], ["Z"], perm=[1, 0, 2])],
    ),
    "keras2onnx, both": (
        [*BOTH],
        [
            (wf.onnx_node("Split", ["Y0"], ["f", "b"], axis=1), []),
            shaped("Squeeze", "f", "f1", 1),
            shaped("Squeeze", "b", "b1", 1),
            wf.onnx_node("Concat", ["f1", "b1"], ["Z"], axis=2),
        ],
    ),
    "there and back": (
        [*BOTH],
        [turned(2, 0, 1, 3), shaped("Reshape", "t", "r", 0, -1, 8), wf.onnx_node("Transpose", ["r"], ["Z"], perm=[1, 0, 2])],
    ),
    "dropped": (
        [CELL],
        [
            shaped("Squeeze", "Y0", "s", 1),
            wf.onnx_node("Dropout", ["s"], ["d", "mask"]),
            wf.onnx_node("Cast", ["d"], ["Z"], to=1),
        ],
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_one_stack_whatever_moves_its_values(name: str, tmp_path: Path) -> None:
    cells, between = BETWEEN[name]
    top = wf.random_cell(4 * len(cells), 4, 3)
    want = naive.Bidirectional(*cells) if len(cells) > 1 else cells[0]
    assert_same(tree(write(tmp_path / "a", lstm(0, cells), *between, lstm(1, [top], "Z"))), naive.Stack((want, top)))


APART = {
    "directions and sequences mixed up": ([*BOTH], [shaped("Reshape", "Y0", "Z", 0, -1, 8)]),
    "directions the other way round": (
        [*BOTH],
        [
            (wf.onnx_node("Split", ["Y0"], ["f", "b"], axis=1), []),
            shaped("Squeeze", "f", "f1", 1),
            shaped("Squeeze", "b", "b1", 1),
            wf.onnx_node("Concat", ["b1", "f1"], ["Z"], axis=2),
        ],
    ),
    "sequences for steps": ([CELL], [turned(2, 0, 1, 3), shaped("Squeeze", "t", "Z", 2)]),
    "backward in time": (
        [CELL],
        [
            shaped("Squeeze", "Y0", "s", 1),
            (
                wf.onnx_node("Slice", ["s", "-1", "end", "0", "-1"], ["Z"]),
                [
                    wf.onnx_tensor("-1", np.array([-1])),
                    wf.onnx_tensor("end", np.array([-(2**63) + 1])),
                    wf.onnx_tensor("0", np.array([0])),
                ],
            ),
        ],
    ),
    "one direction of two": (
        [*BOTH],
        [(wf.onnx_node("Split", ["Y0"], ["f", "b"], axis=1), []), shaped("Squeeze", "f", "Z", 1)],
    ),
    "a clip": (
        [CELL],
        [
            shaped("Squeeze", "Y0", "s", 1),
            (wf.onnx_node("Min", ["s", "far"], ["Z"]), [wf.onnx_tensor("far", np.float32([9e9]))]),
        ],
    ),
    "rounded": (
        [CELL],
        [shaped("Squeeze", "Y0", "s", 1), wf.onnx_node("Cast", ["s"], ["i"], to=7), wf.onnx_node("Cast", ["i"], ["Z"], to=1)],
    ),
    "a shape of who knows what": ([CELL], [wf.onnx_node("Reshape", ["Y0", "unknown"], ["Z"])]),
}


@pytest.mark.parametrize("name", APART)
def test_two_stacks_where_anything_else_is_done(name: str, tmp_path: Path) -> None:
    cells, between = APART[name]
    top = wf.random_cell(8 if "mixed" in name or "other way" in name else 4, 4, 3)
    path = write(tmp_path / "a", lstm(0, cells), *between, lstm(1, [top], "Z"))
    assert "2 LSTMs" in refusal(path)
    assert_same(tree(path, select="lstm1"), naive.Stack((top,)))


def test_one_step_of_one_sequence_hides_nothing(tmp_path: Path) -> None:
    """A model exported with one step of one sequence has the shapes of a transposition that mixes the two up."""
    top = wf.random_cell(4, 4, 3)
    swap = [shaped("Squeeze", "Y0", "s", 1), wf.onnx_node("Transpose", ["s"], ["Z"], perm=[1, 0, 2])]
    for k, between in enumerate(([shaped("Squeeze", "Y0", "Z", 1)], swap)):
        parts = [lstm(0, [CELL]), *between, lstm(1, [top], "Z")]
        nodes = [part if isinstance(part, bytes) else part[0] for part in parts]
        tensors = [tensor for part in parts if not isinstance(part, bytes) for tensor in part[1]]
        path = wf.write_onnx(tmp_path / f"{k}", nodes, tensors, {"X": (1, 1, 3)}, ["Y1"])
        if between is swap:
            assert "2 LSTMs" in refusal(path)
        else:
            assert_same(tree(path), naive.Stack((CELL, top)))
