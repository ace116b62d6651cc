"""Reads the documentation: README.md and the pages of lstmcli/docs, their links and their examples."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from helpers.command import Ran, shell

TOP = Path(__file__).parents[2]
DOCS = TOP / "lstmcli" / "docs"
README = TOP / "README.md"
PAGES = sorted(DOCS.glob("*.md"))
FENCED = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


class Example(NamedTuple):
    """A block of code. kind: its language, and after it what it needs besides, such as `sh slurm`."""

    kind: str
    text: str


def examples(page: Path, *kinds: str) -> list[Example]:
    """The blocks of these kinds; all of them if none is given."""
    found = [Example(*match.groups()) for match in FENCED.finditer(page.read_text())]
    return [example for example in found if not kinds or example.kind in kinds]


def run_examples(page: Path, folder: Path) -> list[Ran]:
    """Runs those that need nothing else, one after the other, in `folder`, beside the sample data. Each must succeed."""
    (folder / "sample_data").symlink_to(TOP / "sample_data")
    done = []
    for kind, text in examples(page, "sh", "python"):
        line = f"set -e; {text}" if kind == "sh" else f'"{sys.executable}" -W error::SyntaxWarning -c "$1"'
        ran = shell(f"PATH={Path(sys.executable).parent}:$PATH; {line}", folder, text)
        assert ran.code == 0, f"{page.name}: {text}\n{ran.err}"
        done.append(ran)
    return done


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return FENCED.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """The targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """What a link may have after its #: the headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(page: Path, heading: str) -> Iterator[list[str]]:
    """The cells of the rows of the first table below a heading, without the head."""
    below = re.split(rf"^#+ {re.escape(heading)}$", page.read_text(), maxsplit=1, flags=re.MULTILINE)[1]
    rows = re.search(r"^\|[-:| ]+\|\n((?:\|.*\n)+)", below, re.MULTILINE)
    assert rows, f"{page.name}: no table below {heading}"
    for row in rows[1].splitlines():
        yield [cell.strip() for cell in row.strip("|").split("|")]
