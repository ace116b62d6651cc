"""Standard input, output and error: pipelines, and streams that are full, closed, gone or a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import LSTMCLI, SECONDS, assert_one_line, shell, succeed

# Pipelines: "$1" is the folder of the case.
RUN = 'lstmcli run --input - --lens "$1/lens.npy" --weights "$1/model.h5" --output -'


def test_pipeline_from_stdin_to_stdout(case: Case, tmp_path: Path) -> None:
    ran = shell(f'cat "$1/x.npy" | {RUN} | cat', tmp_path, case.folder)
    assert ran.code == 0, ran.err
    assert files.bits(np.load(io.BytesIO(ran.out))) == files.bits(case.outputs)
    assert "(13, 17, 5)" in ran.err  # the summary has moved to stderr
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


def test_pipeline_json_summary_goes_to_stderr(case: Case, tmp_path: Path) -> None:
    ran = shell(f'cat "$1/x.npy" | {RUN} --json --progress none', tmp_path, case.folder)
    assert ran.code == 0, ran.err
    assert json.loads(ran.err)["outputs"]["shape"] == [13, 17, 5]
    assert files.bits(np.load(io.BytesIO(ran.out))) == files.bits(case.outputs)


def test_quiet_pipeline_with_states_of_two_chained_runs(case: Case, tmp_path: Path) -> None:
    line = f'cat "$1/x.npy" | {RUN} --quiet --states s.npz | lstmcli run -i - -l "$1/lens.npy" -u 3 -o second.npy -q'
    ran = shell(line, tmp_path, case.folder)
    assert (ran.code, ran.out, ran.err) == (0, b"", "")
    state = files.read_npz(tmp_path / "s.npz")
    files.assert_same_bits((case.outputs, state), case.result)
    assert np.load(tmp_path / "second.npy").shape == (13, 17, 3)


def test_stdin_in_small_pieces(case: Case, tmp_path: Path) -> None:
    args = ["run", "--input", "-", "--lens", case.lens_npy, "--weights", case.weights, "--output", "out.h5", "--quiet"]
    command = [*LSTMCLI, *map(str, args)]
    data = case.x_npy.read_bytes()
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        for start in range(0, len(data), 997):
            process.stdin.write(data[start : start + 997])
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    files.assert_same_bits(files.read_result(tmp_path / "out.h5"), case.result)


def test_head_ends_the_pipeline_quietly(tmp_path: Path) -> None:
    """The reader leaves after one line of 4 MB of data."""
    files.write_npy(tmp_path / "x.npy", np.ones((64, 256, 4), np.float32))
    ran = shell("lstmcli run --input x.npy --units 64 --output - --quiet | head -n 1 | wc -l", tmp_path)
    assert ran.code in (0, 74)
    assert ran.text.strip() == "1"
    assert ran.err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("args", ["--help", 'run --input "$1/x.npy" --units 3 --output out.h5'])
def test_reader_that_is_gone_before_the_first_line(args: str, case: Case, tmp_path: Path) -> None:
    ran = shell(f"(sleep 1; lstmcli {args}; echo code $? >&2) | true", tmp_path, case.folder)
    assert not re.search(r"Traceback|Exception ignored", ran.err)
    assert re.search(r"code (0|74)$", ran.err.strip()), ran.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("output", ["-", "out.h5"])
def test_full_stdout(output: str, case: Case, tmp_path: Path) -> None:
    args = f'--input "$1/x.npy" --lens "$1/lens.npy" --weights "$1/model.h5" --output {output}'
    ran = shell(f"lstmcli run {args} --progress none > /dev/full", tmp_path, case.folder)
    assert ran.code == 74, ran.err
    assert not re.search(r"Traceback|Exception ignored", ran.err)
    if output == "out.h5":  # the result had been published before the summary failed
        files.assert_same_bits(files.read_result(tmp_path / "out.h5"), case.result)
    else:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_stderr_costs_no_run_and_no_exit_code(case: Case, tmp_path: Path) -> None:
    x = case.x.copy()
    x[0, 0, 0] = np.nan  # of which the run tells there
    files.write_npy(tmp_path / "x.npy", x)
    assert shell("lstmcli run -i x.npy -u 3 -o out.h5 2> /dev/full", tmp_path).code == 0
    assert shell("lstmcli verify out.h5", tmp_path).code == 0
    for args, code in [("run -i nowhere.npy -u 3", 66), ("run -i x.npy", 2), ("", 2), ("run -i x.npy -u 3 -o out.h5", 73)]:
        assert shell(f"lstmcli {args} 2> /dev/full", tmp_path).code == code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("args", ["--help", "--version", "env", 'model show "$1/model.h5"', 'verify "$1/result.h5"'])
def test_what_cannot_be_printed(args: str, case: Case, tmp_path: Path) -> None:
    assert_one_line(shell(f"lstmcli {args} > /dev/full", tmp_path, case.folder), 74, "No space left on device")


def test_closed_stdout_is_no_error_and_gets_no_data(case: Case, tmp_path: Path) -> None:
    args = '--input "$1/x.npy" --lens "$1/lens.npy" --weights "$1/model.h5" --output out.h5'
    ran = shell(f"lstmcli run {args} >&-", tmp_path, case.folder)
    assert ran.code == 0, ran.err
    files.assert_same_bits(files.read_result(tmp_path / "out.h5"), case.result)


def test_closed_stdin_as_input_is_one_line(tmp_path: Path) -> None:
    ran = shell("lstmcli run --input - --units 3 --output out.h5 <&-", tmp_path)
    assert_one_line(ran, ran.code, "-: ")
    assert ran.code in (65, 66)
    assert list(tmp_path.iterdir()) == []


def test_closed_standard_streams(case: Case, tmp_path: Path) -> None:
    run = '--input "$1/x.npy" --lens "$1/lens.npy" --weights "$1/model.h5"'
    whole = succeed("run", *case.inputs, "-o", "-", cwd=tmp_path)
    closed = shell(f"lstmcli run {run} --output - 2>&-", tmp_path, case.folder)
    assert (closed.code, closed.out) == (0, whole.out)
    assert_one_line(shell(f"lstmcli run {run} --output - >&-", tmp_path, case.folder), 74, "standard output")
    failed = shell("lstmcli run --input nowhere.npy --units 3 2>&-", tmp_path)
    assert (failed.code, failed.out) == (66, b"")


@pytest.mark.skipif(sys.platform == "darwin", reason="script(1) takes other options there")
def test_binary_data_to_a_terminal_is_refused(case: Case, tmp_path: Path) -> None:
    line = f"{sys.executable} -m lstmcli run -i {case.x_npy} -u 3 -o -"
    done = subprocess.run(["script", "-qec", line, "/dev/null"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "terminal" in done.stdout


def test_on_a_terminal_the_names_are_bold_and_the_bar_fits(case: Case, tmp_path: Path) -> None:
    line = f"{sys.executable} -m lstmcli run -i {case.x_npy} -l {case.lens_npy} -w {case.weights} -o out.h5"
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": "80"}
    done = subprocess.run(
        ["script", "-qec", line, "/dev/null"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert "\x1b[1moutputs   \x1b[0m(13, 17, 5) float32" in done.stdout
    assert f"100 % of {case.lengths.sum()} steps" in done.stdout
