"""The command's surface: help, start-up, summaries, pipelines, and what becomes of stdout."""

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
from helpers.command import LSTMCLI, SECONDS, assert_one_line, lstmcli, shell, succeed

HEAVY = {"numba", "llvmlite", "h5py", "rich", "numpy"}
OPTIONS = (
    *("--input", "--lens", "--units", "--weights", "--seed", "--output", "--states", "--save", "--dtype", "--threads"),
    *("--max-memory", "--overwrite", "--dry-run", "--json", "--quiet", "--progress"),
)


def imported(*command: str, cwd: Path) -> set[str]:
    """The top-level packages that a Python process imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    names = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "lstmcli" in names
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["--version"], ["run", "--help"], ["model", "--help"]])
def test_help_and_version_import_nothing_heavy(args: list[str], tmp_path: Path) -> None:
    assert not HEAVY & imported("-m", "lstmcli", *args, cwd=tmp_path)


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    assert not HEAVY & imported("-c", "import lstmcli", cwd=tmp_path)


def test_help_is_the_same_for_both_spellings(tmp_path: Path) -> None:
    ran = succeed("--help", cwd=tmp_path)
    assert ran.out == succeed("-h", cwd=tmp_path).out
    assert re.search(r"^\s*run\b", ran.text, re.MULTILINE)
    assert re.search(r"^\s*model\b", ran.text, re.MULTILINE)


def test_run_help_names_every_option(tmp_path: Path) -> None:
    text = succeed("run", "--help", cwd=tmp_path).text
    assert [option for option in OPTIONS if option not in text] == []


def test_version(tmp_path: Path) -> None:
    code = "import lstmcli; print(lstmcli.__version__)"
    version = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True)
    assert version.stdout.strip() in succeed("--version", cwd=tmp_path).text


def test_sample_run_prints_the_shapes(sample_x: Path, sample_lens: Path, tmp_path: Path) -> None:
    ran = succeed("run", "--input", sample_x, "--lens", sample_lens, "--units", 7, cwd=tmp_path)
    for name, shape in [("input", "(5, 10, 20)"), ("outputs", "(5, 10, 7)"), ("0/c", "(5, 7)"), ("0/h", "(5, 7)")]:
        lines = [line for line in ran.text.splitlines() if name in line and shape in line]
        assert lines, f"no line with {name} and {shape} in:\n{ran.text}"
    assert [path.name for path in tmp_path.iterdir()] == ["x.lstm.h5"]
    assert "x.lstm.h5" in ran.text


def test_sample_run_as_json(sample_x: Path, sample_lens: Path, tmp_path: Path) -> None:
    args = ["--input", sample_x, "--lens", sample_lens, "--units", 7, "--threads", 2]
    ran = succeed("run", *args, "--output", "out.h5", "--json", cwd=tmp_path)
    facts = ran.json
    assert (facts["input"]["shape"], facts["input"]["dtype"]) == ([5, 10, 20], "float32")
    assert (facts["outputs"]["shape"], facts["outputs"]["dtype"]) == ([5, 10, 7], "float32")
    lengths = facts["lengths"]
    assert [lengths[key] for key in ("min", "mean", "max", "total")] == [4, 7.6, 10, 38]
    assert facts["padding_fraction"] == pytest.approx(0.24)
    assert facts["valid_steps"] == 38
    assert facts["threads"] in (1, 2)
    assert facts["seconds"] > 0
    assert (tmp_path / facts["output"]).samefile(tmp_path / "out.h5")
    state = {entry["path"].removeprefix("/state/"): entry for entry in facts["state"]}
    assert state.keys() == {"0/c", "0/h"}
    for entry in state.values():
        assert (entry["shape"], entry["dtype"]) == ([5, 7], "float32")


def test_own_lengths_of_an_hdf5_input_are_used_and_named(case: Case, tmp_path: Path) -> None:
    files.write_h5(tmp_path / "in.h5", x=case.x, lengths=case.lengths)
    args = ["run", "--input", "in.h5", "--weights", case.weights]
    ran = succeed(*args, "--output", "own.h5", cwd=tmp_path)
    assert re.search(r"/?\blengths\b.*in\.h5|in\.h5.*\blengths\b", ran.text), ran.text
    files.assert_same_bits(files.read_result(tmp_path / "own.h5"), case.result)
    assert succeed(*args, "--lens", "none", "--output", "all.h5", "--json", cwd=tmp_path).json["valid_steps"] == 13 * 17


def test_vowels_run(sample_x: Path, tmp_path: Path) -> None:
    ran = succeed("run", "--input", sample_x.parent / "vowels.h5", "--units", "32,16", "--json", cwd=tmp_path)
    assert ran.json["input"]["shape"] == [370, 29, 12]
    assert ran.json["outputs"]["shape"] == [370, 29, 16]
    assert ran.json["lengths"]["min"] == 7
    assert (tmp_path / "vowels.lstm.h5").exists()


def test_quiet_prints_nothing(case: Case, tmp_path: Path) -> None:
    args = ["--input", case.x_npy, "--lens", case.lens_npy, "--weights", case.weights, "--output", "out.h5"]
    ran = succeed("run", *args, "--quiet", cwd=tmp_path)
    assert (ran.out, ran.err) == (b"", "")
    files.assert_same_bits(files.read_result(tmp_path / "out.h5"), case.result)


@pytest.mark.parametrize("progress", ["auto", "bar", "log", "none"])
def test_progress_never_reaches_stdout(progress: str, case: Case, tmp_path: Path) -> None:
    args = ["--input", case.x_npy, "--lens", case.lens_npy, "--weights", case.weights, "--output", "out.h5"]
    ran = succeed("run", *args, "--json", "--progress", progress, cwd=tmp_path)
    assert ran.json["valid_steps"] == case.lengths.sum()
    if progress == "none":
        assert ran.err == ""


@pytest.mark.parametrize("output", [["--output", "out.h5"], ["--output", "-"], []])
def test_dry_run_writes_nothing(output: list[str], case: Case, tmp_path: Path) -> None:
    args = ["--input", case.x_npy, "--lens", case.lens_npy, "--weights", case.weights, *output]
    ran = succeed("run", *args, "--dry-run", cwd=tmp_path)
    assert "(13, 17, 5)" in ran.text + ran.err
    assert list(tmp_path.iterdir()) == []


def test_dry_run_checks_the_lengths(case: Case, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "lens.npy", case.lengths + 1)
    ran = lstmcli("run", "--input", case.x_npy, "--lens", "lens.npy", "--units", 7, "--dry-run", cwd=tmp_path)
    assert_one_line(ran, 65, "lens.npy", "row 0", 18)


@pytest.mark.parametrize(
    "args",
    [
        ["--units", "0"],
        ["--units", "x"],
        ["--units", "7,0"],
        ["--units", "7,,3"],
        ["--units", ""],
        ["--units=-1"],
        ["--units", "2.5"],
        [],
        ["--units", "7", "--weights", "model.h5"],
        ["--units", "7", "--dtype", "float16"],
        ["--units", "7", "--threads", "0"],
        ["--units", "7", "--max-memory", "plenty"],
        ["--units", "7", "--save", "everything"],
        ["--units", "7", "--no-such-option"],
    ],
    ids=" ".join,
)
def test_usage_errors(args: list[str], case: Case, tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(case.weights.read_bytes())
    before = files.snapshot(tmp_path)
    ran = lstmcli("run", "--input", case.x_npy, "--lens", case.lens_npy, *args, "--output", "out.h5", cwd=tmp_path)
    assert_one_line(ran, 2)
    assert files.snapshot(tmp_path) == before


def test_usage_error_names_option_and_value(case: Case, tmp_path: Path) -> None:
    assert_one_line(lstmcli("run", "--input", case.x_npy, "--units", "7,x", cwd=tmp_path), 2, "--units", "x")
    assert_one_line(lstmcli("run", "--units", 7, cwd=tmp_path), 2, "--input")
    assert_one_line(lstmcli("nonsense", cwd=tmp_path), 2, "nonsense")


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


def test_on_a_terminal_the_names_are_bold_and_the_bar_fits(case: Case, tmp_path: Path) -> None:
    line = f"{sys.executable} -m lstmcli run -i {case.x_npy} -l {case.lens_npy} -w {case.weights} -o out.h5"
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": "80"}
    done = subprocess.run(
        ["script", "-qec", line, "/dev/null"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert "\x1b[1moutputs   \x1b[0m(13, 17, 5) float32" in done.stdout
    assert f"{case.lengths.sum()} of {case.lengths.sum()} steps" in done.stdout
