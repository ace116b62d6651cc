"""The LSTM as its equations say it: float64, one sequence and one step at a time, no tricks.

Slow on purpose. It shares nothing with the package under test, and the goldens (test_naive.py) say that it is right.

    i = s(x Wi + h Ui + bi + pi*c)          f = s(x Wf + h Uf + bf + forget_bias + pf*c)
    g = act(x Wg + h Ug + bg)               c' = clip(f*c + i*g)
    o = s(x Wo + h Uo + bo + po*c')         h' = clip_p((o * act(c')) P)

gate_clip limits what s and act of the four gates are taken of; with input_forget f = 1 - i (both as ONNX has them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
State = dict[str, Array]


def sigmoid(z: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * z))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda z: np.maximum(z, 0.0),
    "softsign": lambda z: z / (1.0 + np.abs(z)),
    "softplus": lambda z: np.logaddexp(0.0, z),
    "elu": lambda z: np.where(z > 0.0, z, np.expm1(np.minimum(z, 0.0))),
    "linear": lambda z: z,
    "hard_sigmoid": lambda z: np.clip(z + 3.0, 0.0, 6.0) / 6.0,
    "hard_sigmoid_keras2": lambda z: np.clip(z / 5.0 + 0.5, 0.0, 1.0),
}


@dataclass(frozen=True)
class Cell:
    """Weights and options of one layer. E input features, H units, P projection width (H without a projection)."""

    input_kernel: Array  # (E, 4H) gate blocks i, f, g, o
    recurrent_kernel: Array  # (P, 4H)
    bias: Array | None = None  # (4H,)
    peephole: Array | None = None  # (3, H) rows i, f, o
    projection: Array | None = None  # (H, P)
    initial_c: Array | None = None  # (H,)
    initial_h: Array | None = None  # (P,)
    forget_bias: float = 0.0
    cell_clip: float | None = None
    projection_clip: float | None = None
    gate_clip: float | None = None
    input_forget: bool = False
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"

    @property
    def units(self) -> int:
        return self.input_kernel.shape[1] // 4

    @property
    def width(self) -> int:
        return self.recurrent_kernel.shape[0]


@dataclass(frozen=True)
class Stack:
    layers: tuple[Node, ...]


@dataclass(frozen=True)
class Bidirectional:
    forward: Node
    backward: Node
    merge: str = "concat"


@dataclass(frozen=True)
class Reverse:
    """Runs the inner model from the last valid step to the first; outputs stand at the steps they belong to."""

    inner: Node


@dataclass(frozen=True)
class Residual:
    inner: Node


Node = Cell | Stack | Bidirectional | Reverse | Residual


def clip(values: Array, limit: float | None) -> Array:
    return values if limit is None else np.clip(values, -limit, limit)


def step(cell: Cell, x: Array, c: Array, h: Array) -> tuple[Array, Array]:
    """One step of one sequence: x (E,), c (H,), h (P,) -> new c, new h."""
    act, s = ACTIVATIONS[cell.activation], ACTIVATIONS[cell.recurrent_activation]
    z = x @ np.float64(cell.input_kernel) + h @ np.float64(cell.recurrent_kernel)
    if cell.bias is not None:
        z = z + np.float64(cell.bias)
    i, f, g, o = np.split(z, 4)
    pi, pf, po = np.zeros((3, cell.units)) if cell.peephole is None else np.float64(cell.peephole)
    i = s(clip(i + pi * c, cell.gate_clip))
    f = 1.0 - i if cell.input_forget else s(clip(f + cell.forget_bias + pf * c, cell.gate_clip))
    c_new = clip(f * c + i * act(clip(g, cell.gate_clip)), cell.cell_clip)
    h_new = s(clip(o + po * c_new, cell.gate_clip)) * act(c_new)
    if cell.projection is not None:
        h_new = clip(h_new @ np.float64(cell.projection), cell.projection_clip)
    return c_new, h_new


def run_cell(
    x: Array, lengths: Sequence[int], cell: Cell, c0: Array | None = None, h0: Array | None = None
) -> tuple[Array, Array, Array]:
    """x (N, T, E) -> outputs (N, T, P), zeros past each length; final c (N, H) and h (N, P)."""
    n, steps, _ = x.shape
    outputs = np.zeros((n, steps, cell.width))
    c, h = np.zeros((n, cell.units)), np.zeros((n, cell.width))
    for array, learned, given in ((c, cell.initial_c, c0), (h, cell.initial_h, h0)):
        array[:] = given if given is not None else learned if learned is not None else 0.0
    for row in range(n):
        for t in range(lengths[row]):
            c[row], h[row] = step(cell, np.float64(x[row, t]), c[row], h[row])
            outputs[row, t] = h[row]
    return outputs, c, h


def flip(x: Array, lengths: Sequence[int]) -> Array:
    """The valid steps of each sequence backwards; the padding stays where it is."""
    flipped = x.copy()
    for row, length in enumerate(lengths):
        flipped[row, :length] = x[row, :length][::-1]
    return flipped


def merge(how: str, forward: Array, backward: Array) -> Array:
    if how == "concat":
        return np.concatenate([forward, backward], axis=-1)
    return {"sum": forward + backward, "mean": (forward + backward) / 2, "mul": forward * backward}[how]


def run(node: Node, x: Array, lengths: Sequence[int] | None = None, state: State | None = None) -> tuple[Array, State]:
    """Outputs (N, T, D) and the final state by path, such as 0/c or 1/forward/h. A lone cell is a stack of one."""
    root = Stack((node,)) if isinstance(node, Cell) else node
    lengths = [x.shape[1]] * x.shape[0] if lengths is None else [int(length) for length in lengths]
    return run_node(root, np.asarray(x), lengths, state or {}, "")


def run_stack(
    x: Array, lengths: Sequence[int] | None, cells: Sequence[Cell], state: State | None = None
) -> tuple[Array, State]:
    return run(Stack(tuple(cells)), x, lengths, state)


def run_node(node: Node, x: Array, lengths: Sequence[int], state: State, path: str) -> tuple[Array, State]:
    if isinstance(node, Cell):
        outputs, c, h = run_cell(x, lengths, node, state.get(path + "c"), state.get(path + "h"))
        return outputs, {path + "c": c, path + "h": h}
    if isinstance(node, Stack):
        final: State = {}
        for k, layer in enumerate(node.layers):
            x, below = run_node(layer, x, lengths, state, f"{path}{k}/")
            final |= below
        return x, final
    if isinstance(node, Bidirectional):
        forward, left = run_node(node.forward, x, lengths, state, path + "forward/")
        backward, right = run_node(Reverse(node.backward), x, lengths, state, path + "backward/")
        return merge(node.merge, forward, backward), left | right
    if isinstance(node, Reverse):
        outputs, final = run_node(node.inner, flip(x, lengths), lengths, state, path)
        return flip(outputs, lengths), final
    outputs, final = run_node(node.inner, x, lengths, state, path)
    for row, length in enumerate(lengths):
        outputs[row, :length] += x[row, :length]
    return outputs, final
