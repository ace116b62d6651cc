"""Products of bfloat16 numbers, as the AMX instruction TDPBF16PS defines them, computed by float32 FMAs that every CPU has.

Weights, x and h are rounded to bfloat16 (the upper half of a float32: to nearest, ties to even). Inputs come in blocks of
BLOCK, the last one filled up with zeros. For each block, two float32 sums begin at zero: one over the even places, one over the
odd ones, each by a fused multiply-add at a time, in order. The two are added, and then that is added to the gate's sum.

Subnormal numbers count as zero, in and out of every operation: the kernel runs in a mode of the CPU in which they do
(native/float_mode.py), as the instruction does by itself. So that also holds for c and for the activations.

The weights of two inputs share a word of 32 bits, as the instruction takes them: the even one in its lower half. On a CPU with
AMX, amx.py takes the place of accumulate(), with rows rounded to pairs as well.
"""

import itertools
from collections.abc import Callable

import llvmlite.ir as ir

from lstmcli.kernel.layout import BLOCK
from lstmcli.kernel.vectors.simd import I64, POINTER, Simd, Vector, fma

I16 = ir.IntType(16)
PAIRS = BLOCK // 2
UNROLLED = 4  # pairs in one turn of the inner loop


def words(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """Write layout.padded(count) / 2."""
    blocks = builder.sdiv(builder.add(count, ir.Constant(I64, BLOCK - 1)), ir.Constant(I64, BLOCK))
    return builder.mul(blocks, ir.Constant(I64, PAIRS))


def define_rounding(module: ir.Module, width: int, halves: bool) -> ir.Function:
    """Return the function in `module` that rounds a row: round(target, source, count)

    source  (count,) float32          in
    target  (padded(count),) float32  out  as layout.rounded() says, with zeros in the end; with `halves` their upper 16 bits
    """
    name = "lstm_round"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, POINTER, I64]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    target, source, count = function.args
    entry = function.append_basic_block()
    loop, after = (function.append_basic_block() for _ in range(2))
    builder = ir.IRBuilder(entry)
    simd, zero = Simd(builder, 32, width), ir.Constant(I64, 0)
    end = builder.mul(words(builder, count), ir.Constant(I64, 2))
    builder.cbranch(builder.icmp_signed(">", end, zero), loop, after)

    builder.position_at_end(loop)
    place = builder.phi(I64)
    place.add_incoming(zero, entry)
    part = simd.part(builder.sub(count, place))
    bits = builder.bitcast(simd.load_part(simd.at(source, place), part).value, simd.integers)

    def integers(value: int) -> ir.Constant:
        return ir.Constant(simd.integers, [value] * width)

    odd = builder.and_(builder.lshr(bits, integers(16)), integers(1))
    upper = builder.and_(builder.add(bits, builder.add(odd, integers(0x7FFF))), integers(0xFFFF0000))
    small = builder.icmp_unsigned("==", builder.and_(bits, integers(0x7F800000)), integers(0))
    upper = builder.select(small, builder.and_(bits, integers(0x80000000)), upper)
    is_nan = builder.icmp_unsigned(">", builder.and_(bits, integers(0x7FFFFFFF)), integers(0x7F800000))
    upper = builder.select(is_nan, integers(0x7FC00000), upper)
    if halves:
        upper = builder.trunc(builder.lshr(upper, integers(16)), ir.VectorType(I16, width))
        builder.store(upper, builder.gep(target, [place], source_etype=I16), align=2)
    else:
        simd.store(Vector(simd, builder.bitcast(upper, simd.vector)), simd.at(target, place))
    following = builder.add(place, ir.Constant(I64, width))
    place.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, after)

    builder.position_at_end(after)
    builder.ret_void()
    return function


def accumulate(
    simd: Simd,
    sums: list[list[Vector]],
    streams: list[ir.Value],
    rows: list[ir.Value],
    count: ir.Value,
    fetch: Callable[[ir.Value], None],
) -> list[list[Vector]]:
    """Write the loop that adds rows[row][k] * weights[k, gate] for all k to sums[row][gate], block by block.

    streams  where the words (count, together, width) of each group of gates begin
    rows     addresses of float32 numbers that are bfloat16, two for each word
    count    of words, a multiple of PAIRS
    fetch    called with each k, writes what fetches weights that come later
    """
    builder, together = simd.builder, len(sums[0]) // len(streams)
    before = builder.block
    outer, inner, end_of_block, after = (builder.function.append_basic_block() for _ in range(4))
    zero, nothing = ir.Constant(I64, 0), simd.constant(0.0).value
    builder.cbranch(builder.icmp_signed(">", count, zero), outer, after)

    builder.position_at_end(outer)
    block = builder.phi(I64)
    running = [[builder.phi(simd.vector) for _ in gates] for gates in sums]
    block_end = builder.add(block, ir.Constant(I64, PAIRS))
    builder.branch(inner)

    builder.position_at_end(inner)
    pair = builder.phi(I64)
    halves = [[[builder.phi(simd.vector) for _ in range(2)] for _ in gates] for gates in sums]
    added = [[[Vector(simd, old) for old in both] for both in gates] for gates in halves]
    shift = ir.Constant(simd.integers, [16] * simd.width)
    upper = ir.Constant(simd.integers, [0xFFFF0000] * simd.width)
    for k in range(UNROLLED):
        word = builder.add(pair, ir.Constant(I64, k))
        here = builder.mul(word, ir.Constant(I64, together * simd.width))
        fetch(word)
        even = builder.mul(word, ir.Constant(I64, 2))

        def values(row: int, even: ir.Value = even) -> list[Vector]:
            return [simd.broadcast(simd.at(rows[row], builder.add(even, ir.Constant(I64, odd)))) for odd in range(2)]

        def weights(gate: int, here: ir.Value = here) -> list[Vector]:
            place = builder.add(here, ir.Constant(I64, gate % together * simd.width))
            words = builder.bitcast(simd.load(simd.at(streams[gate // together], place)).value, simd.integers)
            both = builder.shl(words, shift), builder.and_(words, upper)
            return [Vector(simd, builder.bitcast(half, simd.vector)) for half in both]

        # As in tile.accumulate: what is fewer stays in registers.
        if len(rows) < len(sums[0]):
            factors = [values(row) for row in range(len(rows))]
            for gate in range(len(sums[0])):
                columns = weights(gate)
                for row, factor in enumerate(factors):
                    added[row][gate] = [fma(*three) for three in zip(factor, columns, added[row][gate], strict=True)]
        else:
            all_columns = [weights(gate) for gate in range(len(sums[0]))]
            for row in range(len(rows)):
                factor = values(row)
                for gate, columns in enumerate(all_columns):
                    added[row][gate] = [fma(*three) for three in zip(factor, columns, added[row][gate], strict=True)]
    next_pair = builder.add(pair, ir.Constant(I64, UNROLLED))
    builder.cbranch(builder.icmp_signed("<", next_pair, block_end), inner, end_of_block)
    pair.add_incoming(block, outer)
    pair.add_incoming(next_pair, inner)
    for old_gates, new_gates in zip(halves, added, strict=True):
        for old_both, new_both in zip(old_gates, new_gates, strict=True):
            for old, new in zip(old_both, new_both, strict=True):
                old.add_incoming(nothing, outer)
                old.add_incoming(new.value, inner)

    builder.position_at_end(end_of_block)
    totals = [
        [Vector(simd, old) + (even + odd) for old, (even, odd) in zip(gates, both, strict=True)]
        for gates, both in zip(running, added, strict=True)
    ]
    builder.cbranch(builder.icmp_signed("<", block_end, count), outer, after)
    block.add_incoming(zero, before)
    block.add_incoming(block_end, end_of_block)

    builder.position_at_end(after)
    done = [[builder.phi(simd.vector) for _ in gates] for gates in sums]
    flat = (itertools.chain.from_iterable(table) for table in (sums, running, totals, done))
    for first, run, total, out in zip(*flat, strict=True):
        run.add_incoming(first.value, before)
        run.add_incoming(total.value, end_of_block)
        out.add_incoming(first.value, before)
        out.add_incoming(total.value, end_of_block)
    return [[Vector(simd, phi) for phi in gates] for gates in done]
