"""What the threads of a call know of each other: counters that they share, and how a thread waits for another one.

A thread that is waited for may not be running: its CPU is shared with another program, or with threads that spin. So a wait
spins for some microseconds, then lets others run, and at last sleeps, so that the system may move the other thread to this CPU.
"""

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lstmcli.kernel.vectors.simd import I64, POINTER

I32 = ir.IntType(32)
ADDRESSES = types.CPointer(types.int64)
SPINS = 2000  # some microseconds
YIELDING = 200_000  # ns, in which a thread that waits lets others run, before it sleeps
NAP = 50_000  # ns
LOW = (1 << 32) - 1


@intrinsic
def add(context: Any, counter: types.Type, count: types.Type) -> Any:
    """Add to counter[0] and return what it was, in one operation. All that others wrote before they added is then seen."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.atomic_rmw("add", *args, "acq_rel")

    return types.int64(ADDRESSES, types.int64), emit


@intrinsic
def read(context: Any, word: types.Type) -> Any:
    """Return word[0]. All that another thread wrote before it published or added that is then seen."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.load_atomic(args[0], "acquire", 8, typ=I64)

    return types.int64(ADDRESSES), emit


@intrinsic
def publish(context: Any, word: types.Type, value: types.Type) -> Any:
    """Set word[0], after all that this thread has written."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], args[0], "release", 8)
        return context.get_dummy_value()

    return types.none(ADDRESSES, types.int64), emit


@intrinsic
def sleep(context: Any, nanoseconds: types.Type) -> Any:
    """Sleep for less than a second."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        emit_sleep(builder, args[0])
        return context.get_dummy_value()

    return types.none(types.int64), emit


@intrinsic
def now(context: Any) -> Any:
    """Return the time of a clock that never goes back, in ns."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return emit_now(builder)

    return types.int64(), emit


@intrinsic
def wait_for(context: Any, word: types.Type, least: types.Type) -> Any:
    """Wait until the lower half of word[0] is `least` or more. Return since when the wait was a long one, in ns; 0: it was not.

    All that another thread wrote before it published or added that is then seen.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.call(define_wait(builder.module), [builder.bitcast(args[0], POINTER), args[1]])

    return types.int64(ADDRESSES, types.int64), emit


def define_wait(module: ir.Module) -> ir.Function:
    """Return the function in `module` that is wait_for()."""
    name = "lstm_wait"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(I64, [POINTER, I64]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    word, least = function.args
    start, look, again, spin, long, others, nap, end = (function.append_basic_block() for _ in range(8))
    builder = ir.IRBuilder(start)
    builder.branch(look)

    builder.position_at_end(look)
    spins, since = builder.phi(I64), builder.phi(I64)
    low = builder.and_(builder.load_atomic(word, "acquire", 8, typ=I64), ir.Constant(I64, LOW))
    builder.cbranch(builder.icmp_signed(">=", low, least), end, again)
    builder.position_at_end(again)
    more = builder.add(spins, ir.Constant(I64, 1))
    builder.cbranch(builder.icmp_signed("<", more, ir.Constant(I64, SPINS)), spin, long)
    builder.position_at_end(spin)
    emit_pause(builder)
    builder.branch(look)
    builder.position_at_end(long)
    time = emit_now(builder)
    began = builder.select(builder.icmp_signed("==", since, ir.Constant(I64, 0)), time, since)
    builder.cbranch(builder.icmp_signed("<", builder.sub(time, began), ir.Constant(I64, YIELDING)), others, nap)
    builder.position_at_end(others)
    emit_yield(builder)
    builder.branch(look)
    builder.position_at_end(nap)
    emit_sleep(builder, ir.Constant(I64, NAP))
    builder.branch(look)
    zero = ir.Constant(I64, 0)
    for block, count, first in [(start, zero, zero), (spin, more, since), (others, more, began), (nap, more, began)]:
        spins.add_incoming(count, block)
        since.add_incoming(first, block)

    builder.position_at_end(end)
    builder.ret(since)
    return function


def declared(builder: ir.IRBuilder, name: str, result: ir.Type, *kinds: ir.Type) -> ir.Function:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, kinds), name)


def emit_pause(builder: ir.IRBuilder) -> None:
    if "x86" in builder.module.triple:
        builder.call(declared(builder, "llvm.x86.sse2.pause", ir.VoidType()), [])


def emit_yield(builder: ir.IRBuilder) -> None:
    builder.call(declared(builder, "sched_yield", I32), [])


def emit_now(builder: ir.IRBuilder) -> ir.Value:
    time = two_words(builder)
    monotonic = ir.Constant(I32, 6 if "darwin" in builder.module.triple else 1)
    builder.call(declared(builder, "clock_gettime", I32, I32, POINTER), [monotonic, time])
    seconds, rest = (builder.load(builder.gep(time, [ir.Constant(I64, k)], source_etype=I64), typ=I64) for k in range(2))
    return builder.add(builder.mul(seconds, ir.Constant(I64, 1_000_000_000)), rest)


def emit_sleep(builder: ir.IRBuilder, nanoseconds: ir.Value) -> None:
    time = two_words(builder)
    builder.store(ir.Constant(I64, 0), builder.gep(time, [ir.Constant(I64, 0)], source_etype=I64))
    builder.store(nanoseconds, builder.gep(time, [ir.Constant(I64, 1)], source_etype=I64))
    builder.call(declared(builder, "nanosleep", I32, POINTER, POINTER), [time, ir.Constant(POINTER, None)])


def two_words(builder: ir.IRBuilder) -> ir.Value:
    """Return the address of a struct timespec: seconds, nanoseconds."""
    return builder.bitcast(cgutils.alloca_once(builder, I64, ir.Constant(I64, 2)), POINTER)
