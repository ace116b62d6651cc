"""Reads a golden case and turns TensorFlow's weights into the layout of this project (goldens/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.naive import Bidirectional, Cell, Node, Residual, Stack, State

FOLDER = Path(__file__).parents[1] / "data" / "goldens"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
DIRECTIONS = {"fw": "forward", "bw": "backward"}


@dataclass(frozen=True)
class Golden:
    name: str
    model: Node
    x: np.ndarray  # (B, T, E); the padding holds garbage
    lens: np.ndarray | None  # (B,)
    initial: State  # by path in the model, such as 0/c or forward/1/h
    outputs: np.ndarray  # (B, T, D)
    state: State
    dtype: str

    @property
    def tolerance(self) -> float:
        """Of an implementation in the golden's own precision, relative to max(1, largest value)."""
        if self.dtype == "float64":
            return 1e-13
        return 5e-6 if self.name == "saturated" else 1e-6


def load(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    config = json.loads(str(arrays.pop("config")))
    both = config["bidirectional"]
    model: Node
    if both:
        model = Bidirectional(_stack(arrays, config, "bidirectional_rnn/fw"), _stack(arrays, config, "bidirectional_rnn/bw"))
        outputs = np.concatenate([arrays["y:fw"], arrays["y:bw"]], axis=-1)
    else:
        model, outputs = _stack(arrays, config, "rnn"), arrays["y:fw"]
    return Golden(
        name=name,
        model=model,
        x=arrays["x"],
        lens=arrays.get("lens"),
        initial=_states(arrays, "init", both),
        outputs=outputs,
        state=_states(arrays, "state", both),
        dtype=config["dtype"],
    )


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference, relative to max(1, largest expected value); infinite for another shape or a NaN."""
    if got.shape != want.shape:
        return float("inf")
    if want.size == 0:
        return 0.0
    difference = np.abs(np.float64(got) - np.float64(want)).max()
    return float("inf") if np.isnan(difference) else float(difference / max(1.0, np.abs(want).max()))


def _stack(arrays: State, config: dict, scope: str) -> Stack:
    layers: list[Node] = []
    many = len(config["cells"]) > 1
    for k, options in enumerate(config["cells"]):
        cell = _cell(arrays, options, f"w:{scope}/multi_rnn_cell/cell_{k}" if many else f"w:{scope}")
        layers.append(Residual(cell) if config["residual"] and k > 0 else cell)
    return Stack(tuple(layers))


def _cell(arrays: State, options: dict, scope: str) -> Cell:
    scope += "/lstm_cell"
    kernel = arrays[f"{scope}/kernel"]
    width = options.get("num_proj") or options["units"]
    peepholes = [arrays[f"{scope}/w_{gate}_diag"] for gate in "ifo"] if options.get("use_peepholes") else None
    return Cell(
        input_kernel=_gates(kernel[:-width]),
        recurrent_kernel=_gates(kernel[-width:]),
        bias=_gates(arrays[f"{scope}/bias"]),
        peephole=None if peepholes is None else np.stack(peepholes),
        projection=arrays.get(f"{scope}/projection/kernel"),
        forget_bias=options.get("forget_bias", 1.0),
        cell_clip=options.get("cell_clip"),
        projection_clip=options.get("proj_clip"),
        activation=options.get("activation", "tanh"),
    )


def _gates(blocks: np.ndarray) -> np.ndarray:
    """TensorFlow's gate blocks i, j, f, o along the last axis -> i, f, g, o (its j is our g)."""
    i, j, f, o = np.split(blocks, 4, axis=-1)
    return np.concatenate([i, f, j, o], axis=-1)


def _states(arrays: State, prefix: str, both: bool) -> State:
    states = {}
    for key, value in arrays.items():
        kind, *rest = key.split(":")
        if kind == prefix:
            direction, layer, name = rest
            states[f"{DIRECTIONS[direction]}/{layer}/{name}" if both else f"{layer}/{name}"] = value
    return states
