"""The house: imports point down the table of rooms, modules form no circle, and no room outgrows a look."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import pages

PACKAGE = Path(__file__).parents[2] / "lstmcli"
# From the top to the bottom, in the order of docs/architecture.md: a room imports from those after it alone.
ROOMS = (
    *(
        "__main__",
        "cli/commands",
        "cli",
        "cli/report",
        "tools/inspect",
        "tools/bench",
        "cluster",
        "tools/compare",
        "tools",
        "__init__",
        "api",
        "run",
    ),
    *("results", "results/formats", "engine/chains", "engine"),
    *("weights/chains", "weights/chains/saved_model", "weights/chains/graphs", "weights", "weights/keras_format"),
    *("weights/tf_graph", "weights/onnx_graph", "inputs/ragged", "weights/torch_format"),
    *("weights/containers", "inputs", "inputs/beside", "model", "files/hdf5_bytes", "files"),
    *("kernel/threads", "kernel/heads", "kernel", "kernel/vectors", "kernel/native", "blocks", "errors", "version"),
)
FILES_OF_A_ROOM = 10
LINES_OF_A_FILE = 400

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room_of(path: Path) -> str:
    place = path.relative_to(PACKAGE)
    return place.parent.as_posix() if len(place.parts) > 1 else place.stem


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each module of the package that a file imports, inside functions as well, but not for types alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield node.lineno, whole if whole in MODULES else node.module


def test_every_file_is_in_a_room() -> None:
    assert {room_of(path) for path in MODULES.values()} <= set(ROOMS)


def test_unit_tests_stand_in_the_folders_of_their_rooms() -> None:
    here = Path(__file__).parent
    assert {path.parent.relative_to(here).as_posix() for path in here.rglob("test_*.py")} <= {*ROOMS, "."}


def test_imports_point_down() -> None:
    up = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in MODULES.values()
        for line, name in imports(path)
        if ROOMS.index(room_of(MODULES[name])) < ROOMS.index(room_of(path))
    ]
    assert not up, "\n".join(up)


def test_modules_form_no_circle() -> None:
    graph = {module: {name for _, name in imports(path)} - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_rooms_and_files_stay_small() -> None:
    rooms = [room_of(path) for path in MODULES.values() if path.parent != PACKAGE]
    assert {room: rooms.count(room) for room in rooms if rooms.count(room) > FILES_OF_A_ROOM} == {}
    assert len(list(PACKAGE.glob("*.py"))) <= 6
    long = {path.name: lines for path in MODULES.values() if (lines := path.read_text().count("\n")) > LINES_OF_A_FILE}
    assert long == {}


def test_the_page_has_the_same_table() -> None:
    rows = pages.table(pages.DOCS / "architecture.md", "The rooms")
    assert [name for names, _ in rows for name in re.findall(r"`(.*?)`", names)] == list(ROOMS)
