"""Runs the real command on a terminal of a given size."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from pathlib import Path

from helpers.command import LSTMCLI

ESCAPES = re.compile(r"\x1b\[[?\d;]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\\\)")


def on_terminal(*args: object, cwd: Path, columns: int = 80, **variables: str) -> str:
    """Returns all that a command writes to its terminal, escape sequences too. variables: of the environment."""
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    process, terminal = pty.fork()
    if not process:
        os.chdir(cwd)
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.execvpe(LSTMCLI[0], [*LSTMCLI, *map(str, args)], env | {"TERM": "xterm-256color"} | variables)
    written = bytearray()
    try:
        while piece := os.read(terminal, 1 << 16):
            written += piece
    except OSError:  # the command has ended
        pass
    os.close(terminal)
    os.waitpid(process, 0)
    return written.decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    """Returns what is left on the screen, as far as lines go: without escape sequences and what was drawn over."""
    return "\n".join(ESCAPES.sub("", line).rpartition("\r")[2] for line in text.split("\n"))
