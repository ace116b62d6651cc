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
from lstmcli.kernel.layout import GATES, Column, Job, Shape
from lstmcli.kernel.simd import I64, POINTER

ADDRESSES = types.CPointer(types.int64)
SIGNATURE = types.void(ADDRESSES, types.int64)
SPINS = 2000  # some microseconds; a thread that waits longer lets others run, perhaps just the one it waits for

# Numba takes global integers for constants.
X, H, C, Y, BIAS, SUMS, HOME, FINAL_H, LEFT, READY = (int(column) for column in Column)
COLUMNS = len(Column)
(
    X_AT, X_STARTS_AT, X_STEP, Y_AT, Y_STARTS_AT, Y_STEP, H_AT, C_AT, LENGTHS_AT, ORDER_AT, COUNT, PANELS_AT, BIASES_AT,
    INPUTS, UNITS, LANES, AHEAD, THREADS, SHARERS, SYNC_AT, SCRATCH_AT, SCRATCH_STEP,
) = (int(field) for field in Job)  # fmt: skip


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
def at(context: Any, address: types.Type) -> Any:
    """The array of int64 at an address."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.inttoptr(args[0], context.get_value_type(ADDRESSES))

    return ADDRESSES(types.int64), emit


@intrinsic
def take_next(context: Any, counter: types.Type) -> Any:
    """counter[0]++, so that threads never take the same sequence."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.atomic_rmw("add", args[0], ir.Constant(I64, 1), "monotonic")

    return types.int64(ADDRESSES), emit


@intrinsic
def meet(context: Any, arrived: types.Type, expected: types.Type) -> Any:
    """arrived[0]++, then waits until it is `expected` or more. What the others wrote before they came is then visible.

    It is not read again by who is not to wait: the others may be through by then, and its memory gone.
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
    """The smaller one; Numba's own min() brings in code that needs the interpreter."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.select(builder.icmp_signed("<", *args), *args)

    return types.int64(types.int64, types.int64), emit


@intrinsic
def copy(context: Any, target: types.Type, source: types.Type, size: types.Type) -> Any:
    """Copies `size` bytes between addresses that do not overlap."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        target, source = (builder.inttoptr(a, POINTER) for a in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), emit


def tile_call(shape: Shape) -> Callable[..., None]:
    """The call of the tile of `rows` lanes from lane `first` on, with the arguments of tile.define."""

    @intrinsic
    def call(context, rows, weights, table, lanes, first, inputs, recurrent, unit, units, resume, pause):  # type: ignore[no-untyped-def]  # fmt: skip
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            rows, weights, table, lanes, first, *numbers, resume, pause = args
            values = [builder.inttoptr(weights, POINTER), builder.gep(table, [first], source_etype=I64), lanes, *numbers]
            values += [builder.icmp_signed("!=", flag, ir.Constant(I64, 0)) for flag in (resume, pause)]
            after = builder.append_basic_block()
            switch = builder.switch(rows, after)
            for count in range(1, shape.rows + 1):
                block = builder.append_basic_block()
                switch.add_case(ir.Constant(I64, count), block)
                builder.position_at_end(block)
                builder.call(tile.define(builder.module, shape, count), values)
                builder.branch(after)
            builder.position_at_end(after)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, ADDRESSES, *[types.int64] * 8), emit

    return call


def define(shape: Shape) -> Callable[..., None]:
    """The kernel for one tile shape, to be compiled with SIGNATURE."""
    tile_of = tile_call(shape)
    width, rows, size = shape.width, shape.rows, shape.bits // 8
    row_bytes = GATES * width * size  # of a panel

    def lstm(job, thread):  # type: ignore[no-untyped-def]
        """One LSTM layer over the sequences of `job` (see layout.Job), as thread number `thread` of those that call it.

        Threads take whole sequences, or, where SHARERS > 1, they run all sequences together, each for its part of the units.
        """
        inputs, units, lanes, ahead = get(job, INPUTS), get(job, UNITS), get(job, LANES), get(job, AHEAD)
        count, sharers = get(job, COUNT), get(job, SHARERS)
        order, lengths = at(get(job, ORDER_AT)), at(get(job, LENGTHS_AT))
        x_starts, y_starts = at(get(job, X_STARTS_AT)), at(get(job, Y_STARTS_AT))
        x_step, y_step, biases = get(job, X_STEP), get(job, Y_STEP), get(job, BIASES_AT)
        scratch = get(job, SCRATCH_AT) + thread * get(job, SCRATCH_STEP)
        table = at(scratch)
        slots = lanes * ahead
        coming = at(scratch + 8 * COLUMNS * lanes)  # a table as well, for the steps whose input products are computed now
        sums = scratch + 8 * COLUMNS * (lanes + slots)
        products = inputs + units
        panels = (units + width - 1) // width
        first_panel, end_panel = 0, panels
        if sharers > 1:
            first_panel, end_panel = panels * thread // sharers, panels * (thread + 1) // sharers
        step_sums = panels * row_bytes
        for lane in range(lanes):
            put(table, HOME * lanes + lane, sums + lane * ahead * step_sums)

        active, room, taken, steps = 0, lanes, 0, 0
        while True:
            # Empty lanes take the next sequences.
            while active < room:
                turn = taken
                taken += 1
                if sharers == 1:
                    turn = take_next(at(get(job, SYNC_AT)))
                if turn >= count:
                    room = 0
                    break
                sequence = get(order, turn)
                state = sequence * units * size
                put(table, X * lanes + active, get(job, X_AT) + get(x_starts, sequence) * x_step)
                put(table, H * lanes + active, get(job, H_AT) + state)
                put(table, C * lanes + active, get(job, C_AT) + state)
                put(table, Y * lanes + active, get(job, Y_AT) + get(y_starts, sequence) * y_step)
                put(table, BIAS * lanes + active, biases)
                put(table, SUMS * lanes + active, get(table, HOME * lanes + active))
                put(table, FINAL_H * lanes + active, get(job, H_AT) + state)
                put(table, LEFT * lanes + active, get(lengths, sequence))
                put(table, READY * lanes + active, 0)
                active += 1
            if active == 0:
                break

            # The input products of some steps at once: rows of one tile are then not only lanes, but also steps of a lane.
            coming_rows = 0
            for lane in range(active if ahead > 0 else 0):
                if get(table, READY * lanes + lane) > 0:
                    continue
                # Up to the next multiple of `ahead`, so that all lanes come to their end together.
                home, ready = get(table, HOME * lanes + lane), get(table, LEFT * lanes + lane)
                ready = min_of(ready, ahead - steps % ahead)
                for k in range(ready):
                    put(coming, X * slots + coming_rows, get(table, X * lanes + lane) + k * x_step)
                    put(coming, BIAS * slots + coming_rows, biases)
                    put(coming, SUMS * slots + coming_rows, home + k * step_sums)
                    coming_rows += 1
                put(table, SUMS * lanes + lane, home)
                put(table, READY * lanes + lane, ready)
            for panel in range(first_panel, end_panel if coming_rows > 0 else 0):
                weights, unit = get(job, PANELS_AT) + panel * products * row_bytes, panel * width
                for first in range(0, coming_rows, rows):
                    tile_of(min_of(rows, coming_rows - first), weights, coming, slots, first, inputs, 0, unit, units, 0, 1)

            # One step of all lanes.
            done = inputs if ahead > 0 else 0
            for panel in range(first_panel, end_panel):
                weights, unit = get(job, PANELS_AT) + (panel * products + done) * row_bytes, panel * width
                for first in range(0, active, rows):
                    tile_of(
                        min_of(rows, active - first),
                        weights,
                        table,
                        lanes,
                        first,
                        inputs - done,
                        units,
                        unit,
                        units,
                        1 if ahead > 0 else 0,
                        0,
                    )

            # The step is over.
            steps += 1
            if sharers > 1:
                meet(at(get(job, SYNC_AT) + 64), steps * sharers)
            lane = 0
            while lane < active:
                y, left = get(table, Y * lanes + lane), get(table, LEFT * lanes + lane) - 1
                if left > 0:
                    put(table, X * lanes + lane, get(table, X * lanes + lane) + x_step)
                    put(table, H * lanes + lane, y)
                    put(table, Y * lanes + lane, y + y_step)
                    put(table, LEFT * lanes + lane, left)
                    put(table, READY * lanes + lane, get(table, READY * lanes + lane) - 1)
                    put(table, SUMS * lanes + lane, get(table, SUMS * lanes + lane) + step_sums)
                    lane += 1
                    continue
                own = first_panel * width * size
                copy(get(table, FINAL_H * lanes + lane) + own, y + own, min_of(end_panel * width, units) * size - own)
                active -= 1
                home = get(table, HOME * lanes + lane)
                for column in range(COLUMNS):
                    put(table, column * lanes + lane, get(table, column * lanes + active))
                put(table, HOME * lanes + active, home)

        # Thread 0, whose caller owns all the memory, is the last to go.
        if get(job, THREADS) > 1:
            meet(at(get(job, SYNC_AT) + 128), get(job, THREADS) if thread == 0 else 0)

    return lstm
