"""How the loop over steps calls the tiles: the functions of tile.py, amx.py and bfloat16.py as Numba takes them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from lstmcli.kernel import amx, bfloat16, tile
from lstmcli.kernel.layout import Options, Shape
from lstmcli.kernel.vectors.simd import I64, POINTER
from lstmcli.kernel.waiting import ADDRESSES


def tile_call(shape: Shape, options: Options) -> Callable[..., None]:
    """Return a function that runs the tile of `rows` lanes, from lane `first` on; its other arguments are those of tile.define.

    block      with AMX, the rows of its registers, which configuring() gives them
    half_unit  the first unit of the panel that has two gates in a vector; -1: none
    """

    @intrinsic
    def call(  # type: ignore[no-untyped-def]
        context, rows, block, call, weights, table, lanes, first, far, turn, pace, unit, half_unit, resume, pause
    ):
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            rows, block, call, weights, table, lanes, first, *coming, unit, half_unit, resume, pause = args
            values = [call, builder.inttoptr(weights, POINTER), builder.gep(table, [first], source_etype=I64), lanes]
            values += [unit] if shape.amx else [*coming, unit]
            values += [builder.icmp_signed("!=", flag, ir.Constant(I64, 0)) for flag in (resume, pause)]
            with builder.if_else(builder.icmp_signed("==", unit, half_unit)) as branches:
                for half, branch in zip((True, False), branches, strict=True):
                    with branch:
                        if shape.amx:
                            builder.call(amx.define(builder.module, shape, options, half), [rows, block, *values])
                        elif shape.half or not half:
                            define = partial(tile.define, builder.module, shape, options, half=half)
                            switch_rows(builder, shape, rows, values, define)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, ADDRESSES, types.int64, ADDRESSES, *[types.int64] * 9), emit

    return call


def projection_call(shape: Shape, options: Options) -> Callable[..., None]:
    """Return a function that runs the projection of `rows` lanes from lane `first` on, as tile.define_projection says."""

    @intrinsic
    def call(context, rows, block, call, weights, table, lanes, first, column):  # type: ignore[no-untyped-def]
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            rows, block, call, weights, table, lanes, first, column = args
            values = [call, builder.inttoptr(weights, POINTER), builder.gep(table, [first], source_etype=I64), lanes, column]
            if shape.amx:
                builder.call(amx.define_projection(builder.module, shape, options), [rows, block, *values])
            else:
                switch_rows(
                    builder, shape, rows, values, lambda count: tile.define_projection(builder.module, shape, options, count)
                )
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, ADDRESSES, types.int64, ADDRESSES, *[types.int64] * 3), emit

    return call


def rounding(shape: Shape) -> Callable[..., None]:
    """Return a function that rounds a row to bfloat16, as bfloat16.define_rounding says."""

    @intrinsic
    def call(context, target, source, count):  # type: ignore[no-untyped-def]
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            target, source, count = args
            function = bfloat16.define_rounding(builder.module, shape.width, halves=bool(shape.amx))
            builder.call(function, [builder.inttoptr(target, POINTER), builder.inttoptr(source, POINTER), count])
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, types.int64), emit

    return call


def configuring(shape: Shape) -> Callable[..., None]:
    """Return a function that gives the registers of AMX so many rows, or with 0 leaves them, as amx.define_configure says."""

    @intrinsic
    def call(context, rows):  # type: ignore[no-untyped-def]
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            if shape.amx:
                builder.call(amx.define_configure(builder.module), args)
            return context.get_dummy_value()

        return types.none(types.int64), emit

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
