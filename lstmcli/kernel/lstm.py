"""The LSTM kernel, ready to be called: from the cache, or compiled now."""

from collections.abc import Callable
from typing import NamedTuple

from lstmcli.kernel.layout import Options, Shape, tile_shape
from lstmcli.kernel.native import compiled
from lstmcli.kernel.native.cache import Compiled
from lstmcli.kernel.native.target import Target

PLAIN = Options()


class Kernel(NamedTuple):
    """The function of lanes.define for one tile shape, called with the address of its table and the number of the thread."""

    shape: Shape
    call: Callable[[int, int], None]


def recipe(bits: int, options: Options = PLAIN, amx: bool = False) -> compiled.Recipe:
    """Say how the kernel for floats of `bits` bits and cells with such options is made, for bfloat16 with AMX or without."""

    def compile_kernel(here: Target) -> Compiled:
        from lstmcli.kernel import lanes

        shape = tile_shape(here, bits, options.bfloat16, amx)
        return compiled.compile_function(here, shape, lanes.define(shape, options), flushes=options.bfloat16)

    return compiled.Recipe(f"lstm-f{bits}-amx" if amx else f"lstm-f{bits}", options, compile_kernel)


def recipe_here(bits: int, options: Options) -> compiled.Recipe:
    """Choose the recipe for this CPU: with AMX where bfloat16 is wanted, and the CPU and the system allow it."""
    if not options.bfloat16:
        return recipe(bits, options)
    from lstmcli.kernel.native.amx import may_use_amx

    return recipe(bits, options, may_use_amx())


@compiled.once
def load(bits: int, options: Options = PLAIN) -> Kernel:
    """Load that kernel for this CPU."""
    call, shape = compiled.load(recipe_here(bits, options))
    return Kernel(Shape(*shape), call)


def is_cached(bits: int, options: Options = PLAIN) -> bool:
    """Whether load() will find the kernel in the cache, and so take no time."""
    return compiled.is_cached(recipe_here(bits, options))
