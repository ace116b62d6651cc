"""The fingerprint of a run: two runs that read something else have two, and a run whose files moved has the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import files

from lstmcli.results.journal import Fingerprint
from lstmcli.run.job import Compute, Inputs, Job, NewModel
from lstmcli.run.opened_job import open_job

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 6, 5, 4)).astype(np.float32)
STATES = {f"{name}/0/{cell}": RNG.normal(size=(6, 3)) for name in ("one", "two") for cell in "ch"}
OFFSETS = np.array([0, 5, 10, 15, 20, 25, 30])


def fingerprint(folder: Path, spec: str, **more: Any) -> Fingerprint:
    """That of a run of new weights over `spec`, whose path, like all in `more`, is relative to the folder."""
    named = {key: str(folder / value) if key in ("offsets", "initial_state") else value for key, value in more.items()}
    with open_job(
        Job(Inputs(str(folder / spec), **{"lens": "none"} | named), NewModel((3,)), Compute(save=("states",)))
    ) as opened:
        return opened.fingerprint()


def hdf5(folder: Path, **options: Any) -> None:
    with h5py.File(folder / "x.h5", "w") as file:
        for name, value in zip("ab", (A, B), strict=True):
            file.create_dataset(name, data=value, **options)


def chunked(folder: Path) -> None:
    hdf5(folder, chunks=(2, 2, 4), compression="gzip")


def datasets(folder: Path, **options: Any) -> None:
    with h5py.File(folder / "x.h5", "w") as file:
        for name, value in zip("ab", (A, B), strict=True):
            for k, sequence in enumerate(value):
                file.create_dataset(f"{name}/{k}", data=sequence, **options)


def compressed_datasets(folder: Path) -> None:
    datasets(folder, compression="gzip")


def flat(folder: Path) -> None:
    with h5py.File(folder / "x.h5", "w") as file:
        for name, value in zip("ab", (A, B), strict=True):
            file[f"{name}/rows"], file[f"{name}/offsets"] = value.reshape(30, 4), OFFSETS


def npz(folder: Path) -> None:
    np.savez(folder / "x.npz", a=A, b=B)


def npz_deflated(folder: Path) -> None:
    np.savez_compressed(folder / "x.npz", a=A, b=B)


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (hdf5, "x.h5"),
        (chunked, "x.h5"),
        (datasets, "x.h5"),
        (compressed_datasets, "x.h5"),
        (flat, "x.h5"),
        (npz, "x.npz"),
        (npz_deflated, "x.npz"),
    ],
)
def test_two_inputs_in_one_file(write: Callable[[Path], None], file: str, tmp_path: Path) -> None:
    write(tmp_path)
    first, second = (fingerprint(tmp_path, f"{file}::{name}") for name in "ab")
    assert first != second
    assert first["input"]["name"] == f"{file}::" + ("a" if file == "x.npz" else "/a/rows" if write is flat else "/a")
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(tmp_path / file, moved / file)
    assert fingerprint(moved, f"{file}::a") == first


def test_a_name_that_was_left_out_is_the_same_run(tmp_path: Path) -> None:
    files.write_h5(tmp_path / "x.h5", a=A)
    assert fingerprint(tmp_path, "x.h5") == fingerprint(tmp_path, "x.h5::/a")


def test_a_dataset_of_the_same_name_at_another_place(tmp_path: Path) -> None:
    """Size, time and sample are the same: what differs lies between the samples, as do the headers of the datasets."""
    large = np.zeros((2, 40, 100, 64), np.float32)
    found = []
    for order in ("ab", "ba"):
        with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
            file["front"] = np.zeros(1 << 18, np.uint8)
            for name, value in zip(order, large, strict=True):
                file[name] = value
        os.utime(tmp_path / "x.h5", ns=(0, 0))
        found.append(fingerprint(tmp_path, "x.h5::a")["input"])
    assert found[0]["values_at"] != found[1]["values_at"]


def test_sequences_of_a_group_in_other_places(tmp_path: Path) -> None:
    found = []
    for order in ("01", "10"):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            for name in order:
                file[name] = A[0]
        found.append(fingerprint(tmp_path, "x.h5")["input"]["sequences"])
    assert found[0] != found[1]


def test_two_files_of_the_same_size_time_and_sample(tmp_path: Path) -> None:
    x = np.zeros((8, 100, 1000), np.float32)
    for name in ("x.npy", "y.npy"):
        np.save(tmp_path / name, x)
        os.utime(tmp_path / name, ns=(0, 0))
        x[3, 50, :10] += 1  # between the samples
    first, second = (fingerprint(tmp_path, name) for name in ("x.npy", "y.npy"))
    assert first["input"]["sample"] == second["input"]["sample"]
    assert first != second


def test_offsets(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", A.reshape(30, 4))
    found = []
    for name, starts in (("one.npy", OFFSETS[:-1]), ("two.npy", OFFSETS[:-1][::-1])):
        np.save(tmp_path / name, starts)
        np.save(tmp_path / "lens.npy", np.full(6, 5))
        found.append(fingerprint(tmp_path, "x.npy", lens=str(tmp_path / "lens.npy"), offsets=name))
    assert found[0] != found[1]


def test_axes_and_order(tmp_path: Path) -> None:
    x = RNG.normal(size=(4, 4, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    found = [fingerprint(tmp_path, "x.npy", axes=axes) for axes in ("NTE", "TNE", "ETN", "ENT")]
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    found.append(fingerprint(tmp_path, "x.npy"))
    assert len({repr(one["input"]) for one in found}) == 5
    assert [one["input"]["order"] for one in found] == ["NTE", "TNE", "ETN", "ENT", "ETN"]


@pytest.mark.parametrize("form", ["x.h5", "x.npz"])
def test_two_initial_states(form: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", A)
    if form == "x.h5":
        files.write_h5(tmp_path / "x.h5", **STATES)
        specs = ("x.h5::/one", "x.h5::/two")
    else:
        specs = ("one.npz", "two.npz")
        for spec in specs:
            group = spec.removesuffix(".npz")
            np.savez(tmp_path / spec, **{f"0/{cell}": 0 * STATES[f"{group}/0/{cell}"] for cell in "ch"})
            os.utime(tmp_path / spec, ns=(0, 0))
    first, second = (fingerprint(tmp_path, "x.npy", initial_state=spec) for spec in specs)
    assert first != second
    assert first["initial_state"]["arrays"]["0/c"] == ["<f8", 6, 3]
    assert fingerprint(tmp_path, "x.npy", initial_state=specs[0]) == first


def test_links_into_other_files_may_move_together(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    hdf5(folder)
    with h5py.File(folder / "shown.h5", "w") as file:
        for name, other in (("a", "a"), ("b", "b")):
            layout = h5py.VirtualLayout(A.shape, A.dtype)
            layout[:] = h5py.VirtualSource("x.h5", other, A.shape)
            file.create_virtual_dataset(name, layout)
        file["link"] = h5py.ExternalLink("x.h5", "/a")
    first = {name: fingerprint(folder, f"shown.h5::{name}", follow_links=True) for name in ("a", "b", "link")}
    assert first["a"] != first["b"]
    assert first["link"]["input"]["name"] == "x.h5::/a"
    folder.rename(tmp_path / "second")
    assert first == {name: fingerprint(tmp_path / "second", f"shown.h5::{name}", follow_links=True) for name in first}
