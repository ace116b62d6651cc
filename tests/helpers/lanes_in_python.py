"""The kernel's lanes run by Python, to be stepped through: memory by ctypes, and a tile in NumPy.

PYTHON holds what the functions of lstmcli.kernel.lanes call, by name. With it in that module, lanes.define(shape, Options()) is
a function that a debugger steps through; tests/unit/kernel/test_lanes.py does that. Its sums have other bits than the kernel's,
because NumPy adds in an order of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from lstmcli.kernel.layout import GATES, Argument, Column, Options, Shape

WORD = 8


def word(address: int) -> Any:
    return ctypes.c_int64.from_address(address)


def put(array: int, index: int, value: int) -> None:
    word(array + WORD * index).value = value


def add(counter: int, count: int) -> int:
    word(counter).value += count
    return int(word(counter).value) - count


def floats(address: int, count: int, shape: Shape) -> Any:
    return np.frombuffer((ctypes.c_char * (count * shape.bits // 8)).from_address(address), shape.dtype)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def tile_call(shape: Shape, options: Options) -> Callable[..., None]:
    """A tile of plain cells: sigmoid and tanh, no peepholes, clips or projection."""
    assert options == Options()

    def tile(  # type: ignore[no-untyped-def]
        rows, block, call, weights, table, lane_count, first, far, turn, pace, unit, half_unit, resume, pause
    ):
        inputs, units, outputs = (get(call, field) for field in (Argument.INPUTS, Argument.UNITS, Argument.OUTPUTS))
        assert unit != half_unit, "choose units for which no panel holds two gates in a vector"
        depth, gates = inputs + outputs, GATES * shape.width
        panel = floats(weights, depth * gates, shape).reshape(GATES // shape.together, depth, shape.together * shape.width)
        panel = panel.transpose(1, 0, 2).reshape(depth, gates)
        count = min(shape.width, units - unit)
        for lane in range(first, first + rows):
            place = {column: get(table, column * lane_count + lane) for column in Column}
            offset = GATES * unit * shape.bits // 8
            sums = floats(place[Column.SUMS if resume else Column.BIAS] + offset, gates, shape)
            if not resume:
                sums = sums + floats(place[Column.X], inputs, shape) @ panel[:inputs]
            if pause:
                floats(place[Column.SUMS] + offset, gates, shape)[:] = sums
                continue
            sums = sums + floats(place[Column.H], outputs, shape) @ panel[inputs:]
            i, f, g, o = sums.reshape(GATES, shape.width)[:, :count]
            here = slice(unit, unit + count)
            c = sigmoid(f) * floats(place[Column.C], units, shape)[here] + sigmoid(i) * np.tanh(g)
            floats(place[Column.NEW_C], units, shape)[here] = c
            floats(place[Column.Y], units, shape)[here] = sigmoid(o) * np.tanh(c)

    return tile


def get(array: int, index: int) -> int:
    return int(word(array + WORD * index).value)


PYTHON: dict[str, Callable[..., Any]] = {
    "get": get,
    "put": put,
    "at": lambda address: address,
    "add": add,
    "read": lambda counter: get(counter, 0),
    "publish": lambda counter, value: put(counter, 0, value),
    "min_of": min,
    "prefetch": lambda address: None,
    "copy": ctypes.memmove,
    "clear": lambda target, size: ctypes.memset(target, 0, size),
    "tile_call": tile_call,
    "configuring": lambda shape: lambda rows: None,
}
