"""Every way in which the same numbers may arrive gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed


def run(case: Case, folder: Path, source: object, *args: object, lens: object = None) -> tuple[np.ndarray | None, files.Arrays]:
    lens = case.lens_npy if lens is None else lens
    args = ("--input", source, "--lens", lens, "--weights", case.weights, *args)
    succeed("run", *args, "--output", "out.h5", "--quiet", cwd=folder)
    return files.read_result(folder / "out.h5")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_versions_and_orders(version: tuple[int, int], order: str, case: Case, tmp_path: Path) -> None:
    with (tmp_path / "in.npy").open("wb") as file:
        np.lib.format.write_array(file, np.asarray(case.x, order=order), version=version)  # type: ignore[call-overload]
    files.assert_same_bits(run(case, tmp_path, "in.npy"), case.result)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_floats_are_converted_to_the_dtype_of_the_computation(dtype: str, kind: str, case: Case, tmp_path: Path) -> None:
    values = (case.x if dtype[1:] != "f8" else case.x + np.float64(1e-9)).astype(dtype)
    files.write_npy(tmp_path / "plain.npy", values.astype("<f4"))
    if kind == "npy":
        files.write_npy(tmp_path / "in.npy", values)
    else:
        files.write_h5(tmp_path / "in.h5", x=values)
    got = run(case, tmp_path, f"in.{kind}")
    files.assert_same_bits(run(case, tmp_path, "plain.npy", "--overwrite"), got)


@pytest.mark.parametrize("dtype", [">f8", "<f4", "<f2"])
def test_floats_are_converted_to_float64(dtype: str, case: Case, tmp_path: Path) -> None:
    values = (case.x.astype("f8") / 3).astype(dtype)
    files.write_npy(tmp_path / "in.npy", values)
    files.write_npy(tmp_path / "plain.npy", values.astype("<f8"))
    got = run(case, tmp_path, "in.npy", "--dtype", "float64")
    assert got[0] is not None
    assert got[0].dtype == np.float64
    files.assert_same_bits(run(case, tmp_path, "plain.npy", "--dtype", "float64", "--overwrite"), got)


LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (5, 4, 20)},
    "features apart": {"chunks": (3, 17, 7)},
    "gzip": {"chunks": (4, 6, 20), "compression": "gzip"},
    "lzf": {"chunks": (1, 17, 20), "compression": "lzf"},
    "gzip shuffle": {"chunks": (13, 1, 20), "compression": "gzip", "shuffle": True},
    "fletcher32": {"chunks": (6, 5, 20), "fletcher32": True},
    "chunk wider than the data": {"chunks": (16, 32, 32), "maxshape": (None, None, None), "compression": "gzip"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hdf5_layouts(layout: str, case: Case, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file.create_dataset("x", data=case.x, **LAYOUTS[layout])
    files.assert_same_bits(run(case, tmp_path, "in.h5"), case.result)


@pytest.mark.parametrize("layout", ["C", "F", *LAYOUTS])
def test_time_major(layout: str, case: Case, tmp_path: Path) -> None:
    """The file is (T, N, E); the result is (N, T, D) as ever."""
    x = case.x.copy()
    x[files.padding(x.shape, case.lengths)] = np.nan
    x = x.swapaxes(0, 1)
    if layout in LAYOUTS:
        options = dict(LAYOUTS[layout])
        if "chunks" in options:
            sequences, steps, features = options["chunks"]
            options["chunks"] = steps, sequences, features
        with h5py.File(tmp_path / "in", "w") as file:
            file.create_dataset("x", data=x, **options)
    else:
        with (tmp_path / "in").open("wb") as file:
            np.save(file, np.asarray(x, order=layout))  # type: ignore[call-overload]
    files.assert_same_bits(run(case, tmp_path, "in", "--time-major"), case.result)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_matlab(layout: str, case: Case, tmp_path: Path) -> None:
    """HDF5 with the axes from the last to the first, behind a user block, and lengths as a row of doubles."""
    x = case.x.copy()
    x[files.padding(x.shape, case.lengths)] = np.nan
    options = dict(LAYOUTS[layout])
    if "chunks" in options:
        options["chunks"] = options["chunks"][::-1]
    with h5py.File(tmp_path / "data.mat", "w", userblock_size=512) as file:
        file.create_dataset("x", data=x.transpose(), **options)
        file["lens"] = case.lengths.astype(float)[None]
    found = run(case, tmp_path, "data.mat::/x", "--axes", "etn", lens="data.mat::/lens")
    files.assert_same_bits(found, case.result)
    args = ("run", "--axes", "ETN", "--input", "data.mat::/x", "--weights", case.weights, "--dry-run")
    assert "(20, 17, 13) float32, axes ETN  data.mat::/x" in succeed(*args, cwd=tmp_path).text
    facts = succeed(*args, "--json", cwd=tmp_path).json
    assert facts["input"]["axes"] == "ETN"
    assert facts["lengths"]["from"] == "data.mat::/lens"


def test_time_major_is_in_the_summary(case: Case, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "in.npy", case.x.swapaxes(0, 1))
    args = ("run", "--time-major", "--input", "in.npy", "--lens", case.lens_npy, "--weights", case.weights, "--dry-run")
    assert "(17, 13, 20) float32, time-major" in succeed(*args, cwd=tmp_path).text
    facts = succeed(*args, "--json", cwd=tmp_path).json
    assert facts["input"]["shape"] == [17, 13, 20]
    assert facts["input"]["time_major"] is True
    assert facts["outputs"]["shape"] == [13, 17, 5]


def test_hdf5_of_the_newest_file_format(case: Case, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "in.h5", "w", libver="latest") as file:
        file.create_dataset("x", data=case.x, chunks=(4, 4, 20), compression="gzip")
    files.assert_same_bits(run(case, tmp_path, "in.h5"), case.result)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_chunks_of_padding_are_not_read(compression: str | None, case: Case, tmp_path: Path) -> None:
    """Chunks that hold no valid step are damaged, so that reading one fails."""
    with h5py.File(tmp_path / "in.h5", "w") as file:
        x = file.create_dataset("x", data=case.x, chunks=(1, 4, 20), compression=compression, fletcher32=True)
        damaged = 0
        for row, length in enumerate(case.lengths):
            for step in range(0, 17, 4):
                if step >= length:
                    x.id.write_direct_chunk((row, step, 0), b"damaged!" * 20)
                    damaged += 1
        assert damaged > 20
        with pytest.raises(OSError, match=r"filter|Fletcher32"):
            x[1, 4]
    files.assert_same_bits(run(case, tmp_path, "in.h5"), case.result)


def test_names_of_datasets(case: Case, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["deep/er/x"] = case.x
        file["other"] = case.x[:, :, :3]
        file["sizes"] = case.lengths
    for source in ["in.h5::/deep/er/x", "in.h5::deep/er/x", "in.h5:/deep/er/x"]:
        got = run(case, tmp_path, source, "--overwrite", lens="in.h5::/sizes")
        files.assert_same_bits(got, case.result)


def test_only_float_dataset_of_rank_3_is_found(case: Case, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["group/x"] = case.x
        file["integers"] = np.ones((13, 17, 20), np.int32)
        file["matrix"] = case.x[0]
        file["text"] = "three dimensions"
    files.assert_same_bits(run(case, tmp_path, "in.h5"), case.result)


def test_kind_of_a_file_is_read_from_its_magic_not_its_name(case: Case, tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(case.x_npy.read_bytes())
    files.write_h5(tmp_path / "x.npy", x=case.x)
    files.assert_same_bits(run(case, tmp_path, "x.h5"), case.result)
    files.assert_same_bits(run(case, tmp_path, "x.npy", "--overwrite"), case.result)


def test_token_ids_are_sent_to_predict(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.ones((5, 7), np.int32))
    ran = lstmcli("run", "-i", "ids.npy", "-u", 3, cwd=tmp_path)
    assert_one_line(ran, 65, "ids.npy: expected float16, float32 or float64, got int32", "lstmcli predict")


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i4", "<u4", ">i8", "<u8"])
def test_integer_lengths_of_any_type(dtype: str, case: Case, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "n.npy", case.lengths.astype(dtype))
    files.write_h5(tmp_path / "n.h5", n=case.lengths.astype(dtype))
    files.assert_same_bits(run(case, tmp_path, case.x_npy, lens="n.npy"), case.result)
    files.assert_same_bits(run(case, tmp_path, case.x_npy, "--overwrite", lens="n.h5::/n"), case.result)


@pytest.mark.parametrize("end", ["\n", "", "\r\n"], ids=["newline", "no newline at the end", "crlf"])
def test_lengths_as_text(end: str, case: Case, tmp_path: Path) -> None:
    text = (end or "\n").join(map(str, case.lengths)) + end
    (tmp_path / "lens.txt").write_bytes(text.encode())
    files.assert_same_bits(run(case, tmp_path, case.x_npy, lens="lens.txt"), case.result)


@pytest.mark.parametrize("name", ["lengths", "lens", "sequence_length"])
def test_own_lengths_of_an_hdf5_input(name: str, case: Case, tmp_path: Path) -> None:
    files.write_h5(tmp_path / "in.h5", x=case.x, **{name: case.lengths})
    succeed("run", "--input", "in.h5", "--weights", case.weights, "--output", "out.h5", cwd=tmp_path)
    files.assert_same_bits(files.read_result(tmp_path / "out.h5"), case.result)


def test_no_lengths_means_full_lengths(case: Case, tmp_path: Path) -> None:
    succeed("run", "--input", case.x_npy, "--weights", case.weights, "--output", "none.h5", cwd=tmp_path)
    files.write_npy(tmp_path / "full.npy", np.full(13, 17))
    got = run(case, tmp_path, case.x_npy, lens="full.npy")
    files.assert_same_bits(files.read_result(tmp_path / "none.h5"), got)
    with h5py.File(tmp_path / "none.h5") as file:
        assert file["lengths"][:].tolist() == [17] * 13


@pytest.mark.parametrize("shape", [(0, 10, 20), (5, 0, 20), (0, 0, 20)])
@pytest.mark.parametrize("kind", ["npy", "h5", "pipe"])
def test_no_sequences_or_no_steps_give_empty_results(shape: tuple[int, int, int], kind: str, tmp_path: Path) -> None:
    x = np.zeros(shape, np.float32)
    files.write_npy(tmp_path / "x.npy", x)
    files.write_h5(tmp_path / "x.h5", x=x)
    files.write_npy(tmp_path / "lens.npy", np.zeros(shape[0], np.int64))
    stdin = (tmp_path / "x.npy").read_bytes() if kind == "pipe" else b""
    args = ["--input", "-" if kind == "pipe" else f"x.{kind}", "--lens", "lens.npy", "--units", 7]
    assert succeed("run", *args, "--output", "out.h5", "--json", cwd=tmp_path, stdin=stdin).json["valid_steps"] == 0
    outputs, state = files.read_result(tmp_path / "out.h5")
    assert outputs is not None
    assert outputs.shape == (*shape[:2], 7)
    assert {path: value.shape for path, value in state.items()} == {"0/c": (shape[0], 7), "0/h": (shape[0], 7)}
    assert not any(value.any() for value in state.values())
    succeed("run", *args, "--output", "out.npy", cwd=tmp_path, stdin=stdin)
    assert np.load(tmp_path / "out.npy").shape == (*shape[:2], 7)


def test_lengths_of_zero_only(tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.full((3, 4, 2), np.nan, np.float32))
    files.write_npy(tmp_path / "lens.npy", np.zeros(3, np.int64))
    succeed("run", "-i", "x.npy", "-l", "lens.npy", "-u", 2, "-o", "out.h5", cwd=tmp_path)
    outputs, state = files.read_result(tmp_path / "out.h5")
    assert outputs is not None
    assert outputs.tobytes() == bytes(3 * 4 * 2 * 4)
    assert all(value.tobytes() == bytes(3 * 2 * 4) for value in state.values())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_npz(save: Callable[..., None], case: Case, tmp_path: Path) -> None:
    save(tmp_path / "in.npz", x=case.x, lens=case.lengths)
    files.assert_same_bits(run(case, tmp_path, "in.npz::x", "--layout", "padded", lens="in.npz::lens"), case.result)
    succeed("run", "-i", "in.npz", "-w", case.weights, "-o", "bare.h5", "-q", cwd=tmp_path)
    files.assert_same_bits(files.read_result(tmp_path / "bare.h5"), case.result)
