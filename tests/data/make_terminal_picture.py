"""Draws the pictures of lstmcli/docs: commands in a terminal, as the program prints there.

python tests/data/make_terminal_picture.py [FOLDER]
"""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

TOP = Path(__file__).parents[2]
DOCS = TOP / "lstmcli" / "docs"
COMMANDS = {
    "run": "lstmcli run --input sample_data/x.h5 --lens sample_data/lens.npy --units 7",
    "inspect": "lstmcli inspect sample_data/vowels.h5",
    "bar": "lstmcli run --input speech.npy --units 256",  # of some seconds
}
COLUMNS = 84


def in_terminal(command: str, columns: int, progress: bool = False) -> str:
    """What the command prints where standard output is a terminal of so many columns, or the standard error of `progress`."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (40, columns))
    words = [sys.executable, "-m", *shlex.split(command)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {"stderr" if progress else "stdout": its}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sample_data").symlink_to(TOP / "sample_data")
        if progress:
            np.save(Path(folder) / "speech.npy", np.random.default_rng(0).standard_normal((3000, 100, 20), np.float32))
        env = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)}
        with subprocess.Popen(words, cwd=folder, env=env, **streams) as process:  # type: ignore[call-overload]
            os.close(its)
            printed = b""
            while True:
                try:
                    printed += os.read(ours, 1 << 16)
                except OSError:  # all is read, and nobody can write any more
                    break
    os.close(ours)
    assert process.returncode == 0, printed
    return printed.decode().replace("\r\n", "\n")


def seconds(printed: str) -> float:
    found = re.search(r" in ([0-9.e-]+) s", printed)
    return float(found[1]) if found else 0.0


def frames(printed: str) -> str:
    """What a bar was after a third and two thirds of its ways, and at its end, under each other."""
    drawn = list(dict.fromkeys(re.findall(r"[^\r\n]*steps/s[^\r\n]*", printed)))
    going = [frame for frame in drawn if "left" in frame]  # and not storing what was computed
    return "\n".join([going[len(going) // 3], going[2 * len(going) // 3], drawn[-1]])


def draw(name: str, tries: int = 1) -> str:
    """A picture of the fastest of some tries, for the machine may have been busy with something else."""
    if name == "bar":
        shown = frames(in_terminal(COMMANDS[name], COLUMNS, progress=True))
    else:
        shown = min((in_terminal(COMMANDS[name], COLUMNS) for _ in range(tries)), key=seconds)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {COMMANDS[name]}", style="bold green"))
    console.print(Text.from_ansi(shown))
    picture = console.export_svg(title="lstmcli", theme=MONOKAI, unique_id=name)
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # a picture fetches nothing from elsewhere


if __name__ == "__main__":
    for each in COMMANDS:
        (Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS).joinpath(f"{each}.svg").write_text(draw(each, tries=10))
