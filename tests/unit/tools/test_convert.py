"""convert: the same values and ids in every layout and format, and results that stay results."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed
from hypothesis import given, settings
from hypothesis import strategies as st

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
        step = table.schema.field("sequences").type.value_type
        dtype = pa.array([], getattr(step, "value_type", step)).to_numpy().dtype
        shape = (-1, step.list_size) if hasattr(step, "list_size") else (-1,)
        return [np.array(rows, dtype).reshape(shape) for rows in table["sequences"].to_pylist()], table["id"].to_pylist()
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


FORMS = [(name, layout) for name in ("h5", "npz", "npy") for layout in LAYOUTS if (name, layout) != ("npy", "per-sequence")]
FORMS += [("gzip.h5", layout) for layout in LAYOUTS]
TABLES = [("parquet", None), ("arrow", None)]
DTYPES = ("f2", "f4", "f8", "i1", "u2", "i4", "u4", "i8", "u8")


def step_bits(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values of any bits, but NaN of one kind."""
    values = np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape).copy()
    if dtype[0] == "f":
        values[np.isnan(values)] = np.nan
    return values


def as_input(path: Path, layout: str | None) -> tuple[str, dict[str, str]]:
    """What to name to read a file that convert wrote, and what lies beside it."""
    beside = {"padded": "lens", "flat": "offsets"}.get(str(layout))
    if path.suffix == ".npy":
        (other,) = path.parent.glob(f"{path.stem}.*.npy")
        return str(path), {str(beside): str(other)}
    if path.suffix == ".npz" and beside:
        return f"{path}::sequences", {beside: f"{path}::{'lengths' if beside == 'lens' else 'offsets'}"}
    return f"{path}::/sequences" if path.suffix == ".h5" else str(path), {}


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=8), st.booleans(), st.integers(1, 5), st.data())
def test_any_way_through_the_forms(dtype: str, lengths: list[int], with_ids: bool, width: int, data: st.DataObject) -> None:
    """Floats and token ids of every dtype keep their bits through any four forms, in blocks of any size."""
    rng = np.random.default_rng(len(lengths))
    forms = FORMS + (TABLES if find_spec("pyarrow") else [])
    way = data.draw(st.lists(st.sampled_from(forms), min_size=1, max_size=4))
    step = (width,) if dtype[0] == "f" else ()
    want = [step_bits(dtype, (length, *step), rng) for length in lengths]
    ids = IDS[: len(lengths)] if with_ids else None
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "BLOCK_BYTES", data.draw(st.sampled_from([32_000_000, 60])))
        folder = Path(name)
        with h5py.File(folder / "x.h5", "w") as file:
            file["sequences"] = np.concatenate(want)
            file["offsets"] = np.cumsum([0, *lengths])
            if ids:
                file["ids"] = np.array(ids, object)
        spec, said = f"{folder}/x.h5::/sequences", {}
        for number, (suffix, layout) in enumerate(way):
            path = folder / f"{number}.{suffix}"
            convert.convert(spec, str(path), layout, "gzip" if suffix == "gzip.h5" else None, **said)
            got, names = read(path)
            if ids and suffix != "npy":
                assert names == ids
            assert [(one.dtype, one.shape) for one in got] == [(one.dtype, one.shape) for one in want]
            assert [files.bits(one) for one in got] == [files.bits(one) for one in want]
            if suffix == "npy" or (suffix == "npz" and layout != "per-sequence"):
                ids = None  # those beside the array of an NPZ are not read
            spec, said = as_input(path, layout)


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
    files.write_npy(tmp_path / "integers.npy", np.ones((3, 4, 2), np.int64))
    for code, text, words in (
        (2, "expected a name that ends in", ("x.h5", "b.txt")),
        (2, "--compress gzip: is for HDF5", ("x.h5", "b.npz", "--compress", "gzip")),
        (2, "--layout per-sequence: an NPY file holds one array", ("x.h5", "b.npy", "--layout", "per-sequence")),
        (2, "--layout flat: a table has a row for each sequence", ("x.h5", "b.parquet", "--layout", "flat")),
        (2, "a result lies in one piece", (results / "flat.h5", "b.h5", "--compress", "gzip")),
        (65, "integers.npy: expected float16, float32 or float64, got int64", ("integers.npy", "b.h5")),
        (66, "no.h5", ("no.h5", "b.h5")),
        (73, "there.npy: exists already", ("x.h5", "there.npy")),
        (73, "is also an input", ("x.h5", "x.h5", "--overwrite")),
    ):
        assert_one_line(lstmcli("convert", *words, cwd=tmp_path), code, text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["integers.npy", "there.npy", "x.h5"]
