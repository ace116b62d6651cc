"""Damaged inputs, models and journals are refused in one line, or run right."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.command import SECONDS, succeed

FOLDER = Path(__file__).parents[1] / "helpers"
RUN = ["run", "-i", "x.npy", "-l", "lens.npy", "-w", "model.h5", "-o", "out.h5", "--threads", "1", "--max-memory", "60KB", "-q"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(2)
    x = rng.normal(size=(14, 60, 20)).astype(np.float32)
    lengths = np.array([3, 0, 2, 1, 5, 60, 41, 0, 60, 2, 4, 1, 7, 0])
    files.write_npy(folder / "x.npy", x)
    files.write_npy(folder / "lens.npy", lengths)
    files.write_npy(folder / "mask.npy", np.arange(60) < lengths[:, None])
    (folder / "lens.txt").write_text("\n".join(map(str, lengths)) + "\n")
    files.write_h5(folder / "x.h5", x=x)
    with h5py.File(folder / "chunked.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(4, 16, 20), compression="gzip", fletcher32=True)
    files.write_model(folder / "model.h5", files.random_model(20, [5]))
    succeed(*RUN, cwd=folder)
    (folder / "out.h5").rename(folder / "golden.h5")
    return folder


def fuzz(job: Path, folder: Path, kind: str, seed: int, count: int) -> None:
    shutil.copytree(job, folder, dirs_exist_ok=True)
    if kind == "journal":
        options = {"argv": RUN, "output": "out.h5", "fault": "kill", "stop": 43}
        call = [sys.executable, str(FOLDER / "faults.py"), json.dumps(options)]
        subprocess.run(call, cwd=folder, capture_output=True, timeout=SECONDS, check=True)
    call = [sys.executable, str(FOLDER / "fuzz.py"), kind, str(seed), str(count)]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=20 * SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    *bad, codes = done.stdout.splitlines()
    assert not bad, "\n".join(bad)
    assert 65 in ast.literal_eval(codes), codes


KINDS = ["npy", "lengths", "mask", "text", "hdf5", "chunked", "model", "journal", "result"]


@pytest.mark.parametrize("kind", KINDS)
def test_some(kind: str, job: Path, tmp_path: Path) -> None:
    fuzz(job, tmp_path, kind, 0, 40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many(kind: str, job: Path, tmp_path: Path) -> None:
    fuzz(job, tmp_path, kind, 100, 1500)
