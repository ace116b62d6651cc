"""A model over padded arrays in memory: what calling it does."""

import os
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike

from lstmcli.cpus import available_threads
from lstmcli.errors import DataError, UsageError
from lstmcli.forward import Block, Forward, Integers
from lstmcli.model import Floats, Model, State

_ready: WeakKeyDictionary[Model, dict[tuple[str, int], Forward]] = WeakKeyDictionary()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ready.clear)  # a forked child has none of the threads


def run_padded(
    model: Model,
    x: ArrayLike,
    lengths: ArrayLike | None,
    initial_state: Mapping[str, ArrayLike] | None,
    threads: int | None,
) -> tuple[Floats, State]:
    """Model.__call__: checks its arguments and runs the padded arrays as blocks, without a copy where x is as needed."""
    x = np.asarray(x)
    if x.ndim != 3 or x.dtype.kind != "f" or x.dtype.itemsize > 8 or x.shape[2] != model.input_size:
        raise DataError(f"x: expected float16, float32 or float64 (batch, time, {model.input_size}), got {x.dtype} {x.shape}")
    dtype = np.dtype(np.float64 if x.dtype.itemsize == 8 else np.float32)
    batch, time, _ = x.shape
    threads = available_threads() if threads is None else threads
    if threads < 1:
        raise UsageError(f"threads: expected 1 or more, got {threads}")
    ready = _ready.setdefault(model, {})
    if (forward := ready.get((dtype.str, threads))) is None:
        forward = ready[dtype.str, threads] = Forward(model, dtype, threads)
    steps = check_lengths(lengths, batch, time)
    state = start_state(model, batch, dtype, initial_state)
    outputs = np.zeros((batch, time, model.output_size), dtype)
    starts = np.arange(batch, dtype=np.int64) * time
    rows = np.ascontiguousarray(x, dtype).reshape(batch * time, model.input_size)
    forward(Block(rows, starts, steps), Block(outputs.reshape(batch * time, model.output_size), starts, steps), state)
    return outputs, state


def check_lengths(lengths: ArrayLike | None, batch: int, time: int) -> Integers:
    if lengths is None:
        return np.full(batch, time, np.int64)
    given = np.asarray(lengths)
    if given.shape != (batch,) or given.dtype.kind not in "iu":
        raise DataError(f"lengths: expected {batch} integers, got {given.dtype} {given.shape}")
    bad = np.flatnonzero((given < 0) | (given > time))
    if len(bad):
        raise DataError(
            f"lengths, row {bad[0]}: expected 0 <= length <= {time}, got {given[bad[0]]}; {len(bad)} such rows in all"
        )
    return given.astype(np.int64)


def start_state(model: Model, batch: int, dtype: np.dtype[Any], given: Mapping[str, ArrayLike] | None) -> State:
    """The initial state as new arrays: a copy of what is given, or zeros."""
    widths = model.state_widths()
    if given is None:
        return {name: np.zeros((batch, width), dtype) for name, width in widths.items()}
    if set(given) != set(widths):
        raise DataError(f"initial_state: expected {', '.join(widths)}, got {', '.join(given) or 'nothing'}")
    state = {name: np.array(given[name], dtype, order="C") for name in widths}
    for name, width in widths.items():
        if state[name].shape != (batch, width):
            raise DataError(f"initial_state, {name}: expected shape {(batch, width)}, got {state[name].shape}")
    return state
