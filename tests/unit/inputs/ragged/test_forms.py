"""Every form of ragged input gives the same rows and ids, whatever the lengths, dtypes and the parts that are read."""

import json
import os
import struct
import tempfile
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.sources import FLOATS, read
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmcli.errors import DataError, MissingInputError
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
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    native = {name: rows.astype(rows.dtype.newbyteorder("=")) for name, rows in sequences.items()}
    torch.save({name: torch.from_numpy(rows) for name, rows in native.items()}, folder / "s.pt")
    return f"{folder}/s.pt"


def torch_columns(folder, sequences):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    native = {name: rows.astype(rows.dtype.newbyteorder("=")) for name, rows in sequences.items()}
    torch.save({name: torch.from_numpy(np.ascontiguousarray(rows.T)).T for name, rows in native.items()}, folder / "s.pt")
    return f"{folder}/s.pt"


def esm(folder, sequences):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    (folder / "many").mkdir()
    for name, rows in sequences.items():
        tensor = torch.from_numpy(rows.astype(rows.dtype.newbyteorder("=")))
        layers = {32: tensor + 1, 33: tensor}
        torch.save({"label": name, "representations": layers, "mean_representations": {}}, folder / f"many/{name}.pt")
    return f"{folder}/many::33"


FORMS = [
    folder_of_npy, columns_first, pattern, list_of_names, npz, npz_deflated, folder_of_npz, hdf5, hdf5_gzip, safetensors,
    torch_dict, torch_columns, esm,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=8)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.sampled_from(FLOATS), st.integers(1, 5), st.data())
def test_every_form_has_the_same_rows(form, lengths, dtype, width, data):
    rng = np.random.default_rng(len(lengths))
    sequences = {f"s{k}": rng.normal(size=(n, width)).astype(dtype) for k, n in enumerate(lengths)}
    with tempfile.TemporaryDirectory() as folder:
        spec = form(Path(folder), sequences)
        with closing(open_sequences(spec)) as source:
            assert source.shape == (len(lengths), max(lengths), width)
            assert list(source.ids) == list(sequences)
            assert source.lengths.tolist() == lengths
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
    sequences = {f"s{k}": np.arange(n, dtype=np.int16) + k for k, n in enumerate(lengths)}
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
    forms = {"width": good[:, :3], "double": good.astype("f8"), "numbers": good.astype("i4"), "row": good[0, :3]}
    for name, bad in forms.items():
        for form in (folder_of_npy, npz, hdf5):
            folder = tmp_path / f"{name}{form.__name__}"
            folder.mkdir()
            if form is hdf5:
                if name not in ("numbers", "row"):  # others than floats may stand in such a file
                    refused(form(folder, {"good": good, name: bad}), f"{name}|good: expected a sequence .* as (good|double) is")
            else:
                words = rf"{name}.*: expected a sequence \(steps, 4\) of float32, as good is|as double is"
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
