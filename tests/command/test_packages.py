"""The wheel and the sdist: what they hold and say, and that they work from an empty folder."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers.command import SECONDS
from helpers.pages import DOCS, TOP
from helpers.system_tools import need_registry

from lstmcli.version import __version__

pytestmark = pytest.mark.slow
SDIST = f"lstmcli-{__version__}"


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=4 * SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that is built from it, so that the sdist is shown to be enough."""
    need_registry()
    folder = tmp_path_factory.mktemp("packages")
    run(sys.executable, "-m", "venv", "build", cwd=folder)
    run("build/bin/pip", "install", "-q", "hatchling", cwd=folder)
    run(folder / "build" / "bin" / "hatchling", "build", "-t", "sdist", "-d", folder, cwd=TOP)
    run("build/bin/pip", "wheel", "-q", "--no-deps", "-w", ".", f"{SDIST}.tar.gz", cwd=folder)
    return folder


def test_the_wheel_holds_the_package_alone(packages: Path) -> None:
    (wheel,) = packages.glob("*.whl")
    assert wheel.name == f"{SDIST}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = email.message_from_bytes(archive.read(f"{SDIST}.dist-info/METADATA"))
        entry_points = archive.read(f"{SDIST}.dist-info/entry_points.txt").decode()
    package = {path.relative_to(TOP).as_posix() for path in (TOP / "lstmcli").rglob("*.py")}
    pages = {path.relative_to(TOP).as_posix() for kind in ("*.md", "*.svg") for path in DOCS.glob(kind)}
    assert {name for name in names if ".dist-info/" not in name} == package | pages | {"lstmcli/py.typed"}
    assert f"{SDIST}.dist-info/licenses/LICENSE" in names
    assert "lstmcli = lstmcli.__main__:main" in entry_points
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == ("lstmcli", __version__, "MIT")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == (TOP / "README.md").read_text().strip()
    upper = [line for line in metadata.get_all("Requires-Dist") if re.match("numba.*<", line)]
    assert len(upper) == 1


def test_the_sdist_holds_what_its_tests_need(packages: Path) -> None:
    with tarfile.open(packages / f"{SDIST}.tar.gz") as archive:
        names = {name.removeprefix(f"{SDIST}/") for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "PKG-INFO", "tests/conftest.py"} <= names
    for folder in ("tests", "sample_data"):
        kept = {path.relative_to(TOP).as_posix() for path in (TOP / folder).rglob("*.*") if "cache" not in str(path)}
        assert {name for name in kept if (TOP / name).is_file()} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".partial.lock"))]


def test_the_wheel_works_from_an_empty_folder(packages: Path, tmp_path: Path) -> None:
    """In an environment of its own, with what it asks for itself; then the tests of the sdist, on that installation."""
    run(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = packages.glob("*.whl")
    run(python, "-m", "pip", "install", "-q", wheel, "pytest", "pytest-xdist", "hypothesis", cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(tmp_path / "venv" / "bin" / "lstmcli", "--version", cwd=empty) == f"lstmcli {__version__}\n"
    assert run(tmp_path / "venv" / "bin" / "lstmcli", "help", "containers", cwd=empty).startswith("# Containers")
    with tarfile.open(packages / f"{SDIST}.tar.gz") as archive:
        archive.extractall(empty, filter="data")
    source = empty / SDIST
    (source / "lstmcli").rename(empty / "not-the-installed-one")
    tests = ("tests/command/test_goldens.py", "tests/command/test_run.py", "tests/command/test_older_files.py")
    assert " passed" in run(python, "-m", "pytest", "-q", "-n", 0, *tests, cwd=source)
