"""What stands on a terminal: colours, lists, lines that fit."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.command import assert_one_line, lstmcli, succeed
from helpers.pseudo_terminal import on_terminal, plain

from lstmcli.cli.report.run_summary import layers_in_words


@pytest.fixture
def two_datasets(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"] = file["b"] = np.zeros((2, 3, 4), np.float32)
    return tmp_path


def test_candidates_stand_under_each_other_on_a_terminal_alone(two_datasets: Path) -> None:
    written = plain(on_terminal("run", "-i", "two.h5", "-u", 7, cwd=two_datasets))
    assert written.strip().splitlines() == [
        "lstmcli: error: two.h5: expected one float dataset of rank 3, found 2:",
        "  /a (2, 3, 4) float32",
        "  /b (2, 3, 4) float32",
        "name the one to read: two.h5::/a",
    ]
    assert_one_line(lstmcli("run", "-i", "two.h5", "-u", 7, cwd=two_datasets), 65, "/a (2, 3, 4) float32, /b (2, 3, 4) float32")


def test_the_kind_of_a_message_is_in_colour_where_that_is_wanted(tmp_path: Path) -> None:
    def coloured(**variables: str) -> bool:
        return "\x1b[1;31merror: \x1b[0m" in on_terminal("verify", "nowhere.h5", cwd=tmp_path, **variables)

    assert coloured()
    assert not coloured(NO_COLOR="1")
    assert not coloured(TERM="dumb")
    assert "\x1b" not in lstmcli("verify", "nowhere.h5", cwd=tmp_path).err


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_summary_fits_and_breaks_no_name(columns: int, tmp_path: Path, sample_x: Path, sample_lens: Path) -> None:
    written = plain(on_terminal("run", "-i", sample_x, "-l", sample_lens, "-u", 7, cwd=tmp_path, columns=columns))
    lines = written.splitlines()
    assert {str(sample_lens), f"{sample_x}::/x"} <= set(written.split())
    assert all(len(line) <= columns or str(sample_x.parent) in line for line in lines)


def test_a_terminal_without_escapes_shows_plain_lines(tmp_path: Path, sample_x: Path) -> None:
    whole = succeed("run", "-i", sample_x, "-u", 7, "--dry-run", cwd=tmp_path).text
    written = on_terminal("run", "-i", sample_x, "-u", 7, cwd=tmp_path, TERM="dumb")
    assert "\x1b" not in written
    assert written.startswith("input ")
    assert written.split()[:20] == whole.split()[:20]


def test_the_tree_of_a_model_is_folded_and_loses_nothing(tmp_path: Path) -> None:
    whole = succeed("model", "init", "--input-size", 300, "-u", 200, "--bidirectional", "-o", "m.h5", cwd=tmp_path).text
    written = plain(on_terminal("model", "show", "m.h5", cwd=tmp_path))
    assert all(len(line) <= 80 for line in written.splitlines())
    assert re.sub(r"[\s│├└─]", "", written) == re.sub(r"[\s│├└─]", "", whole)


def test_the_states_of_a_deep_model_are_one_line_unless_all_are_wanted(tmp_path: Path, sample_x: Path) -> None:
    command = ("run", "-i", sample_x, "-u", "7,7", "--bidirectional", "--overwrite")
    short, long = (succeed(*command, *more, cwd=tmp_path).text for more in ((), ("--verbose",)))
    assert "LSTM, 2 bidirectional layers of 7 units" in short
    others = {"units": [5, 4], "bidirectional": [True, True]}, {"units": [5, 4], "bidirectional": [True, False]}
    told = ["LSTM, 2 bidirectional layers of 5, 4 units", "LSTM, 2 layers of 5 bidirectional, 4 units"]
    assert [layers_in_words(model) for model in others] == told
    assert "8 of (5, 7) float32  /state/0/forward/c to /state/1/backward/h" in short
    assert short.count("/state/") == 2
    assert long.count("/state/") == 8


def test_a_number_alone_is_said_to_be_seconds(tmp_path: Path, sample_x: Path) -> None:
    err = succeed("run", "-i", sample_x, "-u", 7, "--stop-after", 55, cwd=tmp_path).err
    assert err == "lstmcli: note: --stop-after 55: these are seconds; 55m is minutes\n"
    assert succeed("run", "-i", sample_x, "-u", 7, "--stop-after", "55s", "--overwrite", cwd=tmp_path).err == ""


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (("run", "--model", "m.h5"), "--weights FILE"),
        (("run", "--force"), "--overwrite"),
        (("plot", "x.h5"), "lstmcli inspect FILE --plot"),
        (("export",), "`lstmcli convert A B` for sequences and results, `lstmcli model export`"),
        (("run", "--hlep"), "did you mean --help?"),
        (("run", "--unit"), "did you mean --units?"),
        (("run", "--modle"), "--weights FILE"),
        (("run", "--xyzzy"), "No such option: --xyzzy (see "),
    ],
)
def test_words_of_other_programs_get_an_answer(typed: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    assert_one_line(lstmcli(*typed, cwd=tmp_path), 2, typed[-1] if len(typed) == 1 else typed[0], answer)


def test_an_input_is_checked_before_what_is_in_its_way(tmp_path: Path, sample_x: Path) -> None:
    succeed("run", "-i", sample_x, "-u", 7, cwd=tmp_path)
    assert_one_line(lstmcli("run", "-i", f"{sample_x}::/mistyped", "-u", 7, cwd=tmp_path), 65, "mistyped")
    assert_one_line(lstmcli("run", "-i", sample_x, "-u", 7, cwd=tmp_path), 73, "exists")
