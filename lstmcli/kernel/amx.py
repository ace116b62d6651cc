"""The tile in the registers of AMX: the sums of bfloat16.py, by the instruction TDPBF16PS itself.

A register holds a matrix: up to 16 lanes by 16 sums; 16 lanes by 32 inputs, which are a block of rounded rows; or 16 words of
two weights by 16 sums, as they lie in a panel. The instruction adds the products of a block to the sums, with the bits that
bfloat16.py defines. Subnormal numbers it counts as zero by itself. Four registers hold sums: a gate each, or two gates of two
blocks of lanes, so that a register of weights serves twice. What comes after the sums takes them from memory.

How many rows the registers have is a state of the CPU, set by configure() only where it changes: lanes are shared out evenly
among blocks. Rows past the last lane are computed as well, from whatever lies there, and go nowhere.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import llvmlite.ir as ir

from lstmcli.kernel import bfloat16
from lstmcli.kernel.layout import GATES, LINE_BYTES, Argument, Column, Options, Shape
from lstmcli.kernel.native.target import AMX, V4
from lstmcli.kernel.tile import BOOLEAN, Tile, finish, finish_projection, internal
from lstmcli.kernel.vectors.simd import I64, POINTER, Simd

I8 = ir.IntType(8)
MOST_ROWS = 16
# The numbers of the registers: of sums, of rounded rows (for each block), of weights.
SUMS, ROWS, WEIGHTS = (0, 1, 2, 3), (4, 5), (6, 7)
ROW_BYTES = GATES * LINE_BYTES  # of a lane's sums in memory
WORD_BYTES = 4  # of two rounded numbers
FEATURES = ",".join(f"+{feature}" for feature in (*V4, *AMX))


def instruction(builder: ir.IRBuilder, name: str, *args: ir.Value) -> None:
    name = f"llvm.x86.{name}"
    kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), args)


def register(number: int) -> ir.Constant:
    return ir.Constant(I8, number)


def with_amx(module: ir.Module, name: str, kinds: list[ir.Type]) -> ir.Function:
    """Declare a function that may use AMX, also where the rest of the module is for another CPU, as while Numba compiles it."""
    function = internal(module, name, kinds)
    # llvmlite knows no such attributes, and writes them as they are.
    set.add(function.attributes, f'"target-cpu"="x86-64-v4" "target-features"="{FEATURES}"')
    return function


def define_configure(module: ir.Module) -> ir.Function:
    """Return the function configure(rows): give the registers so many rows, 1 to MOST_ROWS; 0: leave them, with what they hold.

    What is left costs no time when the system lets another thread run.
    """
    name = "lstm_configure"
    if name in module.globals:
        return module.globals[name]
    function = with_amx(module, name, [I64])
    table = bytearray()
    for rows in range(MOST_ROWS + 1):
        bytes_of_row, row_count = bytearray(32), bytearray(16)
        for number in (*SUMS, *ROWS, *WEIGHTS):
            bytes_of_row[2 * number] = LINE_BYTES
            row_count[number] = MOST_ROWS if number in WEIGHTS else rows
        table += (bytes([1, *[0] * 15]) + bytes_of_row + row_count) if rows else bytes(64)
    kind = ir.ArrayType(I8, len(table))
    places = ir.GlobalVariable(module, kind, "lstm_configurations")
    places.linkage, places.global_constant, places.initializer = "internal", True, ir.Constant(kind, table)

    builder = ir.IRBuilder(function.append_basic_block())
    with builder.if_else(builder.icmp_signed("==", function.args[0], ir.Constant(I64, 0))) as (leave, use):
        with leave:
            instruction(builder, "tilerelease")
        with use:
            place = builder.mul(function.args[0], ir.Constant(I64, LINE_BYTES))
            instruction(builder, "ldtilecfg", builder.gep(places, [place], source_etype=I8))
    builder.ret_void()
    return function


@contextmanager
def loop(builder: ir.IRBuilder, end: ir.Value, first: ir.Value | None = None, step: int = 1) -> Iterator[ir.Value]:
    """Write `for number in range(first, end, step)`."""
    first = ir.Constant(I64, 0) if first is None else first
    before = builder.block
    body, after = (builder.function.append_basic_block() for _ in range(2))
    builder.cbranch(builder.icmp_signed("<", first, end), body, after)
    builder.position_at_end(body)
    number = builder.phi(I64)
    yield number
    following = builder.add(number, ir.Constant(I64, step))
    number.add_incoming(first, before)
    number.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, end), body, after)
    builder.position_at_end(after)


class Sums:
    """The sums of a tile while its functions are written: where they begin, the products, and where they lie then.

    rows   of the tile, at most 2 * block
    block  rows of a register
    count  vectors of sums in a row
    """

    def __init__(self, tile: Tile, rows: ir.Value, block: ir.Value, count: int) -> None:
        self.tile, self.builder, self.rows, self.block, self.count = tile, tile.simd.builder, rows, block, count
        self.at = self.builder.alloca(ir.ArrayType(I8, 2 * MOST_ROWS * ROW_BYTES))
        self.at.align, self.at.type = LINE_BYTES, POINTER

    def forward(self, base: ir.Value, offset: ir.Value | int) -> ir.Value:
        """Return the address so many bytes after another one."""
        offset = ir.Constant(I64, offset) if isinstance(offset, int) else offset
        return self.builder.gep(base, [offset], source_etype=I8)

    def row(self, number: ir.Value) -> ir.Value:
        return self.forward(self.at, self.builder.mul(number, ir.Constant(I64, ROW_BYTES)))

    def add(
        self, begin: tuple[ir.Value, ir.Value] | None, weights: ir.Value, depth: ir.Value, first: ir.Value, end: ir.Value
    ) -> None:
        """Add the products of the words first .. end.

        begin    where the sums are that they are added to, and bytes from row to row; None: they begin at zero
        weights  (groups, depth, together, width) words
        """
        builder, tile, together = self.builder, self.tile, self.tile.shape.together
        slot = builder.mul(ir.Constant(I64, Column.ROUNDED), tile.lanes)
        row = builder.load(builder.gep(tile.table, [slot], source_etype=I64), typ=POINTER)
        values = self.forward(row, builder.mul(first, ir.Constant(I64, WORD_BYTES)))
        word_bytes = ir.Constant(I64, together * LINE_BYTES)  # of a group of gates
        start = self.forward(weights, builder.mul(first, word_bytes))
        group = builder.mul(depth, word_bytes)
        streams = [self.forward(start, builder.mul(group, ir.Constant(I64, g))) for g in range(self.count // together)]
        words = builder.sub(end, first)
        gates = list(range(self.count))
        with builder.if_else(builder.icmp_signed("<=", self.rows, self.block)) as (one, two):
            with one:
                self.products(begin, 1, gates, streams, values, words)
            with two:
                for g, stream in enumerate(streams):
                    self.products(begin, 2, gates[g * together : (g + 1) * together], [stream], values, words)

    def products(
        self,
        begin: tuple[ir.Value, ir.Value] | None,
        blocks: int,
        gates: list[int],
        streams: list[ir.Value],
        values: ir.Value,
        words: ir.Value,
    ) -> None:
        """Write the loop for some gates of one block of lanes or of two."""
        builder, together = self.builder, len(gates) // len(streams)
        step = self.tile.number(Argument.ROUNDED_STEP)
        below = [ir.Constant(I64, 0), self.block][:blocks]  # rows before each block
        places = itertools.product(below, gates)
        sums = [(number, rows, gate) for number, (rows, gate) in zip(SUMS, places, strict=False)]
        for number, rows, gate in sums:
            if begin is None:
                instruction(builder, "tilezero", register(number))
            else:
                base = self.forward(begin[0], builder.mul(rows, begin[1]))
                instruction(builder, "tileloadd64", register(number), self.forward(base, gate * LINE_BYTES), begin[1])
        lanes = [self.forward(values, builder.mul(rows, step)) for rows in below]
        with loop(builder, words, step=bfloat16.PAIRS) as word:
            place = builder.mul(word, ir.Constant(I64, WORD_BYTES))
            for number, base in zip(ROWS, lanes, strict=False):
                instruction(builder, "tileloadd64", register(number), self.forward(base, place), step)
            place = builder.mul(word, ir.Constant(I64, together * LINE_BYTES))
            for number in range(len(gates)):
                weights, stride = WEIGHTS[number % len(WEIGHTS)], ir.Constant(I64, together * LINE_BYTES)
                base = self.forward(self.forward(streams[number // together], place), number % together * LINE_BYTES)
                instruction(builder, "tileloadd64", register(weights), base, stride)
                for b in range(blocks):
                    three = SUMS[b * len(gates) + number], ROWS[b], weights
                    instruction(builder, "tdpbf16ps", *map(register, three))
        for number, rows, gate in sums:
            place = self.forward(self.row(rows), gate * LINE_BYTES)
            instruction(builder, "tilestored64", register(number), place, ir.Constant(I64, ROW_BYTES))

    def copy(self, offset: ir.Value, out: bool) -> None:
        """Write the loop that takes paused sums of each lane, from `offset` on, or with `out` stores them."""
        simd, builder = self.tile.simd, self.builder
        with loop(builder, self.rows) as row:
            column = builder.add(builder.mul(ir.Constant(I64, Column.SUMS), self.tile.lanes), row)
            paused = builder.load(builder.gep(self.tile.table, [column], source_etype=I64), typ=POINTER)
            source, target = simd.at(paused, offset), self.row(row)
            if out:
                source, target = target, source
            for number in range(self.count):
                simd.store(simd.load(self.tile.vector(source, number)), self.tile.vector(target, number))

    def finish(self, write: Callable[[Tile, ir.Value], None], most: int) -> None:
        """Write the loop over the lanes, `most` at a time, with a tile for them and the address of their sums."""
        builder, tile = self.builder, self.tile
        whole = builder.and_(self.rows, ir.Constant(I64, -most))
        for first, end, count in ((None, whole, most), (whole, self.rows, 1))[: 2 if most > 1 else 1]:
            with loop(builder, end, first, count) as row:
                table = builder.gep(tile.table, [row], source_etype=I64)
                write(Tile(tile.simd, tile.shape, tile.options, count, tile.call, table, tile.lanes), self.row(row))


def define(module: ir.Module, shape: Shape, options: Options, half: bool) -> ir.Function:
    """Return the function in `module` that is a tile: tile(rows, block, call, weights, table, lanes, unit, resume, pause)

    rows   how many lanes, at most 2 * block
    block  the rows that configure() has given the registers
    The other arguments are those of tile.define. Of the column ROUNDED it takes the first address: rows are ROUNDED_STEP apart.
    """
    name = f"lstm_amx_tile{'_half' if half else ''}"
    if name in module.globals:
        return module.globals[name]
    function = with_amx(module, name, [I64, I64, POINTER, POINTER, POINTER, I64, I64, BOOLEAN, BOOLEAN])
    rows, block, call, weights, table, lanes, unit, resume, pause = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    simd = Simd(builder, shape.bits, shape.width)
    tile = Tile(simd, shape, options, 1, call, table, lanes)
    sums = Sums(tile, rows, block, GATES // 2 if half else GATES)
    zero = ir.Constant(I64, 0)

    panel = builder.mul(unit, ir.Constant(I64, GATES))
    with builder.if_then(resume):
        sums.copy(panel, out=False)
    biases = simd.at(tile.pointer(Argument.BIASES_AT), panel)  # the same for each lane
    begin = builder.select(resume, sums.at, biases), builder.select(resume, ir.Constant(I64, ROW_BYTES), zero)
    inputs, outputs = (bfloat16.words(builder, tile.number(field)) for field in (Argument.INPUTS, Argument.OUTPUTS))
    depth = builder.add(inputs, outputs)
    sums.add(begin, weights, depth, builder.select(resume, inputs, zero), builder.select(pause, inputs, depth))

    def write(some: Tile, at: ir.Value) -> None:
        gate = Simd(builder, shape.bits, shape.half if half else shape.width)
        rows = [simd.at(at, ir.Constant(I64, row * GATES * shape.width)) for row in range(some.rows)]
        places = [ir.Constant(I64, number * gate.width) for number in range(GATES)]
        gates = [[gate.load(gate.at(row, place)) for place in places] for row in rows]
        finish(some, gate, gates, unit)

    with builder.if_else(pause) as (then, otherwise):
        with then:
            sums.copy(panel, out=True)
        with otherwise:
            sums.finish(write, 2)
    builder.ret_void()
    return function


def define_projection(module: ir.Module, shape: Shape, options: Options) -> ir.Function:
    """Return the function in `module` that projects h of a tile: project(rows, block, call, weights, table, lanes, first)

    The arguments are those of define() and of tile.define_projection.
    """
    name = "lstm_amx_projection"
    if name in module.globals:
        return module.globals[name]
    function = with_amx(module, name, [I64, I64, POINTER, POINTER, POINTER, I64, I64])
    rows, block, call, weights, table, lanes, first = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    simd = Simd(builder, shape.bits, shape.width)
    tile = Tile(simd, shape, options, 1, call, table, lanes)
    sums = Sums(tile, rows, block, GATES)
    units = bfloat16.words(builder, tile.number(Argument.UNITS))
    sums.add(None, weights, units, ir.Constant(I64, 0), units)

    def write(some: Tile, at: ir.Value) -> None:
        finish_projection(some, simd, [[simd.load(some.vector(at, number)) for number in range(GATES)]], first)

    sums.finish(write, 1)
    builder.ret_void()
    return function
