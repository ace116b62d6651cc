"""lstmcli verify finds whatever was changed in a result after it was written."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed


def test_checksums_are_those_that_the_readme_describes(case: Case) -> None:
    with h5py.File(case.folder / "result.h5") as file:
        lengths, sums = file["lengths"][:], file["checksums"]
        for row, length in enumerate(lengths):
            assert sums["outputs"][row] == zlib.crc32(file["outputs"][row, :length].tobytes())
            for name in ("state/0/c", "state/0/h", "state/1/c", "state/1/h"):
                assert sums[name][row] == zlib.crc32(file[name][row].tobytes())


def test_whole_files(case: Case, tmp_path: Path) -> None:
    succeed("run", *case.inputs, "-o", "out.npy", cwd=tmp_path)
    names = ["out.npy", "out.states.npz", "out.model.h5", case.folder / "result.h5"]
    ran = succeed("verify", *names, cwd=tmp_path)
    assert len(ran.text.splitlines()) == 4
    assert ran.err == ""
    assert succeed("verify", "-q", *names, cwd=tmp_path).out == b""


def place(path: Path, name: str, row: int, step: int | None = None) -> int:
    with h5py.File(path) as file:
        item = file[name]
        index = row if step is None else row * item.shape[1] + step
        return int(item.id.get_offset()) + index * item.shape[-1] * item.dtype.itemsize


@pytest.mark.parametrize(
    ("name", "row", "step", "words"),
    [
        ("outputs", 0, 16, ["/outputs, row 0", "checksum"]),
        ("outputs", 5, 0, ["/outputs, row 5", "checksum"]),
        ("outputs", 5, 1, ["/outputs, row 5", "zeros"]),
        ("outputs", 2, 0, ["/outputs, row 2", "zeros"]),
        ("outputs", 12, 10, ["/outputs, row 12", "checksum"]),
        ("state/1/h", 12, None, ["/state/1/h, row 12", "checksum"]),
        ("model/0/bias", 0, None, ["model"]),
        ("lengths", 0, None, ["lengths"]),
        ("checksums/outputs", 0, None, ["checksums"]),
    ],
)
def test_one_flipped_bit(name: str, row: int, step: int | None, words: list[str], case: Case, tmp_path: Path) -> None:
    shutil.copy(case.folder / "result.h5", tmp_path)
    content = bytearray((tmp_path / "result.h5").read_bytes())
    content[place(tmp_path / "result.h5", name, row, step) + 1] ^= 1
    (tmp_path / "result.h5").write_bytes(content)
    assert_one_line(lstmcli("verify", "result.h5", cwd=tmp_path), 65, "result.h5", *words)


def test_a_heap_of_texts_that_has_no_end(case: Case, tmp_path: Path) -> None:
    """libhdf5 walks one with an object of no size for ever, as soon as it is asked for a text."""
    content = bytearray((case.folder / "result.h5").read_bytes())
    first = content.index(b"GCOL") + 16
    content[first : first + 16] = bytes(16)
    (tmp_path / "result.h5").write_bytes(content)
    assert_one_line(lstmcli("verify", "result.h5", cwd=tmp_path), 65, "result.h5", "structure")


def test_every_byte_counts(case: Case, tmp_path: Path) -> None:
    """In process: one bit of each of 150 bytes, and cuts everywhere."""
    from lstmcli.errors import DataError, StorageError
    from lstmcli.results.verify import verify

    whole = (case.folder / "result.h5").read_bytes()
    path = tmp_path / "result.h5"
    rng = np.random.default_rng(0)
    for at in rng.choice(len(whole), 150, replace=False).tolist():
        content = bytearray(whole)
        content[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        with pytest.raises((DataError, StorageError)):
            verify(str(path))
    for size in rng.choice(len(whole), 50, replace=False).tolist():
        path.write_bytes(whole[:size])
        with pytest.raises((DataError, StorageError)):
            verify(str(path))
    path.write_bytes(whole)
    verify(str(path))


def test_damaged_npz_and_npy(case: Case, tmp_path: Path) -> None:
    succeed("run", *case.inputs, "-o", "out.npy", cwd=tmp_path)
    content = bytearray((tmp_path / "out.states.npz").read_bytes())
    content[400] ^= 1
    (tmp_path / "out.states.npz").write_bytes(content)
    assert_one_line(lstmcli("verify", "out.states.npz", cwd=tmp_path), 65, "out.states.npz")
    (tmp_path / "out.npy").write_bytes((tmp_path / "out.npy").read_bytes()[:-1])
    assert_one_line(lstmcli("verify", "out.npy", cwd=tmp_path), 65, "out.npy", "bytes")


def test_files_that_are_no_results(case: Case, tmp_path: Path) -> None:
    assert_one_line(lstmcli("verify", "nowhere.h5", cwd=tmp_path), 66, "nowhere.h5")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_text("")
    files.write_h5(tmp_path / "x.h5", x=case.x)
    for name in ("text", "empty", "x.h5"):
        assert_one_line(lstmcli("verify", name, cwd=tmp_path), 65, name)


def test_all_files_are_told_of(case: Case, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    ran = lstmcli("verify", "text", case.folder / "result.h5", "empty", cwd=tmp_path)
    assert ran.code == 66
    assert [line.split()[2] for line in ran.err.splitlines()] == ["text:", "empty:"]
    assert len(ran.text.splitlines()) == 1


def test_a_result_whose_layout_was_changed(case: Case, tmp_path: Path) -> None:
    with h5py.File(case.folder / "result.h5") as file, h5py.File(tmp_path / "other.h5", "w") as other:
        other.attrs.update(file.attrs)
        for name in file:
            if name != "outputs":
                file.copy(name, other)
        other.create_dataset("outputs", data=file["outputs"][:], compression="gzip")
    assert_one_line(lstmcli("verify", "other.h5", cwd=tmp_path), 65, "other.h5", "repacked")


def test_an_npz_that_lacks_something(case: Case, tmp_path: Path) -> None:
    """A ZIP archive is read from its end, which says what there is; zipfile alone takes what it says for all."""
    succeed("run", *case.inputs, "-o", "out.npy", cwd=tmp_path)
    with np.load(tmp_path / "out.states.npz") as states:
        arrays = dict(states)
    fewer = {name: array for name, array in arrays.items() if name != "1/h"}
    for name, write in [
        ("lost.npz", lambda path: np.savez(path, **fewer)),
        ("deflated.npz", lambda path: np.savez_compressed(path, **arrays)),
        ("empty.npz", lambda path: zipfile.ZipFile(path, "w").close()),
        ("lzma.npz", lambda path: broken(path, zipfile.ZIP_LZMA)),
        ("bz2.npz", lambda path: broken(path, zipfile.ZIP_BZIP2)),
    ]:
        write(tmp_path / name)
        assert_one_line(lstmcli("verify", name, cwd=tmp_path), 65, name)


def broken(path: Path, compression: int) -> None:
    """An archive whose member cannot be decompressed."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("0/c.npy", bytes(1000))
    content = bytearray(path.read_bytes())
    content[50:60] = b"\xff" * 10
    path.write_bytes(content)
