"""model.py: the weights a new model starts with, and that weights stay as they are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import lstmcli
from lstmcli.errors import UsageError
from lstmcli.model import new_weights as module
from lstmcli.model.model_file import save_model
from lstmcli.model.new_weights import init_model
from lstmcli.model.tree import CELL_OPTIONS, Cell


@pytest.mark.parametrize("piece", [module.PIECE, 7, 1000])
def test_the_draw_in_pieces_is_the_draw_at_once(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    bits = np.random.PCG64(5)
    features = 20
    for _, cell in init_model(20, [64, 33], seed=5).cells():
        shape = (features + cell.units, 4 * cell.units)
        uniform = (bits.random_raw(math.prod(shape)) >> np.uint64(11)) * 2.0**-53
        joint = ((2 * uniform - 1) * math.sqrt(6 / sum(shape))).astype(np.float32).reshape(shape)
        got = np.concatenate([cell.input_kernel, cell.recurrent_kernel])
        assert got.dtype == np.float32
        assert got.tobytes() == joint.tobytes()
        features = cell.units


SEEDS = [0, 1, (1 << 32) - 1, 1 << 32, (1 << 64) + 5, (1 << 127) + 9, 1 << 128, 10**60]


@pytest.mark.parametrize("seed", SEEDS)
def test_few_weights_are_those_of_numpys_generator(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, numpys = module.Pcg64(seed), np.random.PCG64(seed)
    for count in (1, 2, 500):
        np.testing.assert_array_equal(ours.random_raw(count), numpys.random_raw(count), strict=True)
    few = init_model(5, [7, 3], seed, peepholes=True, projection=4, bidirectional=True)
    monkeypatch.setattr(module, "FEW", 0)
    for weight, want in zip(
        few.arrays(), init_model(5, [7, 3], seed, peepholes=True, projection=4, bidirectional=True).arrays(), strict=True
    ):
        assert weight.tobytes() == want.tobytes()


def test_a_draw_of_several_pieces() -> None:
    (_, cell), *_ = init_model(300, [800], seed=1).cells()
    assert cell.input_kernel.size + cell.recurrent_kernel.size > 3 * module.PIECE
    bits = np.random.PCG64(1)
    uniform = (bits.random_raw(1100 * 3200) >> np.uint64(11)) * 2.0**-53
    joint = ((2 * uniform - 1) * math.sqrt(6 / (1100 + 3200))).astype(np.float32)
    assert cell.input_kernel.tobytes() + cell.recurrent_kernel.tobytes() == joint.tobytes()


@pytest.mark.parametrize("units", [7.5, [2.5], "7", ["7"], None, [7, None]])
def test_units_that_are_no_integers(units: object) -> None:
    with pytest.raises(UsageError, match="expected whole numbers, and units as one or a list of them, got input size 3, units"):
        init_model(3, units)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(2.5, [7], 0), (3, [7], 0.5), ("3", [7], 0)])
def test_sizes_that_are_no_integers(sizes: tuple[object, ...]) -> None:
    with pytest.raises(UsageError, match="expected whole numbers"):
        init_model(*sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(0, [7], 0), (3, [], 0), (3, [7, 0], 0), (3, [7], -1)])
def test_sizes_below_1(sizes: tuple[int, list[int], int]) -> None:
    with pytest.raises(UsageError, match="expected sizes above 0 and a seed from 0 on"):
        init_model(*sizes)


def test_a_number_alone_is_one_layer() -> None:
    assert init_model(3, 7).config() == init_model(3, [7]).config()


def test_integers_of_numpy() -> None:
    model = init_model(np.int32(3), np.array([7, 2]))  # type: ignore[arg-type]
    assert (model.input_size, model.output_size) == (3, 2)


def test_more_parameters_than_can_be() -> None:
    units = [40_000, 20_000]
    count = 4 * 40_000 * (3 + 40_000 + 1) + 4 * 20_000 * (40_000 + 20_000 + 1)
    with pytest.raises(UsageError, match=rf"units 40000, 20000 .*{count:,} parameters, {4 * count:,} bytes"):
        init_model(3, units)


def test_weights_cannot_be_changed(tmp_path: Path) -> None:
    new = init_model(3, [4])
    save_model(new, tmp_path / "model.h5")
    rng = np.random.default_rng(0)
    given = rng.normal(size=(3, 16)), rng.normal(size=(2, 16)), rng.normal(size=16), rng.normal(size=(3, 4)), np.ones((4, 2))
    locked = np.ones((3, 16)).view()
    locked.flags.writeable = False  # but its base can be written
    for model in (new, lstmcli.load_model(str(tmp_path / "model.h5")), Cell(*given), Cell(locked, np.ones((4, 16)))):
        for _, cell in model.cells():
            for weight in cell.weights().values():
                with pytest.raises(ValueError, match="read-only"):
                    weight[...] = 0
                assert weight.base is None or not weight.base.flags.writeable
    cell = Cell(*given)
    for weight, own in zip(given, cell.weights().values(), strict=True):
        assert weight.flags.writeable
        before = own.tobytes()
        weight += 1
        assert own.tobytes() == before


def test_new_and_loaded_weights_are_not_copied(tmp_path: Path) -> None:
    weight = np.ones((3, 16), np.float32)
    weight.flags.writeable = False
    assert Cell(weight, np.ones((4, 16))).input_kernel is weight
    (_, cell), *_ = init_model(3, [4]).cells()
    assert cell.input_kernel.base is cell.recurrent_kernel.base is not None


def test_options_of_a_cell() -> None:
    options = {"forget_bias": 1.0, "cell_clip": 2.0, "projection_clip": 3.0, "gate_clip": 4.0, "input_forget": True}
    cell = Cell(np.ones((3, 16)), np.ones((4, 16)), activation="relu", recurrent_activation="hard_sigmoid", **options)
    config = cell.config()
    assert {name: config[name] for name in CELL_OPTIONS} == {name: getattr(cell, name) for name in CELL_OPTIONS}
    assert set(config) == {"kind", "input_size", "weights", "units", *CELL_OPTIONS}
