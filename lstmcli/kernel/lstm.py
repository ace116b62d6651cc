"""The LSTM kernel, ready to be called: from the cache, or compiled now."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from lstmcli.kernel.layout import Options, Shape, tile_shape
from lstmcli.kernel.native import compiled
from lstmcli.kernel.native.cache import Compiled
from lstmcli.kernel.native.target import Target

PLAIN = Options()


class Kernel(NamedTuple):
    """The function of lanes.define for one tile shape: its address, and its call, which releases the GIL."""

    shape: Shape
    address: int
    call: Callable[..., None]
    keep_alive: Any


def recipe(bits: int, options: Options = PLAIN) -> compiled.Recipe:
    """Say how the kernel for floats of `bits` bits and cells with such options is made."""

    def compile_kernel(here: Target) -> Compiled:
        from lstmcli.kernel import lanes

        shape = tile_shape(here, bits)
        return compiled.compile_function(here, shape, lanes.define(shape, options))

    return compiled.Recipe(f"lstm-f{bits}", options, compile_kernel)


@functools.cache
def load(bits: int, options: Options = PLAIN) -> Kernel:
    """Load that kernel for this CPU."""
    (address,), shape, keep_alive = compiled.load(recipe(bits, options))
    return Kernel(Shape(*shape), address, compiled.PROTOTYPE(address), keep_alive)


def is_cached(bits: int, options: Options = PLAIN) -> bool:
    """Whether load() will find the kernel in the cache, and so take no time."""
    return compiled.is_cached(recipe(bits, options))
