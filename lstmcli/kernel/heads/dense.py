"""The product of rows and weights: a few rows by a panel of outputs stay in registers over the loop on the inputs."""

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from lstmcli.kernel.heads.tables import DensePlace
from lstmcli.kernel.layout import Shape
from lstmcli.kernel.vectors.simd import I64, POINTER, Simd, Vector, fma, one_nan

BLOCK = 48  # rows that a panel of weights is read for at a time, while they stay in the cache


def tile_rows(shape: Shape, vectors: int) -> int:
    """So many rows that all their sums are about as many as the LSTM's tile has, but no more than 12."""
    return min(12, shape.rows * shape.together // vectors)


def tile_call(shape: Shape, vectors: int) -> Callable[..., None]:
    """Return the call of the tile of `rows` rows from the address x on, for one panel of outputs."""

    @intrinsic
    def call(context, rows, x, x_step, y, y_step, inputs, weights, biases, left):  # type: ignore[no-untyped-def]
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            rows, *values = args
            after = builder.append_basic_block()
            switch = builder.switch(rows, after)
            for count in range(1, tile_rows(shape, vectors) + 1):
                block = builder.append_basic_block()
                switch.add_case(ir.Constant(I64, count), block)
                builder.position_at_end(block)
                builder.call(define_tile(builder.module, shape, vectors, count), values)
                builder.branch(after)
            builder.position_at_end(after)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 9), emit

    found: Callable[..., None] = call
    return found


def define_tile(module: ir.Module, shape: Shape, vectors: int, rows: int) -> ir.Function:
    """Return the function tile(x, x_step, y, y_step, inputs, weights, biases, left) of so many rows.

    weights (inputs, vectors, width); left: outputs from the panel's first one to the last one of the layer.
    """
    name = f"dense_tile_{vectors}_{rows}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 8), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    x, x_step, y, y_step, inputs, weights, biases, left = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    simd = Simd(builder, shape.bits, shape.width)

    def row_at(base: ir.Value, step: ir.Value, row: int) -> ir.Value:
        return builder.inttoptr(builder.add(base, builder.mul(step, ir.Constant(I64, row))), POINTER)

    def vector_at(base: ir.Value, number: int) -> ir.Value:
        return simd.at(base, ir.Constant(I64, number * shape.width))

    x_rows = [row_at(x, x_step, row) for row in range(rows)]
    y_rows = [row_at(y, y_step, row) for row in range(rows)]
    first = [simd.load(vector_at(builder.inttoptr(biases, POINTER), v)) for v in range(vectors)]
    panel = builder.inttoptr(weights, POINTER)

    before = builder.block
    loop, after = (builder.append_basic_block() for _ in range(2))
    builder.cbranch(builder.icmp_signed(">", inputs, ir.Constant(I64, 0)), loop, after)
    builder.position_at_end(loop)
    k = builder.phi(I64)
    running = [[builder.phi(simd.vector) for _ in range(vectors)] for _ in range(rows)]
    here = simd.at(panel, builder.mul(k, ir.Constant(I64, vectors * shape.width)))
    columns = [simd.load(vector_at(here, v)) for v in range(vectors)]
    added = []
    for row in range(rows):
        factor = simd.broadcast(simd.at(x_rows[row], k))
        added.append([fma(factor, column, Vector(simd, old)) for column, old in zip(columns, running[row], strict=True)])
    next_k = builder.add(k, ir.Constant(I64, 1))
    builder.cbranch(builder.icmp_signed("<", next_k, inputs), loop, after)
    k.add_incoming(ir.Constant(I64, 0), before)
    k.add_incoming(next_k, loop)

    builder.position_at_end(after)
    done: list[list[Vector]] = []
    for row in range(rows):
        done.append([])
        for v in range(vectors):
            running[row][v].add_incoming(first[v].value, before)
            running[row][v].add_incoming(added[row][v].value, loop)
            end = builder.phi(simd.vector)
            end.add_incoming(first[v].value, before)
            end.add_incoming(added[row][v].value, loop)
            done[row].append(Vector(simd, end))
    for v in range(vectors):
        part = simd.part(builder.sub(left, ir.Constant(I64, v * shape.width)))
        with builder.if_then(part.some):
            simd.store_part([(one_nan(done[row][v]), vector_at(y_rows[row], v)) for row in range(rows)], part)
    builder.ret_void()
    return function


def define(shape: Shape, vectors: int) -> Callable[..., None]:
    """Return the kernel for one shape of vectors, to be compiled with compiled.SIGNATURE."""
    tile, rows_at_once, columns, size = (
        tile_call(shape, vectors),
        tile_rows(shape, vectors),
        vectors * shape.width,
        shape.bits // 8,
    )
    (X_AT, X_STEP, Y_AT, Y_STEP, ROWS, INPUTS, OUTPUTS, PANELS_AT, BIASES_AT) = (int(place) for place in DensePlace)  # noqa: N806

    def dense(table, thread):  # type: ignore[no-untyped-def]
        x_at, x_step, y_at, y_step = table[X_AT], table[X_STEP], table[Y_AT], table[Y_STEP]
        rows, inputs, outputs = table[ROWS], table[INPUTS], table[OUTPUTS]
        panels = (outputs + columns - 1) // columns
        for block in range(0, rows, BLOCK):
            end = block + BLOCK
            if end > rows:
                end = rows
            for panel in range(panels):
                weights = table[PANELS_AT] + panel * inputs * columns * size
                biases = table[BIASES_AT] + panel * columns * size
                y = y_at + panel * columns * size
                for row in range(block, end, rows_at_once):
                    count = rows_at_once
                    if count > end - row:
                        count = end - row
                    left = outputs - panel * columns
                    tile(count, x_at + row * x_step, x_step, y + row * y_step, y_step, inputs, weights, biases, left)

    return dense
