"""Functions compiled for this CPU by Numba, once: then they come from the cache, which needs neither Numba nor LLVM.

To import Numba takes 0.5 s, most of a short run. `LSTMCLI_NO_CACHE=1` compiles in the process, and reads and writes no file.
"""

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

from lstmcli.kernel.native import cache
from lstmcli.kernel.native.cache import Compiled
from lstmcli.kernel.native.linker import link, shared_library
from lstmcli.kernel.native.target import CPU_VARIABLES, Target, cpu_facts, target

SIGNATURE = "void(CPointer(int64), int64)"  # function(table of numbers and addresses, number of the thread)
Kept = TypeVar("Kept")
PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


class Recipe(NamedTuple):
    """How machine code is made.

    name     of its file in the cache: what it computes, and for which floats, as in "lstm-f32"
    options  all that compile() depends on besides the source files of the room and the CPU, told apart by their repr
    compile  writes it for a CPU; imports what is slow (numba, llvmlite) only when it is called
    """

    name: str
    options: Any
    compile: Callable[[Target], Compiled]


class Loaded(NamedTuple):
    """A function in this process.

    call   call(address of its table, number of the thread), without the GIL; call.address is where it lies
    shape  what compile() said of it
    """

    call: Callable[[int, int], None]
    shape: list[int]


def once(function: Callable[..., Kept]) -> Callable[..., Kept]:
    """Keep what a function loads, as functools.cache() does, but never load it twice: threads that want it as well wait."""
    kept, lock = functools.cache(function), threading.Lock()

    @functools.wraps(function)
    def load_once(*args: Any) -> Kept:
        with lock:
            return kept(*args)

    load_once.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
    return load_once


def load(recipe: Recipe) -> Loaded:
    """Take a function from the cache, or compile it now and put it there."""
    if found := cache.find(recipe.name, recipe.options):
        with suppress(OSError, RuntimeError):
            return loaded(found)
    return loaded(keep(recipe, target(), cpu_facts()))


def keep(recipe: Recipe, here: Target, cpu: str) -> Compiled:
    """Compile a function for a CPU and put it into the cache, under what cache.file_name() takes for that CPU."""
    with settings_of_numba(here):
        made = recipe.compile(here)
    if cache.cache_folder() is not None:
        made = made._replace(library=shared_library(made.code))
        cache.keep(recipe.name, recipe.options, cpu, made)
    return made


@contextmanager
def settings_of_numba(here: Target) -> Iterator[None]:
    """Hides Numba's variables but those of the CPU: they change the code or end the compilation, unknown to the cache."""
    found = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("NUMBA_")}
    os.environ.update(
        (name, value) for name, value in zip(CPU_VARIABLES, (here.cpu, here.features), strict=True) if name in found
    )
    try:
        yield
    finally:
        os.environ.update(found)


def loaded(made: Compiled) -> Loaded:
    address, keep_alive = link(made.symbol, made.code, made.library)
    call = PROTOTYPE(address)
    call.address, call.keep_alive = address, keep_alive  # type: ignore[attr-defined]
    return Loaded(call, made.shape)


def is_cached(recipe: Recipe) -> bool:
    """Whether load() will find it in the cache, and so take no time."""
    return cache.find(recipe.name, recipe.options) is not None


def compile_function(here: Target, shape: Sequence[int], function: Callable[..., None], flushes: bool = False) -> Compiled:
    """Compile a Python function of SIGNATURE, written as Numba takes it, for the CPU `here`.

    flushes  whether subnormal numbers count as zero in it
    """
    import llvmlite.binding as llvm
    from numba import cfunc

    from lstmcli.kernel.native.float_mode import with_own_mode

    made = cfunc(SIGNATURE, nopython=True, error_model="numpy")(function)
    assembly, symbol = with_own_mode(made._library.get_llvm_str(), made.native_name, here.triple, flushes)
    return Compiled(symbol, list(shape), here.machine().emit_object(llvm.parse_assembly(assembly)))
