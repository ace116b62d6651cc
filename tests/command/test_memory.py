"""A 4 GB input within 256 MB: bounded memory, and the same bytes as with more of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.command import LSTMCLI

SHAPE = (1024, 1024, 1024)  # 4 GiB of float32
LIMIT = 500 * 2**20

# A process of its own, because a child's peak starts from the memory of the process that starts it.
MEASURE = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:])
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
read = [line for line in open(f"/proc/{child.pid}/io") if line.startswith("rchar")][0]
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, int(read.split()[1])]))
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's process accounting")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Gone at once, not when pytest comes to it: the files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@dataclass(frozen=True)
class Measured:
    resident: int  # bytes, at the peak
    read: int  # bytes


def measure(*args: object, cwd: Path, stdin: Path | None = None) -> Measured:
    command = [sys.executable, "-c", MEASURE, *LSTMCLI, *map(str, args)]
    with Path(stdin or "/dev/null").open("rb") as source:
        done = subprocess.run(command, cwd=cwd, stdin=source, capture_output=True, text=True, timeout=1800, check=True)
    code, resident, read = json.loads(done.stdout)
    assert code == 0, done.stderr
    return Measured(resident, read)


def write_sparse(path: Path, lengths: np.ndarray, values: np.ndarray, first: int = 0) -> None:
    """A batch of SHAPE that takes little disk: `values` (N, K, E) from step `first` on, the rest zeros never written."""
    if path.suffix == ".npy":
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": SHAPE})
            offset = file.tell()
    else:
        with h5py.File(path, "w") as file:
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_layout(h5py.h5d.CONTIGUOUS)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple(SHAPE)
            dataset = h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, layout)
            offset = dataset.get_offset()
    row_bytes = 4 * SHAPE[1] * SHAPE[2]
    with path.open("r+b") as file:
        file.truncate(offset + SHAPE[0] * row_bytes)
        for row, length in enumerate(lengths):
            file.seek(offset + row * row_bytes + first * 4 * SHAPE[2])
            file.write(values[row, :length].tobytes())


@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_large_input_within_little_memory(kind: str, folder: Path) -> None:
    """Short sequences, so that it is quick: only their rows are read."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 4, SHAPE[0])
    values = rng.normal(size=(SHAPE[0], 3, SHAPE[2])).astype(np.float32)
    write_sparse(folder / f"x.{kind}", lengths, values)
    files.write_npy(folder / "lens.npy", lengths)
    files.write_npy(folder / "small.npy", values)
    run = ["run", "--units", 4, "--lens", "lens.npy", "--quiet"]

    small = measure(*run, "--input", f"x.{kind}", "--max-memory", "256MB", "--output", "small.h5", cwd=folder)
    measure(*run, "--input", f"x.{kind}", "--max-memory", "2GB", "--output", "large.h5", cwd=folder)
    measure(*run, "--input", "small.npy", "--output", "trimmed.h5", cwd=folder)
    assert small.resident < LIMIT
    assert small.read < 2 * values.nbytes + 2**26  # the rows, the program's own files, and nothing like 4 GB

    got = files.read_result(folder / "small.h5")
    files.assert_same_bits(got, files.read_result(folder / "large.h5"))
    assert got[0] is not None
    assert got[0].shape == (*SHAPE[:2], 4)
    assert not got[0][:, 3:].any()
    trimmed = np.ascontiguousarray(got[0][:, :3])
    files.assert_same_bits((trimmed, got[1]), files.read_result(folder / "trimmed.h5"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npy", "h5", "pipe"])
def test_large_input_that_is_all_valid(kind: str, folder: Path) -> None:
    """Every step of the 4 GB is read and computed; zeros leave a state of zeros as it is, up to the last two steps."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(SHAPE[0], 2, SHAPE[2])).astype(np.float32)
    source = folder / ("x.h5" if kind == "h5" else "x.npy")
    write_sparse(source, np.full(SHAPE[0], 2), values, first=SHAPE[1] - 2)
    files.write_npy(folder / "last.npy", values)
    run = ["run", "--units", 16, "--quiet", "--input"]
    large = [*run, "-" if kind == "pipe" else source.name]
    stdin = source if kind == "pipe" else None
    small = measure(*large, "--max-memory", "256MB", "--output", "small.h5", cwd=folder, stdin=stdin)
    measure(*large, "--max-memory", "2GB", "--output", "large.h5", cwd=folder, stdin=stdin)
    measure(*run, "last.npy", "--output", "last.h5", cwd=folder)
    assert small.resident < LIMIT
    assert small.read > 4 * 2**30
    got = files.read_result(folder / "small.h5")
    files.assert_same_bits(got, files.read_result(folder / "large.h5"))
    assert got[0] is not None
    assert not got[0][:, :-2].any()
    last = np.ascontiguousarray(got[0][:, -2:])
    files.assert_same_bits((last, got[1]), files.read_result(folder / "last.h5"))


@pytest.mark.slow
def test_large_output_within_little_memory(folder: Path) -> None:
    """2 GB of outputs, of which little is valid: padding is neither held nor written."""
    files.write_npy(folder / "x.npy", np.ones((2048, 1024, 1), np.float32))
    files.write_npy(folder / "lens.npy", np.arange(2048) % 5)
    run = ["run", "--units", 256, "--lens", "lens.npy", "--quiet", "--input", "x.npy", "--output", "out.npy"]
    assert measure(*run, "--max-memory", "256MB", cwd=folder).resident < LIMIT
    outputs = np.load(folder / "out.npy", mmap_mode="r")
    assert outputs.shape == (2048, 1024, 256)
    assert outputs[4, :4].any(axis=1).all()
    assert not outputs[4, 4:].any()
    del outputs


@pytest.mark.parametrize("name", ["b.h5", "b.npz", "b.arrow", "b.parquet"])
def test_convert_takes_less_memory_than_a_file(name: str, folder: Path) -> None:
    if name in ("b.arrow", "b.parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    with (folder / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (800, 128, 1024)})
        file.truncate(file.tell() + 800 * 128 * 1024 * 4)
    measured = measure("convert", "x.npy", name, "-q", cwd=folder)
    assert measured.resident < (folder / "x.npy").stat().st_size * 3 // 4
