"""The kernel compiled once, cached, and loaded fast.

Numba compiles it; the object is kept in a private folder and loaded with llvmlite alone, so that a run whose kernel is
cached imports nothing of Numba (0.05 s instead of 0.7 s). Native code is loaded only from a folder and a file that belong to
the user and that nobody else can write. A cache that cannot be used, for whatever reason, costs a compilation and nothing else.
"""

import ctypes
import functools
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from lstmcli.kernel.layout import Shape

SOURCES = ("simd.py", "tile.py", "lanes.py", "layout.py", "compiled.py")
PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


@dataclass(frozen=True)
class Kernel:
    """The kernel of lanes.define for one shape; the call releases the GIL."""

    shape: Shape
    call: Callable[..., None]
    keep_alive: Any


@dataclass(frozen=True)
class Target:
    """The CPU to compile for: this one, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say."""

    triple: str
    cpu: str
    features: str

    def shape(self, bits: int) -> Shape:
        """The widest vectors, and as many rows of 4 gates as leave registers for the weights and the broadcast input."""
        enabled = self.features.split(",")
        size, rows = (64, 6) if "+avx512f" in enabled else (32, 3) if "+avx" in enabled else (16, 3)
        return Shape(bits, size * 8 // bits, rows)

    def machine(self, **options: Any) -> Any:
        return llvm.Target.from_triple(self.triple).create_target_machine(
            cpu=self.cpu, features=self.features, opt=3, reloc="pic", **options
        )


@functools.cache
def target() -> Target:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = llvm.get_host_cpu_features().flatten()
    return Target(llvm.get_process_triple(), cpu or llvm.get_host_cpu_name(), features)


@functools.cache
def load(bits: int) -> Kernel:
    """The kernel for floats of `bits` bits on this CPU, from the cache or compiled now."""
    here = target()
    shape = here.shape(bits)
    name = cache_name(here, shape)
    folder = cache_folder()
    if folder is not None:
        with suppress(OSError, ValueError, KeyError, RuntimeError):
            return link(shape, *read(folder / name))
    symbol, code = compile_object(here, shape)
    if folder is not None:
        with suppress(OSError):
            write(folder / name, symbol, code)
    return link(shape, symbol, code)


def compile_object(here: Target, shape: Shape) -> tuple[str, bytes]:
    """The kernel's symbol and its object file."""
    from numba import cfunc

    from lstmcli.kernel import lanes

    function = cfunc(lanes.SIGNATURE, nopython=True, error_model="numpy")(lanes.define(shape))
    module = llvm.parse_assembly(function._library.get_llvm_str())
    return function.native_name, here.machine().emit_object(module)


def link(shape: Shape, symbol: str, code: bytes) -> Kernel:
    jit = llvm.create_lljit_compiler(target().machine(jit=True))
    library = llvm.JITLibraryBuilder().add_object_img(code).export_symbol(symbol).add_current_process().link(jit, symbol)
    return Kernel(shape, PROTOTYPE(library[symbol]), (library, jit))


def cache_name(here: Target, shape: Shape) -> str:
    folder = Path(__file__).parent
    parts = [str(here), str(shape), *(version(package) for package in ("numba", "llvmlite"))]
    parts += [(folder / source).read_text() for source in SOURCES]
    return f"lstm-f{shape.bits}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.kernel"


def cache_folder() -> Path | None:
    """The folder of cached kernels, made when missing; None where there can be none that is the user's alone."""
    try:
        if named := os.environ.get("LSTMCLI_CACHE_DIR"):
            folder = Path(named)
        else:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lstmcli"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if is_private(folder.lstat(), stat.S_ISDIR) else None
    except (OSError, RuntimeError):
        return None


def is_private(status: os.stat_result, kind: Callable[[int], bool]) -> bool:
    return kind(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def read(path: Path) -> tuple[str, bytes]:
    """Symbol and object of a cached kernel; ValueError when it is damaged or somebody else's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not is_private(os.fstat(descriptor), stat.S_ISREG):
            raise ValueError(f"{path}: not the user's own")
        head, code = file.readline(), file.read()
    facts = json.loads(head)
    if facts["sha256"] != hashlib.sha256(code).hexdigest():
        raise ValueError(f"{path}: damaged")
    return facts["symbol"], code


def write(path: Path, symbol: str, code: bytes) -> None:
    head = json.dumps({"symbol": symbol, "sha256": hashlib.sha256(code).hexdigest()}).encode()
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(head + b"\n" + code)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
