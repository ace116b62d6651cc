"""--pool: a vector for each sequence, in every form of a result, with the same bits however the run is cut."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import SECONDS, Ran, assert_one_line, lstmcli, succeed
from helpers.system_tools import run_with_faults

import lstmcli as package

POOLS = ("mean", "max", "sum", "last", "final")


def pooled(function: str, case: Case) -> np.ndarray:
    if function == "final":
        return case.state["1/h"]
    found = np.zeros((len(case.x), case.outputs.shape[2]), np.float32)
    for row, (steps, length) in enumerate(zip(case.outputs, case.lengths, strict=True)):
        total = np.zeros(steps.shape[1])
        for step in steps[:length]:
            total = total + step
        if length:
            of = {"mean": total / length, "sum": total, "max": steps[:length].max(axis=0), "last": steps[length - 1]}
            found[row] = of[function]
    return found


def read(path: Path, name: str = "pooled") -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file[name][:])


def table(path: Path, separator: str = ",") -> tuple[list[str], list[str], np.ndarray]:
    """Head, ids and numbers of a table."""
    with path.open(newline="") as file:
        head, *lines = csv.reader(file, delimiter=separator)
    return head, [line[0] for line in lines], np.array([line[1:] for line in lines], np.float32)


@pytest.mark.parametrize("function", POOLS)
def test_pooled(function: str, case: Case, tmp_path: Path) -> None:
    """In one block, and in many that cut sequences in time."""
    words = ("run", *case.inputs, "--pool", function, "-q", "--overwrite")
    want = files.bits(pooled(function, case))
    for how in (("--threads", 2), ("--threads", 1, "--max-memory", "50KB")):
        succeed(*words, *how, "-o", "all.h5", cwd=tmp_path)
        assert files.bits(read(tmp_path / "all.h5")) == want
        files.assert_same_bits(files.read_result(tmp_path / "all.h5"), case.result)
    succeed("verify", "all.h5", cwd=tmp_path)
    succeed(*words, "--save", "pooled", "-o", "alone.h5", cwd=tmp_path)
    with h5py.File(tmp_path / "alone.h5") as file:
        assert sorted(file) == ["checksums", "lengths", "model", "pooled"]
        assert files.bits(file["pooled"][:]) == want
    succeed(*words, "-o", "pooled.npy", cwd=tmp_path)
    assert files.bits(np.load(tmp_path / "pooled.npy")) == want


def test_tables(case: Case, tmp_path: Path) -> None:
    ids = ["a, 0", "a\rb", "\r", "a\r\nb", "a\nb", 'a"b', '"', "a\tb", " a", "", "=1", "a\x0bb", "a\u2028b"]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"], file["lengths"], file["ids"] = case.x, case.lengths, np.array(ids, object)
    words = ("run", "-i", "x.h5", "-w", case.weights, "--pool", "mean", "-q")
    succeed(*words, "-o", "t.csv", cwd=tmp_path)
    head, names, values = table(tmp_path / "t.csv")
    assert head == ["id", *(f"pooled/{k}" for k in range(5))]
    assert names == ids
    assert files.bits(values) == files.bits(pooled("mean", case))
    succeed(*words, "--save", "states", "-o", "t.tsv", cwd=tmp_path)
    head, names, values = table(tmp_path / "t.tsv", "\t")
    assert [head[k] for k in (1, 6, 27, 48, 53)] == ["pooled/0", "state/0/c/0", "state/0/h/0", "state/1/c/0", "state/1/h/0"]
    states = [case.state[name] for name in ("0/c", "0/h", "1/c", "1/h")]
    assert files.bits(values) == files.bits(np.concatenate([pooled("mean", case), *states], axis=1))
    assert_one_line(lstmcli(*words[:-3], "-o", "no.csv", cwd=tmp_path), 2, "--pool mean --save pooled, or --save states")


def test_parquet(case: Case, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install pyarrow")
    words = ("run", *case.inputs, "--pool", "mean", "--save", "pooled,states", "-q")
    succeed(*words, "-o", "t.parquet", cwd=tmp_path)
    found = parquet.read_table(tmp_path / "t.parquet")
    assert found.column_names == ["id", "pooled", *(f"state/{name}" for name in ("0/c", "0/h", "1/c", "1/h"))]
    assert found["id"].to_pylist() == [str(row) for row in range(13)]
    for name, want in (("pooled", pooled("mean", case)), ("state/0/c", case.state["0/c"])):
        column = found[name].combine_chunks()
        assert files.bits(column.flatten().to_numpy().reshape(len(column), -1)) == files.bits(want)
    succeed("plan", *words[1:], "--shards", 3, "-o", "plan.json", cwd=tmp_path)
    for number in (1, 2, 3):
        succeed("run", "--plan", "plan.json", "--shard", number, "-q", cwd=tmp_path)
    succeed("merge", "plan.json", "-o", "merged.parquet", "-q", cwd=tmp_path)
    assert (tmp_path / "merged.parquet").read_bytes() == (tmp_path / "t.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged.parquet", "plan.json", "plan.parts", "t.parquet"]


def test_parquet_is_not_installed(case: Case, tmp_path: Path) -> None:
    code = "import sys; sys.modules['pyarrow'] = None; from lstmcli.cli.main import main; main()"
    for instead, words in [
        ("NAME.csv", ["run", *case.inputs, "--pool", "mean", "-o", "t.parquet"]),
        (".npz or .h5", ["convert", case.x_npy, "t.parquet"]),
        (".npz or .h5", ["convert", case.x_npy, "t.arrow"]),
    ]:
        call = [sys.executable, "-c", code, *map(str, words)]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, timeout=SECONDS, check=False)
        ran = Ran(done.returncode, done.stdout, done.stderr.decode())
        assert_one_line(
            ran, 2, f"t{(suffix := Path(words[-1]).suffix)}: {suffix} needs pyarrow", "pip install 'lstmcli[parquet]'", instead
        )
        assert not list(tmp_path.iterdir())


def test_final_of_two_directions(case: Case, tmp_path: Path) -> None:
    words = ("run", *case.inputs[:4], "-u", "3,4", "--bidirectional", "--pool", "final", "-o", "out.h5", "-q")
    succeed(*words, cwd=tmp_path)
    top = [read(tmp_path / "out.h5", f"state/1/{side}/h") for side in ("forward", "backward")]
    assert files.bits(read(tmp_path / "out.h5")) == files.bits(np.concatenate(top, axis=1))


@pytest.mark.parametrize(("output", "step"), [("out.h5", 7), ("out.csv", 1)])
def test_a_killed_run_is_resumed(output: str, step: int, case: Case, tmp_path: Path) -> None:
    argv = ["run", *case.inputs, "--pool", "mean", "--save", "pooled", "--threads", "1", "--max-memory", "50KB", "-q", "-o"]
    succeed(*argv, f"want{output[3:]}", cwd=tmp_path)
    want = hashlib.sha256((tmp_path / f"want{output[3:]}").read_bytes()).hexdigest()
    told = run_with_faults(tmp_path, argv=[*argv, output], output=output, fault="kill", step=step)
    assert len(told) > 4
    assert all(one.get("result", one["output"]) == want for one in told), told
    assert all(one["left"] == [output] for one in told), told


def test_parts(case: Case, tmp_path: Path) -> None:
    words = (*case.inputs, "--pool", "sum")
    succeed("run", *words, "-o", "whole.h5", "-q", cwd=tmp_path)
    succeed("plan", *words, "--shards", 3, "-o", "plan.json", "-q", cwd=tmp_path)
    for number in (1, 2, 3):
        succeed("run", "--plan", "plan.json", "--shard", number, "-q", cwd=tmp_path)
    succeed("merge", "plan.json", "-o", "merged.h5", "-q", cwd=tmp_path)
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_options_that_do_not_go_together(case: Case, tmp_path: Path) -> None:
    for words, text in (
        (["--save", "pooled"], "--save pooled: expected --pool"),
        (
            ["--pool", "mean", "--save", "outputs", "-o", "x.npy"],
            "--save outputs,pooled: x.npy holds either outputs or pooled; say --save pooled",
        ),
        (["--pool", "mean", "-o", "x.csv", "--states", "s.npz"], "--states s.npz: a table holds"),
    ):
        assert_one_line(lstmcli("run", *case.inputs, *words, cwd=tmp_path), 2, text)


def test_inf_minus_inf_is_the_nan_of_numpy(tmp_path: Path) -> None:
    """Which sign it gets is the CPU's choice."""

    def cell(projection: float) -> package.Cell:
        bias = np.float32([10] * 4 + [0] * 4 + [10] * 8)
        kernels = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32)
        return package.Cell(*kernels, bias, projection=np.full((4, 1), projection, np.float32))

    package.Bidirectional(cell(3e38), cell(-3e38), merge="sum").save(tmp_path / "model.h5")
    np.save(tmp_path / "x.npy", np.ones((1, 1, 1), np.float32))
    words = ("-w", "model.h5", "--pool", "final", "--save", "pooled,states", "-q", "-o", "out.h5")
    succeed("run", "-i", "x.npy", *words, cwd=tmp_path)
    assert read(tmp_path / "out.h5", "state/forward/h").tolist() == [[np.inf]]
    assert read(tmp_path / "out.h5").view(np.uint32).tolist() == [[0x7FC00000]]
