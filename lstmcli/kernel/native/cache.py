"""The cache of compiled functions: folders with one checked file each.

Native code is loaded only from a folder and a file that belong to the user or to root, and that nobody else can write. A cache
that cannot be used, for whatever reason, costs a compilation and nothing else.
"""

import errno
import functools
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lstmcli.kernel.native.sha256 import sha256
from lstmcli.kernel.native.target import cpu_facts, levels_here

ROOM = Path(__file__).parents[1]  # all that machine code is written by
KEPT_SECONDS = 30 * 24 * 60 * 60
KERNEL_BYTES = 1 << 20  # three times what the largest takes on the disk
ANOTHER_FOLDER = "LSTMCLI_CACHE_DIR names a folder for it, which must be yours alone"
PREFIX, SUFFIX = "lstmcli-", ".kernel"


class Compiled(NamedTuple):
    """A function as the cache holds it."""

    symbol: str
    shape: list[int]  # what its caller must know of how it was made
    code: bytes  # an object file
    library: bytes = b""  # a shared library of it; empty: there was no linker


def find(name: str, options: Any) -> Compiled | None:
    """Find the function `name` made with `options` for this CPU, or for the best of the LEVELS that it has."""
    for cpu in (cpu_facts(), *levels_here()[:1]):
        for folder in folders():
            with suppress(OSError, ValueError, RecursionError):
                return read(folder / file_name(name, options, cpu))
    return None


def keep(name: str, options: Any, cpu: str, made: Compiled) -> None:
    """Put a function into the cache, where there is one that can be written."""
    if (folder := cache_folder()) is not None:
        with suppress(OSError):
            write(folder / file_name(name, options, cpu), made)


def file_name(name: str, options: Any, cpu: str) -> str:
    """Name the file of a function made with `options` (told apart by their repr) for a CPU: its facts, or one of the LEVELS."""
    return f"{PREFIX}{name}-{digest_of(common_key(), cpu, options)[:32]}{SUFFIX}"


@functools.cache
def common_key() -> str:
    """Sum up what any machine code depends on besides the CPU: every source file of the room, the compilers' versions."""
    sources = [path.read_bytes() for path in sorted(ROOM.rglob("*.py"))]
    return digest_of(*map(version_of, ("numba", "llvmlite")), *sources)


def version_of(package: str) -> str:
    """Read a package's version from its _version.py, where it has one: importlib.metadata makes a start a tenth longer."""
    spec = find_spec(package)
    with suppress(OSError):
        if spec and spec.origin:
            return (Path(spec.origin).parent / "_version.py").read_text()
    from importlib.metadata import version

    return version(package)


def named_folders() -> list[Path]:
    """Name the folders where kernels may lie, the first to look in first; they need not be there.

    Where nothing is named and the home folder cannot be written, as in many containers, kernels outlive a run in TMPDIR.
    """
    if os.environ.get("LSTMCLI_NO_CACHE"):
        return []
    named = os.environ.get("LSTMCLI_CACHE_DIR", "").split(os.pathsep)
    return [folder for one in named for folder in ([Path(one)] if one else usual_folders())]


def usual_folders() -> list[Path]:
    """Name the folders of a list that does not say, or for an empty name in it: the user's, then one for temporary files."""
    home = []
    if found := os.environ.get("XDG_CACHE_HOME"):
        home = [Path(found) / "lstmcli"]
    else:
        with suppress(RuntimeError, OSError):  # neither HOME nor an entry for this user, or a folder that nobody may look into
            if Path.home().is_dir():
                home = [Path.home() / ".cache" / "lstmcli"]
    return [*home, temporary_folder()]


def temporary_folder() -> Path:
    """Name the folder for kernels where there is no home folder to keep them in."""
    return Path(os.environ.get("TMPDIR") or "/tmp", f"lstmcli-{os.geteuid()}")


def folders() -> Iterator[Path]:
    """Yield the folders that kernels may be loaded from."""
    for folder in named_folders():
        with suppress(OSError):
            yield safe_folder(folder)


def cache_folder() -> Path | None:
    """Find the folder that new kernels are put into, made when missing; None: see why_not_kept()."""
    for folder in named_folders():
        with suppress(OSError):
            return writable_folder(folder)
    return None


def why_not_kept() -> str:
    """Say why there is no folder for new kernels, or why it is not the first one; empty if that is the first."""
    if os.environ.get("LSTMCLI_NO_CACHE"):
        return "LSTMCLI_NO_CACHE is set"
    for folder in named_folders():
        try:
            writable_folder(folder)
        except OSError as error:
            return f"{folder}: {error.strerror}"
        return "there is no home folder" if folder == temporary_folder() else ""
    return ""


def writable_folder(folder: Path) -> Path:
    """Make a folder for new kernels, or find it. Raises OSError where it is full, or others can write it, or nobody can.

    Others may read it, if the umask lets them: what root compiles for an image is loaded by whoever runs there.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = safe_folder(folder)
    if not os.access(found, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    disk = os.statvfs(found)
    if disk.f_bavail * disk.f_frsize < KERNEL_BYTES or (disk.f_files and not disk.f_favail):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return found


def safe_folder(folder: Path) -> Path:
    """Follow links to a folder, wherever it lies. Raises OSError where others could put machine code into it."""
    found = folder.resolve(strict=True)
    if not is_safe(found.lstat(), stat.S_ISDIR):
        raise PermissionError(errno.EPERM, "others can write it")
    return found


def is_safe(status: os.stat_result, kind: Callable[[int], bool]) -> bool:
    """Say whether nobody but the user and root, who owns this program in an image, can have written it."""
    return kind(status.st_mode) and status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022


def read(path: Path) -> Compiled:
    """Read what write() has put there. Raises OSError, and ValueError when it is damaged or somebody else's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not is_safe(os.fstat(descriptor), stat.S_ISREG):
            raise ValueError(f"{path}: others can write it")
        head, content = file.readline(), file.read()
    match json.loads(head):
        case {"symbol": str(symbol), "shape": [*shape], "object": int(size), "sha256": digest}:
            if digest == digest_of(symbol, shape, size, content):
                return Compiled(symbol, shape, content[:size], content[size:])
    raise ValueError(f"{path}: damaged")


def write(path: Path, made: Compiled) -> None:
    """Put a file into the cache, whole or not at all, and remove old ones. Raises OSError."""
    symbol, shape, code, library = made
    digest = digest_of(symbol, shape, len(code), code + library)
    head = {"symbol": symbol, "shape": shape, "object": len(code), "sha256": digest}
    remove_old(path.parent)
    # Named like a kernel, so that what a killed process leaves is removed one day.
    temporary = path.with_name(f"{PREFIX}{os.urandom(8).hex()}{SUFFIX}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "wb") as file:
            file.write(json.dumps(head).encode() + b"\n" + code + library)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def remove_old(folder: Path) -> None:
    """Remove kernels written long ago, most of them by other versions; one still in use is compiled again."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with suppress(OSError):
            if path.lstat().st_mtime < time.time() - KEPT_SECONDS:
                path.unlink()


def digest_of(*parts: Any) -> str:
    joined = b"\0".join(part if isinstance(part, bytes) else repr(part).encode() for part in parts)
    return str(sha256(joined).hexdigest())
