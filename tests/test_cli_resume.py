"""Runs that are killed, stopped or refused by the system lose nothing, and go on to the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import files
import numpy as np
import pytest
from command import SECONDS, succeed

FAULTS = Path(__file__).parent / "faults.py"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 sequences of which some are long, so that with little memory blocks of them are cut in time."""
    folder = tmp_path_factory.mktemp("job")
    rng = np.random.default_rng(2)
    lengths = np.array([3, 0, 2, 1, 5, 60, 41, 0, 60, 2, 4, 1, 7, 0])
    files.write_npy(folder / "x.npy", rng.normal(size=(14, 60, 20)).astype(np.float32))
    files.write_npy(folder / "lens.npy", lengths)
    files.write_model(folder / "model.h5", files.random_model(20, [6, 5]))
    return folder


RUN = ["run", "-i", "x.npy", "-l", "lens.npy", "-w", "model.h5", "--threads", "1", "--max-memory", "36KB", "-q"]


def faults(job: Path, folder: Path, output: str, *args: str, old: bytes | None = None, **options: Any) -> list[dict[str, Any]]:
    """What tests/faults.py tells of a run in `folder`, with an old output there if `old` is given, checked for lies."""
    for path in job.iterdir():
        shutil.copy(path, folder)
    golden = folder.parent / f"{folder.name}-golden"
    golden.mkdir()
    inputs = [folder / word if (folder / word).is_file() else word for word in RUN]
    succeed(*inputs, *args, "-o", output, cwd=golden)
    want = hashlib.sha256((golden / output).read_bytes()).hexdigest()
    before = None
    if old is not None:
        (folder / output).write_bytes(old)
        before = hashlib.sha256(old).hexdigest()
    argv = [*RUN, *args, "-o", output]
    call = [sys.executable, str(FAULTS), json.dumps({"argv": argv, "output": output} | options)]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=SECONDS * 4, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    for k, one in enumerate(told, 1):
        where = f"call {k}: {one}"
        assert one["output"] in (before, want), where
        assert one["code"] != 0 or one["output"] == want, where
        assert "Traceback" not in one["stderr"], where
        assert len(one["stderr"].splitlines()) <= 1, where
        if one["code"]:
            complete = one["output"] == want and one["resumed"] == 73  # it had its name already
            assert one["resumed"] == 0 or complete, where
            assert one["result"] == want, where
        assert set(one["left"]) <= {path.name for path in golden.iterdir()}, where
    assert told[-1]["code"] == 0
    return told


@pytest.mark.parametrize("output", ["out.h5", "out.npy"])
@pytest.mark.parametrize("fault", ["kill", "torn"])
def test_killed_at_each_call_in_turn(fault: str, output: str, job: Path, tmp_path: Path) -> None:
    told = faults(job, tmp_path, output, fault=fault)
    assert {one["call"] for one in told} >= {"open", "pwrite", "posix_fallocate", "fsync", "fdatasync", "link", "unlink"}
    assert all(one["code"] == -9 for one in told[:-1])


def test_killed_while_it_replaces_an_old_output(job: Path, tmp_path: Path) -> None:
    told = faults(job, tmp_path, "out.h5", "--overwrite", old=b"precious", fault="kill")
    assert "replace" in {one["call"] for one in told}
