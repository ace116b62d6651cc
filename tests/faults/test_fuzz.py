"""Damaged inputs, models and journals are refused in one line, or run right."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.command import SECONDS, succeed
from helpers.small_run import SOME_LONG, SmallRun
from helpers.system_tools import run_with_faults

SCRIPT = Path(__file__).parents[1] / "helpers" / "fuzz.py"
INPUTS = {"hdf5": "x.h5", "chunked": "chunked.h5"}  # of a run other than that over x.npy: a result names its input


@pytest.fixture(scope="module")
def job(small_run: Callable[..., SmallRun]) -> SmallRun:
    formats = ("x.h5", "chunked.h5", "mask.npy", "lens.txt", "model.h5", "many")
    options = "--threads 1 --max-memory 60KB -q"
    return small_run(14, 60, 5, features=20, seed=2, lengths=SOME_LONG, formats=formats, options=options)


def fuzz(job: SmallRun, folder: Path, kind: str, seed: int, count: int) -> None:
    job.copy_to(folder)
    (folder / "golden.h5").write_bytes(job.result)
    if (x := INPUTS.get(kind)) is not None:
        succeed(*job.words("golden.h5", x, folder=Path()), "--overwrite", cwd=folder)
    if kind == "journal":
        run_with_faults(folder, argv=job.words(folder=Path()), output="out.h5", fault="kill", stop=43)
    call = [sys.executable, str(SCRIPT), kind, str(seed), str(count)]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=20 * SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    *bad, codes = done.stdout.splitlines()
    assert not bad, "\n".join(bad)
    assert 65 in ast.literal_eval(codes), codes


KINDS = [
    "npy",
    "lengths",
    "mask",
    "text",
    "hdf5",
    "chunked",
    "npz",
    "datasets",
    "kaldi",
    "kaldi list",
    "safetensors",
    "model",
    "convert",
    "convert npz",
    "convert result",
    "journal",
    "result",
]


@pytest.mark.parametrize("kind", KINDS)
def test_some(kind: str, job: SmallRun, tmp_path: Path) -> None:
    fuzz(job, tmp_path, kind, 0, 40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many(kind: str, job: SmallRun, tmp_path: Path) -> None:
    fuzz(job, tmp_path, kind, 100, 1500)
