"""Every form of ragged input gives the same rows and ids, whatever the lengths, dtypes and the parts that are read."""

import json
import os
import struct
import tempfile
import zipfile
from contextlib import closing, suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.sources import FLOATS, read
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmcli.errors import DataError, MissingInputError
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.ragged import arrow as tables
from lstmcli.inputs.ragged.open_sequences import open_sequences

OPENED = []


def opened(spec, **options):
    OPENED.append(open_sequences(spec, **options))
    return OPENED[-1]


@pytest.fixture(autouse=True)
def closed():
    yield
    for source in OPENED:
        source.close()
    OPENED.clear()


def folder_of_npy(folder, sequences):
    (folder / "many").mkdir()
    for name, rows in sequences.items():
        np.save(folder / f"many/{name}.npy", rows)
    (folder / "many/.hidden").write_text("")
    return f"{folder}/many"


def columns_first(folder, sequences):
    return folder_of_npy(folder, {name: np.asfortranarray(rows) for name, rows in sequences.items()})


def pattern(folder, sequences):
    return f"{folder_of_npy(folder, sequences)}/*.npy"


def list_of_names(folder, sequences):
    folder_of_npy(folder, sequences)
    (folder / "list.txt").write_text("".join(f"many/{name}.npy\n" for name in reversed(sequences)))
    return f"@{folder}/list.txt"


def npz(folder, sequences):
    np.savez(folder / "s.npz", **sequences)
    return f"{folder}/s.npz"


def npz_deflated(folder, sequences):
    np.savez_compressed(folder / "s.npz", **{name: np.asfortranarray(rows) for name, rows in sequences.items()})
    return f"{folder}/s.npz"


def folder_of_npz(folder, sequences):
    (folder / "many").mkdir()
    for name, rows in sequences.items():
        np.savez_compressed(folder / f"many/{name}.npz", **{name: rows})
    return f"{folder}/many"


def hdf5(folder, sequences, **options):
    with h5py.File(folder / "s.h5", "w") as file:
        for name, rows in sequences.items():
            own = {key: value for key, value in options.items() if len(rows)}
            file.create_dataset(name, data=rows, **own)
    return f"{folder}/s.h5"


def hdf5_gzip(folder, sequences):
    return hdf5(folder, sequences, compression="gzip")


def safetensors(folder, sequences):
    header, at = {"__metadata__": {"a": "b"}}, 0
    for name, rows in sequences.items():
        dtype = {2: "F16", 4: "F32", 8: "F64"}[rows.dtype.itemsize]
        header[name] = {"dtype": dtype, "shape": rows.shape, "data_offsets": [at, at + rows.nbytes]}
        at += rows.nbytes
    text = json.dumps(header).encode()
    values = b"".join(rows.astype(rows.dtype.newbyteorder("<")).tobytes() for rows in sequences.values())
    (folder / "s.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + values)
    return f"{folder}/s.safetensors"


def torch_dict(folder, sequences):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    native = {name: rows.astype(rows.dtype.newbyteorder("=")) for name, rows in sequences.items()}
    torch.save({name: torch.from_numpy(rows) for name, rows in native.items()}, folder / "s.pt")
    return f"{folder}/s.pt"


def torch_columns(folder, sequences):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    native = {name: rows.astype(rows.dtype.newbyteorder("=")) for name, rows in sequences.items()}
    torch.save({name: torch.from_numpy(np.ascontiguousarray(rows.T)).T for name, rows in native.items()}, folder / "s.pt")
    return f"{folder}/s.pt"


def esm(folder, sequences):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    (folder / "many").mkdir()
    for name, rows in sequences.items():
        tensor = torch.from_numpy(rows.astype(rows.dtype.newbyteorder("=")))
        layers = {32: tensor + 1, 33: tensor}
        torch.save({"label": name, "representations": layers, "mean_representations": {}}, folder / f"many/{name}.pt")
    return f"{folder}/many::33"


def ark(folder, sequences, name="s"):
    """Returns the .ark; the .scp beside it has the same sequences."""
    content, places = b"", ""
    for key, rows in sequences.items():
        rows = rows.astype("<f8" if rows.dtype.itemsize == 8 else "<f4")
        content += key.encode() + b" "
        places += f"{key} {name}.ark:{len(content)}\n"
        kind = b"DM" if rows.dtype.itemsize == 8 else b"FM"
        content += b"\0B" + kind + b" " + struct.pack("<bibi", 4, len(rows), 4, rows.shape[1]) + rows.tobytes()
    (folder / f"{name}.ark").write_bytes(content)
    (folder / f"{name}.scp").write_text(places)
    return f"{folder}/{name}.ark"


def scp(folder, sequences):
    ark(folder, sequences)
    return f"{folder}/s.scp"


def ark_text(folder, sequences):
    texts = {key: "\n".join(" ".join(map(repr, row)) for row in rows.tolist()) for key, rows in sequences.items()}
    (folder / "s.ark").write_text("".join(f"{key}  [\n{text} ]\n" for key, text in texts.items()))
    return f"{folder}/s.ark"


def table(folder, sequences, fixed=False):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    width, dtype = next((rows.shape[1], pa.from_numpy_dtype(rows.dtype.newbyteorder("="))) for rows in sequences.values())
    kind = pa.list_(pa.list_(dtype, width if fixed else -1))
    values = [[list(row) for row in rows.astype(rows.dtype.newbyteorder("="))] for rows in sequences.values()]
    return pa.table({"length": [len(v) for v in values], "id": list(sequences), "emb": pa.array(values, kind)})


def parquet(folder, sequences):
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install pyarrow")
    pq.write_table(table(folder, sequences), folder / "s.parquet", row_group_size=3)
    return f"{folder}/s.parquet"


def arrow(folder, sequences, stream=False):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    found = table(folder, sequences, fixed=True)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(folder / "s.arrow", found.schema) as file:
        for batch in found.to_batches(max_chunksize=2):
            file.write_batch(batch)
    return f"{folder}/s.arrow"


def arrow_stream(folder, sequences):
    return arrow(folder, sequences, stream=True)


FORMS = [
    folder_of_npy, columns_first, pattern, list_of_names, npz, npz_deflated, folder_of_npz, hdf5, hdf5_gzip, safetensors,
    torch_dict, torch_columns, esm, ark, scp, ark_text, parquet, arrow, arrow_stream,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=9),
    st.lists(st.sampled_from(FLOATS), min_size=1, max_size=3),
    st.integers(1, 5),
    st.data(),
)
def test_every_form_has_the_same_rows(form, lengths, dtypes, width, data):
    """Also where its sequences have several dtypes; a column of a table has one."""
    rng = np.random.default_rng(len(lengths))
    dtypes = dtypes[:1] if form in (parquet, arrow, arrow_stream) else dtypes
    sequences = {f"s{k}": rng.normal(size=(n, width)).astype(dtypes[k % len(dtypes)]) for k, n in enumerate(lengths)}
    with tempfile.TemporaryDirectory() as folder:
        spec = form(Path(folder), sequences)
        if form is ark_text and not sum(lengths):
            return  # a text says no width without rows
        with closing(open_sequences(spec)) as source:
            assert source.shape == (len(lengths), max(lengths), width)
            assert list(source.ids) == list(sequences)
            assert source.lengths.tolist() == lengths
            largest = max(rows.dtype.itemsize for rows in sequences.values())
            assert source.dtype.itemsize == (4 if form is ark_text else max(4, largest) if form in (ark, scp) else largest)
            if form is ark_text:
                sequences = {name: rows.astype(np.float32) for name, rows in sequences.items()}  # it is read as float32
            whole = np.concatenate(list(sequences.values())).astype(np.float32)
            np.testing.assert_array_equal(read(source, 0, 0, lengths), whole)
            for _ in range(3):
                first = data.draw(st.integers(0, len(lengths) - 1))
                stop = data.draw(st.integers(first, len(lengths)))
                starts = [data.draw(st.integers(0, n)) for n in lengths[first:stop]]
                counts = [data.draw(st.integers(0, n - at)) for n, at in zip(lengths[first:stop], starts, strict=True)]
                parts = list(sequences.values())[first:stop]
                wanted = [rows[at : at + n] for rows, at, n in zip(parts, starts, counts, strict=True)]
                wanted = np.concatenate([np.empty((0, width)), *wanted]).astype(np.float64)
                np.testing.assert_array_equal(read(source, first, starts, counts, np.float64), wanted)
            assert json.loads(json.dumps(source.identity()))
            source.finish()


@pytest.mark.parametrize("dtype", ["<f2", "<f8"])
def test_long_sequences_are_read_in_pieces(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("lstmcli.inputs.ragged.placed.STAGING", 1000)
    monkeypatch.setattr("lstmcli.inputs.ragged.placed.CALL", 100)
    rng = np.random.default_rng(0)
    sequences = {f"s{k}": rng.normal(size=(n, 5)).astype(dtype) for k, n in enumerate([300, 1, 2, 0, 2, 1, 2, 77, 1])}
    source = opened(npz(tmp_path, sequences))
    wanted = np.concatenate(list(sequences.values())).astype(np.float32)
    np.testing.assert_array_equal(read(source, 0, 0, source.lengths), wanted)


def test_sequences_of_token_ids(tmp_path):
    lengths = [3, 0, 2]
    sequences = {f"s{k}": np.arange(n, dtype=(np.int16, np.uint8, np.int64)[k]) + k for k, n in enumerate(lengths)}
    whole = np.concatenate(list(sequences.values()))
    np.save(tmp_path / "flat.npy", whole)
    np.save(tmp_path / "lens.npy", lengths)
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["tokens"], file["lengths"], file["ids"] = whole, lengths, list(sequences)
    many = {form: tmp_path / form.__name__ for form in (folder_of_npy, npz, hdf5)}
    for path in many.values():
        path.mkdir()
    specs = [f"{tmp_path}/flat.h5", *(form(path, sequences) for form, path in many.items())]
    sources = [opened(spec, token_ids=True) for spec in specs]
    assert all(list(source.ids) == list(sequences) for source in sources)
    sources.append(opened(f"{tmp_path}/flat.npy", lens=f"{tmp_path}/lens.npy", token_ids=True))
    for source in sources:
        assert (source.shape, source.token_ids) == ((3, 3, 1), True)
        np.testing.assert_array_equal(read(source, 0, 0, lengths, np.int64)[:, 0], whole)
    for spec in specs[1:]:
        with pytest.raises(DataError, match=r"expected (an array|one float dataset|NPY or HDF5)"):
            opened(spec)


def refused(spec, words):
    with pytest.raises(DataError, match=words):
        opened(spec)


def test_what_does_not_go_together(tmp_path):
    good = np.zeros((2, 4), np.float32)
    forms = {"width": good[:, :3], "extended": good.astype("f16"), "numbers": good.astype("i4"), "row": good[0, :3]}
    for name, bad in forms.items():
        for form in (folder_of_npy, npz, hdf5):
            folder = tmp_path / f"{name}{form.__name__}"
            folder.mkdir()
            if form is hdf5:
                if name not in ("numbers", "row"):  # others than floats may stand in such a file
                    refused(
                        form(folder, {"good": good, name: bad}),
                        f"{name}|good: expected .* as (good|extended) is|expected float16",
                    )
            else:
                words = rf"{name}.*: expected a sequence \(steps, 4\) of float32, as good is|expected float16"
                refused(form(folder, {"good": good, name: bad}), words)
    np.savez(tmp_path / "o.npz", good=good, ids=np.array(["a", None], object))
    refused(f"{tmp_path}/o.npz", "ids: expected an array of numbers, got |O; objects and records are never read")


def test_other_arrays_of_an_npz_are_left_out_with_a_note(tmp_path):
    np.savez(tmp_path / "o.npz", good=np.zeros((2, 4)), labels=np.arange(3), text=np.array("a"))
    source = opened(f"{tmp_path}/o.npz")
    assert (list(source.ids), source.notes) == (["good"], (f"{tmp_path}/o.npz: no sequences, left out: labels, text",))


def test_names_of_files(tmp_path):
    x = np.zeros((2, 4), np.float32)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", x)
    refused(f"{tmp_path}/*/x.npy", "sequences 0 and 1 have the same id, x")
    (tmp_path / "a/notes.txt").write_text("no sequence")
    refused(f"{tmp_path}/a", r"notes.txt: expected a sequence")
    for spec in (f"{tmp_path}/none/*.npy", f"@{tmp_path}/none.txt", f"@{tmp_path}/a/empty.txt", f"{tmp_path}/c"):
        (tmp_path / "a/empty.txt").write_text("\n")
        (tmp_path / "c").mkdir(exist_ok=True)
        with pytest.raises(MissingInputError, match=r"names no file|cannot be opened"):
            opened(spec)
    np.save(tmp_path / "b/y.npy", x + 1)
    source = opened(f"{tmp_path}/b/y.npy", also=(f"{tmp_path}/a/x.npy",))
    assert list(source.ids) == ["x", "y"]


def test_names_with_what_ends_a_line_of_a_str(tmp_path):
    x = np.ones((2, 4), np.float32)
    name = "a\u2028b\x0bc"
    np.save(tmp_path / f"{name}.npy", x)
    (tmp_path / "list.txt").write_bytes(f"\ufeff {name}.npy \r\n\n".encode())
    assert list(opened(f"@{tmp_path}/list.txt").ids) == [name]
    (tmp_path / f"{name}.ark").write_bytes(b"\0BFM \4\2\0\0\0\4\4\0\0\0" + x.tobytes())
    (tmp_path / "s.scp").write_bytes(f"k\u2028\xa0k {name}.ark:0\n".encode())
    source = opened(f"{tmp_path}/s.scp")
    assert list(source.ids) == ["k\u2028\xa0k"]
    np.testing.assert_array_equal(read(source, 0, 0, [2]), x)


def test_texts_of_kaldi_are_read_once(tmp_path, monkeypatch):
    """Many short matrices, and one that is longer than what is read at first."""
    sequences = {f"s{k}": np.full((n, 4), k, np.float32) for k, n in enumerate([1] * 50 + [5000])}
    spec = ark_text(tmp_path, sequences)
    taken, take = [], FileBytes.take
    monkeypatch.setattr(FileBytes, "take", lambda self, at, count: taken.append(count) or take(self, at, count))
    source = opened(spec)
    assert sum(taken) < 51 * (12 << 10) + 2 * Path(spec).stat().st_size
    np.testing.assert_array_equal(read(source, 49, 0, [1, 5000]), np.concatenate([sequences["s49"], sequences["s50"]]))


def test_a_file_that_changes_meanwhile(tmp_path):
    spec = folder_of_npy(tmp_path, {"a": np.zeros((2, 4)), "b": np.ones((2, 4))})
    source = opened(spec)
    os.utime(f"{spec}/b.npy", (1, 1))
    np.testing.assert_array_equal(read(source, 0, 0, [2, 0]), np.zeros((2, 4)))
    for call in (lambda: read(source, 1, 0, [2]), source.finish):
        with pytest.raises(DataError, match=r"b.npy: was changed while it was read"):
            call()


def test_more_files_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr("lstmcli.inputs.ragged.several_files.OPEN", 2)
    sequences = {f"s{k}": np.full((2, 3), k, np.float32) for k in range(7)}
    source = opened(folder_of_npy(tmp_path, sequences))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        np.testing.assert_array_equal(read(source, 0, 0, [2] * 7), np.concatenate(list(sequences.values())))
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 2
    source.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def kaldi_compressed(values, kind):
    """What Kaldi's CompressedMatrix stores of a matrix, and what it says of it again, in float64."""
    low, scale = values.min(), np.ptp(values)
    head = struct.pack("<ffii", low, scale, *values.shape)
    if kind == "CM2":
        codes = np.round((values - low) / scale * 65535)
        return head + codes.astype("<u2").tobytes(), low + codes * scale / 65535
    if kind == "CM3":
        codes = np.round((values - low) / scale * 255)
        return head + codes.astype("u1").tobytes(), low + codes * scale / 255
    points = np.sort(np.random.default_rng(0).integers(0, 65536, (values.shape[1], 4)), axis=1)
    codes = np.random.default_rng(1).integers(0, 256, values.shape[::-1])
    p = low + points * scale / 65535
    wanted = [np.interp(own, [0, 64, 192, 255], p[k]) for k, own in enumerate(codes)]
    return head + points.astype("<u2").tobytes() + codes.astype("u1").tobytes(), np.array(wanted).T


@pytest.mark.parametrize("kind", ["CM", "CM2", "CM3"])
def test_compressed_matrices_of_kaldi(kind, tmp_path):
    values = np.random.default_rng(0).normal(size=(300, 3))
    content, wanted = kaldi_compressed(values, kind)
    (tmp_path / "s.ark").write_bytes(b"a \0B" + kind.encode() + b" " + content + b"b \0BFM \4\1\0\0\0\4\3\0\0\0" + bytes(12))
    source = opened(f"{tmp_path}/s.ark")
    assert list(source.ids) == ["a", "b"]
    np.testing.assert_allclose(read(source, 0, 0, [300, 1], np.float64), [*wanted, [0, 0, 0]], rtol=0, atol=1e-5)


def test_hostile_kaldi(tmp_path):
    good = b"\0BFM \4\2\0\0\0\4\3\0\0\0" + bytes(24)
    for content, words in (
        (b"a " + good + b"b " + good[:20], r"s::b: \(2, 3\) of float32 ends at byte"),
        (b"a \0BFM \4\xff\xff\xff\x7f\4\xff\xff\xff\x7f", "ends at byte 18446744"),
        (b"a \0BFM \4\xff\xff\xff\xff\4\3\0\0\0", "damaged matrix"),
        (b"a \0BCM \0\0\0\0\0\0\0\0\xff\xff\xff\x7f\xff\xff\xff\x7f", "ends at byte"),
        (b"a \0BFM \4", "damaged matrix"),
        (b"a " + good + b"b \0BXX ", r"s::b: expected a matrix or vector"),
        (b"a " + good + b"a " + good, "have the same id, a"),
        (b"a  [\n 1 2\n 3 ]\n", "s::a: expected rows of as many numbers each"),
        (b"a  [\n 1 2\n", "s::a: expected a matrix .* which has no end"),
        (b"a  [\n 1 x ]\n", "s::a: expected rows of"),
        (b"a cat s.ark |\n", "s, line 1: a is a command, and nothing is run"),
        (b"a s.ark:5\nb gzip -dc x |\n", "s, line 2: b is a command, and nothing is run"),
        (b"a s.ark:5[0:3]\n", "a is a part of a matrix"),
        (b"a s:99\n", "a: expected a matrix at byte 99, the file ends at 7"),
        (b"a s:0\n", "s::a: expected a matrix"),
    ):
        (tmp_path / "s").write_bytes(content)
        refused(f"{tmp_path}/s", words)


def test_hostile_archives(tmp_path):
    x = np.zeros((2, 4), np.float32)
    np.savez(tmp_path / "up.npz", **{"../x": x})
    refused(f"{tmp_path}/up.npz", r"\.\./x: expected the name of an array, got a path that leads out")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (1 << 26, 4)})
        for _ in range(1 << 8):
            member.write(bytes(1 << 22))
    refused(f"{tmp_path}/bomb.npz", "bomb.npz::a: is compressed, and 1,073,741,952 bytes are more than")
    np.savez_compressed(tmp_path / "false.npz", a=x)
    content = (tmp_path / "false.npz").read_bytes().replace(struct.pack("<I", 160), struct.pack("<I", 1 << 27))
    (tmp_path / "false.npz").write_bytes(content)
    refused(f"{tmp_path}/false.npz", "false.npz")
    header = b'{"a":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]}}'.ljust(66)
    (tmp_path / "s").write_bytes(struct.pack("<Q", 66) + header + bytes(16))
    refused(f"{tmp_path}/s", "expected 106 bytes for its tensors, got 90")


def test_hostile_tables(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    sequences = {f"s{k}": np.ones((k, 3), np.float32) for k in range(5)}
    content = Path(arrow(tmp_path, sequences)).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        bad = bytearray(content)
        for at in rng.integers(0, len(bad), rng.integers(1, 5)):
            bad[at] = rng.choice([0, 1, 127, 255])
        (tmp_path / "bad").write_bytes(bad[: rng.integers(9, len(bad) + 1)] if rng.random() < 0.2 else bad)
        with suppress(DataError):
            source = opened(f"{tmp_path}/bad")
            read(source, 0, 0, source.lengths)
    for values, words in (
        ([[[1.0, 2.0]], None], "row 1: expected a sequence, got a null"),
        ([[[1.0, 2.0]], [[1.0, 2.0], [1.0]]], "row 1: expected steps of 2 features, got one of 1"),
        ([[[1.0, None]]], "a step or a value is a null"),
        ([], "expected sequences in column emb, got no rows"),
    ):
        found = pa.table({"emb": pa.array(values, pa.list_(pa.list_(pa.float32())))})
        with pa.ipc.new_file(tmp_path / "t.arrow", found.schema) as file:
            file.write_table(found)
        refused(f"{tmp_path}/t.arrow", words)


@pytest.mark.parametrize("empty", [0, 2])
def test_tables_whose_first_batch_has_no_steps(empty, tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = pa.table({"emb": pa.array([[]] * empty + [rows.tolist()], pa.list_(pa.list_(pa.float32())))})
    with pa.ipc.new_file(tmp_path / "t.arrow", found.schema) as file:
        file.write_batch(pa.record_batch(found[:empty].to_pydict(), found.schema))
        file.write_table(found[empty:])
    source = opened(f"{tmp_path}/t.arrow")
    assert source.lengths.tolist() == [0] * empty + [4]
    np.testing.assert_array_equal(read(source, 0, 0, source.lengths), rows)


def test_a_row_group_of_parquet_is_decoded_in_pieces(tmp_path, monkeypatch):
    """Forwards, backwards and from anywhere, of row groups whose pieces are known and of those that are not yet."""
    rng = np.random.default_rng(8)
    sequences = {f"s{k}": rng.normal(size=(n, 3)).astype(np.float32) for k, n in enumerate(rng.integers(0, 9, 60))}
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install pyarrow")
    rows = pa.array([rows.tolist() for rows in sequences.values()], pa.list_(pa.list_(pa.float32())))
    parquet.write_table(pa.table({"id": list(sequences), "x": rows}), tmp_path / "s.parquet", row_group_size=25)
    monkeypatch.setattr(tables, "VALUES", 40)
    source = opened(f"{tmp_path}/s.parquet")
    assert 0 < source.decoded_at_once < 3 * 8 * 12
    assert source.ids == list(sequences)
    for number in [*range(60), *reversed(range(60)), *rng.permutation(60), 59, 0]:
        length = source.lengths[number : number + 1]
        assert files.bits(read(source, number, 0, length)) == files.bits(sequences[f"s{number}"])


def test_a_small_parquet_that_becomes_large(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install pyarrow")
    steps = pa.ListArray.from_arrays(np.arange(0, 1 << 24, 64, np.int32), pa.array(np.zeros(1 << 24, np.float32)))
    rows = pa.ListArray.from_arrays(np.arange(0, len(steps), 64, np.int32), steps)
    parquet.write_table(pa.table({"x": rows}), tmp_path / "s.parquet")
    assert (tmp_path / "s.parquet").stat().st_size < 100_000
    source = opened(f"{tmp_path}/s.parquet")
    assert source.decoded_at_once == 1 << 18
    assert source.lengths.sum() == 64 * 4095


def test_ids_in_tables(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")

    def write(name, ids):
        found = pa.table({name: ids, "emb": pa.array([[[1.0]]] * 3, pa.list_(pa.list_(pa.float32())))})
        with pa.ipc.new_file(tmp_path / "t.arrow", found.schema) as file:
            file.write_table(found)
        return f"{tmp_path}/t.arrow"

    assert opened(write("id", pa.array(["b", "a", "c"]).dictionary_encode())).ids == ["b", "a", "c"]
    assert opened(write("name", pa.array(["b", "a", "a"]))).ids is None  # the speaker of each, say
    assert opened(write("id", pa.array([4, 4, 5]))).ids is None
    refused(write("id", pa.array(["a", None, "c"])), "t.arrow::id, row 1: expected an id, got a null")
    refused(write("key", pa.array(["b", "a", "a"])), "sequences 1 and 2 have the same id, a")


def test_a_file_of_one_group_whose_names_are_the_ids_beside_it(tmp_path):
    """As `convert --layout per-sequence` writes it."""
    for path, first in ((tmp_path / "right.h5", "d"), (tmp_path / "other.h5", "e")):
        with h5py.File(path, "w") as file:
            for name in ("a", "b/c", "d"):
                file[f"sequences/{name}"] = np.ones((2, 3), np.float32)
            file["ids"] = [first, "a", "b/c"]
    for group in ("", "::/", "::/sequences"):
        assert opened(f"{tmp_path}/right.h5{group}").ids == ["d", "a", "b/c"]
    assert opened(f"{tmp_path}/other.h5").ids == ["sequences/a", "sequences/b/c", "sequences/d"]
