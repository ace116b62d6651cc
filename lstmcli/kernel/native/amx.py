"""The matrix registers of AMX: whether this CPU has them, and whether the system lets this process use them.

Linux gives their state to a process that asks for it, once for all of its threads, those that run already as well. Before, the
first instruction would end the process. A Linux older than 5.16 does not know the question, and a container may forbid it.
"""

import ctypes
import functools
import os
import platform

from lstmcli.kernel.native.target import AMX, CPU_VARIABLES, LEVELS, flags_here

ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18  # of x86-64, in Linux's asm/prctl.h and asm/fpu/types.h


@functools.cache
def may_use_amx() -> bool:
    """Say whether kernels with AMX may run in this process, and ask for it where the CPU has it."""
    return has_amx() and is_granted()


def has_amx() -> bool:
    """Say whether this CPU has AMX, or the one that NUMBA_CPU_FEATURES describes."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return False
    if (said := os.environ.get(CPU_VARIABLES[1])) is not None:
        return {f"+{feature}" for feature in ("avx512f", *AMX)} <= set(said.split(","))
    return LEVELS["x86_64"]["avx512"].flags | {feature.replace("-", "_") for feature in AMX} <= flags_here()


def is_granted() -> bool:
    call = ctypes.CDLL(None).syscall
    call.restype = ctypes.c_long
    return bool(call(*map(ctypes.c_long, (ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA))) == 0)
