"""What tells a user how to go on: --help, the pages of `lstmcli help`, completion, variables, and LSTMCLI_TRACEBACK."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, shell, succeed
from helpers.pages import DOCS, PAGES
from helpers.system_tools import need

from lstmcli.cli.command import HEADINGS, PLAIN_INPUTS
from lstmcli.cli.main import lstmcli as cli
from lstmcli.version import __version__

Words = tuple[str, ...]


def commands(command: click.Command = cli, *path: str) -> Iterator[tuple[Words, click.Command]]:
    """Every command that is no group, with the words that call it."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child
            yield from commands(child, *path, name)
    else:
        yield path, command


EVERY = pytest.mark.parametrize(("path", "command"), [pytest.param(*found, id=" ".join(found[0])) for found in commands()])


def sections(text: str) -> dict[str, str]:
    """The blocks of a help text by their headings; what stands above the first has the key ''."""
    parts = re.split(r"^(\w[\w ]*):\n", "\n" + text, flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


@EVERY
def test_every_option_stands_under_a_heading(path: Words, command: click.Command, tmp_path: Path) -> None:
    found = sections(succeed(*path, "--help", cwd=tmp_path).text)
    shown = {
        name: heading for heading in found for name in re.findall(r"^  (?:-\w, )?(--[\w-]+)", found[heading], re.MULTILINE)
    }
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert shown == {max(param.opts, key=len): getattr(param, "heading", None) for param in options} | {"--help": "Messages"}
    assert set(shown.values()) <= set(HEADINGS)
    assert [heading for heading in found if heading in HEADINGS] == [heading for heading in HEADINGS if heading in found]


@EVERY
def test_help_is_made_of_sentences(path: Words, command: click.Command) -> None:
    for param in command.params:
        if isinstance(param, click.Option):
            assert re.fullmatch(r"[A-Z].*\.", param.help or ""), f"{param.opts}: {param.help}"
    assert re.match(r"[A-Z].*[.?]", command.help or "")


@EVERY
def test_help_has_an_example_and_says_where_to_read_on(path: Words, command: click.Command, tmp_path: Path) -> None:
    found = sections(succeed(*path, "--help", cwd=tmp_path).text)
    assert f"lstmcli {' '.join(path)}" in found["Examples"]
    topics = re.findall(r"lstmcli help ([\w-]+)", found.get("Read on", "") + found["Examples"])
    assert topics
    assert {f"{topic}.md" for topic in topics} <= {page.name for page in PAGES}


@EVERY
def test_examples_are_usages_that_the_command_accepts(path: Words, command: click.Command) -> None:
    for line in getattr(command, "examples", ()):
        for call in re.findall(r"\blstmcli ([^|>)]*)", line):
            words = shlex.split(call)
            found: click.Command = cli
            while isinstance(found, click.Group):
                found = found.get_command(click.Context(found), words.pop(0))
            context = found.make_context("lstmcli", words)
            assert set(context.params) == {param.name for param in found.params} - {PLAIN_INPUTS}


@EVERY
def test_every_option_has_its_variable(path: Words, command: click.Command) -> None:
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.name == max(param.opts, key=len)[2:].replace("-", "_")
            assert param.allow_from_autoenv


def test_choices_and_defaults_are_shown(tmp_path: Path) -> None:
    text = " ".join(succeed("run", "--help", cwd=tmp_path).text.split())
    for words in (
        "[float32|float64|bfloat16]",
        "[error|warn|pass]",
        "outputs, states, cells",
        "tanh, relu, sigmoid",
        "[default: 1GB]",
    ):
        assert words in text
    assert "[default: the CPUs that this process may use]" in text


def test_help_says_where_padding_stands(tmp_path: Path) -> None:
    text = " ".join(succeed("run", "--help", cwd=tmp_path).text.split())
    assert "Where padding stands in each row: behind the valid steps (post), or in front of them (pre)" in text


def test_a_variable_sets_an_option_and_a_flag_wins(case: Case, tmp_path: Path) -> None:
    variables = os.environ | {"LSTMCLI_RUN_THREADS": "3", "LSTMCLI_RUN_UNITS": "3", "LSTMCLI_RUN_JSON": "1"}
    args = ["run", "-i", case.x_npy, "--dry-run"]
    assert lstmcli(*args, cwd=tmp_path, env=variables).json["threads"] == 3
    assert lstmcli(*args, "--threads", 1, cwd=tmp_path, env=variables).json["threads"] == 1
    assert_one_line(lstmcli(*args, cwd=tmp_path, env=variables | {"LSTMCLI_RUN_THREADS": "two"}), 2, "--threads", "two")


def test_a_variable_reaches_the_part_of_a_plan(case: Case, tmp_path: Path) -> None:
    succeed("plan", "-i", case.x_npy, "-u", 3, "--shards", 2, "-o", "plan.json", cwd=tmp_path)
    variables = os.environ | {"LSTMCLI_RUN_THREADS": "3", "LSTMCLI_RUN_SEED": "5"}  # the seed is the plan's to say
    ran = lstmcli("run", "--plan", "plan.json", "--shard", 1, "--json", cwd=tmp_path, env=variables)
    assert ran.json["threads"] == 3
    assert ran.json["model"]["from"] == "seed 0"


def test_no_variable_asks_for_help_or_the_version(tmp_path: Path) -> None:
    names = ("LSTMCLI_VERSION", "LSTMCLI_HELP", "LSTMCLI_VERIFY_HELP", "LSTMCLI_VERIFY__CLICK_DEFAULT_HELP")
    ran = lstmcli("verify", "nowhere.h5", cwd=tmp_path, env=os.environ | dict.fromkeys(names, "1"))
    assert_one_line(ran, 66, "nowhere.h5")


def test_help_lists_the_topics(tmp_path: Path) -> None:
    lines = succeed("help", cwd=tmp_path).text.splitlines()
    assert [line.split()[0] for line in lines] == [page.stem for page in PAGES]
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_in_a_pipe_is_plain(page: Path, tmp_path: Path) -> None:
    assert succeed("help", page.stem, cwd=tmp_path).out == page.read_bytes()


@pytest.mark.skipif(sys.platform == "darwin", reason="script(1) takes other options there")
def test_a_page_on_a_terminal_is_rendered_and_fits(tmp_path: Path) -> None:
    command = ["script", "-qec", f"{sys.executable} -m lstmcli help results", "/dev/null"]
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": "60"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert "\x1b[1m" in done.stdout
    assert "```" not in done.stdout
    plain = re.sub(r"\x1b\][^\\]*\\|\x1b\[[\d;]*m", "", done.stdout)
    assert max(len(line.rstrip("\r\n")) for line in plain.splitlines()) <= 60
    assert "lstmcli" in plain


def test_an_unknown_topic(tmp_path: Path) -> None:
    assert_one_line(lstmcli("help", "nonsense", cwd=tmp_path), 2, "nonsense", *(page.stem for page in PAGES))
    assert_one_line(lstmcli("help", "../docs/inputs", cwd=tmp_path), 2, "../docs/inputs", "inputs")


def test_a_command_is_a_topic_as_well(tmp_path: Path) -> None:
    assert not (DOCS / "run.md").exists()
    assert succeed("help", "run", cwd=tmp_path).out == succeed("run", "--help", cwd=tmp_path).out


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_completion_script_is_one_of_that_shell(name: str, tmp_path: Path) -> None:
    script = succeed("completion", name, cwd=tmp_path).text
    assert f"_LSTMCLI_COMPLETE={name}_complete" in script
    need(name)
    (tmp_path / "script").write_text(script)
    subprocess.run([name, "-n", "script"], cwd=tmp_path, check=True)


COMPLETE = {  # typed words as they stand when the key is pressed: what a script of that shell answers
    "fish": 'source script; complete -C "$line"',
    "zsh": """
        compdef() { }  # of a terminal, as are the next two
        _describe() { print -l $completions_with_descriptions }
        compadd() { print -l $completions }
        source script; words=(${(s: :)line}); [[ $line == *\\  ]] && words+=(""); CURRENT=$#words; _lstmcli_completion
    """,
}


@pytest.mark.parametrize("name", COMPLETE)
def test_what_other_shells_complete(name: str, tmp_path: Path) -> None:
    need(name)
    (tmp_path / "script").write_text(succeed("completion", name, cwd=tmp_path).text)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["speech"], file["lengths"] = np.zeros((2, 3, 4)), [3, 3]
    for line, expected in [
        ("lstmcli ver", {"verify"}),
        ("lstmcli run --dtype ", {"float32", "float64", "bfloat16"}),
        ("lstmcli run -i x.h5::", {"x.h5::/speech", "x.h5::/lengths"}),
    ]:
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "line": line}
        done = subprocess.run([name, "-c", COMPLETE[name]], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        assert {re.split(r":(?=[A-Z])|\t", found)[0] for found in done.stdout.splitlines()} == expected


def test_completion_of_an_unknown_shell(tmp_path: Path) -> None:
    assert_one_line(lstmcli("completion", "tcsh", cwd=tmp_path), 2, "tcsh", "bash", "zsh", "fish")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("lstmcli ver", ["plain,verify"]),
        ("lstmcli run --dty", ["plain,--dtype"]),
        ("lstmcli run --dtype ", ["plain,float32", "plain,float64"]),
        ("lstmcli run --input x", ["file,x"]),
        ("lstmcli verify x", ["file,x"]),
        ("lstmcli help inp", ["plain,inputs"]),
    ],
)
def test_what_bash_completes(typed: str, expected: list[str], tmp_path: Path) -> None:
    assert completed(typed, tmp_path)[: len(expected)] == expected


def completed(typed: str, cwd: Path) -> list[str]:
    """Returns what bash is told for a line that is typed so far."""
    line = '_LSTMCLI_COMPLETE=bash_complete COMP_WORDS="$1" COMP_CWORD="$2" exec -a lstmcli lstmcli'
    words = typed.split(" ")
    program = f'PATH="{Path(sys.executable).parent}:$PATH"; unset -f lstmcli; {line}'
    return shell(program, cwd, typed, len(words) - 1).text.splitlines()


def test_the_traceback_of_an_expected_error(tmp_path: Path) -> None:
    args = ("run", "-i", "nowhere.npy", "-u", 3)
    line = lstmcli(*args, cwd=tmp_path)
    assert_one_line(line, 66, "nowhere.npy")
    shown = lstmcli(*args, cwd=tmp_path, env=os.environ | {"LSTMCLI_TRACEBACK": "1"})
    assert shown.code == 66
    assert shown.out == b""
    assert shown.err.splitlines()[-1] == line.err.strip()
    assert "Traceback (most recent call last):" in shown.err
    assert "FileNotFoundError" in shown.err  # the cause
    assert "MissingInputError" in shown.err


def test_an_incomplete_installation_is_no_full_disk(tmp_path: Path) -> None:
    code = "import sys; sys.modules['h5py'] = None; from lstmcli.cli.main import main; main()"
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    command = [sys.executable, "-c", code, "run", "-i", "x.h5", "-u", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "h5py" in done.stderr
    assert "reinstall lstmcli" in done.stderr
    assert "ulimit" not in done.stderr


def test_the_shell_completes_datasets_and_arrays(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["speech/train"], file["speech/test"], file["lengths"] = np.zeros((2, 3, 4)), np.zeros((1, 3, 4)), [3, 3]
    np.savez(tmp_path / "x.npz", inputs=np.zeros((2, 3, 4)), lens=[3, 3])
    for typed, expected in [
        ("x.h5::", {"x.h5::/speech/train", "x.h5::/speech/test", "x.h5::/lengths"}),
        ("x.h5::/speech/te", {"x.h5::/speech/test"}),
        ("x.npz::", {"x.npz::inputs", "x.npz::lens"}),
        ("nowhere.h5::", set()),
    ]:
        found = {word.removeprefix("plain,") for word in completed(f"lstmcli run -i {typed}", tmp_path)}
        assert found - {""} == expected


def test_the_manual_page_has_all_commands_options_and_exit_codes(tmp_path: Path) -> None:
    page = succeed("help", "--man", cwd=tmp_path).text.replace("\\-", "-")
    for path, command in commands():
        assert f".SS lstmcli {' '.join(path)}" in page
        assert all(option in page for param in command.params for option in param.opts if option[0] == "-")
    assert ".TP\n.B 75\nstopped by" in page


def test_the_version_as_json(tmp_path: Path) -> None:
    assert succeed("--version", "--json", cwd=tmp_path).json == {"lstmcli": __version__}
    assert succeed("--version", cwd=tmp_path).text == f"lstmcli {__version__}\n"
