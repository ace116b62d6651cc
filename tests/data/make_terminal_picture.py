"""Draws lstmcli/docs/run.svg: the example of the README in a terminal, as the program prints it there.

python tests/data/make_terminal_picture.py [FILE]
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

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

TOP = Path(__file__).parents[2]
PICTURE = TOP / "lstmcli" / "docs" / "run.svg"
COMMAND = "lstmcli run --input sample_data/x.h5 --lens sample_data/lens.npy --units 7"
COLUMNS = 84


def in_terminal(command: str, columns: int) -> str:
    """What the command prints on standard output when that is a terminal of so many columns, colours and all."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, columns))
    words = [sys.executable, "-m", *shlex.split(command)]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sample_data").symlink_to(TOP / "sample_data")
        env = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)}
        subprocess.run(words, cwd=folder, stdout=its, stderr=subprocess.PIPE, env=env, check=True, timeout=120)
    os.close(its)
    printed = b""
    while True:
        try:
            printed += os.read(ours, 1 << 16)
        except OSError:  # all is read, and nobody can write any more
            os.close(ours)
            return printed.decode().replace("\r\n", "\n")


def seconds(printed: str) -> float:
    found = re.search(r" in ([0-9.e-]+) s", printed)
    assert found, printed
    return float(found[1])


def draw(tries: int = 1) -> str:
    """The picture of the fastest of some tries, for the machine may have been busy with something else."""
    printed = [in_terminal(COMMAND, COLUMNS) for _ in range(tries)]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {COMMAND}", style="bold green"))
    console.print(Text.from_ansi(min(printed, key=seconds)))
    picture = console.export_svg(title="lstmcli", theme=MONOKAI, unique_id="run")
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # a picture fetches nothing from elsewhere


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE).write_text(draw(tries=30))
