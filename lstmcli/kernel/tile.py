"""The register tile: one step of a few sequences for one panel of units.

    i = sigmoid(x Wi + h Ui + bi)      f = sigmoid(x Wf + h Uf + bf)      g = tanh(x Wg + h Ug + bg)
    o = sigmoid(x Wo + h Uo + bo)      c' = f * c + i * g                 h' = o * tanh(c')

(Hochreiter & Schmidhuber 1997; Gers et al. 2000; `forget_bias` is in bf here.) A gate is one fixed chain: its bias, then a
fused multiply-add for each input feature, then for each unit of h. The chain of every (sequence, unit, gate) stays in a
register from the bias to the activation; the size of the tile only chooses which chains run side by side, so it changes no
bit. Gates never touch memory.
"""

import itertools

import llvmlite.ir as ir

from lstmcli.kernel.layout import GATES, Shape
from lstmcli.kernel.simd import I64, POINTER, Simd, Vector, fma, sigmoid, tanh


def cell(i: Vector, f: Vector, g: Vector, o: Vector, c: Vector) -> tuple[Vector, Vector]:
    """The gates' sums and the old c to the new (c, h)."""
    c = fma(sigmoid(f), c, sigmoid(i) * tanh(g))
    return c, sigmoid(o) * tanh(c)


def define(module: ir.Module, shape: Shape, rows: int) -> ir.Function:
    """Adds to `module` the tile of `rows` sequences, rows <= shape.rows:

    tile(panel, bias, x, h, c, y, unit, units, inputs)

    panel   (inputs + units, GATES, width)  in   the weights of units unit .. unit + width, zero past the last unit
    bias    (GATES, width)                  in
    x       (rows,) addresses of (inputs,)  in   the step's input
    h       (rows,) addresses of (units,)   in   the previous step's output
    c       (rows,) addresses of (units,)   in/out
    y       (rows,) addresses of (units,)   out  the step's output; must not overlap h
    """
    name = f"lstm_tile_f{shape.bits}x{shape.width}_{rows}"
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER] * 6 + [I64] * 3), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    panel, bias, x, h, c, y, unit, units, inputs = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    simd = Simd(builder, shape.bits, shape.width)

    def pointers(table: ir.Value) -> list[ir.Value]:
        slots = [builder.gep(table, [ir.Constant(I64, row)], source_etype=I64) for row in range(rows)]
        return [builder.load(slot, typ=POINTER) for slot in slots]

    def gate(base: ir.Value, number: int) -> ir.Value:
        return simd.at(base, ir.Constant(I64, number * shape.width))

    biases = [simd.load(gate(bias, number)) for number in range(GATES)]
    sums = [list(biases) for _ in range(rows)]
    sums, weights = products(simd, sums, panel, pointers(x), inputs)
    sums, _ = products(simd, sums, weights, pointers(h), units)

    mask = simd.first(builder.sub(units, unit))
    for (i, f, g, o), c_row, y_row in zip(sums, pointers(c), pointers(y), strict=True):
        old = simd.load_masked(simd.at(c_row, unit), mask)
        new_c, new_h = cell(i, f, g, o, old)
        simd.store_masked(new_c, simd.at(c_row, unit), mask)
        simd.store_masked(new_h, simd.at(y_row, unit), mask)
    builder.ret_void()
    return function


def products(
    simd: Simd, sums: list[list[Vector]], weights: ir.Value, rows: list[ir.Value], count: ir.Value
) -> tuple[list[list[Vector]], ir.Value]:
    """The loop `for k in range(count): sums[row][gate] += rows[row][k] * weights[k, gate]`.

    Returns the sums and the address past the last weight read.
    """
    builder = simd.builder
    before = builder.block
    loop, after = (builder.function.append_basic_block() for _ in range(2))
    builder.cbranch(builder.icmp_signed(">", count, ir.Constant(I64, 0)), loop, after)

    builder.position_at_end(loop)
    k, here = builder.phi(I64), builder.phi(POINTER)
    running = [[builder.phi(simd.vector) for _ in gates] for gates in sums]
    columns = [simd.load(simd.at(here, ir.Constant(I64, gate * simd.width))) for gate in range(GATES)]
    added = []
    for row, gates in zip(rows, running, strict=True):
        value = simd.broadcast(simd.at(row, k))
        added.append([fma(value, column, Vector(simd, s)) for column, s in zip(columns, gates, strict=True)])
    next_k = builder.add(k, ir.Constant(I64, 1))
    next_weights = simd.at(here, ir.Constant(I64, GATES * simd.width))
    builder.cbranch(builder.icmp_signed("<", next_k, count), loop, after)

    builder.position_at_end(after)
    end = builder.phi(POINTER)
    done = [[builder.phi(simd.vector) for _ in gates] for gates in sums]
    for phi, start, step in [(k, ir.Constant(I64, 0), next_k), (here, weights, next_weights)]:
        phi.add_incoming(start, before)
        phi.add_incoming(step, loop)
    end.add_incoming(weights, before)
    end.add_incoming(next_weights, loop)
    flat = (itertools.chain.from_iterable(table) for table in (sums, running, added, done))
    for old, run, new, out in zip(*flat, strict=True):
        run.add_incoming(old.value, before)
        run.add_incoming(new.value, loop)
        out.add_incoming(old.value, before)
        out.add_incoming(new.value, loop)
    return [[Vector(simd, phi) for phi in gates] for gates in done], end
