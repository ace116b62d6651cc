"""Random checkpoints of TensorFlow 1: the weights that were put in, or a refusal that lists the LSTMs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.weight_imports import assert_same, tree

from lstmcli.errors import DataError

SCOPES = ("rnn", "a/b", "encoder", "decoder/rnn_1", "model_1/words", "x/bidirectional_rnn", "tower_0/lm", "lstm_cell_scope")
KINDS = ("lstm_cell", "basic_lstm_cell", "lstm_fused_cell", "lstm_cell_1", "BasicLSTMCell", "LSTMCell")
NAMES = (("kernel", "bias"), ("weights", "biases"), ("W_0", "B"))


class Maker:
    def __init__(self, seed: int) -> None:
        self.rng, self.count, self.variables = np.random.default_rng(seed), 0, {}
        names = self.rng.permutation(SCOPES)[: int(self.rng.integers(1, 4))]
        self.lstms = {str(scope): self.lstm(str(scope)) for scope in names if not str(scope).endswith("bidirectional_rnn")}
        for scope in names:
            if str(scope).endswith("bidirectional_rnn"):
                self.lstms[str(scope)] = self.pair(str(scope), int(self.rng.integers(3, 6)))
        self.others()

    def cell(self, scope: str, features: int) -> naive.Cell:
        self.count += 1
        units, plain = int(self.rng.integers(2, 5)), self.rng.random() < 0.7
        peephole, projection = (False, None) if plain else (bool(self.rng.random() < 0.5), int(self.rng.integers(1, units + 1)))
        made = wf.random_cell(features, units, self.count, peephole=peephole, projection=projection)
        kernel, bias = NAMES[self.rng.integers(len(NAMES))]
        self.variables |= wf.tensorflow_variables(made, f"{scope}/{self.rng.choice(KINDS)}", kernel, bias)
        return replace(made, forget_bias=1.0)

    def stack(self, scope: str, features: int) -> naive.Stack:
        cells: list[naive.Cell] = []
        for k in range(int(self.rng.integers(1, 12))):
            cells.append(self.cell(f"{scope}/multi_rnn_cell/cell_{k}", features))
            features = cells[-1].width
        return naive.Stack(tuple(cells))

    def side(self, scope: str, features: int) -> naive.Node:
        return self.stack(scope, features) if self.rng.random() < 0.5 else self.cell(scope, features)

    def pair(self, scope: str, features: int) -> naive.Bidirectional:
        return naive.Bidirectional(self.side(f"{scope}/fw", features), self.side(f"{scope}/bw", features))

    def lstm(self, scope: str) -> naive.Node:
        features, draw = int(self.rng.integers(3, 6)), self.rng.random()
        if draw < 0.3:
            return self.stack(scope, features)
        if draw < 0.6:
            return self.pair(scope, features)
        if draw < 0.8:
            return naive.Stack((self.cell(scope, features),))
        pairs: list[naive.Node] = []
        for k in range(int(self.rng.integers(1, 4))):
            made = [self.cell(f"{scope}/cell_{k}/bidirectional_rnn/{side}", features) for side in ("fw", "bw")]
            pairs.append(naive.Bidirectional(*made))
            features = sum(cell.width for cell in made)
        return naive.Stack(tuple(pairs))

    def others(self) -> None:
        for name in list(self.variables):
            if self.rng.random() < 0.3:
                for slot in ("Adam", "Adam_1", "ExponentialMovingAverage"):
                    self.variables[f"{name}/{slot}"] = self.variables[name] + 1
        self.variables |= {"global_step": np.array(3), "dense/kernel": np.ones((4, 2), "f4"), "beta1_power": np.ones((), "f4")}
        if self.rng.random() < 0.3:
            self.variables["gru/gru_cell/gates/kernel"] = np.ones((5, 4), "f4")
        self.bad = None
        if self.rng.random() < 0.1:
            kernels = [name for name in self.variables if name.endswith(("/kernel", "/W_0")) and not name.startswith("dense")]
            self.bad = f"{str(self.rng.choice(kernels)).rpartition('/')[0]}/gamma"
            self.variables[self.bad] = np.ones(4, "f4")


def attempt(path: Path) -> naive.Node | str:
    """The tree of a file, or the message with which it is refused."""
    try:
        return tree(path)
    except DataError as error:
        return str(error)


def one(seed: int, folder: Path) -> bool:
    maker = Maker(seed)
    path = wf.write_checkpoint(folder / "m", maker.variables)
    got = attempt(path)
    if isinstance(got, str):
        bad = maker.bad is not None and maker.bad in got
        assert bad or (len(maker.lstms) > 1 and f"{len(maker.lstms)} LSTMs" in got), got
        for scope, want in maker.lstms.items():
            if maker.bad is None:
                assert_same(tree(path, select=scope), want)
        return False
    (want,) = maker.lstms.values()
    assert maker.bad is None or not maker.bad.startswith(next(iter(maker.lstms)))
    assert_same(got, want)
    return True


def test_random_checkpoints(tmp_path: Path) -> None:
    read = sum(one(seed, tmp_path) for seed in range(60))
    assert read > 10


@pytest.mark.slow
def test_more_random_checkpoints(tmp_path: Path) -> None:
    for seed in range(1000, 1600):
        one(seed, tmp_path)
