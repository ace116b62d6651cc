"""Random files of Keras: the weights that were put in, in the order in which they are connected, or a refusal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.weight_imports import assert_same, tree

from lstmcli.errors import DataError

WIDTHS = (2, 3, 4)
WORDS = ("lstm", "encoder", "a", "x_1", "forward_b", "bidirectional_2", "cell", "layers", "dense_7", "rnn")
IDLE = ("Dropout", "Masking", "SpatialDropout1D", "GaussianNoise")
OTHERS = ("Dense", "BatchNormalization", "Activation", "Conv1D", "GRU", "TimeDistributed")
SNAKE = {
    "LSTM": "lstm", "RNN": "rnn", "Bidirectional": "bidirectional", "Dropout": "dropout", "Masking": "masking",
    "SpatialDropout1D": "spatial_dropout1d", "GaussianNoise": "gaussian_noise", "Dense": "dense", "Activation": "activation",
    "BatchNormalization": "batch_normalization", "Conv1D": "conv1d", "GRU": "gru", "TimeDistributed": "time_distributed",
    "RepeatVector": "repeat_vector", "Embedding": "embedding", "Flatten": "flatten", "InputLayer": "input_layer",
}  # fmt: skip


@dataclass
class Layer:
    """A layer as it was made; node: what an LSTM computes. cells: by place below the layer, such as forward_layer/cell."""

    kind: str
    name: str
    entry: dict[str, Any]
    node: list[naive.Node] = field(default_factory=list)
    cells: dict[str, naive.Cell] = field(default_factory=dict)
    weights: list[np.ndarray] = field(default_factory=list)


class Maker:
    """A random sequential model. plain: with the activations and merges that a file of weights alone is taken to have."""

    def __init__(self, seed: int, plain: bool, gates: str) -> None:
        self.rng, self.plain, self.gates = np.random.default_rng(seed), plain, gates
        self.width, self.count = int(self.rng.choice(WIDTHS)), 0
        self.names: set[str] = set()
        self.layers: list[Layer] = []
        self.runs: list[list[Layer]] = [[]]  # of LSTM layers that feed each other
        for _ in range(int(self.rng.integers(1, 6))):
            self.add()
        if not any(self.runs):
            self.lstm()
        if self.rng.random() < 0.3:
            self.other("Flatten")
            self.other("Dense")
        self.runs = [run for run in self.runs if run]

    def name(self) -> str:
        while True:
            name = f"{self.rng.choice(WORDS)}{'' if self.rng.random() < 0.5 else f'_{self.rng.integers(20)}'}"
            if name not in self.names:
                self.names.add(name)
                return str(name)

    def add(self) -> None:
        draw = self.rng.random()
        if draw < 0.55:
            self.lstm()
        elif draw < 0.8:
            self.other(str(self.rng.choice(IDLE)))
        else:
            self.other(str(self.rng.choice(OTHERS)))
            self.runs.append([])

    def other(self, kind: str) -> None:
        out, weights = self.width, []
        if kind in ("Dense", "Conv1D", "GRU", "TimeDistributed"):
            out = int(self.rng.choice(WIDTHS))
        if kind in ("Dense", "TimeDistributed"):
            weights = [np.ones((self.width, out), "f4"), np.ones(out, "f4")]
        if kind == "Conv1D":
            weights = [np.ones((3, self.width, out), "f4"), np.ones(out, "f4")]
        if kind == "GRU":
            weights = [np.ones((self.width, 3 * out), "f4"), np.ones((out, 3 * out), "f4"), np.ones((2, 3 * out), "f4")]
        if kind == "BatchNormalization":
            weights = [np.ones(out, "f4")] * 4
        name = self.name()
        self.layers.append(Layer(kind, name, {"class_name": kind, "config": {"name": name}}, weights=weights))
        self.width = out

    def cell(self, features: int, units: int) -> naive.Cell:
        self.count += 1
        made = wf.random_cell(features, units, self.count, bias=bool(self.rng.random() < 0.8))
        if self.plain:
            return replace(made, recurrent_activation=self.gates)
        hard = "hard_sigmoid_keras2" if self.gates == "hard_sigmoid_keras2" else "hard_sigmoid"
        gates = str(self.rng.choice(["sigmoid", hard]))
        return replace(made, activation=str(self.rng.choice(["tanh", "relu", "softsign"])), recurrent_activation=gates)

    def config(self, cell: naive.Cell, name: str) -> dict[str, Any]:
        gates = cell.recurrent_activation.removesuffix("_keras2")
        return wf.keras_lstm(
            name, cell.units, activation=cell.activation, recurrent_activation=gates, use_bias=cell.bias is not None
        )

    def side(self, count: int, features: int) -> tuple[list[naive.Cell], dict[str, Any]]:
        """The cells of one direction, and what serializes them; count 0: an LSTM, else so many cells in an RNN."""
        cells = []
        for _ in range(max(1, count)):
            cells.append(self.cell(features, int(self.rng.choice(WIDTHS))))
            features = cells[-1].units
        if not count:
            return cells, self.config(cells[0], "inner")
        entries = [{**self.config(cell, "cell"), "class_name": "LSTMCell"} for cell in cells]
        several = {"class_name": "StackedRNNCells", "config": {"name": "cells", "cells": entries}}
        cell = several if count > 1 else entries[0]
        return cells, {"class_name": "RNN", "config": {"name": "inner", "return_sequences": True, "cell": cell}}

    def lstm(self) -> None:
        name, count, both = self.name(), int(self.rng.choice([0, 0, 0, 1, 2, 3])), bool(self.rng.random() < 0.3)
        forward, entry = self.side(count, self.width)
        places = ["cell"] if count < 2 else [f"cell/cells/lstm_cell{f'_{k}' * (k > 0)}" for k in range(count)]
        cells = dict(zip(places, forward, strict=True))
        nodes: list[naive.Node] = list(forward)
        if both:
            backward = [replace(self.like(cell)) for cell in forward]
            merge = "concat" if self.plain else str(self.rng.choice(["concat", "sum", "mul", "ave"]))
            entry = {"class_name": "Bidirectional", "config": {"layer": entry, "merge_mode": merge}}
            cells = {f"forward_layer/{place}": cell for place, cell in cells.items()}
            cells |= {f"backward_layer/{place}": cell for place, cell in zip(places, backward, strict=True)}
            sides = [each[0] if count < 2 else naive.Stack(tuple(each)) for each in (forward, backward)]
            nodes = [naive.Bidirectional(sides[0], sides[1], "mean" if merge == "ave" else merge)]
        self.width = forward[-1].units * (2 if both and nodes[0].merge == "concat" else 1)  # type: ignore[union-attr]
        entry["config"] = entry["config"] | {"name": name}
        layer = Layer(str(entry["class_name"]), name, entry, nodes, cells)
        self.layers.append(layer)
        self.runs[-1].append(layer)

    def like(self, cell: naive.Cell) -> naive.Cell:
        """Another one of the same options."""
        self.count += 1
        other = wf.random_cell(cell.input_kernel.shape[0], cell.units, self.count, bias=cell.bias is not None)
        return replace(other, activation=cell.activation, recurrent_activation=cell.recurrent_activation)

    def expected(self, run: list[Layer]) -> naive.Stack:
        return naive.Stack(tuple(node for layer in run for node in layer.node))

    def configuration(self) -> dict[str, Any]:
        entries = [layer.entry for layer in self.layers]
        if self.rng.random() < 0.5:
            return wf.sequential(*entries)
        nodes: list[dict[str, Any]] = [{"class_name": "InputLayer", "name": "input", "config": {"name": "input"}}]
        for entry in entries:
            source = ["input" if len(nodes) == 1 else nodes[-1]["name"], 0, 0]
            call: Any = [[[*source, {}]]]
            if self.rng.random() < 0.5:
                call = [{"args": [{"class_name": "__keras_tensor__", "config": {"keras_history": source}}], "kwargs": {}}]
            nodes.append({**entry, "name": entry["config"]["name"], "inbound_nodes": call})
        config = {"name": "m", "layers": nodes, "input_layers": [["input", 0, 0]], "output_layers": [[nodes[-1]["name"], 0, 0]]}
        return {"class_name": "Functional", "config": config}

    def keras3(self, path: Path, container: str, named: bool) -> Path:
        """Weights in groups by class, which Keras 2.13 counts otherwise, in any order."""
        counts: dict[str, int] = {}
        groups = []
        for layer in self.layers:
            kind = SNAKE[layer.kind]
            number = counts.get(kind, 0)
            weighted = bool(layer.cells or layer.weights)
            counts[kind] = number + (2 if container != "layers" and weighted else 1)
            groups.append((f"{container}/{kind}{f'_{number}' * (number > 0)}", layer))
        with h5py.File(path, "w") as file:
            for k in self.rng.permutation(len(groups)):
                group, layer = groups[k]
                arrays = {
                    f"{place}/vars/{n}": value
                    for place, cell in layer.cells.items()
                    for n, value in enumerate(wf.keras_arrays(cell))
                }
                inside = "layer/" if layer.kind == "TimeDistributed" else "cell/" if layer.kind == "GRU" else ""
                arrays |= {f"{inside}vars/{n}": value for n, value in enumerate(layer.weights)}
                for name, value in arrays.items():
                    file[f"{group}/{name}"] = value
                variables = file.require_group(f"{group}/vars")
                if named:
                    variables.attrs["name"] = layer.name
            file["optimizer/vars/0"] = np.ones((3, 16), "f4")
        return path

    def legacy(self, path: Path, config: dict[str, Any] | None, version: str) -> Path:
        layers = {}
        for layer in self.layers:
            weights: dict[str, np.ndarray] = {f"{layer.name}/w_{k}:0": value for k, value in enumerate(layer.weights)}
            if layer.kind == "Dense":
                weights = {f"{layer.name}/{part}:0": each for part, each in zip(("kernel", "bias"), layer.weights, strict=True)}
            if layer.kind == "GRU":
                parts = ("kernel", "recurrent_kernel", "bias")
                weights = {f"{layer.name}/gru_cell/{part}:0": each for part, each in zip(parts, layer.weights, strict=True)}
            for k, (place, cell) in enumerate(layer.cells.items()):
                side = place.split("_")[0] if place.startswith(("forward", "backward")) else ""
                scope = [layer.name, *([f"{side}_inner"] if side else [])]
                scope += ["stacked_rnn_cells"] * ("/cells/" in place) + [f"lstm_cell_{k + 3}"]
                weights |= wf.legacy_weights("/".join(scope), cell)
            layers[layer.name] = weights
        return wf.write_legacy_h5(path, layers, config, version)

    def objects(self, path: Path) -> Path:
        variables, programs, links, empty, count = {}, {}, {}, [], 0
        for number, layer in enumerate(self.layers):
            if not layer.cells and not layer.weights:
                made = "_random_generator" if layer.kind in IDLE and layer.kind != "Masking" else "keras_api"
                empty.append(f"layer-{number}/{made}")
                continue
            base = f"layer_with_weights-{count}"
            count += 1
            links[f"layer-{number}"] = base
            for k, (place, cell) in enumerate(layer.cells.items()):
                at = f"{base}/{place.replace('lstm_cell_', '').replace('lstm_cell', '0')}"
                for name, value in zip(("kernel", "recurrent_kernel", "bias"), wf.keras_arrays(cell), strict=False):
                    variables[f"{at}/{name}"], programs[f"{at}/{name}"] = value, f"{layer.name}/lstm_cell_{k}/{name}"
            inside = "cell/" if layer.kind == "GRU" else ""
            variables |= {f"{base}/{inside}w_{k}": value for k, value in enumerate(layer.weights)}
        return wf.write_objects(path, variables, programs, links, empty)


def attempt(path: Path) -> naive.Node | str:
    """The tree of a file, or the message with which it is refused."""
    try:
        return tree(path)
    except DataError as error:
        return str(error)


def check(path: Path, maker: Maker, sure: bool) -> bool:
    """Whether a tree was read. sure: a refusal is only right for several runs of LSTMs."""
    got = attempt(path)
    if not isinstance(got, str):
        assert len(maker.runs) == 1, "one tree of several LSTMs that do not feed each other"
        assert_same(got, maker.expected(maker.runs[0]))
        return True
    if sure:
        assert len(maker.runs) > 1, got
        assert f"{len(maker.runs)} LSTMs" in got
        for run in maker.runs:
            assert_same(tree(path, select=run[0].name), maker.expected(run))
    return False


VERSIONS = {
    "archive": "3.15.1",
    "archive 2.13": "2.13.1",
    "legacy": "2.9.0",
    "legacy 3": "3.15.1",
    "weights": "3.15.1",
    "weights 2.13": "3.15.1",
    "named weights": "3.15.1",
    "legacy weights": "2.9.0",
    "old weights": "2.2.4",
    "objects weights": "3.15.1",
}


def one(form: str, seed: int, folder: Path) -> bool:
    plain = "weights" in form
    version = VERSIONS[form]
    old = version.startswith("2") and (not plain or form == "old weights")
    maker = Maker(seed, plain, "hard_sigmoid_keras2" if old else "sigmoid")
    container = "_layer_checkpoint_dependencies" if form.endswith("2.13") else "layers"
    if form.startswith("archive"):
        weights = maker.keras3(folder / "w", container, named=bool(seed % 2))
        return check(wf.write_keras(folder / "f", maker.configuration(), weights.read_bytes(), version), maker, sure=True)
    if form in ("legacy", "legacy 3"):
        return check(maker.legacy(folder / "f", json.loads(json.dumps(maker.configuration())), version), maker, sure=True)
    if form in ("legacy weights", "old weights", "objects weights"):
        return check(maker.legacy(folder / "f", None, version), maker, sure=False)
    return check(maker.keras3(folder / "f", container, named=form == "named weights"), maker, sure=False)


@pytest.mark.parametrize("form", VERSIONS)
def test_random_files(form: str, tmp_path: Path) -> None:
    read = sum(one(form, seed, tmp_path) for seed in range(40))
    assert read > 10


@pytest.mark.slow
@pytest.mark.parametrize("form", VERSIONS)
def test_more_random_files(form: str, tmp_path: Path) -> None:
    for seed in range(1000, 1400):
        one(form, seed, tmp_path)
