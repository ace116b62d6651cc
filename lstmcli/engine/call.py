"""A model over padded arrays in memory: what calling it does.

For a small batch the call itself is most of the work, so nothing is computed here twice, and what can be kept is kept.
"""

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lstmcli.blocks import FLOATS, Block, Floats, Lengths, State, Valid, as_numbers, is_float, packed_starts
from lstmcli.engine.cpus import available_threads
from lstmcli.engine.lanes_and_threads import FEW
from lstmcli.engine.prepared_model import PreparedModel
from lstmcli.errors import DataError, UsageError
from lstmcli.inputs.beside.masks import read_mask
from lstmcli.model.tree import InitialState, Model

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
FEW_ZEROS = 1 << 14  # so many are written in 1 us; to have the kernel write them takes as long
SYSTEM_ZEROS = 8 << 20  # for so many, NumPy's zeros are always new memory, which the system clears when it is touched


class Kept(dict[Any, Any]):
    """What was made ready of a model, kept in its __dict__: a WeakKeyDictionary never lets go of a value that holds its key.

    A copy or a pickle of a model has none of it.
    """

    def __reduce__(self) -> tuple[type["Kept"], tuple[()]]:
        return Kept, ()


def run_padded(
    model: Model,
    x: Any,
    lengths: ArrayLike | None,
    initial_state: InitialState | None,
    threads: int | None,
    padding: str,
    mask: ArrayLike | None,
    chosen: str | None = None,
) -> tuple[Any, State]:
    """Do what Model.__call__ says: check arguments and run padded arrays as blocks, without a copy where x allows it."""
    if type(x) in (list, tuple) and len(x) and getattr(x[0], "ndim", 0) == 2 and lengths is None and mask is None:
        return run_list(model, x, initial_state, threads, chosen)
    try:
        x = as_array(x)
    except ValueError as error:
        raise DataError("x: expected an array (batch, time, features), or a list of arrays (length, features)") from error
    prepared = prepare(model, x.dtype, threads, chosen)
    dtype = prepared.dtype
    if x.ndim != 3 or not is_float(x.dtype) or x.shape[2] != prepared.input_size:
        hint = "; x[None] makes one sequence a batch" if x.ndim == 2 else ""
        raise DataError(f"x: expected {FLOATS} (batch, time, {model.input_size}), got {x.dtype} {x.shape}{hint}")
    batch, time, features = x.shape
    starts = padded_starts(batch, time)
    if mask is None and padding == "post":
        steps = full_lengths(batch, time) if lengths is None else checked_lengths(lengths, batch, time)
    else:
        valid = valid_steps(batch, time, lengths, padding, mask)
        steps, starts = valid.lengths, starts + valid.starts
    state = start_state(prepared, batch, initial_state)
    width = prepared.output_size
    # The threads of the kernel write the zeros of the padding, where they are many, the system has none, and the kernel can.
    clears = (
        FEW_ZEROS < batch * time * width < SYSTEM_ZEROS
        and prepared.single_cell is not None
        and mask is None
        and padding == "post"
    )
    outputs = np.empty((batch, time, width), dtype) if clears else np.zeros((batch, time, width), dtype)
    if clears and np.count_nonzero(steps) < batch:
        outputs[steps == 0] = 0
    rows: Any = np.ascontiguousarray(x, dtype).reshape(batch * time, features)
    if prepared.pointwise:
        places, begins = padded_starts(batch, time)[:, None] + np.arange(time), starts[:, None]
        is_valid = ((begins <= places) & (places < begins + steps[:, None])).reshape(-1)
        packed = Block(rows, starts, steps).like(rows[is_valid])
        packed_outputs = packed.like(np.empty((len(packed.rows), width), dtype))
        prepared(packed, packed_outputs, state)
        outputs.reshape(batch * time, width)[is_valid] = packed_outputs.rows
    else:
        output_rows = outputs.reshape(batch * time, width)
        prepared(Block(rows, starts, steps), Block(output_rows, starts, steps), state, padded=time if clears else 0)
    return outputs, state


def run_list(
    model: Model, x: Sequence[Any], initial_state: InitialState | None, threads: int | None, chosen: str | None
) -> tuple[list[Floats], State]:
    """Runs sequences (length, E) that have no padding. Returns an array (length, output_size) for each, and the state."""
    given = [as_array(one) for one in x]
    prepared = prepare(model, given[0].dtype, threads, chosen)
    dtype = prepared.dtype
    for k, one in enumerate(given):
        if one.ndim != 2 or not is_float(one.dtype) or one.shape[1] != prepared.input_size:
            raise DataError(f"x[{k}]: expected {FLOATS} (length, {prepared.input_size}), got {one.dtype} {one.shape}")
        if (one.dtype.itemsize == 8) != (given[0].dtype.itemsize == 8):
            raise DataError(f"x[{k}]: expected {given[0].dtype}, as x[0] is, got {one.dtype}")
    lengths = np.array([len(one) for one in given], np.int64)
    block = Block(np.ascontiguousarray(np.concatenate(given), dtype), packed_starts(lengths), lengths)
    outputs = block.like(np.empty((len(block.rows), prepared.output_size), dtype))
    state = start_state(prepared, len(given), initial_state)
    prepared(block, outputs, state)
    return np.split(outputs.rows, np.cumsum(lengths)[:-1]), state


def as_array(given: Any) -> NDArray[Any]:
    """Return what was given as an array, of bfloat16 as float32: also a tensor of PyTorch, of which NumPy makes no array."""
    try:
        return as_numbers(np.asarray(given))
    except TypeError:
        if str(getattr(given, "dtype", None)) != "torch.bfloat16":
            raise
        return np.asarray(given.float())


def prepare(model: Model, given: np.dtype[Any], threads: int | None, chosen: str | None) -> PreparedModel:
    """Return the model packed for inputs of a dtype and this number of threads, and keep that for as long as the model.

    chosen  "bfloat16", or None for what the dtype of the inputs says
    Raises UsageError.
    """
    dtype, bfloat16 = computed(given, chosen)
    known: dict[tuple[np.dtype[Any], bool, int | None], PreparedModel] = model.__dict__.setdefault("_kept", Kept())
    if (prepared := known.get((dtype, bfloat16, threads))) is None:
        if model.left_out:
            warnings.warn(model.left_out, stacklevel=4)
        prepared = known[dtype, bfloat16, threads] = PreparedModel(model, dtype, checked_threads(threads), bfloat16)
    return prepared


def computed(given: np.dtype[Any], chosen: str | None) -> tuple[np.dtype[Any], bool]:
    """Return the dtype of the arrays for inputs of a dtype, and whether products are of bfloat16. Raises UsageError."""
    if chosen is None:
        return FLOAT64 if given.kind == "f" and given.itemsize == 8 else FLOAT32, False
    if chosen != "bfloat16":
        raise UsageError(
            f"dtype: expected 'bfloat16', got {chosen!r}; x.astype('float32') and x.astype('float64') say the others"
        )
    return FLOAT32, True


def checked_threads(threads: int | None) -> int:
    """Return how many threads may compute. Raises UsageError."""
    if threads is None:
        return available_threads()
    if not isinstance(threads, int | np.integer) or threads < 1:
        raise UsageError(f"threads: expected a whole number, 1 or more, got {threads!r}")
    return int(threads)


@functools.lru_cache(16)
def padded_starts(batch: int, time: int) -> Lengths:
    return np.arange(batch, dtype=np.int64) * time


@functools.lru_cache(16)
def full_lengths(batch: int, time: int) -> Lengths:
    return np.full(batch, time, np.int64)


def valid_steps(batch: int, time: int, lengths: ArrayLike | None, padding: str, mask: ArrayLike | None) -> Valid:
    """Return the valid steps of a padded batch. Raises UsageError, and DataError for lengths or a mask that do not fit."""
    if mask is not None:
        return checked_mask(mask, lengths, padding, batch, time)
    if padding not in ("post", "pre"):
        raise UsageError(f"padding: expected post or pre, got {padding!r}")
    steps = full_lengths(batch, time) if lengths is None else checked_lengths(lengths, batch, time)
    return Valid.of_lengths(steps, time, padding)


def checked_mask(mask: ArrayLike, lengths: ArrayLike | None, padding: str, batch: int, time: int) -> Valid:
    """Return the valid steps of a mask. Raises UsageError where something else says them too, DataError for a bad mask."""
    if lengths is not None or padding != "post":
        raise UsageError("mask: says itself which steps are valid; leave lengths and padding out")
    given = np.asarray(mask)
    if given.shape != (batch, time):
        raise DataError(f"mask: expected shape {(batch, time)}, got {given.shape}")
    return read_mask(given, "mask")


def checked_lengths(lengths: ArrayLike, batch: int, time: int) -> Lengths:
    """Return lengths as (batch,) int64. Raises DataError."""
    given = np.asarray(lengths)
    if given.shape == (batch, 1):
        given = given[:, 0]
    if given.shape != (batch,) or (batch and given.dtype.kind not in "iu"):  # NumPy makes floats of []
        raise DataError(f"lengths: expected {batch} integers, got {given.dtype} {given.shape}")
    few = given.tolist() if batch <= FEW else (given.min(), given.max())
    if batch and not 0 <= min(few) <= max(few) <= time:
        bad = np.flatnonzero((given < 0) | (given > time))
        raise DataError(
            f"lengths, row {bad[0]}: expected 0 <= length <= {time}, got {given[bad[0]]}; {len(bad)} such rows in all"
        )
    return np.ascontiguousarray(given, np.int64)


def start_state(prepared: PreparedModel, batch: int, given: InitialState | None) -> State:
    """Return the initial state as new arrays: a copy of what is given, or the model's own. Raises DataError."""
    if given is None:
        return prepared.initial_state(batch)
    widths = prepared.widths
    if isinstance(given, tuple | list):
        given = pair_of(given, list(widths))
    if set(given) != set(widths):
        raise DataError(f"initial_state: expected {', '.join(widths)}, got {', '.join(given) or 'nothing'}")
    state = {name: np.array(as_array(given[name]), prepared.dtype, order="C") for name in widths}
    for name, width in widths.items():
        if state[name].shape != (batch, width):
            raise DataError(f"initial_state, {name}: expected shape {(batch, width)}, got {state[name].shape}")
    return state


def pair_of(given: Sequence[ArrayLike], names: list[str]) -> Mapping[str, ArrayLike]:
    """Returns (c, h) of a model with a single cell by the names of its state. Raises DataError."""
    if len(given) != 2 or len(names) != 2:
        raise DataError(
            f"initial_state: expected arrays by the names {', '.join(names)}{', or the pair (c, h)' * (len(names) == 2)}; "
            f"got {len(given)} values without names"
        )
    return dict(zip(names, given, strict=True))
