"""The command's surface: help, start-up, summaries and dry runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import SECONDS, assert_one_line, lstmcli, succeed

MODELS = Path(__file__).parents[1] / "data" / "models"
HEAVY = {"numba", "llvmlite", "h5py", "rich", "numpy"}
OPTIONS = (
    *("--input", "--lens", "--units", "--weights", "--seed", "--output", "--states", "--save", "--dtype", "--threads"),
    *("--max-memory", "--overwrite", "--dry-run", "--json", "--quiet", "--progress"),
)


def modules(*command: str, cwd: Path) -> set[str]:
    """What a Python process imports."""
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
    return names


def imported(*command: str, cwd: Path) -> set[str]:
    """The top-level packages that a Python process imports."""
    return {name.split(".")[0] for name in modules(*command, cwd=cwd)}


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["--version"], ["run", "--help"], ["model", "--help"]])
def test_help_and_version_import_nothing_heavy(args: list[str], tmp_path: Path) -> None:
    assert not HEAVY & imported("-m", "lstmcli", *args, cwd=tmp_path)


def test_help_imports_no_module_that_it_does_not_need(tmp_path: Path) -> None:
    assert not {"pathlib", "dataclasses", "subprocess"} & imported("-m", "lstmcli", "--help", cwd=tmp_path)


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    assert not HEAVY & imported("-c", "import lstmcli", cwd=tmp_path)


def test_weights_of_a_framework_import_nothing_of_another(tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.zeros((2, 3, 6), np.float32))
    run = ("-m", "lstmcli", "run", "--quiet", "-i", "x.npy", "-w", str(MODELS / "torch_pooled.pt"), "-o", "o.h5")
    names = modules(*run, cwd=tmp_path)
    assert "lstmcli.weights.pytorch" in names
    assert not [name for name in names if "keras" in name or "onnx" in name or "tensorflow" in name]


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
    args = [*case.inputs, "--output", "out.h5"]
    ran = succeed("run", *args, "--quiet", cwd=tmp_path)
    assert (ran.out, ran.err) == (b"", "")
    files.assert_same_bits(files.read_result(tmp_path / "out.h5"), case.result)


@pytest.mark.parametrize("progress", ["auto", "bar", "log", "none"])
def test_progress_never_reaches_stdout(progress: str, case: Case, tmp_path: Path) -> None:
    args = [*case.inputs, "--output", "out.h5"]
    ran = succeed("run", *args, "--json", "--progress", progress, cwd=tmp_path)
    assert ran.json["valid_steps"] == case.lengths.sum()
    if progress == "none":
        assert ran.err == ""


@pytest.mark.parametrize("output", [["--output", "out.h5"], ["--output", "-"], []])
def test_dry_run_writes_nothing(output: list[str], case: Case, tmp_path: Path) -> None:
    args = [*case.inputs, *output]
    ran = succeed("run", *args, "--dry-run", cwd=tmp_path)
    assert "(13, 17, 5)" in ran.text + ran.err
    assert list(tmp_path.iterdir()) == []


def test_dry_run_estimates(case: Case, tmp_path: Path) -> None:
    words = ("run", *case.inputs, "-o", "out.h5", "--dry-run", "--save", "outputs,states")
    steps, states = int(case.lengths.sum()), 13 * 2 * (21 + 5) * 4
    for layout, rows in (("padded", 13 * 17), ("flat", steps)):
        found = succeed(*words, "--layout", layout, "--json", cwd=tmp_path).json["estimate"]
        assert found["bytes_read"] == steps * 20 * 4
        assert found["bytes_stored"] == rows * 5 * 4 + states
        assert found["bytes_free"] > 0
        assert 0 < found["seconds"] < 10
    text = succeed(*words, cwd=tmp_path).text
    assert "bytes are free" in text
    assert "s to compute" in text
    assert not list(tmp_path.iterdir())


def test_dry_run_tells_what_is_read_of_chunks_and_windows(case: Case, tmp_path: Path) -> None:
    """Steps that windows share are read once, chunks are read as they are stored, and chunks of padding are not read."""

    def read(*words: object) -> int:
        found: int = succeed("run", *words, "-u", 2, "--dry-run", "--json", cwd=tmp_path).json["estimate"]["bytes_read"]
        return found

    files.write_npy(tmp_path / "series.npy", np.ones((100, 3), np.float32))
    for width, stride, steps in ((10, 1, 100), (10, 3, 100), (30, 40, 60), (7, 5, 97)):
        assert read("-i", "series.npy", "--window", width, "--stride", stride) == steps * 3 * 4
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=np.zeros((8, 10, 4), np.float32), chunks=(2, 5, 4), compression="gzip")
        file["lengths"] = np.array([1, 2, 6, 0, 0, 0, 5, 5])
        stored = file["x"].id.get_storage_size()
    assert 0 < stored < 8 * 10 * 4 * 4
    assert read("-i", "x.h5") == stored * (1 + 2 + 0 + 1) // 8
    assert read("-i", "x.h5", "-l", "none") == stored


def test_dry_run_tells_what_a_table_takes(case: Case, tmp_path: Path) -> None:
    """The table, within 2x, and the values that it is made of."""
    words = ("run", *case.inputs, "--save", "states")
    for name in ("t.csv", "t.tsv"):
        for dtype, size in (("float32", 4), ("float64", 8)):
            said = (*words, "--dtype", dtype, "-o", name, "--overwrite")
            found = succeed(*said, "--json", "--dry-run", cwd=tmp_path).json["estimate"]["bytes_stored"]
            succeed(*said, "-q", cwd=tmp_path)
            table = found - 13 * 2 * (21 + 5) * size
            assert 0.5 < table / (tmp_path / name).stat().st_size < 2


def test_dry_run_counts_the_time_of_a_text(tmp_path: Path) -> None:
    """A table of 1.6 million numbers takes a second to write, and its vectors much less to compute."""
    files.write_npy(tmp_path / "x.npy", np.zeros((100_000, 1, 1), np.float32))
    words = ("run", "-i", "x.npy", "-u", 16, "--pool", "last", "--json", "--dry-run")
    succeed(*words[:-1], "-o", "a.npy", cwd=tmp_path)  # which compiles the kernel, where it must be
    seconds = {name: succeed(*words, "-o", name, cwd=tmp_path).json["estimate"]["seconds"] for name in ("t.npy", "t.csv")}
    assert seconds["t.csv"] > seconds["t.npy"] + 1.6e6 * 50e-9


def test_dry_run_checks_the_lengths(case: Case, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "lens.npy", case.lengths + 1)
    ran = lstmcli("run", "--input", case.x_npy, "--lens", "lens.npy", "--units", 7, "--dry-run", cwd=tmp_path)
    assert_one_line(ran, 65, "lens.npy", "row 0", 18)
