"""The kernel compiled once, cached, and loaded fast.

Numba compiles it; the object is kept in a private folder and loaded with llvmlite alone, so that a run whose kernel is
cached imports nothing of Numba, which would be most of a short run. Native code is loaded only from a folder and a file that
belong to the user and that nobody else can write. A cache that cannot be used, for whatever reason, costs a compilation and
nothing else.
"""

import ctypes
import functools
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm

from lstmcli.kernel.layout import Options, Shape

SOURCES = ("simd.py", "activations.py", "tile.py", "lanes.py", "layout.py", "compiled.py")
PLAIN = Options()
KEPT = 30 * 24 * 60 * 60  # seconds
PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


class Kernel(NamedTuple):
    """The kernel of lanes.define for one shape: its address, and the call, which releases the GIL."""

    shape: Shape
    address: int
    call: Callable[..., None]
    keep_alive: Any


class Target(NamedTuple):
    """The CPU to compile for: this one, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say."""

    triple: str
    cpu: str
    features: str

    def shape(self, bits: int) -> Shape:
        """The widest vectors, and tiles of 24 sums where there are 32 registers for them, of 12 where there are 16."""
        enabled = self.features.split(",")
        size = 64 if "+avx512f" in enabled else 32 if "+avx" in enabled else 16
        many = size == 64 or not self.triple.startswith(("x86_64", "i686"))
        return Shape(bits, size * 8 // bits, rows=6, together=4 if many else 2)

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
def load(bits: int, options: Options = PLAIN) -> Kernel:
    """The kernel for floats of `bits` bits and such cells on this CPU, from the cache or compiled now."""
    here = target()
    shape = here.shape(bits)
    path = cache_path(here, shape, options)
    if path is not None:
        with suppress(OSError, ValueError, KeyError, RuntimeError):
            return link(shape, *read(path))
    symbol, code = compile_object(here, shape, options)
    if path is not None:
        with suppress(OSError):
            write(path, symbol, code)
    return link(shape, symbol, code)


def is_cached(bits: int, options: Options = PLAIN) -> bool:
    """Whether load() will find the kernel in the cache, and so take no time."""
    here = target()
    path = cache_path(here, here.shape(bits), options)
    if path is not None:
        with suppress(OSError, ValueError, RuntimeError):
            read(path)
            return True
    return False


def compile_object(here: Target, shape: Shape, options: Options) -> tuple[str, bytes]:
    """The kernel's symbol and its object file."""
    from numba import cfunc

    from lstmcli.kernel import lanes

    function = cfunc(lanes.SIGNATURE, nopython=True, error_model="numpy")(lanes.define(shape, options))
    module = llvm.parse_assembly(function._library.get_llvm_str())
    return function.native_name, here.machine().emit_object(module)


def link(shape: Shape, symbol: str, code: bytes) -> Kernel:
    jit = llvm.create_lljit_compiler(target().machine(jit=True))
    library = llvm.JITLibraryBuilder().add_object_img(code).export_symbol(symbol).add_current_process().link(jit, symbol)
    return Kernel(shape, library[symbol], PROTOTYPE(library[symbol]), (library, jit))


def cache_path(here: Target, shape: Shape, options: Options) -> Path | None:
    folder = cache_folder()
    return folder and folder / cache_name(here, shape, options)


@functools.cache
def cache_name(here: Target, shape: Shape, options: Options) -> str:
    folder = Path(__file__).parent
    parts = [str(here), str(shape), str(options), *(version_of(package) for package in ("numba", "llvmlite"))]
    parts += [(folder / source).read_text() for source in SOURCES]
    return f"lstm-f{shape.bits}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.kernel"


def version_of(package: str) -> str:
    """The text of its _version.py: asking importlib.metadata loads so much that a start takes a tenth longer."""
    spec = find_spec(package)
    return (Path(spec.origin).parent / "_version.py").read_text() if spec and spec.origin else ""


def cache_folder() -> Path | None:
    """The folder of cached kernels, made when missing; None where there can be none that is the user's alone."""
    try:
        if named := os.environ.get("LSTMCLI_CACHE_DIR"):
            folder = Path(named)
        else:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lstmcli"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()  # a link to a private folder is one, wherever it lies
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
    match json.loads(head):
        case {"symbol": str(symbol), "sha256": digest} if digest == hashlib.sha256(code).hexdigest():
            return symbol, code
    raise ValueError(f"{path}: damaged")


def write(path: Path, symbol: str, code: bytes) -> None:
    head = json.dumps({"symbol": symbol, "sha256": hashlib.sha256(code).hexdigest()}).encode()
    remove_old(path.parent)
    # Named like a kernel, so that what a killed process leaves is once removed.
    descriptor, temporary = tempfile.mkstemp(prefix="lstm-", suffix=".kernel", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(head + b"\n" + code)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_old(folder: Path) -> None:
    """Removes kernels written long ago, most of them by other versions; one still in use is compiled again."""
    for path in folder.glob("lstm-*.kernel"):
        with suppress(OSError):
            if path.lstat().st_mtime < time.time() - KEPT:
                path.unlink()
