"""The cache of kernels: what is taken from it, where it may lie, and that it does not grow for ever."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.system_tools import mounted

import lstmcli
from lstmcli.kernel import lstm
from lstmcli.kernel.native import cache as kernel_cache
from lstmcli.kernel.native import compiled
from lstmcli.kernel.native.target import target

DAY = 24 * 60 * 60


@pytest.fixture(scope="session")
def kernel() -> kernel_cache.Compiled:
    return lstm.recipe(32).compile(target())


@pytest.fixture
def cache(tmp_path: Path, kernel: kernel_cache.Compiled, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache; compiling takes no time."""
    monkeypatch.setenv("LSTMCLI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "compile_function", lambda here, shape, function, **options: kernel)
    lstm.load.cache_clear()
    yield tmp_path / "cache"
    lstm.load.cache_clear()


def works() -> bool:
    lstm.load.cache_clear()
    x = np.ones((2, 3, 4), np.float32)
    outputs, _ = lstmcli.init_model(4, [5])(x)
    return bool(outputs.all())


def only_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_a_kernel_is_cached_once_it_is_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not lstm.is_cached(32)
    assert works()
    assert lstm.is_cached(32)
    assert not lstm.is_cached(64)
    monkeypatch.delattr(compiled, "compile_function")
    assert works()


@pytest.mark.parametrize(
    "head",
    [
        b"[]",
        b"1",
        b"null",
        b"{}",
        b'"sha256"',
        b"",
        b"{",
        b"\xff",
        b'{"sha256": 1, "symbol": "a", "shape": [], "object": 1}',
        b"[" * 100_000,
    ],
)
def test_damaged_kernels_are_compiled_again(head: bytes, cache: Path) -> None:
    assert works()
    path = only_file(cache)
    whole = path.read_bytes()
    path.write_bytes(head + whole[whole.index(b"\n") :])
    assert not lstm.is_cached(32)
    assert works()
    assert only_file(cache).read_bytes() == whole


def test_a_symbol_that_is_no_string(cache: Path) -> None:
    assert works()
    path = only_file(cache)
    path.write_bytes(path.read_bytes().replace(b'"symbol": "', b'"symbol": 1, "": "', 1))
    assert not lstm.is_cached(32)
    assert works()


def test_a_cut_kernel_is_compiled_again(cache: Path) -> None:
    assert works()
    path = only_file(cache)
    os.truncate(path, path.stat().st_size - 1)
    assert not lstm.is_cached(32)
    assert works()
    assert lstm.is_cached(32)


def test_a_link_to_a_private_folder_is_a_cache(cache: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "scratch" / "elsewhere"
    elsewhere.mkdir(mode=0o700, parents=True)
    cache.symlink_to(elsewhere)
    assert kernel_cache.cache_folder() == elsewhere
    assert works()
    assert lstm.is_cached(32)
    assert only_file(elsewhere).suffix == ".kernel"


def test_a_folder_that_others_can_write_is_no_cache(cache: Path, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    cache.symlink_to(open_to_all)
    assert kernel_cache.cache_folder() is None
    assert not lstm.is_cached(32)
    assert works()
    assert not list(open_to_all.iterdir())


@pytest.mark.root
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_belongs_to_somebody_else_is_not_loaded(what: str, cache: Path) -> None:
    assert works()
    os.chown(cache if what == "folder" else only_file(cache), 65534, 65534)
    assert not lstm.is_cached(32)
    assert works()


@pytest.mark.root
@pytest.mark.parametrize("options", ["size=4k", "ro"])
def test_a_cache_that_cannot_be_written(options: str, cache: Path) -> None:
    with mounted(cache, "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs"):
        assert works()
        assert not lstm.is_cached(32)
        assert not list(cache.iterdir())


@pytest.mark.root
def test_where_a_folder_is_full_the_next_one_is_taken(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(cache, "-t", "tmpfs", "-o", "mode=700,size=4k", "tmpfs"):
        assert "No space left" in kernel_cache.why_not_kept()
        monkeypatch.setenv("LSTMCLI_CACHE_DIR", f"{cache}:{tmp_path / 'next'}")
        assert works()
        assert lstm.is_cached(32)
        assert only_file(tmp_path / "next").suffix == ".kernel"


@pytest.mark.parametrize(("umask", "modes"), [(0o000, {0o755, 0o644}), (0o022, {0o755, 0o644}), (0o077, {0o700, 0o600})])
def test_others_may_read_what_the_umask_lets_them(umask: int, modes: set[int], cache: Path) -> None:
    before = os.umask(umask)
    try:
        assert works()
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (cache, only_file(cache))} == modes
    assert lstm.is_cached(32)


def test_a_link_to_nothing_is_no_cache(cache: Path, tmp_path: Path) -> None:
    cache.symlink_to(tmp_path / "no" / "where")
    assert kernel_cache.cache_folder() is None
    assert works()


def test_a_home_folder_that_the_system_does_not_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is too long here; one below a folder of somebody else's is refused as well."""
    for name in ("LSTMCLI_CACHE_DIR", "XDG_CACHE_HOME", "LSTMCLI_NO_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", f"/{'x' * 300}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert kernel_cache.cache_folder() == tmp_path / f"lstmcli-{os.geteuid()}"
    assert kernel_cache.why_not_kept() == "there is no home folder"


def test_old_kernels_are_removed(cache: Path) -> None:
    cache.mkdir(mode=0o700)
    now = time.time()
    for name, days in [("lstmcli-lstm-f32-old.kernel", 31), ("lstmcli-lstm-f64-new.kernel", 29), ("other", 99)]:
        (cache / name).write_bytes(b"")
        os.utime(cache / name, (now - days * DAY,) * 2)
    folder = cache / "lstmcli-folder.kernel"
    folder.mkdir()
    os.utime(folder, (now - 99 * DAY,) * 2)
    assert works()
    left = {path.name for path in cache.iterdir()}
    assert {"lstmcli-lstm-f64-new.kernel", "other", "lstmcli-folder.kernel"} < left
    assert len(left) == 4
    assert "lstmcli-lstm-f32-old.kernel" not in left


PROGRAM = """
import sys
import numpy as np
import lstmcli
outputs, _ = lstmcli.init_model(4, [5], seed=1)(np.ones((2, 3, 4), np.float32))
print(outputs.tobytes().hex(), "numba" in sys.modules, "llvmlite" in sys.modules)
"""


def test_a_cached_kernel_needs_llvm_only_where_there_is_no_linker(tmp_path: Path) -> None:
    if not shutil.which("ld"):
        pytest.skip("this system has no ld")
    results = set()
    for path, with_llvm in [(os.environ["PATH"], "False"), ("", "True")]:
        env = os.environ | {"PATH": path, "LSTMCLI_CACHE_DIR": str(tmp_path / f"cache{with_llvm}")}
        for loaded in (["True", "True"], ["False", with_llvm]):
            done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
            outputs, *modules = done.stdout.split()
            assert modules == loaded
            results.add(outputs)
    assert len(results) == 1


def test_a_library_that_the_system_refuses_is_not_needed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "shared_library", lambda code: b"\x7fELF, but no more")
    assert works()
    monkeypatch.delattr(compiled, "compile_function")
    assert works()


def test_several_kernels_at_once() -> None:
    kinds = lstm.PLAIN, lstm.PLAIN._replace(peephole=True)
    first, second = (lstm.load(32, kind) for kind in kinds)
    assert ctypes.cast(first.call, ctypes.c_void_p).value != ctypes.cast(second.call, ctypes.c_void_p).value


def test_threads_that_want_the_same_kernel_compile_it_once(
    cache: Path, kernel: kernel_cache.Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSTMCLI_NO_CACHE", "1")
    times: list[float] = []

    def compile_function(*what: object, **how: object) -> kernel_cache.Compiled:
        times.append(time.monotonic())
        time.sleep(0.2)
        return kernel

    monkeypatch.setattr(compiled, "compile_function", compile_function)
    with ThreadPoolExecutor(4) as threads:
        kernels = list(threads.map(lstm.load, [32] * 4))
    assert len(times) == 1
    assert kernels == kernels[:1] * 4


def test_without_the_cache_nothing_is_read_or_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert works()
    only_file(cache).write_bytes(b"")
    monkeypatch.setenv("LSTMCLI_NO_CACHE", "1")
    monkeypatch.delattr(compiled, "shared_library")  # it writes temporary files
    assert not lstm.is_cached(32)
    assert works()
    assert only_file(cache).read_bytes() == b""


def test_every_source_file_of_the_room_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> str:
        kernel_cache.common_key.cache_clear()
        return kernel_cache.common_key()

    room = shutil.copytree(kernel_cache.ROOM, tmp_path / "room")
    monkeypatch.setattr(kernel_cache, "ROOM", room)
    keys = {key()}
    sources = sorted(room.rglob("*.py"))
    assert {"tile.py", "linker.py"} <= {path.name for path in sources}
    for path in sources:
        path.write_text(path.read_text() + "\n")
        keys.add(key())
    (room / "new.py").write_text("")
    keys.add(key())
    kernel_cache.common_key.cache_clear()
    assert len(keys) == len(sources) + 2


def test_a_version_is_found_where_a_package_keeps_no_file_of_it() -> None:
    assert importlib.metadata.version("pytest") in kernel_cache.version_of("pytest")
    assert kernel_cache.version_of("click") == importlib.metadata.version("click")
