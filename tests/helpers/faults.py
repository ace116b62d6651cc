"""Runs the command again and again, each time in a new process whose next call to the system goes wrong.

    python tests/helpers/faults.py '{"argv": ["run", ...], "output": "out.h5", "fault": "kill"}'

fault    kill     SIGKILL before the call
         torn     the same, but a write has stored half of its bytes
         ENOSPC   (or another errno) the call fails; "forever": and so do all that follow
         none     nothing happens: for the count of calls
argv     of the command; what is in the current folder when this begins is there again before each command
again    the number of the call at which the run that resumes is killed, before another one resumes
step     from one call to the next that is tried, instead of 1
stop     only this call goes wrong, and nothing is resumed afterwards

Calls are those that change files. Prints a JSON object for each process until one has no more calls that could go wrong. The
modules are loaded once and a process is a fork of this one, so that it takes milliseconds.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process with threads must not fork

CALLS = ("pwrite", "ftruncate", "posix_fallocate", "fsync", "fdatasync", "link", "unlink", "rename", "replace", "close", "open")
HIT = mmap.mmap(-1, 4096)  # shared with the children: the call that went wrong


class Fault:
    """Patches this process."""

    def __init__(self, kind: str, number: int, forever: bool) -> None:
        self.kind, self.number, self.forever = kind, number, forever
        self.count, self.lock = 0, threading.Lock()
        self.ours: set[int] = set()  # descriptors that are open for writing
        for name in (*CALLS, "dup"):
            setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, call: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            opens = name == "open" and args[1] & (os.O_WRONLY | os.O_RDWR) and args[0] != os.devnull
            if (name == "open" and not opens) or (name == "close" and args[0] not in self.ours):
                return call(*args, **options)
            if name != "dup" and self.strikes(name):
                if self.kind == "torn" and name == "pwrite":
                    call(args[0], args[1][: len(args[1]) // 2], args[2])
                if self.kind in ("kill", "torn"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if name == "close":
                    call(*args)
                raise OSError(number := getattr(errno, self.kind), os.strerror(number))
            result = call(*args, **options)
            if opens or name == "dup":
                self.ours.add(result)
            self.ours.discard(args[0] if name == "close" else -1)
            return result

        return wrapped

    def strikes(self, name: str) -> bool:
        with self.lock:
            self.count += 1
            if self.count == self.number:
                HIT[:16] = name.encode().ljust(16, b"\0")
            return self.kind != "none" and (self.count == self.number or (self.forever and self.count > self.number))


def command(argv: list[str], fault: tuple[str, int, bool] | None) -> tuple[int, str, str]:
    """Runs it in a child: its exit code (negative for a signal), its stderr, and the call that went wrong."""
    HIT[:16] = bytes(16)
    errors, into = os.pipe()
    if child := os.fork():
        os.close(into)
        with os.fdopen(errors) as stream:
            text = stream.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text, HIT[:16].strip(b"\0").decode()
    code = 120
    try:
        os.dup2(into, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["lstmcli", *argv]
        if fault:
            Fault(*fault)
        from lstmcli.__main__ import main

        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
    import h5py  # noqa: F401

    from lstmcli.cli.main import main  # noqa: F401
    from lstmcli.cluster import merge  # noqa: F401
    from lstmcli.kernel import lstm
    from lstmcli.results import journal
    from lstmcli.run.run import run  # noqa: F401

    job = json.loads(sys.argv[1])
    lstm.load(32)
    # Each block is put on disk before the next is stored, in one thread, so that the n-th call is the same in each process.
    journal.Journal.record = lambda self, done, result: (self.waiting.append(done), self._sync(result))  # type: ignore[assignment]
    if "stop" in job:
        command(job["argv"], (job["fault"], job["stop"], False))
        return
    before = {path: path.read_bytes() for path in Path().iterdir()}
    for number in range(1, 10_000, job.get("step", 1)):
        restore(before)
        code, stderr, call = command(job["argv"], (job["fault"], number, job.get("forever", False)))
        found: dict[str, Any] = {"call": call, "code": code, "stderr": stderr, "output": digest(Path(job["output"]))}
        if "again" in job:
            found["again"] = command([*job["argv"], "--resume"], ("kill", job["again"], False))[0]
        if code:
            found["resumed"], found["resumed_stderr"], _ = command([*job["argv"], "--resume"], None)
            found["result"] = digest(Path(job["output"]))
        found["left"] = sorted(str(path) for path in Path().iterdir() if path not in before)
        print(json.dumps(found), flush=True)
        if not call:
            break


def restore(before: dict[Path, bytes]) -> None:
    for path in Path().iterdir():
        if path not in before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path, content in before.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


if __name__ == "__main__":
    main()
