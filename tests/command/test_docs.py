"""The documentation is whole and right: every option, command and exit code, every link, every example."""

from __future__ import annotations

import dataclasses
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import h5py
import pytest
from helpers import pages
from helpers.command import succeed
from helpers.pages import PAGES, README, TOP

from lstmcli import errors
from lstmcli.cli.main import lstmcli as cli
from lstmcli.model.tree import Cell

CONTRIBUTING = TOP / ".github" / "CONTRIBUTING.md"
WRITTEN = [README, CONTRIBUTING, TOP / "CHANGELOG.md", *PAGES]
# What a block of code may be. Those of two words are run by .ci/run, in tests/cluster, or not at all.
KINDS = {"sh", "python", "", "sh setup", "sh slurm", "sh dask", "sh slow", "python tensorflow"}
KINDS |= {"dockerfile", "python snakemake", "groovy", "yaml"}  # run by test_containers_page.py
EVERYTHING = "\n".join(page.read_text() for page in [README, *PAGES])


def commands(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child
            yield from commands(child, *path, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_begins_with_a_title_and_what_it_answers(page: Path) -> None:
    title, empty, answers = page.read_text().splitlines()[:3]
    assert re.fullmatch(r"# \S.*", title)
    assert not empty
    assert re.match(r"(What|Which|How|Where|Why) ", answers)


def test_the_readme_is_short_and_names_every_page() -> None:
    assert README.read_text().count("\n") <= 180
    assert {f"lstmcli/docs/{page.name}" for page in PAGES} <= {link.partition("#")[0] for link in pages.links(README)}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_links_hold(page: Path) -> None:
    for link in pages.links(page):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in pages.anchors(target), link
        assert page not in PAGES or target.parent == page.parent, f"{link}: would lead out of what is installed"


def test_every_command_is_on_a_page() -> None:
    names = [" ".join(path) for path, _ in commands(cli) if path]
    assert [name for name in names if not re.search(rf"\blstmcli {name}\b|`{name}\b", EVERYTHING)] == []


def test_every_option_is_on_a_page() -> None:
    options = {option for _, command in commands(cli) for param in command.params for option in param.opts if option[0] == "-"}
    missing = [option for option in sorted(options) if not re.search(rf"(?<![\w-]){option}(?![\w-])", EVERYTHING)]
    assert missing == []


def test_every_variable_of_the_environment_is_on_a_page() -> None:
    code = "\n".join(path.read_text() for path in (TOP / "lstmcli").rglob("*.py"))
    names = set(re.findall(r'"(LSTMCLI_[A-Z_]+[A-Z])"', code))
    assert "LSTMCLI_CACHE_DIR" in names
    assert [name for name in sorted(names) if name not in EVERYTHING] == []


def test_no_other_option_is_on_a_page() -> None:
    """Of the command, in examples and in the text: a page that names an option of yesterday helps nobody."""
    options = {option for _, command in commands(cli) for param in command.params for option in param.opts}
    foreign = {"--help", "--version"}  # click's own
    foreign |= {"--parsable", "--dependency", "--wrap"}  # sbatch
    foreign |= {"--host", "--interface", "--memory-limit", "--nthreads", "--nworkers", "--port", "--scheduler-file"}  # dask
    foreign |= {"--no-deps", "--no-build-isolation", "--format", "--check"}  # pip, ruff
    foreign |= {"--from"}  # containers
    foreign |= {"--arch", "--foreign", "--include", "--variant"}  # debootstrap
    foreign |= {"--only-binary", "--platform", "--python-version", "--target"}  # pip, for another machine
    foreign |= {f"--enable-{name}" for name in ("x", "avx", "evex", "amx", "all-optimizations", "memtype")}  # configure
    foreign |= {"--enable-protection-keys", "--enable-cet", "--enable-uintr", "--with-nogui", "--disable-docbook"}  # configure
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", EVERYTHING))
    assert sorted(named - options - foreign) == []


def test_the_exit_codes() -> None:
    kinds, codes = [errors.LstmcliError], {0, 130, 143}
    for kind in kinds:
        kinds += kind.__subclasses__()
        codes.add(kind.exit_code)
    listed = [int(code) for code, _ in pages.table(pages.DOCS / "pipelines.md", "Exit codes")]
    assert listed == sorted(codes)


def keys(value: Any, name: str = "") -> set[str]:
    if isinstance(value, dict):
        return {key for part, inner in value.items() for key in keys(inner, f"{name}.{part}" if name else part)}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return keys(value[0], f"{name}[]")
    return {name}


def test_the_json_of_a_run(tmp_path: Path, sample_x: Path, sample_lens: Path) -> None:
    found = succeed("run", "-i", sample_x, "-l", sample_lens, "-u", 7, "--json", cwd=tmp_path).json
    rows = pages.table(pages.DOCS / "pipelines.md", "The JSON of a run")
    listed = [key for names, _ in rows for key in re.findall(r"`(.*?)`", names)]
    assert len(set(listed)) == len(listed)
    assert set(listed) == keys(found)


def test_the_versions_of_the_formats(tmp_path: Path, sample_x: Path) -> None:
    from lstmcli.cluster import plan
    from lstmcli.results.journal import FORMAT

    succeed("run", "-i", sample_x, "-u", 7, "-o", "result.h5", cwd=tmp_path)
    succeed("model", "init", "--input-size", 20, "-u", 7, "-o", "model.h5", cwd=tmp_path)
    known = {plan.FORMAT: str(plan.FORMAT_VERSION), str(FORMAT["format"]): str(FORMAT["format_version"])}
    for name in ("result.h5", "model.h5"):
        with h5py.File(tmp_path / name) as file:
            known[file.attrs["format"]] = str(file.attrs["format_version"])
    for page, heading in [(pages.DOCS / "contributing.md", "Versions of the formats"), (TOP / "CHANGELOG.md", "File formats")]:
        rows = pages.table(page, heading)
        assert {row[1].strip("`"): row[2] for row in rows} == known, page.name


def test_all_that_a_cell_holds_is_on_the_page_about_the_model_file() -> None:
    text = (pages.DOCS / "model-file.md").read_text()
    assert [field.name for field in dataclasses.fields(Cell) if f"`{field.name}`" not in text] == []


def test_all_that_a_result_holds_is_on_the_page_about_results(tmp_path: Path, sample_x: Path, sample_lens: Path) -> None:
    save = "outputs,states,cells,layers"
    succeed("run", "-i", sample_x, "-l", sample_lens, "-u", 7, "--save", save, "-o", "result.h5", cwd=tmp_path)
    text = (pages.DOCS / "results.md").read_text()
    with h5py.File(tmp_path / "result.h5") as file:
        assert [name for name in file.attrs if f"`{name}`" not in text] == []
        assert [name for name in file if f"`/{name}" not in text] == []


def test_kinds_of_examples() -> None:
    found = {(page.name, kind) for page in WRITTEN for kind, _ in pages.examples(page)}
    assert sorted((name, kind) for name, kind in found if kind not in KINDS) == []
    for name in ("README.md", "inputs.md", "results.md", "pipelines.md", "cluster.md"):
        assert (name, "sh") in found


# Those of weights.md are run by test_weights_page.py.
WITH_EXAMPLES = [page for page in [README, *PAGES] if page.stem != "weights" and pages.examples(page, "sh", "python")]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    ran = pages.run_examples(page, tmp_path)
    if page == README:
        assert "accuracy 0.9595\n" in [one.text[-16:] for one in ran]


@pytest.mark.parametrize("name", ["run", "inspect", "bar"])
def test_a_picture_is_what_a_terminal_shows(name: str) -> None:
    module = runpy.run_path(str(TOP / "tests" / "data" / "make_terminal_picture.py"))

    def shown(picture: str) -> list[str]:
        lines = re.findall(r"<text [^>]*\by=\"([\d.]+)\"[^>]*>(.*?)</text>", picture)
        text = {y: "".join(part for at, part in lines if at == y).replace("&#160;", " ").rstrip() for y, _ in lines}
        if name == "bar":  # shorter and longer, at speeds of the machine
            return [re.sub(r"[━╸╺]+", "━", re.sub(r"[\d,:]+", "0", line)) for line in text.values()]
        return [re.sub(r"in .*", "in", line) if line.startswith("steps") else line for line in text.values()]

    assert shown((TOP / "lstmcli" / "docs" / f"{name}.svg").read_text()) == shown(module["draw"](name))
    assert module["COMMANDS"]["run"] in README.read_text()
    assert f"({name}.svg)" in EVERYTHING or f"/{name}.svg)" in EVERYTHING
