"""convert: the same values and ids in every layout and format, and results that stay results."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed

from lstmcli.tools import convert

LENGTHS = np.array([3, 0, 9, 1, 40, 0, 17, 2])
IDS = ["a", "b/c", "b/d é", "x,y", "1", "2", "é", "z"]
LAYOUTS = ("padded", "flat", "per-sequence")


def sequences_of(dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.normal(size=(length, 6)).astype(dtype) for length in LENGTHS]


def write_input(path: Path, dtype: str, ids: bool = True) -> list[np.ndarray]:
    """A padded input with ids, whose padding is NaN."""
    sequences = sequences_of(dtype)
    x = np.full((len(LENGTHS), 41, 6), np.nan, dtype)
    for row, sequence in zip(x, sequences, strict=True):
        row[: len(sequence)] = sequence
    with h5py.File(path, "w") as file:
        file["x"], file["lengths"] = x, LENGTHS
        if ids:
            file["ids"] = np.array(IDS, object)
    return sequences


def read(path: Path) -> tuple[list[np.ndarray], list[str] | None]:
    """The sequences and the ids of a file that convert wrote."""
    if path.suffix in (".parquet", ".arrow"):
        import pyarrow as pa
        from pyarrow import parquet

        table = parquet.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path).read_all()
        dtype = table.schema.field("sequences").type.value_type.value_type.to_pandas_dtype()
        return [np.array(rows, dtype).reshape(-1, 6) for rows in table["sequences"].to_pylist()], table["id"].to_pylist()
    if path.suffix == ".npy":
        whole = np.load(path)
        beside = {name: path.with_suffix(f".{name}.npy") for name in ("lengths", "offsets")}
        arrays = {"sequences": whole} | {name: np.load(one) for name, one in beside.items() if one.exists()}
    elif path.suffix == ".npz":
        arrays = dict(np.load(path))
        if "sequences" not in arrays:
            return list(arrays.values()), list(arrays)
        if "ids" in arrays:
            arrays["ids"] = arrays["ids"].tolist()
    else:
        with h5py.File(path) as file:
            ids = file["ids"].asstr()[:].tolist() if "ids" in file else None
            if isinstance(file["sequences"], h5py.Group):
                assert ids
                return [file[f"sequences/{name}"][:] for name in ids], ids
            arrays = {name: item[()] for name, item in file.items()} | {"ids": ids}
    found = arrays.get("ids")
    if "offsets" in arrays:
        return np.split(arrays["sequences"], arrays["offsets"][1:-1]), found
    padded, lengths = arrays["sequences"], arrays["lengths"]
    assert not any(row[length:].any() for row, length in zip(padded, lengths, strict=True))
    return [row[:length] for row, length in zip(padded, lengths, strict=True)], found


@pytest.mark.parametrize("block", [32_000_000, 100], ids=["whole", "cut in time"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_format(block: int, dtype: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "BLOCK_BYTES", block)
    want = write_input(tmp_path / "x.h5", dtype)
    for number, (name, compress) in enumerate([("b.h5", None), ("b.h5", "gzip"), ("b.npz", None), ("b.npy", None)]):
        if layout == "per-sequence" and name == "b.npy":
            continue
        path = tmp_path / f"{number}{name}"
        facts = convert.convert(str(tmp_path / "x.h5"), str(path), layout, compress)
        got, ids = read(path)
        assert ids == (None if name == "b.npy" else IDS)
        assert bool(facts["notes"]) == (name == "b.npy")
        assert [files.bits(one) for one in got] == [files.bits(one) for one in want]
        if compress:
            with h5py.File(path) as file:
                one = file["sequences/é" if layout == "per-sequence" else "sequences"]
                assert (one.compression, one.shape[-1]) == ("gzip", 6)
        again = tmp_path / f"again{number}.h5"
        beside = next(iter(tmp_path.glob(f"{number}b.*.npy")), None) if name == "b.npy" else None
        said = {"lens" if layout == "padded" else "offsets": str(beside)} if beside else {}
        inner = "::/sequences" if name == "b.h5" else "::sequences" if name == "b.npz" and layout == "padded" else ""
        if name != "b.npz" or layout != "flat":
            convert.convert(f"{path}{inner}", str(again), "flat", **said)
            rows = dict(zip(ids or map(str, range(8)), got, strict=True))
            back, names = read(again)
            assert [files.bits(one) for one in back] == [files.bits(rows[one]) for one in names or rows]


@pytest.mark.parametrize("name", ["b.parquet", "b.arrow"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_tables(name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    monkeypatch.setattr(convert, "BLOCK_BYTES", 200)
    want = write_input(tmp_path / "x.h5", dtype)
    convert.convert(str(tmp_path / "x.h5"), str(tmp_path / name))
    got, ids = read(tmp_path / name)
    assert ids == IDS
    assert [files.bits(one) for one in got] == [files.bits(one) for one in want]


@pytest.fixture(scope="module")
def results(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in every layout."""
    folder = tmp_path_factory.mktemp("results")
    words = ("run", *case.inputs, "--save", "outputs,states,cells,layers", "--pool", "mean", "--store", "float16", "-q")
    for layout in LAYOUTS:
        succeed(*words, "--layout", layout, "-o", f"{layout}.h5", cwd=folder)
    return folder


@pytest.mark.parametrize("before", LAYOUTS)
@pytest.mark.parametrize("after", LAYOUTS)
def test_a_result_has_the_bytes_of_a_run(
    before: str, after: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in (32_000_000, 400):
        monkeypatch.setattr(convert, "BLOCK_BYTES", block)
        convert.convert(str(results / f"{before}.h5"), str(tmp_path / "c.h5"), after, overwrite=True)
        assert (tmp_path / "c.h5").read_bytes() == (results / f"{after}.h5").read_bytes()


def test_arrays_keep_the_order_of_a_run(case: Case, tmp_path: Path) -> None:
    """That of the layers, of which 10 comes behind 2, and of the directions."""
    words = ("-u", ",".join(11 * "1"), "--bidirectional", "--save", "outputs,states,layers", "-q")
    succeed("run", *case.inputs[:4], *words, "-o", "a.h5", cwd=tmp_path)
    succeed("run", *case.inputs[:4], *words, "--initial-state", "a.h5", "-o", "c.h5", cwd=tmp_path)
    for made in ("a.h5", "c.h5"):
        convert.convert(str(tmp_path / made), str(tmp_path / "b.h5"), overwrite=True)
        assert (tmp_path / made).read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_result_as_arrays(results: Path, case: Case, tmp_path: Path) -> None:
    succeed("convert", results / "per-sequence.h5", "out.npz", "--layout", "padded", "-q", cwd=tmp_path)
    found = np.load(tmp_path / "out.npz")
    assert files.bits(found["sequences"]) == files.bits(case.outputs.astype("f2"))
    assert found["lengths"].tolist() == case.lengths.tolist()
    succeed("convert", f"{results}/flat.h5::/cells", "cells.h5", "-q", cwd=tmp_path)
    with h5py.File(tmp_path / "cells.h5") as file, h5py.File(results / "flat.h5") as want:
        assert files.bits(file["sequences"][:]) == files.bits(want["cells"][:])


def test_a_damaged_result(results: Path, tmp_path: Path) -> None:
    data = bytearray((results / "flat.h5").read_bytes())
    with h5py.File(results / "flat.h5") as file:
        data[file["outputs"].id.get_offset() + 3] ^= 1
    (tmp_path / "bad.h5").write_bytes(data)
    ran = lstmcli("convert", "bad.h5", "out.h5", "--layout", "padded", cwd=tmp_path)
    assert_one_line(ran, 65, "bad.h5::/outputs, row 0: its bytes are not what was written")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.h5"]


def test_what_is_refused(results: Path, tmp_path: Path) -> None:
    write_input(tmp_path / "x.h5", "f4")
    files.write_npy(tmp_path / "there.npy", 1)
    files.write_npy(tmp_path / "tokens.npy", np.ones((3, 4), np.int64))
    for code, text, words in (
        (2, "expected a name that ends in", ("x.h5", "b.txt")),
        (2, "--compress gzip: is for HDF5", ("x.h5", "b.npz", "--compress", "gzip")),
        (2, "--layout per-sequence: an NPY file holds one array", ("x.h5", "b.npy", "--layout", "per-sequence")),
        (2, "--layout flat: a table has a row for each sequence", ("x.h5", "b.parquet", "--layout", "flat")),
        (2, "a result lies in one piece", (results / "flat.h5", "b.h5", "--compress", "gzip")),
        (65, "tokens.npy: holds token ids, int64; expected floats", ("tokens.npy", "b.h5")),
        (66, "no.h5", ("no.h5", "b.h5")),
        (73, "there.npy: exists already", ("x.h5", "there.npy")),
        (73, "is also an input", ("x.h5", "x.h5", "--overwrite")),
    ):
        assert_one_line(lstmcli("convert", *words, cwd=tmp_path), code, text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.npy", "tokens.npy", "x.h5"]
