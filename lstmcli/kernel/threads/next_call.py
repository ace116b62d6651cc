"""How a thread looks out for its next call, and how one is handed to it."""

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from lstmcli.kernel.memory import get, put
from lstmcli.kernel.threads.words import CALLED, LOOKS, RESTS, Word
from lstmcli.kernel.vectors.simd import I64
from lstmcli.kernel.waiting import ADDRESSES, emit_pause, emit_yield, now, publish, read

LOOKING = 100_000  # ns without a call, after which a thread rests: twice what Python takes between two calls of a small batch
SPINS = 50  # looks, some 2 us, before others may run and the clock is read
GAP = 50_000  # ns between two looks at the clock, from which on others have run on this CPU
RESTING = 5_000_000  # ns, for which a thread does not look out then, nor after it has looked out in vain: it would only spin
SHORTEST = 10_000  # ns, which a call takes at least, unless the thread came too late for it


@intrinsic
def exchange(context: Any, word: types.Type, expected: types.Type, value: types.Type) -> Any:
    """Set word[0] = value if it is `expected`, in one operation. Return whether it was so."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        found = builder.cmpxchg(*args, "acq_rel", "acquire")
        return builder.zext(builder.extract_value(found, 1), I64)

    return types.int64(ADDRESSES, types.int64, types.int64), emit


@intrinsic
def pause(context: Any) -> Any:
    """Let the CPU know that this is a loop that waits."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        emit_pause(builder)
        return context.get_dummy_value()

    return types.none(), emit


@intrinsic
def let_others_run(context: Any) -> Any:
    """Give the CPU to another thread that waits for it, if there is one."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        emit_yield(builder)
        return context.get_dummy_value()

    return types.none(), emit


@intrinsic
def call_at(context: Any, function: types.Type, table: types.Type, thread: types.Type) -> Any:
    """Call the function at an address, of compiled.SIGNATURE."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64.as_pointer(), I64])
        function = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(function, [builder.inttoptr(args[1], I64.as_pointer()), args[2]])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), emit


def define() -> Callable[..., None]:
    """Return the function as Numba compiles it with compiled.SIGNATURE."""

    def next_call(box, thread):  # type: ignore[no-untyped-def]
        """Run the first call, as thread number `thread`, and look out for others; as thread 0, hand one over (Word.TAKEN)."""
        if thread == 0:
            put(box, Word.TAKEN, exchange(box, LOOKS, CALLED))
            return
        kernel, table = get(box, Word.FIRST_KERNEL), get(box, Word.FIRST_TABLE)
        while True:
            began = now()
            call_at(kernel, table, thread)
            ended = now()
            publish(box, RESTS)
            if ended - began < SHORTEST or ended < get(box, Word.RESTING):
                return
            let_others_run()
            began = looked = now()
            if looked - ended > GAP:
                put(box, Word.RESTING, looked + RESTING)
                return
            publish(box, LOOKS)
            while read(box) == LOOKS:
                spins = 0
                while spins < SPINS and read(box) == LOOKS:
                    pause()
                    spins += 1
                time = now()
                if time - looked > GAP or time - began > LOOKING:
                    put(box, Word.RESTING, time + RESTING)
                    if exchange(box, LOOKS, RESTS) != 0:
                        return
                looked = time
            kernel, table = get(box, Word.KERNEL), get(box, Word.TABLE)

    return next_call
