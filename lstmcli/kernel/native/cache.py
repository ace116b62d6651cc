"""The cache of compiled functions: a private folder with one checked file each.

Native code is loaded only from a folder and a file that belong to the user and that nobody else can write. A cache that cannot
be used, for whatever reason, costs a compilation and nothing else.
"""

import functools
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lstmcli.kernel.native.target import cpu_facts

ROOM = Path(__file__).parents[1]  # all that machine code is written by
KEPT_SECONDS = 30 * 24 * 60 * 60
PREFIX, SUFFIX = "lstmcli-", ".kernel"


class Compiled(NamedTuple):
    """A function as the cache holds it."""

    symbol: str
    shape: list[int]  # what its caller must know of how it was made
    code: bytes  # an object file
    library: bytes = b""  # a shared library of it; empty: there was no linker


def cache_path(name: str, options: Any) -> Path | None:
    """Name the file for the function `name` made with `options` (told apart by their repr); None: no cache can be used."""
    folder = cache_folder()
    return folder and folder / f"{PREFIX}{name}-{digest_of(common_key(), options)[:32]}{SUFFIX}"


@functools.cache
def common_key() -> str:
    """Sum up all that any machine code depends on: every source file of the room, the compilers' versions, the CPU."""
    sources = [path.read_bytes() for path in sorted(ROOM.rglob("*.py"))]
    return digest_of(cpu_facts(), *map(version_of, ("numba", "llvmlite")), *sources)


def version_of(package: str) -> str:
    """Read a package's version from its _version.py, where it has one: importlib.metadata makes a start a tenth longer."""
    spec = find_spec(package)
    with suppress(OSError):
        if spec and spec.origin:
            return (Path(spec.origin).parent / "_version.py").read_text()
    from importlib.metadata import version

    return version(package)


def cache_folder() -> Path | None:
    """Find the folder of cached kernels, made when missing; None: it cannot be the user's alone, or LSTMCLI_NO_CACHE is set."""
    if os.environ.get("LSTMCLI_NO_CACHE"):
        return None
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
    """Read what write() has put there. Raises OSError, and ValueError when it is damaged or somebody else's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not is_private(os.fstat(descriptor), stat.S_ISREG):
            raise ValueError(f"{path}: not the user's own")
        head, content = file.readline(), file.read()
    match json.loads(head):
        case {"symbol": str(symbol), "shape": [*shape], "object": int(size), "sha256": digest}:
            if digest == digest_of(symbol, shape, size, content):
                return Compiled(symbol, shape, content[:size], content[size:])
    raise ValueError(f"{path}: damaged")


def write(path: Path, made: Compiled) -> None:
    """Put a file into the cache, whole or not at all, and remove old ones. Raises OSError."""
    import tempfile

    symbol, shape, code, library = made
    digest = digest_of(symbol, shape, len(code), code + library)
    head = {"symbol": symbol, "shape": shape, "object": len(code), "sha256": digest}
    remove_old(path.parent)
    # Named like a kernel, so that what a killed process leaves is removed one day.
    descriptor, temporary = tempfile.mkstemp(prefix=PREFIX, suffix=SUFFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(head).encode() + b"\n" + code + library)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_old(folder: Path) -> None:
    """Remove kernels written long ago, most of them by other versions; one still in use is compiled again."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with suppress(OSError):
            if path.lstat().st_mtime < time.time() - KEPT_SECONDS:
                path.unlink()


def digest_of(*parts: Any) -> str:
    return hashlib.sha256(b"\0".join(part if isinstance(part, bytes) else repr(part).encode() for part in parts)).hexdigest()
