"""lstmcli env and lstmcli bench, and what a start loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.command import SECONDS, lstmcli, succeed

from lstmcli.tools.bench.cases import CASES, Case


def test_env_says_what_is_cached_and_warmup_fills_it(tmp_path: Path) -> None:
    env = os.environ | {"LSTMCLI_CACHE_DIR": str(tmp_path / "cache")}
    before = lstmcli("env", "--json", cwd=tmp_path, env=env).json
    assert before["cached"] == {"float32": False, "float64": False}
    assert before["cache"] == str(tmp_path / "cache")
    assert set(before["packages"]) >= {"numpy", "numba", "llvmlite", "h5py"}
    assert lstmcli("env", "--warmup", "--json", cwd=tmp_path, env=env).json["cached"] == {"float32": True, "float64": True}
    text = lstmcli("env", cwd=tmp_path, env=env)
    assert text.code == 0
    assert "float32 yes" in text.text


def test_the_first_run_says_that_it_compiles(sample_x: Path, tmp_path: Path) -> None:
    env = os.environ | {"LSTMCLI_CACHE_DIR": str(tmp_path / "cache")}
    first = lstmcli("run", "-i", sample_x, "-u", 3, "-o", "a.h5", cwd=tmp_path, env=env)
    assert first.code == 0
    assert "compil" in first.err
    second = lstmcli("run", "-i", sample_x, "-u", 3, "-o", "b.h5", cwd=tmp_path, env=env)
    assert (second.code, second.err) == (0, "")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_run_with_a_cached_kernel_loads_neither_numba_nor_in_a_pipe_rich(sample_x: Path, tmp_path: Path) -> None:
    succeed("env", "--warmup", cwd=tmp_path)
    command = [sys.executable, "-X", "importtime", "-m", "lstmcli", "run", "-i", str(sample_x), "-u", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    loaded = {name.partition(".")[0] for name in modules}
    assert "h5py" in loaded
    assert not loaded & {"numba", "rich", "torch", "tensorflow", "keras", "onnx", "onnxruntime"}
    # Of Python's own: what h5py wants of uname() starts a process, and click looks for names alike and for translations.
    # A few weights and kilobytes need neither NumPy's generators nor OpenSSL's checksums.
    assert not modules & {"subprocess", "difflib", "locale", "numpy.random", "_hashlib"}


SHAPE = ["bench", "--batch", "4", "--time", "6", "--embed", "5", "--units", "3"]
ONE_ROUND = "from lstmcli.tools.bench import measure; from lstmcli.cli.main import main; measure.ROUNDS = 1; main()"


def bench_of_one_round(*options: str, cwd: Path) -> str:
    call = [sys.executable, "-c", ONE_ROUND, *SHAPE, *options]
    done = subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bench_of_bfloat16(tmp_path: Path) -> None:
    found = json.loads(bench_of_one_round("--dtype", "bfloat16", "--json", cwd=tmp_path))
    assert found["dtype"] == "bfloat16"
    assert found["cases"][0]["contenders"][0]["milliseconds"] > 0


def test_bench_of_one_shape(tmp_path: Path) -> None:
    (case,) = json.loads(bench_of_one_round("--json", cwd=tmp_path))["cases"]
    plain = {"projection": None, "bidirectional": False, "vocabulary": None}
    assert case["case"] == {"batch": 4, "time": 6, "embed": 5, "units": [3], "fill": 0.5} | plain
    names = [one["name"] for one in case["contenders"]]
    assert (names[0], names[-1]) == ("lstmcli", "sgemm")
    assert case["contenders"][0]["ratio"] == 1
    assert all(one["milliseconds"] > 0 for one in case["contenders"])
    assert "sgemm" in bench_of_one_round(cwd=tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_lengths_of_a_case(case: Case) -> None:
    lengths = case.lengths()
    assert (len(lengths), lengths.max()) == (case.batch, case.time)
    assert lengths.min() >= 1
    assert abs(lengths.mean() / case.time - case.fill) < 0.06
    assert (lengths == case.lengths()).all()
    assert np.issubdtype(lengths.dtype, np.integer)
