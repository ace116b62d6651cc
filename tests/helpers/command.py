"""Runs the real command in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.files import snapshot

LSTMCLI = [sys.executable, "-m", "lstmcli"]
SYNCING = [sys.executable, str(Path(__file__).parent / "sync_every_block.py")]  # each block is put on disk and noted at once
SECONDS = 240  # a hang is a failure, not a wait


@dataclass(frozen=True)
class Ran:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> dict[str, Any]:
        value = json.loads(self.text)
        assert isinstance(value, dict)
        return value


def lstmcli(*args: object, cwd: Path, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Ran:
    command = [*LSTMCLI, *map(str, args)]
    done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, env=env, timeout=SECONDS, check=False)
    return Ran(done.returncode, done.stdout, done.stderr.decode())


def succeed(*args: object, cwd: Path, stdin: bytes = b"") -> Ran:
    ran = lstmcli(*args, cwd=cwd, stdin=stdin)
    assert ran.code == 0, ran.err
    return ran


def shell(line: str, cwd: Path, *args: object) -> Ran:
    """A bash line in which "$lstmcli" stands for the command; `args` are "$1", "$2", ... The code is the pipeline's."""
    script = f'lstmcli() {{ "{sys.executable}" -m lstmcli "$@"; }}; {line}'
    command = ["bash", "-o", "pipefail", "-c", script, "bash", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
    return Ran(done.returncode, done.stdout, done.stderr.decode())


def assert_one_line(ran: Ran, code: int, *words: object) -> None:
    """An expected failure: its exit code, nothing on stdout, one line on stderr that holds all the words."""
    assert ran.code == code, ran.err
    assert ran.out == b""
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].strip()
    assert "Traceback" not in lines[0]
    for word in words:
        assert str(word) in lines[0], f"{word!r} is not in: {lines[0]}"


def refuse(folder: Path, code: int, *words: object, args: list[str], stdin: bytes = b"") -> None:
    """The run is refused and no path in the folder comes, goes or changes."""
    before = snapshot(folder)
    ran = lstmcli("run", *args, "--output", "out.h5", cwd=folder, stdin=stdin)
    assert_one_line(ran, code, *words)
    assert snapshot(folder) == before
