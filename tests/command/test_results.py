"""Result files: what is in them, what they replace, and that failure leaves nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import LSTMCLI, SECONDS, Ran, assert_one_line, lstmcli, succeed
from helpers.system_tools import mounted


def run(case: Case, folder: Path, *args: object) -> Ran:
    return lstmcli("run", *case.inputs, *args, cwd=folder)


def test_hdf5_result_layout(case: Case) -> None:
    with h5py.File(case.folder / "result.h5") as file:
        assert file.attrs["format"] == "lstmcli-result"
        assert file.attrs["format_version"] == 1
        assert set(file) == {"outputs", "lengths", "state", "model", "checksums"}
        assert (file["outputs"].shape, file["outputs"].dtype) == ((13, 17, 5), np.dtype("<f4"))
        assert file["lengths"].dtype == np.int64
        np.testing.assert_array_equal(file["lengths"][:], case.lengths)
        for path, units in [("0/c", 21), ("0/h", 21), ("1/c", 5), ("1/h", 5)]:
            assert (file[f"state/{path}"].shape, file[f"state/{path}"].dtype) == ((13, units), np.dtype("<f4"))
        texts = [value for value in file.attrs.values() if isinstance(value, str) and value.startswith(("{", "["))]
        assert texts
        assert all(json.loads(text) for text in texts)


def test_model_in_the_result_follows_the_format(case: Case) -> None:
    with h5py.File(case.folder / "result.h5") as file:
        model = file["model"]
        assert model.attrs["kind"] == "stack"
        assert set(model) == {"0", "1"}
        for name, cell in zip("01", case.model.layers, strict=True):
            assert isinstance(cell, files.naive.Cell)
            group = model[name]
            assert group.attrs["kind"] == "cell"
            assert (group.attrs["units"], group.attrs["forget_bias"]) == (cell.units, 1.0)
            assert (group.attrs["activation"], group.attrs["recurrent_activation"]) == ("tanh", "sigmoid")
            assert group.attrs["gate_order"] == "i,f,g,o"
            assert not {"cell_clip", "projection_clip"} & set(group.attrs)
            assert set(group) == {"input_kernel", "recurrent_kernel", "bias"}
            for dataset in group:
                np.testing.assert_array_equal(group[dataset][:], getattr(cell, dataset))


def test_padding_of_the_outputs_is_exactly_zero(case: Case) -> None:
    padded = case.outputs[files.padding(case.outputs.shape, case.lengths)]
    assert padded.size > 0
    assert padded.tobytes() == bytes(padded.nbytes)


def test_a_result_can_be_given_to_weights(case: Case, tmp_path: Path) -> None:
    args = ["--input", case.x_npy, "--lens", case.lens_npy]
    succeed("run", *args, "--weights", case.folder / "result.h5", "--output", "again.h5", cwd=tmp_path)
    files.assert_same_bits(files.read_result(tmp_path / "again.h5"), case.result)


def test_a_run_with_new_weights_can_be_repeated_from_its_result(case: Case, tmp_path: Path) -> None:
    args = ["run", "--input", case.x_npy, "--lens", case.lens_npy]
    succeed(*args, "--units", "9,4", "--seed", 5, "--output", "first.h5", cwd=tmp_path)
    succeed(*args, "--weights", "first.h5", "--output", "again.h5", cwd=tmp_path)
    files.assert_same_bits(files.read_result(tmp_path / "again.h5"), files.read_result(tmp_path / "first.h5"))


def test_a_run_with_new_weights_can_be_repeated_from_beside_an_npy_result(case: Case, tmp_path: Path) -> None:
    args = ["run", "--input", case.x_npy, "--lens", case.lens_npy]
    succeed(*args, "--units", "9,4", "--seed", 5, "--output", "first.npy", cwd=tmp_path)
    (model,) = tmp_path.glob("*.h5")
    succeed(*args, "--weights", model, "--output", "again.npy", cwd=tmp_path)
    assert files.bits(np.load(tmp_path / "again.npy")) == files.bits(np.load(tmp_path / "first.npy"))


def test_npy_result(case: Case, tmp_path: Path) -> None:
    assert run(case, tmp_path, "--output", "out.npy").code == 0
    outputs = np.load(tmp_path / "out.npy")
    assert outputs.flags.c_contiguous
    files.assert_same_bits((outputs, files.read_npz(tmp_path / "out.states.npz")), case.result)


def test_states_go_where_they_are_told(case: Case, tmp_path: Path) -> None:
    assert run(case, tmp_path, "--output", "out.npy", "--states", "elsewhere.npz").code == 0
    assert not (tmp_path / "out.states.npz").exists()
    files.assert_same_bits((np.load(tmp_path / "out.npy"), files.read_npz(tmp_path / "elsewhere.npz")), case.result)


def test_save_states_alone(case: Case, tmp_path: Path) -> None:
    assert run(case, tmp_path, "--output", "out.h5", "--save", "states").code == 0
    outputs, state = files.read_result(tmp_path / "out.h5")
    assert outputs is None
    files.assert_same_bits((case.outputs, state), case.result)


def test_save_outputs_alone(case: Case, tmp_path: Path) -> None:
    assert run(case, tmp_path, "--output", "out.h5", "--save", "outputs").code == 0
    outputs, state = files.read_result(tmp_path / "out.h5")
    assert state == {}
    files.assert_same_bits((outputs, case.state), case.result)


@pytest.mark.parametrize("suffix", ["h5", "npy"])
def test_same_run_gives_the_same_file(suffix: str, case: Case, tmp_path: Path) -> None:
    assert run(case, tmp_path, "--output", f"out.{suffix}").code == 0
    first = files.snapshot(tmp_path)
    assert run(case, tmp_path, "--output", f"out.{suffix}", "--overwrite").code == 0
    assert files.snapshot(tmp_path) == first


def test_threads_memory_and_name_leave_no_trace_in_the_file(case: Case, tmp_path: Path) -> None:
    assert run(case, tmp_path, "--output", "one.h5", "--threads", 1).code == 0
    assert run(case, tmp_path, "--output", "two.h5", "--threads", 3, "--max-memory", "2GB").code == 0
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


@pytest.mark.parametrize("name", ["out.npz", "out.txt", "out"])
def test_unknown_kinds_of_files_are_refused(name: str, case: Case, tmp_path: Path) -> None:
    assert_one_line(run(case, tmp_path, "--output", name), 2, name)
    assert list(tmp_path.iterdir()) == []


def test_result_has_the_permissions_of_any_new_file(case: Case, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert run(case, tmp_path, "--output", "out.h5").code == 0
    finally:
        os.umask(before)
    assert (tmp_path / "out.h5").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["out.h5", "out.npy"])
def test_existing_output_is_kept_unless_overwritten(name: str, case: Case, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"precious")
    before = files.snapshot(tmp_path)
    assert_one_line(run(case, tmp_path, "--output", name), 73, name, "--overwrite")
    assert files.snapshot(tmp_path) == before
    assert run(case, tmp_path, "--output", name, "--overwrite").code == 0
    outputs = np.load(tmp_path / name) if name == "out.npy" else files.read_result(tmp_path / name)[0]
    assert outputs is not None
    assert files.bits(outputs) == files.bits(case.outputs)


def test_existing_states_are_kept_too(case: Case, tmp_path: Path) -> None:
    (tmp_path / "out.states.npz").write_bytes(b"precious")
    before = files.snapshot(tmp_path)
    assert_one_line(run(case, tmp_path, "--output", "out.npy"), 73, "out.states.npz")
    assert files.snapshot(tmp_path) == before


def test_failed_overwrite_keeps_the_old_output(case: Case, tmp_path: Path) -> None:
    (tmp_path / "out.h5").write_bytes(b"precious")
    files.write_npy(tmp_path / "bad.npy", case.lengths + 1)
    before = files.snapshot(tmp_path)
    args = ["--input", case.x_npy, "--lens", "bad.npy", "--weights", case.weights]
    assert_one_line(lstmcli("run", *args, "--output", "out.h5", "--overwrite", cwd=tmp_path), 65, "bad.npy")
    assert files.snapshot(tmp_path) == before


def test_missing_folder(case: Case, tmp_path: Path) -> None:
    assert_one_line(run(case, tmp_path, "--output", "missing/out.h5"), 73, "missing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_output_that_is_a_folder(overwrite: list[str], case: Case, tmp_path: Path) -> None:
    (tmp_path / "out.h5").mkdir()
    (tmp_path / "out.h5" / "precious").write_bytes(b"precious")
    before = files.snapshot(tmp_path)
    assert_one_line(run(case, tmp_path, "--output", "out.h5", *overwrite), 73, "out.h5")
    assert files.snapshot(tmp_path) == before


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_output_that_is_the_input(link: object, case: Case, tmp_path: Path) -> None:
    files.write_h5(tmp_path / "in.h5", x=case.x)
    name = "in.h5"
    if callable(link):
        name = "link.h5"
        link(tmp_path / "in.h5", tmp_path / name)
    before = files.snapshot(tmp_path)
    for source in [["--input", "in.h5", "--weights", case.weights], ["--input", case.x_npy, "--weights", "in.h5"]]:
        assert_one_line(lstmcli("run", *source, "--output", name, "--overwrite", cwd=tmp_path), 73, name)
        assert files.snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_output_has_its_name_only_when_the_run_is_complete(name: str, tmp_path: Path) -> None:
    """The run would take minutes; it is stopped as soon as there is a partial file."""
    write_zeros(tmp_path / "x.npy", (1024, 4096, 64))
    run = ["run", "--input", "x.npy", "--units", "1024", "--save", "states", "--output", "out.h5", "--progress", "none"]
    with subprocess.Popen([*LSTMCLI, *run], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            while process.poll() is None and not (tmp_path / "out.h5.partial").exists():
                time.sleep(0.02)
            time.sleep(0.5)
            process.send_signal(signal.Signals[name])
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode in {"SIGKILL": (-9,), "SIGTERM": (75, 143, -15), "SIGINT": (75, 130, -2)}[name]
    assert out == b""
    assert b"Traceback" not in err
    assert not (tmp_path / "out.h5").exists()
    files.write_npy(tmp_path / "small.npy", np.ones((2, 3, 4), np.float32))
    succeed("run", "--input", "small.npy", "--units", 2, "--output", "out.h5", "--overwrite", cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5", "small.npy", "x.npy"]


def write_zeros(path: Path, shape: tuple[int, ...]) -> None:
    """A float32 NPY file that takes no disk."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + 4 * math.prod(shape))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as folder:
        yield folder


@pytest.mark.root
@pytest.mark.parametrize("name", ["out.h5", "out.npy"])
def test_full_disk_is_refused_before_any_compute(name: str, small_disk: Path, tmp_path: Path) -> None:
    """17 GB of outputs that would take many minutes to compute: a late refusal runs into the time limit."""
    write_zeros(tmp_path / "x.npy", (1024, 4096, 64))
    args = ["--input", "x.npy", "--units", 1024, "--progress", "none"]
    assert_one_line(lstmcli("run", *args, "--output", small_disk / name, cwd=tmp_path), 74, name)
    assert list(small_disk.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "x.npy"]


@pytest.mark.root
def test_full_disk_keeps_the_old_output(small_disk: Path, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.ones((64, 128, 4), np.float32))
    (small_disk / "out.h5").write_bytes(b"precious")
    args = ["--input", "x.npy", "--units", 64, "--output", small_disk / "out.h5", "--overwrite"]
    assert_one_line(lstmcli("run", *args, "--progress", "none", cwd=tmp_path), 74, "out.h5")
    assert files.snapshot(small_disk) == {"out.h5": b"precious"}


def test_a_result_says_what_it_was_made_of(case: Case, tmp_path: Path) -> None:
    """By names without folders, sizes and fingerprints; a copy at another time and place gives the same bytes."""

    def result(name: str, *more: object) -> dict[str, Any]:
        succeed("run", "-i", tmp_path / name, "-l", case.lens_npy, *more, "-o", f"{len(made)}.h5", cwd=tmp_path)
        made.append((tmp_path / f"{len(made)}.h5").read_bytes())
        with h5py.File(tmp_path / f"{len(made) - 1}.h5") as file:
            return {key: json.loads(file.attrs[key]) for key in ("input", "weights", "initial_state") if key in file.attrs}

    made: list[bytes] = []
    (tmp_path / "elsewhere").mkdir()
    for folder in (".", "elsewhere"):
        shutil.copy(case.x_npy, tmp_path / folder / "x.npy")
    first = result("x.npy", "-w", case.weights)
    assert first["input"]["name"] == "x.npy"
    assert first["input"]["bytes"] == case.x_npy.stat().st_size
    assert first["input"]["shape"] == list(case.x.shape)
    assert first["weights"]["name"] == case.weights.name
    assert "initial_state" not in first
    os.utime(tmp_path / "elsewhere" / "x.npy", (0, 0))
    assert result("elsewhere/x.npy", "-w", case.weights) == first
    assert made[0] == made[1]
    seeded = result("x.npy", "-u", 5)
    assert seeded["weights"]["name"] == "seed 0"
    assert seeded["weights"]["fingerprint"] != first["weights"]["fingerprint"]
    started = result("x.npy", "-u", 5, "--initial-state", "2.h5")
    assert started["initial_state"]["name"].startswith("2.h5")
    np.save(tmp_path / "x.npy", case.x + 1)
    assert result("x.npy", "-w", case.weights)["input"]["fingerprint"] != first["input"]["fingerprint"]
