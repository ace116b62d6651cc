"""What tests take from the system: tools, limits, file systems, faults. A test that lacks one is skipped and says which."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from helpers.command import LSTMCLI, SECONDS, Ran


def need(*tools: str) -> None:
    for tool in tools:
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")


@cache
def refusal(*command: str) -> str:
    """Returns the last line of what a command says that fails only where the system does not let it; empty: it ended well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1] if done.returncode else ""


def need_mounts() -> None:
    """For tests that mount, in a namespace of their own or not, which most containers may not."""
    need("mount", "unshare")
    mounts = "mount --bind / /mnt && mount -o remount,bind,ro /mnt && mount -t tmpfs tmpfs /mnt"
    if said := refusal("unshare", "-m", "sh", "-c", mounts):
        pytest.skip(f"mounting is not allowed here: {said}")


def need_registry() -> None:
    """For tests that install packages with pip."""
    options = ("-q", "--dry-run", "--no-deps", "--ignore-installed", "--retries", "1")
    if said := refusal(sys.executable, "-m", "pip", "install", *options, "hatchling"):
        pytest.skip(f"pip can install nothing here: {said}")


def under(prefix: list[object], *args: object, cwd: Path, env: Mapping[str, str] | None = None) -> Ran:
    """The command, started by another one such as strace or prlimit."""
    need(str(prefix[0]))
    command = [str(word) for word in (*prefix, *LSTMCLI, *args)]
    whole = os.environ | (env or {})
    done = subprocess.run(command, cwd=cwd, capture_output=True, env=whole, timeout=SECONDS, check=False)
    return Ran(done.returncode, done.stdout, done.stderr.decode())


def injected(call: str, what: str, *paths: object) -> list[object]:
    """For under(): strace, which lets calls fail; only those on the paths, if any are given."""
    on = [word for path in paths for word in ("-P", path)]
    return ["strace", "-f", "-o", "/dev/null", *on, "-e", f"trace={call}", "-e", f"inject={call}:{what}"]


def run_with_faults(folder: Path, **job: Any) -> list[dict[str, Any]]:
    """What helpers/faults.py tells of runs in this folder, whose files it puts back before each; job: see there."""
    call = [sys.executable, str(Path(__file__).parent / "faults.py"), json.dumps(job)]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=4 * SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def mounted(folder: Path, *args: object) -> Iterator[Path]:
    """A file system in the new folder: mount(8) with these arguments."""
    need_mounts()
    folder.mkdir(exist_ok=True)
    mount = ["mount", *map(str, args), str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, timeout=60, check=False)
    if any(lack in done.stderr for lack in ("loop device", "unknown filesystem type")):
        pytest.skip(f"this system lacks a device or a file system: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    try:
        yield folder
    finally:
        unmount, tries = ["umount", str(folder)], 100
        while (done := subprocess.run(unmount, capture_output=True, text=True, timeout=60, check=False)).returncode:
            tries -= 1  # busy for a moment after a process that had files there was killed
            assert tries, done.stderr
            time.sleep(0.05)


@contextmanager
def started(*args: object, cwd: Path, partial: Path, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """A run that has begun to compute; prefix: the words of a command that starts it."""
    need(*prefix[:1])
    command = [*prefix, *LSTMCLI, *map(str, args)]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            while running.poll() is None and not partial.exists():
                time.sleep(0.005)
            time.sleep(0.1)
            assert running.poll() is None
            yield running
        finally:
            running.kill()
