"""What the layers of a chain that have no kernel of their own compute, over all valid steps of a block.

What is summed has its order: over classes that of the classes, over the steps of a sequence in float64 that of the steps. What
NumPy does here is what IEEE 754 rounds exactly.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lstmcli.blocks import Floats, Lengths, State, packed_starts
from lstmcli.engine.pooling import final_outputs, going, pool_end, pool_start, pool_steps
from lstmcli.errors import SequenceError
from lstmcli.kernel.heads import call as heads
from lstmcli.model.layers import ALPHAS, Window


@dataclass
class Passing:
    """What is between two layers: rows (R, width) of sequences of these lengths, packed, or of one row each (vectors)."""

    rows: Any  # Floats, or ids (R, 1) int64 or uint64 before an embedding
    lengths: Lengths
    state: State | None = None  # of the LSTM right below: name -> (n, width)
    valid: Any = None  # (R0,) bool, where a mask of the model hid steps: which rows of the input the rows are
    whole: Any = None  # (n,) the lengths with the hidden steps, where there are any

    @property
    def starts(self) -> Lengths:
        return packed_starts(self.lengths)


class Cast:
    """A layer whose arrays are of the dtype of the computation."""

    def __init__(self, layer: Any, dtype: np.dtype[Any]) -> None:
        for name, value in layer.options().items():
            setattr(self, name, value)
        for name, value in layer.weights().items():
            setattr(self, name, np.ascontiguousarray(value, dtype))
        self.layer, self.dtype = layer, dtype

    def __getattr__(self, name: str) -> Any:  # what the layer leaves out
        return getattr(self.layer, name)


def windows(layer: Window, passing: Passing, padding: float) -> tuple[Floats, Lengths]:
    """Return the steps that each output sees, (R', size, width), `padding` where there are none; and the output lengths."""
    lengths = layer.output_lengths(passing.lengths)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(sequence)) - np.repeat(packed_starts(lengths), lengths)
    step = position * layer.stride - layer.before(passing.lengths)[sequence]
    steps = step[:, None] + np.arange(layer.size) * layer.dilation
    inside = (steps >= 0) & (steps < passing.lengths[sequence][:, None])
    rows = np.where(inside, passing.starts[sequence][:, None] + steps, len(passing.rows))
    extended = np.concatenate([passing.rows, np.full((1, passing.rows.shape[1]), padding, passing.rows.dtype)])
    return extended[rows], lengths


def embed(layer: Any, passing: Passing) -> None:
    known_ids(layer, passing)
    passing.rows = layer.table[passing.rows[:, 0]]


def known_ids(layer: Any, passing: Passing) -> None:
    """Make the ids int64, and take the steps out that the embedding hides.

    Raises SequenceError for an id that its table does not have.
    """
    ids, size = passing.rows[:, 0], len(layer.table)
    if len(ids) and not 0 <= ids.min() <= ids.max() < size:
        bad = int(np.flatnonzero((ids < 0) | (ids >= size))[0])
        row = int(np.searchsorted(np.cumsum(passing.lengths), bad, side="right"))
        step = bad - int(passing.starts[row])
        raise SequenceError(row, step, f"expected a token id from 0 to {size - 1}, got {ids[bad]}")
    passing.rows = passing.rows.view(np.int64)
    if layer.mask_zero:
        hide(passing, ids != 0)


def mask(layer: Any, passing: Passing) -> None:
    hide(passing, (passing.rows != passing.rows.dtype.type(layer.value)).any(axis=1))


def hide(passing: Passing, valid: Any) -> None:
    """Take the steps out that are not valid."""
    if valid.all():
        return
    counts = np.concatenate([[0], np.cumsum(valid)])
    ends = np.cumsum(passing.lengths)
    if passing.valid is None:
        passing.valid, passing.whole = valid, passing.lengths
    else:
        passing.valid[passing.valid] = valid
    passing.lengths = counts[ends] - counts[ends - passing.lengths]
    passing.rows = passing.rows[valid]


def unmask(layer: Any, passing: Passing) -> None:
    """Put the steps in again that hide() took out."""
    if passing.valid is None:
        return
    shown = np.concatenate([[0], np.cumsum(passing.valid)])
    ends = np.cumsum(passing.whole)
    first, end = (np.repeat(shown[at], passing.whole) for at in (ends - passing.whole, ends))
    if layer.fill == "next":
        place, there = shown[:-1], shown[:-1] < end
    else:
        place, there = shown[1:] - 1, passing.valid if layer.fill == "zeros" else shown[1:] > first
    rows = np.zeros((len(there), passing.rows.shape[1]), passing.rows.dtype)
    rows[there] = passing.rows[place[there]]
    passing.rows, passing.lengths, passing.valid = rows, passing.whole, None


def activate(layer: Any, passing: Passing) -> None:
    rows = passing.rows
    if layer.function in ("softmax", "log_softmax"):
        passing.rows = softmax(rows, layer.function == "log_softmax")
    elif layer.function == "prelu":
        passing.rows = np.where(rows < 0, rows * layer.slopes, rows)
    elif layer.function != "linear":
        alpha = ALPHAS.get(layer.function, 0.0) if layer.alpha is None else layer.alpha
        passing.rows = np.empty_like(rows)
        heads.apply(layer.function, rows, passing.rows, alpha)


def softmax(rows: Any, logarithm: bool = False) -> Any:
    """Return exp(x - max) / their sum, or its logarithm, over the features of each row."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    powers = np.empty_like(shifted)
    heads.apply("exponential", shifted, powers)
    total = powers[:, 0].copy()
    for k in range(1, powers.shape[1]):
        total += powers[:, k]
    if not logarithm:
        powers /= total[:, None]
        return powers
    heads.apply("logarithm", total, total)
    shifted -= total[:, None]
    return shifted


def scale(layer: Any, passing: Passing) -> None:
    passing.rows = passing.rows * layer.scale + layer.shift


def normalize(layer: Any, passing: Passing) -> None:
    rows = passing.rows.astype(np.float64)
    mean = in_order(rows) / layer.width
    rows -= mean[:, None]
    variance = in_order(rows * rows) / layer.width
    rows /= np.sqrt(variance + layer.epsilon)[:, None]
    if layer.scale is not None:
        rows *= layer.scale
    if layer.shift is not None:
        rows += layer.shift
    passing.rows = rows.astype(passing.rows.dtype)


def in_order(rows: Floats) -> Floats:
    """Return the sums of the features of each row, from the first to the last: NumPy's own go in an order of their own."""
    total = rows[:, 0].copy()
    for k in range(1, rows.shape[1]):
        total += rows[:, k]
    return total


def pool_windows(layer: Any, passing: Passing) -> None:
    if layer.function == "max":
        seen, lengths = windows(layer.layer, passing, -np.inf)
        passing.rows = seen.max(axis=1)
    else:
        seen, lengths = windows(layer.layer, passing, 0.0)
        total = seen[:, 0].astype(np.float64)
        for k in range(1, layer.size):
            total += seen[:, k]
        counts: Any = layer.size
        if not layer.count_padding:
            ones = Passing(np.ones((len(passing.rows), 1)), passing.lengths)
            counts = windows(layer.layer, ones, 0.0)[0].sum(axis=1)
        passing.rows = (total / counts).astype(passing.rows.dtype)
    passing.lengths = lengths


def pool(layer: Any, passing: Passing) -> None:
    rows, lengths = passing.rows, passing.lengths
    pooled = pool_start(layer.function, len(lengths), rows.shape[1], rows.dtype)
    pool_steps(layer.function, rows, passing.starts, lengths, pooled)
    to_vectors(passing, pool_end(layer.function, pooled, lengths, rows.dtype))


def attend(layer: Any, passing: Passing) -> None:
    """Weigh the steps of each sequence by a softmax over their scores."""
    rows, lengths = passing.rows, passing.lengths
    seen = rows
    if layer.function != "linear":
        seen = np.empty_like(rows)
        heads.apply(layer.function, rows, seen)
    scores = np.empty((len(rows), 1), rows.dtype)
    heads.Dense(layer.score[:, None], np.array([layer.bias]), rows.itemsize * 8).run(seen, scores)
    best = np.full(len(lengths), -np.inf, rows.dtype)
    for some, places in going(passing.starts, lengths):
        best[some] = np.maximum(best[some], scores[places, 0])
    powers = scores[:, 0] - np.repeat(best, lengths)
    heads.apply("exponential", powers, powers)
    total, pooled = np.zeros(len(lengths)), np.zeros((len(lengths), rows.shape[1]))
    for some, places in going(passing.starts, lengths):
        total[some] += powers[places]
        pooled[some] += powers[places, None].astype(np.float64) * rows[places]
    pooled /= np.where(lengths > 0, total, 1)[:, None]
    to_vectors(passing, pooled.astype(rows.dtype))


def final_state(model: Any, passing: Passing, dtype: np.dtype[Any]) -> None:
    assert passing.state is not None
    to_vectors(passing, final_outputs(model, passing.state, ""))


def to_vectors(passing: Passing, vectors: Floats) -> None:
    passing.rows, passing.lengths, passing.valid = vectors, np.ones(len(vectors), np.int64), None


def flatten(layer: Any, passing: Passing) -> None:
    if (passing.lengths != layer.steps).any():
        row = int(np.flatnonzero(passing.lengths != layer.steps)[0])
        text = f"has {passing.lengths[row]} steps, and the model's Flatten layer takes sequences of {layer.steps}"
        raise SequenceError(row, None, text)
    to_vectors(passing, passing.rows.reshape(len(passing.lengths), -1))


def repeat(layer: Any, passing: Passing) -> None:
    passing.rows = np.repeat(passing.rows, layer.steps, axis=0)
    passing.lengths = np.full(len(passing.lengths), layer.steps, np.int64)
    passing.valid = None


def flip(layer: Any, passing: Passing) -> None:
    ends = np.cumsum(passing.lengths)
    place = np.arange(len(passing.rows))
    passing.rows = passing.rows[np.repeat(passing.starts + ends - 1, passing.lengths) - place]
