"""The register tile: one step of a few sequences for one panel of units.

    i = s(x Wi + h Ui + bi + pi*c)      f = s(x Wf + h Uf + bf + pf*c)      g = act(x Wg + h Ug + bg)
    c' = clip(f*c + i*g)                o = s(x Wo + h Uo + bo + po*c')     h' = clip((o * act(c')) P)

s is the sigmoid and act is tanh, unless a cell says otherwise. Peepholes p, clips and the projection P are left out where a
cell has none. `forget_bias` is part of bf here. (Hochreiter & Schmidhuber 1997; Gers et al. 2000; Sak et al. 2014.)

A gate is one fixed chain: its bias, then a fused multiply-add for each input feature, then one for each feature of h. The
chain of every (sequence, unit, gate) stays in a register over the loop, and goes from there into the activation. A chain may
also pause: its sum is stored as it is and taken up again later. That changes no bit. Nor does the size of the tile, which only
says which chains run side by side. With bfloat16 the chain is another one, that of bfloat16.py.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import llvmlite.ir as ir

from lstmcli.kernel import bfloat16
from lstmcli.kernel.layout import GATES, Argument, Column, Options, Shape
from lstmcli.kernel.vectors.activations import ACTIVATIONS, clipped
from lstmcli.kernel.vectors.simd import I64, POINTER, Simd, Vector, fetch_line, fma, join, one_nan, split

BOOLEAN, I8 = ir.IntType(1), ir.IntType(8)
Limits = dict[str, Vector]  # of the clips that a cell has
Term = tuple[list[ir.Value], ir.Value, ir.Value]  # addresses of rows, the first weight that is theirs, how many are


def cell(options: Options, gates: list[Vector], c: Vector, peephole: list[Vector], limits: Limits) -> tuple[Vector, Vector]:
    """Compute the new c and h (before the projection) from the sums of the gates and the old c."""
    s, act = ACTIVATIONS[options.recurrent_activation], ACTIVATIONS[options.activation]
    i, f, g, o = gates
    if options.peephole:
        i, f = fma(peephole[0], c, i), fma(peephole[1], c, f)
    i, g = s(clip(i, limits, "gate")), act(clip(g, limits, "gate"))
    f = c.simd.constant(1.0) - i if options.input_forget else s(clip(f, limits, "gate"))
    c = clip(fma(f, c, i * g), limits, "cell")
    if options.peephole:
        o = fma(peephole[2], c, o)
    return one_nan(c), one_nan(s(clip(o, limits, "gate")) * act(c))


def clip(x: Vector, limits: Limits, name: str) -> Vector:
    return clipped(x, -limits[name], limits[name]) if name in limits else x


class Coming(NamedTuple):
    """The panel that is next, which the tiles of this one fetch while they compute, each a part of it.

    Else memory would rest while all tiles but the first compute, and that one would wait for it, for twice its time where
    no cache holds the weights.
    """

    far: ir.Value  # bytes from this panel to that one
    turn: ir.Value  # number of the tile among those of the panel
    pace: ir.Value  # bytes that each tile fetches at a k


@dataclass(frozen=True)
class Tile:
    """What both kinds of tile need while their functions are written."""

    simd: Simd
    shape: Shape
    options: Options
    rows: int
    call: ir.Value
    table: ir.Value
    lanes: ir.Value
    coming: Coming | None = None

    def number(self, field: Argument) -> ir.Value:
        """Load an argument of the kernel call."""
        pointer = self.simd.builder.gep(self.call, [ir.Constant(I64, field)], source_etype=I64)
        return self.simd.builder.load(pointer, typ=I64)

    def pointer(self, field: Argument) -> ir.Value:
        return self.simd.builder.inttoptr(self.number(field), POINTER)

    def limit(self, field: Argument, simd: Simd) -> Vector:
        value = simd.builder.bitcast(self.number(field), ir.DoubleType())
        return simd.broadcast_value(value if self.shape.bits == 64 else simd.builder.fptrunc(value, ir.FloatType()))

    def addresses(self, column: Column, offset: ir.Value | None = None) -> list[ir.Value]:
        """Load the address that a column holds for each row, and go `offset` floats further."""
        builder = self.simd.builder
        first = builder.mul(ir.Constant(I64, column), self.lanes)
        slots = [builder.add(first, ir.Constant(I64, row)) for row in range(self.rows)]
        found = [builder.load(builder.gep(self.table, [slot], source_etype=I64), typ=POINTER) for slot in slots]
        return found if offset is None else [self.simd.at(pointer, offset) for pointer in found]

    def vector(self, base: ir.Value, number: int) -> ir.Value:
        """Return the address of vector number `number`."""
        return self.simd.at(base, ir.Constant(I64, number * self.shape.width))

    def products(
        self,
        sums: list[list[Vector]],
        weights: ir.Value,
        depth: ir.Value,
        terms: list[Term],
    ) -> list[list[Vector]]:
        """Add row[k] * weights[gate, first + k] for k in range(count) to sums[row][gate], for (rows, first, count) in terms.

        A gate is a vector of sums here: a gate of `width` units, or two gates of half as many.

        weights  (groups, depth, together, width)
        """
        builder, count = self.simd.builder, len(sums[0])
        together = min(self.shape.together, count)
        # With a few rows all gates fit into registers at once, and fewer chains would not keep the FMA units busy.
        at_once = count if self.rows * count <= self.shape.rows * together else together
        done: list[list[Vector]] = [[] for _ in sums]
        for first_gate in range(0, count, at_once):
            part = [row[first_gate : first_gate + at_once] for row in sums]
            groups = range(first_gate // together, (first_gate + at_once) // together)
            streams = [
                self.simd.at(weights, builder.mul(depth, ir.Constant(I64, g * together * self.shape.width))) for g in groups
            ]
            for rows, first, steps in terms:
                skip = builder.mul(first, ir.Constant(I64, together * self.shape.width))
                part = self.accumulate(part, [self.simd.at(stream, skip) for stream in streams], rows, steps)
            for row, gates in zip(done, part, strict=True):
                row += gates
        return done

    def accumulate(
        self, sums: list[list[Vector]], streams: list[ir.Value], rows: list[ir.Value], count: ir.Value
    ) -> list[list[Vector]]:
        """Write the loop `for k in range(count): sums[row][gate] += rows[row][k] * weights[k, gate]`.

        streams  where the weights (count, together, width) of each group of gates begin
        """
        if self.options.bfloat16:
            return bfloat16.accumulate(self.simd, sums, streams, rows, count, self.fetching(streams, count))
        simd, builder, together = self.simd, self.simd.builder, len(sums[0]) // len(streams)
        fetch = self.fetching(streams, count)
        before = builder.block
        loop, after = (builder.function.append_basic_block() for _ in range(2))
        builder.cbranch(builder.icmp_signed(">", count, ir.Constant(I64, 0)), loop, after)

        builder.position_at_end(loop)
        k = builder.phi(I64)
        running = [[builder.phi(simd.vector) for _ in gates] for gates in sums]
        here = builder.mul(k, ir.Constant(I64, together * self.shape.width))
        fetch(k)

        def value(row: int) -> Vector:
            return simd.broadcast(simd.at(rows[row], k))

        def weight(gate: int) -> Vector:
            return simd.load(self.vector(simd.at(streams[gate // together], here), gate % together))

        added: list[list[Vector]] = [[Vector(simd, old) for old in gates] for gates in running]
        # Of weights and values, the fewer stay in registers and the others come one at a time: the sums need the rest.
        if len(rows) < len(added[0]):
            values = [value(row) for row in range(len(rows))]
            for gate in range(len(added[0])):
                column = weight(gate)
                for gates, factor in zip(added, values, strict=True):
                    gates[gate] = fma(factor, column, gates[gate])
        else:
            columns = [weight(gate) for gate in range(len(added[0]))]
            for row, gates in enumerate(added):
                factor = value(row)
                gates[:] = [fma(factor, column, old) for column, old in zip(columns, gates, strict=True)]
        next_k = builder.add(k, ir.Constant(I64, 1))
        builder.cbranch(builder.icmp_signed("<", next_k, count), loop, after)

        builder.position_at_end(after)
        done = [[builder.phi(simd.vector) for _ in gates] for gates in sums]
        k.add_incoming(ir.Constant(I64, 0), before)
        k.add_incoming(next_k, loop)
        flat = (itertools.chain.from_iterable(table) for table in (sums, running, added, done))
        for old, run, new, out in zip(*flat, strict=True):
            run.add_incoming(old.value, before)
            run.add_incoming(new.value, loop)
            out.add_incoming(old.value, before)
            out.add_incoming(new.value, loop)
        return [[Vector(simd, phi) for phi in gates] for gates in done]

    def fetching(self, streams: list[ir.Value], count: ir.Value) -> Callable[[ir.Value], None]:
        """Return what fetches, at a k, some of the weights that come a panel after these streams of `count` k.

        With 32 registers the CPU's own prefetching keeps ahead, and this would cost time, as it would in a tile of few rows.
        """
        builder, few_registers = self.simd.builder, self.shape.together == (1 if self.options.bfloat16 else 2)
        if self.coming is None or not few_registers or 2 * self.rows <= self.shape.rows:
            return lambda k: None
        far, turn, pace = self.coming
        skip = builder.add(far, builder.mul(builder.mul(turn, pace), count))
        starts = [builder.gep(stream, [skip], source_etype=I8) for stream in streams]

        def fetch(k: ir.Value) -> None:
            for start in starts:
                fetch_line(builder, builder.gep(start, [builder.mul(k, pace)], source_etype=I8))

        return fetch


def internal(module: ir.Module, name: str, kinds: list[ir.Type]) -> ir.Function:
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    return function


def define(module: ir.Module, shape: Shape, options: Options, rows: int, half: bool) -> ir.Function:
    """Return the function in `module` that is the tile of `rows` lanes, rows <= shape.rows, two gates in a vector where `half`:

    tile(call, weights, table, lanes, far, turn, pace, unit, resume, pause)

    call             see layout.Argument                 in
    weights          (groups, E + P, together, width)    in      of the units unit .. unit + width
    table            (COLUMNS, lanes) addresses          in      from the tile's first lane on; they point to
        BIAS         (panels, GATES, width)              in      where a chain begins
        SUMS         (panels, GATES, width)              in/out  where it pauses
        X            (E,)                                in      the step's input
        H            (P,)                                in      the previous step's output
        ROUNDED      (padded(E) + padded(P),)            in      with bfloat16, instead of X and H
        C            (units,)                            in
        NEW_C        (units,)                            out     may be C
        Y or HIDDEN  (units,)                            out     h, or h before the projection; must not overlap H
    far, turn, pace  see Coming
    pause            whether the chains stop after the input products, in SUMS
    resume           whether they go on from there; a chain that does not pause ends in NEW_C and Y or HIDDEN
    """
    name = f"lstm_tile_{rows}{'_half' if half else ''}"
    if name in module.globals:
        return module.globals[name]
    function = internal(module, name, [POINTER, POINTER, POINTER, *[I64] * 5, BOOLEAN, BOOLEAN])
    call, weights, table, lanes, *coming, unit, resume, pause = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    simd = Simd(builder, shape.bits, shape.width)
    tile = Tile(simd, shape, options, rows, call, table, lanes, Coming(*coming))
    zero = ir.Constant(I64, 0)

    panel = builder.mul(unit, ir.Constant(I64, GATES))
    paused, biases = tile.addresses(Column.SUMS, panel), tile.addresses(Column.BIAS, panel)
    begin = [builder.select(resume, *pair) for pair in zip(paused, biases, strict=True)]
    sums = [[simd.load(tile.vector(row, number)) for number in range(GATES // 2 if half else GATES)] for row in begin]
    inputs, outputs = tile.number(Argument.INPUTS), tile.number(Argument.OUTPUTS)
    if options.bfloat16:  # x and h are one row
        inputs, outputs = bfloat16.words(builder, inputs), bfloat16.words(builder, outputs)
        depth = builder.add(inputs, outputs)
        first, end = builder.select(resume, inputs, zero), builder.select(pause, inputs, depth)
        both = tile.addresses(Column.ROUNDED, builder.mul(first, ir.Constant(I64, 2)))
        sums = tile.products(sums, weights, depth, [(both, first, builder.sub(end, first))])
    else:
        x = (tile.addresses(Column.X), zero, builder.select(resume, zero, inputs))
        h = (tile.addresses(Column.H), inputs, builder.select(pause, zero, outputs))
        sums = tile.products(sums, weights, builder.add(inputs, outputs), [x, h])

    with builder.if_else(pause) as (then, otherwise):
        with then:
            for gates, row in zip(sums, paused, strict=True):
                for number, value in enumerate(gates):
                    simd.store(value, tile.vector(row, number))
        with otherwise:
            if half:
                simd = Simd(builder, shape.bits, shape.half)
                sums = [[gate for both in row for gate in split(both, simd)] for row in sums]
            finish(tile, simd, sums, unit)
    builder.ret_void()
    return function


def finish(tile: Tile, simd: Simd, sums: list[list[Vector]], unit: ir.Value) -> None:
    """Write what follows the chains of a tile: c and h of the units from `unit` on, from sums[row][gate]."""
    options, builder = tile.options, simd.builder
    limits = {
        name: tile.limit(field, simd)
        for name, field, there in [
            ("cell", Argument.CELL_CLIP, options.cell_clip),
            ("gate", Argument.GATE_CLIP, options.gate_clip),
        ]
        if there
    }
    peephole = []
    if options.peephole:
        rows_at = simd.at(tile.pointer(Argument.PEEPHOLES_AT), builder.mul(unit, ir.Constant(I64, 3)))
        peephole = [simd.load(tile.vector(rows_at, number)) for number in range(3)]
    part = simd.part(builder.sub(tile.number(Argument.UNITS), unit))
    h_column = Column.HIDDEN if options.projection else Column.Y
    columns = [tile.addresses(column, unit) for column in (Column.C, Column.NEW_C, h_column)]
    for first in range(0, tile.rows, 2):
        # Two rows are one wide vector, so that their operations run side by side and not in turn.
        pair = range(first, min(first + 2, tile.rows))
        gates = [join([sums[row][gate] for row in pair]) for gate in range(GATES)]
        before = join([simd.load_part(columns[0][row], part) for row in pair])
        constants = [join([vector] * len(pair)) for vector in peephole]
        wide_limits = {name: join([limit] * len(pair)) for name, limit in limits.items()}
        after = cell(options, gates, before, constants, wide_limits)
        for row, c, h in zip(pair, *(split(vector, simd) for vector in after), strict=True):
            simd.store_part([(c, columns[1][row]), (h, columns[2][row])], part)


def finish_projection(tile: Tile, simd: Simd, sums: list[list[Vector]], first: ir.Value) -> None:
    """Write what follows the chains of a projection: h in GATES vectors of columns from `first` on, from sums[row][vector]."""
    builder = simd.builder
    limits = {"projection": tile.limit(Argument.PROJECTION_CLIP, simd)} if tile.options.projection_clip else {}
    for number in range(GATES):
        column = builder.add(first, ir.Constant(I64, number * simd.width))
        part = simd.part(builder.sub(tile.number(Argument.OUTPUTS), column))
        with builder.if_then(part.some):
            values = [one_nan(clip(row[number], limits, "projection")) for row in sums]
            simd.store_part(zip(values, tile.addresses(Column.Y, column), strict=True), part)


def define_projection(module: ir.Module, shape: Shape, options: Options, rows: int) -> ir.Function:
    """Return the function in `module` that projects h of `rows` lanes to one panel of GATES * width columns:

    project(call, weights, table, lanes, first)

    weights      (groups, units, together, width)  in   of the columns first .. first + GATES * width
    table        as for define(); its addresses point to
        HIDDEN   (units,)                          in      with bfloat16 ROUNDED (padded(units),) instead
        Y        (P,)                              out
    """
    name = f"lstm_projection_{rows}"
    if name in module.globals:
        return module.globals[name]
    function = internal(module, name, [POINTER, POINTER, POINTER, I64, I64])
    call, weights, table, lanes, first = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    simd = Simd(builder, shape.bits, shape.width)
    tile = Tile(simd, shape, options, rows, call, table, lanes)

    units, hidden = tile.number(Argument.UNITS), Column.HIDDEN
    if options.bfloat16:
        units, hidden = bfloat16.words(builder, units), Column.ROUNDED
    sums = [[simd.constant(0.0)] * GATES for _ in range(rows)]
    sums = tile.products(sums, weights, units, [(tile.addresses(hidden), ir.Constant(I64, 0), units)])
    finish_projection(tile, simd, sums, first)
    builder.ret_void()
    return function
