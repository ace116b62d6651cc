"""The loop over steps: every lane holds one running sequence, and takes the next one when its own ends.

So the tile stays full until there is no more work, instead of narrowing whenever a short sequence ends (as a batch of packed
sequences does), and no step past a sequence's length is ever visited. Units are the outer loop and lanes the inner one: a
panel of weights is read once a step for all lanes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from lstmcli.kernel import tile
from lstmcli.kernel.layout import GATES, Argument, Column, Options, Shape
from lstmcli.kernel.simd import I64, POINTER

ADDRESSES = types.CPointer(types.int64)
SPINS = 2000  # some microseconds: a thread that waits longer lets others run, perhaps the one that it waits for

COLUMNS = len(Column)


@intrinsic
def get(context: Any, array: types.Type, index: types.Type) -> Any:
    """Return array[index]."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.load(builder.gep(args[0], [args[1]], source_etype=I64), typ=I64)

    return types.int64(ADDRESSES, types.int64), emit


@intrinsic
def put(context: Any, array: types.Type, index: types.Type, value: types.Type) -> Any:
    """Set array[index] = value."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]], source_etype=I64))
        return context.get_dummy_value()

    return types.none(ADDRESSES, types.int64, types.int64), emit


@intrinsic
def at(context: Any, address: types.Type) -> Any:
    """Return the array of int64 at an address."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.inttoptr(args[0], context.get_value_type(ADDRESSES))

    return ADDRESSES(types.int64), emit


@intrinsic
def take_next(context: Any, counter: types.Type) -> Any:
    """Return counter[0] and count it up, in one operation: no two threads take the same sequence."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.atomic_rmw("add", args[0], ir.Constant(I64, 1), "monotonic")

    return types.int64(ADDRESSES), emit


@intrinsic
def meet(context: Any, arrived: types.Type, expected: types.Type) -> Any:
    """Count arrived[0] up, and wait until it is `expected` or more. All that the others wrote before is then visible.

    A thread that does not have to wait never reads the counter again: the others may have ended, and freed its memory.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        arrived, expected = args
        others = builder.atomic_rmw("add", arrived, ir.Constant(I64, 1), "acq_rel")
        before = builder.block
        wait, spin, rest, after = (builder.append_basic_block() for _ in range(4))
        builder.cbranch(builder.icmp_signed(">=", builder.add(others, ir.Constant(I64, 1)), expected), after, wait)
        builder.position_at_end(wait)
        spins = builder.phi(I64)
        value = builder.load_atomic(arrived, "acquire", 8, typ=I64)
        builder.cbranch(builder.icmp_signed(">=", value, expected), after, spin)
        builder.position_at_end(spin)
        if "x86" in builder.module.triple:
            builder.call(
                cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"), []
            )
        more = builder.add(spins, ir.Constant(I64, 1))
        builder.cbranch(builder.icmp_signed("<", more, ir.Constant(I64, SPINS)), wait, rest)
        builder.position_at_end(rest)
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        builder.branch(wait)
        for value, block in [(ir.Constant(I64, 0), before), (more, spin), (more, rest)]:
            spins.add_incoming(value, block)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.none(ADDRESSES, types.int64), emit


@intrinsic
def min_of(context: Any, a: types.Type, b: types.Type) -> Any:
    """Return the smaller one. Numba's own min() brings in code that needs the interpreter."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.select(builder.icmp_signed("<", *args), *args)

    return types.int64(types.int64, types.int64), emit


@intrinsic
def copy(context: Any, target: types.Type, source: types.Type, size: types.Type) -> Any:
    """Copy `size` bytes between places that do not overlap."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        target, source = (builder.inttoptr(a, POINTER) for a in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), emit


def tile_call(shape: Shape, options: Options) -> Callable[..., None]:
    """Return a function that runs the tile of `rows` lanes, from lane `first` on; its other arguments are those of tile.define.

    half_unit  the first unit of the panel that has two gates in a vector; -1: none
    """

    @intrinsic
    def call(context, rows, call, weights, table, lanes, first, unit, half_unit, resume, pause):  # type: ignore[no-untyped-def]
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            rows, call, weights, table, lanes, first, unit, half_unit, *flags = args
            values = [call, builder.inttoptr(weights, POINTER), builder.gep(table, [first], source_etype=I64), lanes, unit]
            values += [builder.icmp_signed("!=", flag, ir.Constant(I64, 0)) for flag in flags]
            with builder.if_else(builder.icmp_signed("==", unit, half_unit)) as branches:
                for half, branch in zip((True, False), branches, strict=True):
                    with branch:
                        if shape.half or not half:
                            define = partial(tile.define, builder.module, shape, options, half=half)
                            switch_rows(builder, shape, rows, values, define)
            return context.get_dummy_value()

        return types.none(types.int64, ADDRESSES, types.int64, ADDRESSES, *[types.int64] * 6), emit

    return call


def projection_call(shape: Shape, options: Options) -> Callable[..., None]:
    """Return a function that runs the projection of `rows` lanes from lane `first` on, as tile.define_projection says."""

    @intrinsic
    def call(context, rows, call, weights, table, lanes, first, column):  # type: ignore[no-untyped-def]
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            rows, call, weights, table, lanes, first, column = args
            values = [call, builder.inttoptr(weights, POINTER), builder.gep(table, [first], source_etype=I64), lanes, column]
            switch_rows(
                builder, shape, rows, values, lambda count: tile.define_projection(builder.module, shape, options, count)
            )
            return context.get_dummy_value()

        return types.none(types.int64, ADDRESSES, types.int64, ADDRESSES, *[types.int64] * 3), emit

    return call


def switch_rows(
    builder: ir.IRBuilder, shape: Shape, rows: ir.Value, values: list[ir.Value], function: Callable[[int], ir.Function]
) -> None:
    """Write a switch: call the function for the number of rows that there are."""
    after = builder.append_basic_block()
    switch = builder.switch(rows, after)
    for count in range(1, shape.rows + 1):
        block = builder.append_basic_block()
        switch.add_case(ir.Constant(I64, count), block)
        builder.position_at_end(block)
        builder.call(function(count), values)
        builder.branch(after)
    builder.position_at_end(after)


@register_jitable(inline="always")
def start_lane(call, table, lanes, lane, sequence, float_bytes):  # type: ignore[no-untyped-def]
    """Put the first step of a sequence into an empty lane."""
    h = get(call, Argument.H_AT) + sequence * get(call, Argument.OUTPUTS) * float_bytes
    c = get(call, Argument.C_AT) + sequence * get(call, Argument.UNITS) * float_bytes
    x_row, y_row = get(at(get(call, Argument.X_STARTS_AT)), sequence), get(at(get(call, Argument.Y_STARTS_AT)), sequence)
    cells_step = get(call, Argument.CELLS_STEP)
    put(table, Column.X * lanes + lane, get(call, Argument.X_AT) + x_row * get(call, Argument.X_STEP))
    put(table, Column.H * lanes + lane, h)
    put(table, Column.C * lanes + lane, c)
    put(table, Column.NEW_C * lanes + lane, get(call, Argument.CELLS_AT) + y_row * cells_step if cells_step != 0 else c)
    put(table, Column.Y * lanes + lane, get(call, Argument.Y_AT) + y_row * get(call, Argument.Y_STEP))
    put(table, Column.BIAS * lanes + lane, get(call, Argument.BIASES_AT))
    put(table, Column.SUMS * lanes + lane, get(table, Column.HOME * lanes + lane))
    put(table, Column.FINAL_H * lanes + lane, h)
    put(table, Column.FINAL_C * lanes + lane, c)
    put(table, Column.LEFT * lanes + lane, get(at(get(call, Argument.LENGTHS_AT)), sequence))
    put(table, Column.READY * lanes + lane, 0)


@register_jitable(inline="always")
def advance_lane(call, table, lanes, lane, sums_step):  # type: ignore[no-untyped-def]
    """Go on to the next step of the same sequence."""
    y, c = get(table, Column.Y * lanes + lane), get(table, Column.NEW_C * lanes + lane)
    put(table, Column.X * lanes + lane, get(table, Column.X * lanes + lane) + get(call, Argument.X_STEP))
    put(table, Column.H * lanes + lane, y)
    put(table, Column.C * lanes + lane, c)
    put(table, Column.NEW_C * lanes + lane, c + get(call, Argument.CELLS_STEP))
    put(table, Column.Y * lanes + lane, y + get(call, Argument.Y_STEP))
    put(table, Column.LEFT * lanes + lane, get(table, Column.LEFT * lanes + lane) - 1)
    put(table, Column.READY * lanes + lane, get(table, Column.READY * lanes + lane) - 1)
    put(table, Column.SUMS * lanes + lane, get(table, Column.SUMS * lanes + lane) + sums_step)


@register_jitable(inline="always")
def retire_lane(table, lanes, lane, last):  # type: ignore[no-untyped-def]
    """Empty a lane: the sequence of lane `last` moves into it. The two lanes exchange the memory that they own."""
    home, hidden = get(table, Column.HOME * lanes + lane), get(table, Column.HIDDEN * lanes + lane)
    for column in range(COLUMNS):
        put(table, column * lanes + lane, get(table, column * lanes + last))
    put(table, Column.HOME * lanes + last, home)
    put(table, Column.HIDDEN * lanes + last, hidden)


def define(shape: Shape, options: Options) -> Callable[..., None]:
    """Return the kernel for one tile shape and one kind of cell, as Numba compiles it with compiled.SIGNATURE."""
    tile_of, projection_of = tile_call(shape, options), projection_call(shape, options)
    width, half, rows, size, projected = shape.width, shape.half, shape.rows, shape.bits // 8, options.projection
    row_bytes = GATES * width * size  # of a panel

    def lstm(call, thread):  # type: ignore[no-untyped-def]
        """Run one cell over the sequences that the table `call` names (see layout.Argument), as thread number `thread`.

        Threads take whole sequences. Where SHARERS > 1, they run all sequences together, each a part of the units.
        """
        inputs, units, outputs = get(call, Argument.INPUTS), get(call, Argument.UNITS), get(call, Argument.OUTPUTS)
        lanes, ahead, count = get(call, Argument.LANES), get(call, Argument.AHEAD), get(call, Argument.COUNT)
        threads, sharers = get(call, Argument.THREADS), get(call, Argument.SHARERS)
        order = at(get(call, Argument.ORDER_AT))
        x_step, cells_step = get(call, Argument.X_STEP), get(call, Argument.CELLS_STEP)
        biases = get(call, Argument.BIASES_AT)
        scratch = get(call, Argument.SCRATCH_AT) + thread * get(call, Argument.SCRATCH_STEP)
        table = at(scratch)
        slots = lanes * ahead
        coming = at(scratch + 8 * COLUMNS * lanes)  # a second table, for the steps whose input products are computed now
        sums = scratch + 8 * COLUMNS * (lanes + slots)
        panels, columns = (units + width - 1) // width, (outputs + GATES * width - 1) // (GATES * width)
        half_unit = (panels - 1) * width if 0 < units % width <= half else -1
        panel_bytes, projection_bytes = (inputs + outputs) * row_bytes, units * row_bytes
        first_panel, end_panel, first_column, end_column = 0, panels, 0, columns
        if sharers > 1:
            first_panel, end_panel = panels * thread // sharers, panels * (thread + 1) // sharers
            first_column, end_column = columns * thread // sharers, columns * (thread + 1) // sharers
        own_c, end_c = first_panel * width * size, min_of(end_panel * width, units) * size
        own_h, end_h = own_c, end_c
        if projected:
            own_h, end_h = first_column * row_bytes, min_of(end_column * GATES * width, outputs) * size
        sums_step = panels * row_bytes
        hidden = get(call, Argument.HIDDEN_AT) + thread * get(call, Argument.HIDDEN_STEP)
        for lane in range(lanes):
            put(table, Column.HOME * lanes + lane, sums + lane * ahead * sums_step)
            put(table, Column.HIDDEN * lanes + lane, hidden + lane * units * size)

        active, room, taken, steps, met = 0, lanes, 0, 0, 0
        while True:
            # Empty lanes take the next sequences.
            while active < room:
                turn = taken
                if sharers == 1:  # dealt out at first, or the thread that comes first would take all the longest ones
                    turn = taken * threads + thread
                    if taken >= lanes:
                        turn = lanes * threads + take_next(at(get(call, Argument.SYNC_AT)))
                taken += 1
                if turn >= count:
                    room = 0
                    break
                start_lane(call, table, lanes, active, get(order, turn), size)
                active += 1
            if active == 0:
                break

            # The input products of some steps at once: the rows of a tile are then steps as well as lanes.
            coming_rows = 0
            for lane in range(active if ahead > 0 else 0):
                if get(table, Column.READY * lanes + lane) > 0:
                    continue
                # Up to the next multiple of `ahead`, so that all lanes need new products at the same step.
                home, ready = get(table, Column.HOME * lanes + lane), get(table, Column.LEFT * lanes + lane)
                ready = min_of(ready, ahead - steps % ahead)
                for k in range(ready):
                    put(coming, Column.X * slots + coming_rows, get(table, Column.X * lanes + lane) + k * x_step)
                    put(coming, Column.BIAS * slots + coming_rows, biases)
                    put(coming, Column.SUMS * slots + coming_rows, home + k * sums_step)
                    coming_rows += 1
                put(table, Column.SUMS * lanes + lane, home)
                put(table, Column.READY * lanes + lane, ready)
            for panel in range(first_panel, end_panel if coming_rows > 0 else 0):
                weights = get(call, Argument.PANELS_AT) + panel * panel_bytes
                for first in range(0, coming_rows, rows):
                    tile_rows = min_of(rows, coming_rows - first)
                    tile_of(tile_rows, call, weights, coming, slots, first, panel * width, half_unit, 0, 1)

            # One step of all lanes.
            for panel in range(first_panel, end_panel):
                weights = get(call, Argument.PANELS_AT) + panel * panel_bytes
                for first in range(0, active, rows):
                    tile_rows = min_of(rows, active - first)
                    tile_of(tile_rows, call, weights, table, lanes, first, panel * width, half_unit, ahead, 0)
            if projected:
                if sharers > 1:
                    met += sharers
                    meet(at(get(call, Argument.SYNC_AT) + 64), met)
                for panel in range(first_column, end_column):
                    weights, column = get(call, Argument.PROJECTION_AT) + panel * projection_bytes, panel * GATES * width
                    for first in range(0, active, rows):
                        projection_of(min_of(rows, active - first), call, weights, table, lanes, first, column)

            # The step is over.
            steps += 1
            if sharers > 1:
                met += sharers
                meet(at(get(call, Argument.SYNC_AT) + 64), met)
            lane = 0
            while lane < active:
                if get(table, Column.LEFT * lanes + lane) > 1:
                    advance_lane(call, table, lanes, lane, sums_step)
                    lane += 1
                    continue
                y, c = get(table, Column.Y * lanes + lane), get(table, Column.NEW_C * lanes + lane)
                copy(get(table, Column.FINAL_H * lanes + lane) + own_h, y + own_h, end_h - own_h)
                if cells_step != 0:
                    copy(get(table, Column.FINAL_C * lanes + lane) + own_c, c + own_c, end_c - own_c)
                active -= 1
                retire_lane(table, lanes, lane, active)

        # Thread 0, whose caller owns all the memory, is the last to end.
        if get(call, Argument.THREADS) > 1:
            meet(at(get(call, Argument.SYNC_AT) + 128), get(call, Argument.THREADS) if thread == 0 else 0)

    return lstm
