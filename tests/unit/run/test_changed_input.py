"""An input that changes while a run is stopped, with its size, time and samples kept: what was done with it is not reused."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.sources import padded

from lstmcli.errors import BusyError, ChangedDataError, StoppedError
from lstmcli.files import positioned_file
from lstmcli.run.job import Compute, Inputs, Job, NewModel, Output, Resources
from lstmcli.run.run import run
from lstmcli.run.stop import Stop

LENGTHS = np.array([3, 0, 2, 1, 5, 60, 41, 0, 60, 2, 4, 1, 7, 0])
X = padded(LENGTHS, 60, 20)
C, H = np.random.default_rng(0).normal(size=(2, 14, 5))


@pytest.fixture(autouse=True)
def small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are 64 KB, which would be all of these files."""
    monkeypatch.setattr(positioned_file, "SAMPLE", 1)


def write_npy(folder: Path, x: np.ndarray) -> str:
    np.save(folder / "x.npy", x)
    return "x.npy"


def write_doubles(folder: Path, x: np.ndarray) -> str:
    return write_npy(folder, x.astype(np.float64))


def write_fortran(folder: Path, x: np.ndarray) -> str:
    return write_npy(folder, np.asfortranarray(x))


def write_h5(folder: Path, x: np.ndarray) -> str:
    files.write_h5(folder / "x.h5", x=x)
    return "x.h5"


def write_chunks(folder: Path, x: np.ndarray) -> str:
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(2, 7, 20))
    return "x.h5"


def write_datasets(folder: Path, x: np.ndarray) -> str:
    with h5py.File(folder / "x.h5", "w") as file:
        for k, (sequence, length) in enumerate(zip(x, LENGTHS, strict=True)):
            file[f"{k:02}"] = sequence[:length]
    return "x.h5"


def write_npz(folder: Path, x: np.ndarray) -> str:
    np.savez(folder / "x.npz", x=x)
    return "x.npz"


def write_start_npz(folder: Path, h: np.ndarray) -> str:
    np.savez(folder / "start.npz", **{"0/c": C, "0/h": h})
    return "start.npz"


def write_start_h5(folder: Path, h: np.ndarray) -> str:
    with h5py.File(folder / "start.h5", "w") as file:
        file["state/0/c"], file["state/0/h"] = C, h
    return "start.h5"


def secretly(write: Callable[[Path, np.ndarray], str], folder: Path, values: np.ndarray) -> str:
    """Writes a file whose time is always the same."""
    name = write(folder, values)
    os.utime(folder / name, ns=(0, 0))
    return str(folder / name)


def job_of(folder: Path, spec: str, start: str | None = None, **resources: bool) -> Job:
    np.save(folder / "lens.npy", LENGTHS)
    inputs = Inputs(spec, lens=str(folder / "lens.npy"), initial_state=start)
    compute, out = Compute(save=("states",)), Output(str(folder / "out.h5"))
    return Job(inputs, NewModel((5,)), compute, out, Resources(1, 60_000, **resources))


def stop_after(job: Job, steps: int) -> None:
    """Runs a job until so many steps are stored."""
    stop, done = Stop(), 0

    def on_progress(count: int, total: int) -> None:
        nonlocal done
        done += count
        if done >= steps:
            stop.signal = signal.SIGTERM

    with pytest.raises(StoppedError):
        run(job, on_progress, stop)


def nothing(count: int, total: int) -> None:
    pass


def undisturbed(job: Job) -> bytes:
    run(job, nothing)
    path = Path(str(job.output.output))
    content = path.read_bytes()
    path.unlink()
    return content


FORMS = [write_npy, write_doubles, write_fortran, write_h5, write_chunks, write_datasets, write_npz]


@pytest.mark.parametrize("steps", [30, 90])  # the second one ends in the middle of long sequences
@pytest.mark.parametrize("write", FORMS)
def test_a_changed_input(write: Callable[[Path, np.ndarray], str], steps: int, tmp_path: Path) -> None:
    job = job_of(tmp_path, secretly(write, tmp_path, X))
    if write is write_datasets:
        job = job._replace(inputs=job.inputs._replace(lens=None))
    resume = job._replace(resources=job.resources._replace(resume=True))
    want = undisturbed(job)
    stop_after(job, steps)
    changed = X.copy()
    changed[4, 2, 3] += 1
    secretly(write, tmp_path, changed)
    before = files.snapshot(tmp_path)
    with pytest.raises(ChangedDataError, match="has changed since"):
        run(resume, nothing)
    assert files.snapshot(tmp_path) == before
    secretly(write, tmp_path, X)
    facts = run(resume, nothing)
    assert facts["resumed_steps"] >= steps
    assert (tmp_path / "out.h5").read_bytes() == want


def test_what_is_read_later_may_change(tmp_path: Path) -> None:
    changed = X.copy()
    changed[12, 3, 3] += 1
    changed[4, 9, 3] += 1  # padding
    job = job_of(tmp_path, secretly(write_npy, tmp_path, changed))
    want = undisturbed(job)
    secretly(write_npy, tmp_path, X)
    stop_after(job, 90)
    secretly(write_npy, tmp_path, changed)
    run(job._replace(resources=job.resources._replace(resume=True)), nothing)
    assert (tmp_path / "out.h5").read_bytes() == want


@pytest.mark.parametrize("write", [write_start_npz, write_start_h5])
def test_a_changed_initial_state(write: Callable[[Path, np.ndarray], str], tmp_path: Path) -> None:
    job = job_of(tmp_path, secretly(write_npy, tmp_path, X), secretly(write, tmp_path, H))
    want = undisturbed(job)
    stop_after(job, 90)
    changed = H.copy()
    changed[3, 1] += 1
    secretly(write, tmp_path, changed)
    resume = job._replace(resources=job.resources._replace(resume=True))
    with pytest.raises(ChangedDataError, match="sequences 3 to 5"):
        run(resume, nothing)
    secretly(write, tmp_path, H)
    run(resume, nothing)
    assert (tmp_path / "out.h5").read_bytes() == want


@pytest.mark.parametrize("output", ["out.h5", "out.npy"])
@pytest.mark.parametrize("padding", ["post", "pre"])
def test_damage_in_the_padding_of_what_a_stopped_run_left(output: str, padding: str, tmp_path: Path) -> None:
    job = job_of(tmp_path, write_npy(tmp_path, X if padding == "post" else X[:, ::-1]))
    inputs = job.inputs._replace(padding=padding, input=str(tmp_path / "x.npy"))
    job = job._replace(compute=Compute(), output=Output(str(tmp_path / output)), inputs=inputs)
    run(job, nothing)
    want = {path.name: path.read_bytes() for path in tmp_path.glob("out.*")}
    with h5py.File(tmp_path / output) if output == "out.h5" else nullcontext() as file:
        offset = file["outputs"].id.get_offset() if file else 128
    for path in tmp_path.glob("out.*"):
        path.unlink()
    stop_after(job, 90)
    valid = np.arange(60) < LENGTHS[:, None]
    places = np.flatnonzero(~(valid if padding == "post" else valid[:, ::-1]))  # steps of five numbers of four bytes
    with (tmp_path / f"{output}.partial").open("r+b") as partial:
        for place in places[[0, 3, 40, 100, 300, -1]].tolist():
            partial.seek(offset + 20 * place + 7)
            partial.write(b"!")
    run(job._replace(resources=job.resources._replace(resume=True)), nothing)
    for name, content in want.items():
        assert (tmp_path / name).read_bytes() == content, name


def test_two_that_resume_at_once(tmp_path: Path) -> None:
    job = job_of(tmp_path, secretly(write_npy, tmp_path, X))
    resume = job._replace(resources=job.resources._replace(resume=True))
    want = undisturbed(job)
    stop_after(job, 30)
    begun, go_on = threading.Event(), threading.Event()

    def on_progress(count: int, total: int) -> None:
        begun.set()
        go_on.wait(60)

    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(run, resume, on_progress)
        assert begun.wait(60)
        before = files.snapshot(tmp_path)
        with pytest.raises(BusyError, match="another run is writing it"):
            run(resume, nothing)
        assert files.snapshot(tmp_path) == before
        go_on.set()
        assert first.result()["resumed_steps"] >= 30
    assert (tmp_path / "out.h5").read_bytes() == want
