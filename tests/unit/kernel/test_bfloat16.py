"""Products of bfloat16 numbers: bit for bit as the definition says, with every option, split and CPU."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from helpers import naive_bfloat16 as naive

import lstmcli
from lstmcli.blocks import Block, Lengths, packed_starts
from lstmcli.engine import packed_cell
from lstmcli.engine.lanes_and_threads import WorkSplit
from lstmcli.engine.prepared_model import PreparedModel
from lstmcli.kernel.layout import pairs, rounded

FLOAT32 = np.dtype(np.float32)
EXACT = {"activation": "relu", "recurrent_activation": "hard_sigmoid"}  # what IEEE 754 rounds exactly
LENGTHS = np.array([3, 1, 0, 5, 2, 4, 1, 5, 3], np.int64)

# Of the definition itself, computed by tests/helpers/naive_bfloat16.py alone.
HASH = "6d50560c6d535d0eb38439ad9a758bc78d4051cbd4666eb813bdbb41bf1c9ac0"


def cell(inputs: int, units: int, projection: int | None = None, scale: float = 1.0) -> lstmcli.Cell:
    options = lstmcli.CellOptions(peepholes=True, projection=projection)
    made = lstmcli.init_model(inputs, [units], 3, options).layers[0]
    assert isinstance(made, lstmcli.Cell)
    bits = np.random.PCG64(units)

    def draw(*shape: int) -> np.ndarray:
        whole = (bits.random_raw(int(np.prod(shape))) >> np.uint64(11)).reshape(shape) * 2.0**-53
        return np.float32((whole - 0.4) * scale)

    return dataclasses.replace(
        made, input_kernel=draw(inputs, 4 * units), recurrent_kernel=draw(made.output_size, 4 * units),
        bias=draw(4 * units) * (scale == 1),  # which would hide sums of subnormal products
        peephole=draw(3, units), projection=None if projection is None else draw(units, projection),
        forget_bias=0.0, **EXACT,
    )  # fmt: skip


def inputs_of(width: int, scale: float = 1.0, lengths: Lengths = LENGTHS) -> Block:
    raw = np.random.PCG64(1).random_raw(int(lengths.sum()) * width) >> np.uint64(11)
    return Block(np.float32((raw.reshape(-1, width) * 2.0**-53 - 0.5) * scale), packed_starts(lengths), lengths)


def run(model: lstmcli.Model, block: Block, threads: int = 1) -> list[np.ndarray]:
    prepared = PreparedModel(model, FLOAT32, threads, bfloat16=True)
    outputs = block.like(np.zeros((len(block.rows), prepared.output_size), np.float32))
    state = prepared.initial_state(len(block.lengths))
    prepared(block, outputs, state)
    return [outputs.rows, *state.values()]


def defined(one: lstmcli.Cell, block: Block) -> list[np.ndarray]:
    found = []
    for first, length in zip(block.starts, block.lengths, strict=True):
        rows = block.rows[first : first + length]
        found.append(naive.run(rows, one.input_kernel, one.recurrent_kernel, one.bias, one.peephole, one.projection))
    outputs, c, h = zip(*found, strict=True)
    return [np.concatenate(outputs), np.array(c), np.array(h)]


def same_bits(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize(
    ("inputs", "units", "projection", "scale"),
    [(1, 1, None, 1), (5, 7, None, 1), (33, 21, None, 1), (64, 40, 3, 1), (40, 35, 37, 1), (40, 8, None, 2.0**-62)],
)
def test_as_defined(inputs: int, units: int, projection: int | None, scale: float) -> None:
    one, block = cell(inputs, units, projection, scale), inputs_of(inputs, scale)
    same_bits(run(one, block), defined(one, block))


def test_the_definition_is_the_same_as_ever() -> None:
    digest = hashlib.sha256()
    for array in defined(cell(33, 21, 9), inputs_of(33)):
        digest.update(array.tobytes())
    assert digest.hexdigest() == HASH


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("lanes", [1, 4, 7])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("projection", [None, 20])
def test_no_split_changes_a_bit(
    threads: int, ahead: int, lanes: int, share: bool, projection: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, block = cell(40, 70, projection), inputs_of(40)
    want = run(one, block)
    split = WorkSplit(threads, share and threads > 1, lanes, ahead)
    monkeypatch.setattr(packed_cell, "split_work", lambda *_: split)
    same_bits(run(one, block, threads), want)


@pytest.mark.parametrize(("lanes", "ahead"), [(33, 0), (20, 2)])
@pytest.mark.parametrize(("units", "projection"), [(21, None), (40, 37)])
def test_many_lanes(lanes: int, ahead: int, units: int, projection: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a block of AMX has, of its 16 rows: then two are a tile."""
    one, block = cell(40, units, projection), inputs_of(40, lengths=np.arange(40, dtype=np.int64) % 4)
    monkeypatch.setattr(packed_cell, "split_work", lambda *_: WorkSplit(1, False, lanes, ahead))
    same_bits(run(one, block), defined(one, block))


@pytest.mark.parametrize(
    "option",
    [{"cell_clip": 0.3}, {"gate_clip": 0.5}, {"input_forget": True}, {"peephole": None}, {"activation": "tanh"},
     {"recurrent_activation": "sigmoid"}],
)  # fmt: skip
def test_every_option_is_near_float32(option: dict[str, object]) -> None:
    one, block = dataclasses.replace(cell(40, 20, scale=0.3), **option), inputs_of(40)  # type: ignore[arg-type]
    prepared = PreparedModel(one, FLOAT32, 1)
    outputs, state = block.like(np.zeros((len(block.rows), 20), np.float32)), prepared.initial_state(len(LENGTHS))
    prepared(block, outputs, state)
    got = run(one, block)[0]
    assert 0 < np.abs(got - outputs.rows).max() < 0.02


def test_layers_and_directions_are_rounded_each() -> None:
    """A layer takes the rounded outputs of the one below, and stores what it computes as float32."""
    block = inputs_of(40)
    first, second = cell(40, 20), cell(20, 9)
    outputs = run(lstmcli.Stack((first, second)), block)[0]
    below = run(first, block)[0]
    assert (naive.bfloat16(below) != below).any()
    same_bits([outputs], [run(second, block.like(below))[0]])
    both = run(lstmcli.Bidirectional(first, first, "concat"), block)[0]
    backwards = np.concatenate([np.arange(b + n - 1, b - 1, -1) for b, n in zip(block.starts, LENGTHS, strict=True)])
    same_bits([both[:, :20], both[:, 20:]], [below, run(first, block.like(block.rows[backwards]))[0][backwards]])


def test_rounding() -> None:
    bits = np.arange(0, 2**32, 4093, dtype=np.int64).astype(np.uint32)
    ties = np.uint32(0x3F808000) + (np.arange(-3, 4)[:, None] + 0x10000 * np.arange(8)).reshape(-1).astype(np.uint32)
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 3e38)]
    np.testing.assert_array_equal(np.uint32(rounded(values)) << 16, naive.bfloat16(values).view(np.uint32))
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 3.4e38, 1e-39, -1e-39, -0.0], np.float32)
    assert [hex(v) for v in rounded(special)] == ["0x7fc0", "0x7fc0", "0x7f80", "0xff80", "0x7f80", "0x0", "0x8000", "0x8000"]


def test_weights_take_half_as_much_memory() -> None:
    words = pairs(np.float32(np.arange(1, 129)).reshape(64, 2))
    assert words.nbytes == 64 * 2 * 2
    wide = cell(64, 64)
    sizes = [packed_cell.PackedCell("", wide, 32, bfloat16).weights.panels.nbytes for bfloat16 in (False, True)]
    assert sizes[0] == 2 * sizes[1]
    # What a run keeps within --max-memory: the model's own and the packed ones.
    assert PreparedModel(wide, FLOAT32, 1, bfloat16=True).weight_bytes >= sum(sizes)
