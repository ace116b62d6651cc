"""The kernel compiled once, cached, and loaded fast.

Numba compiles it; the object is kept in a private folder, and beside it, where there is a linker, the library that the
system itself loads: a run whose kernel is cached then imports nothing of Numba and LLVM, which would be most of a short run.
Without a linker llvmlite loads the object. Native code is loaded only from a folder and a file that belong to the user and
that nobody else can write. A cache that cannot be used, for whatever reason, costs a compilation and nothing else.
"""

import ctypes
import functools
import hashlib
import itertools
import json
import os
import platform
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lstmcli.kernel.layout import Options, Shape

SOURCES = ("simd.py", "activations.py", "tile.py", "lanes.py", "layout.py", "compiled.py")
PLAIN = Options()
KEPT = 30 * 24 * 60 * 60  # seconds
LINKING = 20  # seconds, at most
CPU_FACTS = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags"}  # of x86, in /proc/cpuinfo
CPU_FACTS |= {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"}  # of Arm
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
        import llvmlite.binding as llvm

        return llvm.Target.from_triple(self.triple).create_target_machine(
            cpu=self.cpu, features=self.features, opt=3, reloc="pic", **options
        )


@functools.cache
def target() -> Target:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = llvm.get_host_cpu_features().flatten()
    return Target(llvm.get_process_triple(), cpu or llvm.get_host_cpu_name(), features)


class Compiled(NamedTuple):
    """Functions as the cache holds them."""

    symbols: list[str]
    shape: list[int]  # fields of the Shape that a kernel is made for
    code: bytes  # an object file
    shared: bytes  # a shared library of it; empty: there was no linker


@functools.cache
def load(bits: int, options: Options = PLAIN) -> Kernel:
    """The kernel for floats of `bits` bits and such cells on this CPU, from the cache or compiled now."""

    def compile_kernel() -> tuple[list[str], list[int], bytes]:
        here = target()
        shape = here.shape(bits)
        symbol, code = compile_object(here, shape, options)
        return [symbol], list(shape), code

    (place,), shape, keep_alive = cached(cache_path(bits, options), compile_kernel)
    return Kernel(Shape(*shape), place, PROTOTYPE(place), keep_alive)


def load_assembly(name: str, text: str, *symbols: str) -> tuple[list[int], Any]:
    """The addresses of functions in LLVM's language, likewise, and what keeps them in memory."""

    def compile_text() -> tuple[list[str], list[int], bytes]:
        import llvmlite.binding as llvm

        return list(symbols), [], target().machine().emit_object(llvm.parse_assembly(text))

    folder = cache_folder()
    path = folder and folder / f"lstm-{name}-{digest_of(cpu(), version_of('llvmlite'), text)[:32]}.kernel"
    places, _, keep_alive = cached(path, compile_text)
    return places, keep_alive


def cached(
    path: Path | None, compile_now: Callable[[], tuple[list[str], list[int], bytes]]
) -> tuple[list[int], list[int], Any]:
    """Addresses, shape, and what keeps the functions in memory: out of the file `path`, or compiled now and put there."""
    if path is not None:
        with suppress(OSError, ValueError, RuntimeError):
            return link(read(path))
    symbols, shape, code = compile_now()
    made = Compiled(symbols, shape, code, link_library(code))
    if path is not None:
        with suppress(OSError):
            write(path, made)
    return link(made)


def is_cached(bits: int, options: Options = PLAIN) -> bool:
    """Whether load() will find the kernel in the cache, and so take no time."""
    path = cache_path(bits, options)
    if path is not None:
        with suppress(OSError, ValueError, RuntimeError):
            read(path)
            return True
    return False


def compile_object(here: Target, shape: Shape, options: Options) -> tuple[str, bytes]:
    """The kernel's symbol and its object file."""
    import llvmlite.binding as llvm
    from numba import cfunc

    from lstmcli.kernel import lanes

    function = cfunc(lanes.SIGNATURE, nopython=True, error_model="numpy")(lanes.define(shape, options))
    module = llvm.parse_assembly(function._library.get_llvm_str())
    return function.native_name, here.machine().emit_object(module)


def link_library(code: bytes) -> bytes:
    """The shared library of an object file; empty where no linker makes one."""
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
        subprocess.run(command, check=True, capture_output=True, timeout=LINKING)
        return library.read_bytes()
    return b""


def link(made: Compiled) -> tuple[list[int], list[int], Any]:
    """Into this process."""
    if made.shared:
        with suppress(OSError, AttributeError):
            # From memory: what was read was checked, and a folder may forbid execution. The name must be new to the system's
            # loader, so the descriptor stays open.
            memory = os.memfd_create("lstmcli")
            with open(memory, "wb", closefd=False) as file:
                file.write(made.shared)
            library = ctypes.CDLL(f"/proc/self/fd/{memory}")
            places = [ctypes.cast(library[symbol], ctypes.c_void_p).value or 0 for symbol in made.symbols]
            return places, made.shape, library
    import llvmlite.binding as llvm

    jit = llvm.create_lljit_compiler(target().machine(jit=True))
    builder = llvm.JITLibraryBuilder().add_object_img(made.code).add_current_process()
    for symbol in made.symbols:
        builder.export_symbol(symbol)
    linked = builder.link(jit, made.symbols[0])
    return [linked[symbol] for symbol in made.symbols], made.shape, (linked, jit)


def cache_path(bits: int, options: Options) -> Path | None:
    folder = cache_folder()
    return folder and folder / cache_name(bits, options)


@functools.cache
def cache_name(bits: int, options: Options) -> str:
    folder = Path(__file__).parent
    parts = [cpu(), str(options), *(version_of(package) for package in ("numba", "llvmlite"))]
    parts += [(folder / source).read_text() for source in SOURCES]
    return f"lstm-f{bits}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.kernel"


@functools.cache
def cpu() -> str:
    """What tells CPUs apart for which LLVM may write different code: LLVM itself takes too long to load."""
    said = [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    with suppress(OSError), Path("/proc/cpuinfo").open() as file:
        facts = (line.partition(":") for line in itertools.takewhile(str.strip, file))
        return str(
            [*said, platform.machine(), *((name.strip(), value) for name, _, value in facts if name.strip() in CPU_FACTS)]
        )
    return str([*said, platform.system(), platform.machine(), platform.processor()])


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


def read(path: Path) -> Compiled:
    """What write() has put there; ValueError when it is damaged or somebody else's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not is_private(os.fstat(descriptor), stat.S_ISREG):
            raise ValueError(f"{path}: not the user's own")
        head, content = file.readline(), file.read()
    match json.loads(head):
        case {"symbols": [*symbols], "shape": [*shape], "object": int(size), "sha256": digest}:
            if digest == digest_of(symbols, shape, size, content):
                return Compiled(symbols, shape, content[:size], content[size:])
    raise ValueError(f"{path}: damaged")


def digest_of(*parts: Any) -> str:
    return hashlib.sha256(b"".join(part if isinstance(part, bytes) else repr(part).encode() for part in parts)).hexdigest()


def write(path: Path, made: Compiled) -> None:
    import tempfile

    symbols, shape, code, library = made
    digest = digest_of(symbols, shape, len(code), code + library)
    head = {"symbols": symbols, "shape": shape, "object": len(code), "sha256": digest}
    remove_old(path.parent)
    # Named like a kernel, so that what a killed process leaves is once removed.
    descriptor, temporary = tempfile.mkstemp(prefix="lstm-", suffix=".kernel", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(head).encode() + b"\n" + code + library)
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
