"""The register tile: one step of a few sequences for one panel of units.

    i = sigmoid(x Wi + h Ui + bi)      f = sigmoid(x Wf + h Uf + bf)      g = tanh(x Wg + h Ug + bg)
    o = sigmoid(x Wo + h Uo + bo)      c' = f * c + i * g                 h' = o * tanh(c')

(Hochreiter & Schmidhuber 1997; Gers et al. 2000; `forget_bias` is in bf here.) A gate is one fixed chain: its bias, then a
fused multiply-add for each input feature, then for each unit of h. The chain of every (sequence, unit, gate) stays in a
register over the loop, and goes from it straight into the activation. A chain may also pause: its sum is stored as it is and
taken up again later, which changes no bit; nor does the size of the tile, which only chooses which chains run side by side.
"""

import itertools

import llvmlite.ir as ir

from lstmcli.kernel.layout import GATES, Column, Shape
from lstmcli.kernel.simd import I64, POINTER, Simd, Vector, fma, sigmoid, tanh

BOOLEAN = ir.IntType(1)


def cell(i: Vector, f: Vector, g: Vector, o: Vector, c: Vector) -> tuple[Vector, Vector]:
    """The gates' sums and the old c to the new (c, h)."""
    c = fma(sigmoid(f), c, sigmoid(i) * tanh(g))
    return c, sigmoid(o) * tanh(c)


def define(module: ir.Module, shape: Shape, rows: int) -> ir.Function:
    """The function in `module` that is the tile of `rows` lanes, rows <= shape.rows:

    tile(weights, table, lanes, inputs, recurrent, unit, units, resume, pause)

    weights          (inputs + recurrent, GATES, width)  in  of the units unit .. unit + width, zero past the last unit
    table            (COLUMNS, lanes) addresses          in  from the tile's first lane on; they point to
        BIAS         (panels, GATES, width)              in      where a chain begins
        SUMS         (panels, GATES, width)              in/out  where it pauses
        X            (inputs,)                           in      the step's input
        H            (recurrent,)                        in      the previous step's output
        C            (units,)                            in/out
        Y            (units,)                            out     the step's output; must not overlap H
    resume, pause    whether the chains go on from SUMS, and whether they stop there; a chain that does not ends in C and Y
    """
    name = f"lstm_tile_f{shape.bits}x{shape.width}_{rows}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, POINTER, *[I64] * 5, BOOLEAN, BOOLEAN]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    weights, table, lanes, inputs, recurrent, unit, units, resume, pause = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    simd = Simd(builder, shape.bits, shape.width)

    def addresses(column: int, offset: ir.Value) -> list[ir.Value]:
        """The column's addresses, `offset` floats on."""
        first = builder.mul(ir.Constant(I64, column), lanes)
        slots = [builder.gep(table, [builder.add(first, ir.Constant(I64, row))], source_etype=I64) for row in range(rows)]
        return [simd.at(builder.load(slot, typ=POINTER), offset) for slot in slots]

    def gate(base: ir.Value, number: int) -> ir.Value:
        return simd.at(base, ir.Constant(I64, number * shape.width))

    panel = builder.mul(unit, ir.Constant(I64, GATES))
    paused, biases = addresses(Column.SUMS, panel), addresses(Column.BIAS, panel)
    begin = [builder.select(resume, *pair) for pair in zip(paused, biases, strict=True)]
    sums = [[simd.load(gate(row, number)) for number in range(GATES)] for row in begin]
    start = ir.Constant(I64, 0)
    sums, weights = products(simd, sums, weights, addresses(Column.X, start), inputs)
    sums, _ = products(simd, sums, weights, addresses(Column.H, start), recurrent)

    with builder.if_else(pause) as (then, otherwise):
        with then:
            for gates, row in zip(sums, paused, strict=True):
                for number, value in enumerate(gates):
                    simd.store(value, gate(row, number))
        with otherwise:
            mask = simd.first(builder.sub(units, unit))
            for (i, f, g, o), c_row, y_row in zip(sums, addresses(Column.C, unit), addresses(Column.Y, unit), strict=True):
                c, h = cell(i, f, g, o, simd.load_masked(c_row, mask))
                simd.store_masked(c, c_row, mask)
                simd.store_masked(h, y_row, mask)
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
    for phi, start, step in [(k, ir.Constant(I64, 0), next_k), (here, weights, next_weights), (end, weights, next_weights)]:
        phi.add_incoming(start, before)
        phi.add_incoming(step, loop)
    flat = (itertools.chain.from_iterable(table) for table in (sums, running, added, done))
    for old, run, new, out in zip(*flat, strict=True):
        run.add_incoming(old.value, before)
        run.add_incoming(new.value, loop)
        out.add_incoming(old.value, before)
        out.add_incoming(new.value, loop)
    return [[Vector(simd, phi) for phi in gates] for gates in done], end
