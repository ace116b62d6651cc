"""lstmcli env, and what a start loads."""

import os
import subprocess
import sys
from pathlib import Path

from helpers.command import lstmcli, succeed


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
    # A few weights and kilobytes need neither NumPy's generators nor OpenSSL's checksums, which NumPy 1 loads by itself.
    numpy = [sys.executable, "-c", "import sys, numpy; print(*sys.modules)"]
    by_numpy = subprocess.run(numpy, capture_output=True, text=True, check=True).stdout.split()
    assert not modules.difference(by_numpy) & {"subprocess", "difflib", "locale", "numpy.random", "_hashlib"}
