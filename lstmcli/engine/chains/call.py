"""A whole model over arrays in memory: what predict() does."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lstmcli.blocks import FLOATS, Floats, Lengths, Valid, is_float
from lstmcli.engine.call import FLOAT32, Kept, as_array, checked_threads, computed, valid_steps
from lstmcli.engine.chains.prepared_chain import PreparedChain
from lstmcli.errors import DataError, SequenceError
from lstmcli.model.chain import Chain, whole_model
from lstmcli.model.tree import Model

BLOCK_BYTES = 32_000_000  # of what a block takes: larger ones leave the caches, and gain nothing
PRODUCT_BYTES = 256_000_000  # that the products of an embedding's table may take

Take = Callable[[int, int], Any]  # gives the packed rows of the sequences first .. stop


class Prepared(NamedTuple):
    """A chain ready to run, which one thread may do at a time."""

    chain: PreparedChain
    turn: threading.Lock


def predict(
    model: Model | Chain,
    x: Any,
    lengths: ArrayLike | None = None,
    threads: int | None = None,
    padding: str = "post",
    mask: ArrayLike | None = None,
    dtype: str | None = None,
) -> Any:
    """Run a whole model: with what stands before and after the LSTMs in the file that these came from.

    x (B, T, E) float16, bfloat16, float32 or float64, of which float64 is computed in float64 and all else in float32; or token
    ids (B, T), where the model begins with an embedding. lengths, threads, padding and mask as calling a model takes them.
    Or x is a list of B arrays (T, E) or (T,), without any of these.
    dtype: "bfloat16" computes the LSTMs with products of bfloat16 numbers, and all other layers in float32.

    Returns the predictions (B, K), or (B, T', K) with zeros in the padding where each step has one; of a list, a list of
    arrays (T', K). Raises DataError for arrays that do not fit and for an id that the table does not have, and what reading
    the file may raise.
    """
    chain = whole_model(model)
    if isinstance(x, list | tuple) and lengths is None and mask is None:
        return predict_ragged(chain, [as_array(one) for one in x], threads, dtype)
    x = checked(as_array(x), chain, "x", ("batch", "time"))
    batch, time = x.shape[:2]
    valid = valid_steps(batch, time, lengths, padding, mask)
    steps = np.arange(time)

    def take(first: int, stop: int) -> Any:
        begins, counts = (part[:, None] for part in valid.part(first, stop))
        return x[first:stop][(begins <= steps) & (steps < begins + counts)]

    prepared = prepare(chain, x.dtype, threads, dtype)
    predictions = np.zeros(chain.prediction_shape(batch, time), prepared.chain.dtype)
    shown = chain.valid_predictions(valid)
    for first, stop, rows, _ in blocks(prepared, take, valid):
        if not chain.has_steps:
            predictions[first:stop] = rows
            continue
        begins, counts = (part[:, None] for part in shown.part(first, stop))
        places = np.arange(predictions.shape[1])
        predictions[first:stop][(begins <= places) & (places < begins + counts)] = rows
    return predictions


def predict_ragged(chain: Chain, sequences: Sequence[Any], threads: int | None, chosen: str | None) -> Floats | list[Floats]:
    """Return the predictions for arrays (T, E) or (T,), each of its own length."""
    parts = [checked(one, chain, f"x[{k}]", ("time",)) for k, one in enumerate(sequences)]
    lengths = np.array([len(part) for part in parts], np.int64)
    dtype = np.result_type(*parts) if parts else FLOAT32
    prepared = prepare(chain, dtype, threads, chosen)

    def take(first: int, stop: int) -> Any:
        return np.concatenate(parts[first:stop])

    found: list[Floats] = []
    for _, _, rows, counts in blocks(prepared, take, Valid(np.zeros_like(lengths), lengths)):
        found += np.split(rows.copy(), np.cumsum(counts)[:-1]) if chain.has_steps else [rows.copy()]
    if chain.has_steps:
        return found
    return np.concatenate(found) if found else np.zeros((0, chain.output_size), prepared.chain.dtype)


def blocks(prepared: Prepared, take: Take, valid: Valid) -> Iterator[tuple[int, int, Floats, Lengths]]:
    """Yield first, stop, and the rows and lengths of the predictions for blocks of consecutive sequences.

    The rows are overwritten by the next block. Raises DataError for what a layer cannot take.
    """
    chain = prepared.chain
    width = chain.scratch_width + chain.chain.input_size
    fitting = BLOCK_BYTES // (chain.dtype.itemsize * width)
    ends = np.cumsum(valid.lengths)
    first, batch = 0, len(ends)
    with prepared.turn:
        chain.expect(int(valid.lengths.sum()), PRODUCT_BYTES)
        while first < batch:
            before = int(ends[first] - valid.lengths[first])
            stop = max(first + 1, int(np.searchsorted(ends, before + fitting, side="right")))
            rows = take(first, stop)
            if chain.chain.takes_ids:
                rows = rows[:, None].astype(np.uint64 if rows.dtype.kind == "u" else np.int64)
            else:
                rows = np.ascontiguousarray(rows, chain.dtype)
            try:
                yield first, stop, *chain(rows, np.ascontiguousarray(valid.lengths[first:stop]))
            except SequenceError as error:
                row = first + error.row
                step = "" if error.step is None else f", step {valid.starts[row] + error.step}"
                raise DataError(f"x, sequence {row}{step}: {error.text}") from error
            first = stop


def prepare(chain: Chain, given: np.dtype[Any], threads: int | None, chosen: str | None) -> Prepared:
    """Return the chain packed for inputs of this dtype and this number of threads, and keep that for as long as the chain.

    A forked process makes its own: it has none of the threads, and nobody there ends a turn.
    """
    dtype, bfloat16 = computed(given, chosen)
    known: dict[tuple[int, np.dtype[Any], bool, int | None], Prepared] = chain.__dict__.setdefault("_kept", Kept())
    key = (os.getpid(), dtype, bfloat16, threads)
    if (prepared := known.get(key)) is None:
        prepared = Prepared(PreparedChain(chain, dtype, checked_threads(threads), bfloat16), threading.Lock())
        known[key] = prepared
    return prepared


def checked(x: Any, chain: Chain, name: str, axes: tuple[str, ...]) -> Any:
    """Return an array that the chain takes. axes: those before the features. Raises DataError."""
    if chain.takes_ids:
        if not x.size and x.ndim == len(axes):
            return x.astype(np.int64)
        fits, what, form = x.dtype.kind in "iu", "token ids, integers", axes
    else:
        fits, what, form = is_float(x.dtype) and x.shape[-1:] == (chain.input_size,), FLOATS, (*axes, str(chain.input_size))
    if not fits or x.ndim != len(form):
        raise DataError(f"{name}: expected {what} ({', '.join(form)}{',' * (len(form) == 1)}), got {x.dtype} {x.shape}")
    return x
