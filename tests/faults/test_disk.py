"""Disks that are full, broken, read-only or cut off, and inputs that change: no lie, no loss, and the run can go on."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.command import SYNCING, Ran, assert_one_line, lstmcli, succeed
from helpers.small_run import SmallRun
from helpers.system_tools import injected, mounted, need, started, under

SHUTDOWN, WITHOUT_LOG = 0x8004587D, 2  # FS_IOC_SHUTDOWN: what was not synced is lost, as when the power goes


@pytest.fixture(scope="module")
def job(small_run: Callable[..., SmallRun]) -> SmallRun:
    return small_run(90, 40, 24, seed=3, formats=("x.h5", "chunked.h5"))


def finish(job: SmallRun, output: Path) -> None:
    """Goes on, to the bytes of an undisturbed run, and leaves nothing else."""
    succeed(*job.words(output), "--resume", cwd=job.folder)
    assert output.read_bytes() == job.result
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def assert_refused(ran: Ran, output: Path, code: int, *words: object) -> None:
    assert_one_line(ran, code, *words)
    assert not output.exists()


@pytest.mark.root
@pytest.mark.parametrize("inodes", [1, 2, 3, 4])
def test_no_room_for_another_file(inodes: int, job: SmallRun, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"nr_inodes={inodes}", "tmpfs") as disk:
        ran = lstmcli(*job.words(disk / "out.h5"), cwd=tmp_path)
        if ran.code:
            assert_refused(ran, disk / "out.h5", 74 if inodes == 3 else 73, "out.h5", "No space left on device")
        subprocess.run(["mount", "-o", "remount,nr_inodes=100", str(disk)], check=True)
        assert ran.code == 0 or inodes < 4
        if ran.code:
            finish(job, disk / "out.h5")


@pytest.mark.parametrize("size", [100, 20_000, 100_000])
def test_limit_on_the_size_of_files(size: int, job: SmallRun, tmp_path: Path) -> None:
    ran = under(["prlimit", f"--fsize={size}"], *job.words("out.h5"), cwd=tmp_path)
    assert_refused(ran, tmp_path / "out.h5", 74, "out.h5", "File too large")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", ["--compress gzip", "--compress gzip --layout per-sequence", "--layout flat"])
@pytest.mark.parametrize("size", [100, 20_000, 100_000])
def test_a_conversion_that_the_disk_has_no_room_for(size: int, options: str, job: SmallRun, tmp_path: Path) -> None:
    """libhdf5 crashes where it closes a compressed file that it could not write."""
    words = ["convert", job.folder / "x.npy", "out.h5", "-l", job.folder / "lens.npy", *options.split()]
    ran = under(["prlimit", f"--fsize={size}"], *words, cwd=tmp_path)
    assert_refused(ran, tmp_path / "out.h5", 74, "out.h5", "File too large")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("x", ["x.npy", "x.h5", "chunked.h5"])
@pytest.mark.parametrize("call", ["preadv,preadv2", "pread64"])
def test_a_device_error_while_the_input_is_read(x: str, call: str, job: SmallRun, tmp_path: Path) -> None:
    for number in (1, 7):
        args = [*job.words("out.h5", x), "--overwrite"]
        ran = under(injected(call, f"error=EIO:when={number}+", job.folder / x), *args, cwd=tmp_path)
        if ran.code == 0:
            break
        assert_refused(ran, tmp_path / "out.h5", 74, x, "Input/output error")
        if (tmp_path / "out.h5.journal").exists():
            assert "--resume" in ran.err
    assert number > 1 or ("h5" in x) != (call == "pread64")  # libhdf5 takes the one, the rest the other


SHORT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/types.h>
#include <sys/uio.h>
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
static size_t half(size_t count) { return count > 1 ? count / 2 : count; }
ssize_t pread(int f, void *b, size_t n, off_t o) { return REAL(pread)(f, b, half(n), o); }
ssize_t pread64(int f, void *b, size_t n, off64_t o) { return REAL(pread64)(f, b, half(n), o); }
ssize_t pwrite(int f, const void *b, size_t n, off_t o) { return REAL(pwrite)(f, b, half(n), o); }
ssize_t pwrite64(int f, const void *b, size_t n, off64_t o) { return REAL(pwrite64)(f, b, half(n), o); }
ssize_t preadv(int f, const struct iovec *v, int k, off_t o) {
    struct iovec one = {v->iov_base, half(v->iov_len)};
    return REAL(preadv)(f, &one, 1, o);
}
ssize_t preadv2(int f, const struct iovec *v, int k, off_t o, int flags) { return preadv(f, v, k, o); }
ssize_t preadv64v2(int f, const struct iovec *v, int k, off64_t o, int flags) { return preadv(f, v, k, o); }
ssize_t preadv64(int f, const struct iovec *v, int k, off64_t o) {
    struct iovec one = {v->iov_base, half(v->iov_len)};
    return REAL(preadv64)(f, &one, 1, o);
}
"""


@pytest.mark.parametrize("x", ["x.npy", "x.h5", "chunked.h5"])
def test_short_reads_and_writes(x: str, job: SmallRun, tmp_path: Path) -> None:
    need("gcc")
    (tmp_path / "short.c").write_text(SHORT)
    build = ["gcc", "-shared", "-fPIC", "-O1", "-o", "short.so", "short.c", "-ldl"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    ran = under(["env", f"LD_PRELOAD={tmp_path / 'short.so'}"], *job.words("out.h5", x), cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    succeed(*job.words("want.h5", x), cwd=tmp_path)
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "want.h5").read_bytes()
    (tmp_path / "of_npy.h5").write_bytes(job.result)
    files.assert_same_bits(*(files.read_result(tmp_path / name) for name in ("out.h5", "of_npy.h5")))


LONG = ["run", "-u", 256, "--threads", 1, "--max-memory", "8MB", "--progress", "none", "-q"]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inputs that take about two seconds."""
    folder = tmp_path_factory.mktemp("long")
    x = np.random.default_rng(0).normal(size=(1500, 60, 32)).astype(np.float32)
    files.write_npy(folder / "x.npy", x)
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(16, 60, 32))
    return folder


def copied(long: Path, folder: Path, name: str) -> Path:
    (folder / name).write_bytes((long / name).read_bytes())
    return folder / name


def change_while_it_runs(change: str, name: str, long: Path, folder: Path) -> Ran:
    x = copied(long, folder, name)
    with started(*LONG, "-i", name, "-o", "out.h5", cwd=folder, partial=folder / "out.h5.partial") as running:
        running.send_signal(signal.SIGSTOP)
        if change == "cut":
            os.truncate(x, 1 << 20)
        elif change == "written":
            x.write_bytes(x.read_bytes())
        else:
            (folder / "other").write_bytes(bytes(x.stat().st_size))
            (folder / "other").rename(x)
        running.send_signal(signal.SIGCONT)
        out, err = running.communicate(timeout=60)
    return Ran(running.returncode, out.encode(), err)


@pytest.mark.parametrize("name", ["x.npy", "x.h5"])
@pytest.mark.parametrize("change", ["cut", "written"])
def test_an_input_that_is_changed_while_it_is_read(change: str, name: str, long: Path, tmp_path: Path) -> None:
    ran = change_while_it_runs(change, name, long, tmp_path)
    assert_refused(ran, tmp_path / "out.h5", 65, name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_that_takes_the_name_of_the_input_is_not_read(long: Path, tmp_path: Path) -> None:
    assert change_while_it_runs("replaced", "x.npy", long, tmp_path).code == 0
    succeed(*LONG, "-i", long / "x.npy", "-o", "want.h5", cwd=tmp_path)
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "want.h5").read_bytes()


@pytest.mark.parametrize("output", ["pipe.h5", "device.h5", "folder.h5"])
def test_outputs_that_are_no_files(output: str, job: SmallRun, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "device.h5").symlink_to("/dev/null")
    (tmp_path / "folder.h5").mkdir()
    for option in (["--overwrite"], ["--resume"]):
        assert_one_line(lstmcli(*job.words(output), *option, cwd=tmp_path), 73, output)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe.h5", "device.h5", "folder.h5"}


@pytest.mark.parametrize(
    ("name", "error", "text"), [("link", "EROFS", "Read-only file system"), ("rename", "EXDEV", "Invalid cross-device link")]
)
def test_a_result_that_cannot_be_named_is_complete_and_said_to_be(
    name: str, error: str, text: str, job: SmallRun, tmp_path: Path
) -> None:
    overwrite = ["--overwrite"] if name == "rename" else []
    ran = under(injected(name, f"error={error}"), *job.words("out.h5"), *overwrite, cwd=tmp_path)
    assert_refused(ran, tmp_path / "out.h5", 74, text, "complete in out.h5.partial", "--resume")
    assert lstmcli("verify", "out.h5.partial", cwd=tmp_path).code == 0
    finish(job, tmp_path / "out.h5")


def test_file_systems_without_hard_links(job: SmallRun, tmp_path: Path) -> None:
    ran = under(injected("link", "error=EPERM"), *job.words("out.h5"), cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert (tmp_path / "out.h5").read_bytes() == job.result
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]


# Root may read and write everything, unless it gives that up.
NO_MORE_THAN_OTHERS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.root
def test_folders_and_files_without_permission(job: SmallRun, tmp_path: Path) -> None:
    need("setpriv")
    x = copied(job.folder, tmp_path, "x.npy")
    (tmp_path / "folder").mkdir(mode=0o500)
    args = ["run", "-i", x, "-u", 3, "-q", "-o"]
    ran = under(NO_MORE_THAN_OTHERS, *args, tmp_path / "folder" / "out.h5", cwd=tmp_path)
    assert_one_line(ran, 73, "out.h5", "Permission denied")
    x.chmod(0)
    assert_one_line(under(NO_MORE_THAN_OTHERS, *args, "out.h5", cwd=tmp_path), 66, "x.npy", "Permission denied")
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "folder"}
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--resume"]])
def test_read_only_file_system(option: list[str], job: SmallRun, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as disk:
        (disk / "old.h5").write_bytes(b"precious")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("out.h5", "old.h5"):
            ran = lstmcli(*job.words(disk / name), *option, cwd=tmp_path)
            assert_one_line(ran, 73, name, "exists" if name == "old.h5" and option != ["--overwrite"] else "Read-only")
        assert files.snapshot(disk) == {"old.h5": b"precious"}


@pytest.mark.root
def test_files_that_may_not_be_changed(job: SmallRun, tmp_path: Path) -> None:
    need("chattr")
    old = tmp_path / "out.h5"
    old.write_bytes(b"precious")
    if subprocess.run(["chattr", "+i", str(old)], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        ran = lstmcli(*job.words(old), "--overwrite", cwd=tmp_path)
        assert_one_line(ran, 74, "Operation not permitted", "complete in", "--resume")
        assert old.read_bytes() == b"precious"
    finally:
        subprocess.run(["chattr", "-i", str(old)], check=True)
    succeed(*job.words(old), "--overwrite", "--resume", cwd=tmp_path)
    assert old.read_bytes() == job.result


def cut_power(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", WITHOUT_LOG))
    os.close(fd)


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_power_goes(overwrite: bool, job: SmallRun, tmp_path: Path) -> None:
    """At random moments, and right after the command has said that all is done: the file's name is as it was, or complete."""
    need("mkfs.ext4")
    image, clock = tmp_path / "image", random.Random(4)
    golden, old = job.result, b"precious" if overwrite else None
    seen = set()
    for number in range(40):
        image.unlink(missing_ok=True)
        with image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-qF", str(image)], check=True)
        output = tmp_path / "disk" / "out.h5"
        journal = output.with_name("out.h5.journal")
        with mounted(output.parent, "-o", "loop", image):
            if old is not None:
                output.write_bytes(old)
            os.sync()
            args = [*job.words(output), *["--overwrite"] * overwrite]
            with subprocess.Popen([*SYNCING, *map(str, args)], stderr=subprocess.DEVNULL) as running:
                if number % 4:
                    spans = number % 2  # stored before; a fast machine is soon at the end
                    while running.poll() is None and lines_of(journal) <= spans:
                        time.sleep(0.002)
                    time.sleep(clock.uniform(0, 0.02 if spans else 0.3))
                else:
                    assert running.wait() == 0
                cut_power(output.parent)
                code = running.poll()
                running.kill()
        with mounted(output.parent, "-o", "loop", image):
            content = output.read_bytes() if output.exists() else None
            assert content in (old, golden)
            assert code != 0 or content == golden
            seen.add(-1 if content == golden else lines_of(journal))
            if content != golden:
                succeed(*args, "--resume", cwd=tmp_path)
                assert output.read_bytes() == golden
    assert -1 in seen
    assert max(seen) > 1  # lines: something was done
