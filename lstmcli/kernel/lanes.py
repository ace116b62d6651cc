"""Sequences through lanes: every lane holds one running sequence, and takes the next one when its own ends.

So the tile stays full until the work is used up, instead of narrowing whenever a short sequence ends (as the batch of a
packed sequence does), and no step past a sequence's length is ever visited. Units are the outer loop and lanes the inner
one: a panel of weights is read once a step for all lanes.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lstmcli.kernel import tile
from lstmcli.kernel.layout import GATES, Shape
from lstmcli.kernel.simd import I64, POINTER

ADDRESSES = types.CPointer(types.int64)

# Columns of `work`, one row a sequence: the addresses of its first input row, of h and c (which hold the initial state and
# receive the final one), of its first output row, and its length (> 0).
# The lanes' table holds the same columns for the running sequences, h being the previous output, and the length what is left.
X, H, C, Y, LEFT, FINAL_H, COLUMNS = range(7)


@intrinsic
def get(context: Any, array: types.Type, index: types.Type) -> Any:
    """array[index]"""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.load(builder.gep(args[0], [args[1]], source_etype=I64), typ=I64)

    return types.int64(ADDRESSES, types.int64), emit


@intrinsic
def put(context: Any, array: types.Type, index: types.Type, value: types.Type) -> Any:
    """array[index] = value"""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]], source_etype=I64))
        return context.get_dummy_value()

    return types.none(ADDRESSES, types.int64, types.int64), emit


@intrinsic
def take_next(context: Any, counter: types.Type) -> Any:
    """counter[0]++, so that threads never take the same sequence."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.atomic_rmw("add", args[0], ir.Constant(I64, 1), "monotonic")

    return types.int64(ADDRESSES), emit


@intrinsic
def copy(context: Any, target: types.Type, source: types.Type, size: types.Type) -> Any:
    """Copies `size` bytes between addresses that do not overlap."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        target, source = (builder.inttoptr(a, POINTER) for a in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), emit


def tile_step(shape: Shape) -> Callable[..., None]:
    """The call of the tile for `rows` lanes from lane `first` on."""

    @intrinsic
    def step(
        context: Any,
        rows: Any,
        panel: Any,
        bias: Any,
        table: Any,
        lanes: Any,
        first: Any,
        unit: Any,
        units: Any,
        inputs: Any,
    ) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            rows, panel, bias, table, lanes, first, unit, units, inputs = args
            columns = [
                builder.gep(table, [builder.add(builder.mul(ir.Constant(I64, column), lanes), first)], source_etype=I64)
                for column in (X, H, C, Y)
            ]
            values = [builder.inttoptr(a, POINTER) for a in (panel, bias)]
            values += [builder.bitcast(a, POINTER) for a in columns]
            after = builder.append_basic_block()
            switch = builder.switch(rows, after)
            for count in range(1, shape.rows + 1):
                block = builder.append_basic_block()
                switch.add_case(ir.Constant(I64, count), block)
                builder.position_at_end(block)
                builder.call(tile.define(builder.module, shape, count), [*values, unit, units, inputs])
                builder.branch(after)
            builder.position_at_end(after)
            return context.get_dummy_value()

        integers = [types.int64] * 3
        return types.none(types.int64, *integers[:2], ADDRESSES, *integers[:2], *integers), emit

    return step


SIGNATURE = types.void(ADDRESSES, types.int64, ADDRESSES, *[types.int64] * 6, ADDRESSES, types.int64)


def define(shape: Shape) -> Callable[..., None]:
    """The kernel for one tile shape, to be compiled with SIGNATURE."""
    step = tile_step(shape)
    width, rows, size = shape.width, shape.rows, shape.bits // 8
    panel_row, bias_row = GATES * width * size, GATES * width * size

    def lstm(work, count, taken, panels, biases, inputs, units, x_step, y_step, table, lanes):  # type: ignore[no-untyped-def]
        """One LSTM layer over the sequences of `work` that no other thread takes.

        work     (count, COLUMNS) int64                            in      longest first
        taken    (1,) int64                                        in/out  how many sequences are taken, by all threads
        panels   (ceil(units/width), inputs + units, GATES, width) in      layout.pack; address
        biases   (ceil(units/width), GATES, width)                 in      address
        x_step   bytes from a step's input to the next one's; negative runs a sequence backwards
        y_step   bytes from a step's output to the next one's
        table    (COLUMNS, lanes) int64                            scratch
        """
        active, room = 0, lanes
        while True:
            while active < room:
                sequence = take_next(taken)
                if sequence >= count:
                    room = 0
                    break
                for column in range(COLUMNS):
                    put(table, column * lanes + active, get(work, sequence * COLUMNS + column))
                active += 1
            if active == 0:
                break

            panel, bias, unit = panels, biases, 0
            while unit < units:
                first = 0
                while first < active:
                    here = active - first
                    step(here if here < rows else rows, panel, bias, table, lanes, first, unit, units, inputs)
                    first += rows
                panel += (inputs + units) * panel_row
                bias += bias_row
                unit += width

            lane = 0
            while lane < active:
                y = get(table, Y * lanes + lane)
                left = get(table, LEFT * lanes + lane) - 1
                if left == 0:
                    copy(get(table, FINAL_H * lanes + lane), y, units * size)
                    active -= 1
                    for column in range(COLUMNS):
                        put(table, column * lanes + lane, get(table, column * lanes + active))
                    continue
                put(table, X * lanes + lane, get(table, X * lanes + lane) + x_step)
                put(table, H * lanes + lane, y)
                put(table, Y * lanes + lane, y + y_step)
                put(table, LEFT * lanes + lane, left)
                lane += 1

    return lstm
