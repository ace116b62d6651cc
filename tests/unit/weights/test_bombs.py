"""Files that cost little to make and would cost much to read: refused with one line, in bounded memory."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import weight_files as wf
from helpers.onnx_files import lstm
from helpers.weight_imports import refusal

from lstmcli.errors import DataError
from lstmcli.files import zip_reader
from lstmcli.files.file_kind import open_by_kind
from lstmcli.tools.compare.compare import compare
from lstmcli.weights.chains.load import load_chain
from lstmcli.weights.containers import protobuf, zip_archive
from lstmcli.weights.load import Choices
from lstmcli.weights.torch_format import pickle_machine

CELL = wf.random_cell(4, 3, 0)
MB = 1 << 20


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """No more than so many bytes are taken at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < count
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("member", ["config.json", "metadata.json"])
def test_an_archive_whose_description_is_large(member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_archive, "DESCRIBING", MB)
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            archive.writestr(name, "{}".ljust(50 * MB if name == member else 2))
    with at_most(10 * MB):
        assert f"member {member}: expected at most 1,048,576 bytes" in refusal(tmp_path / "m.keras")


def test_a_pickle_that_is_large_or_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wf.write_pt(tmp_path / "a.pt", b"]" * 2000, {})
    monkeypatch.setattr(pickle_machine, "MAX_STEPS", 1000)
    assert "more than 1,000 steps; save the weights alone" in refusal(path)
    monkeypatch.setattr(zip_archive, "DESCRIBING", 1000)
    assert "data.pkl: expected at most 1,000 bytes" in refusal(path)


def test_an_onnx_file_of_nothing_but_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 10_000)
    (tmp_path / "a.onnx").write_bytes(b"\x08\x07" * 5 * MB)
    with at_most(30 * MB):
        assert "more than 10,000 fields" in refusal(tmp_path / "a.onnx")
    nodes = [wf.onnx_node("Identity", ["X"], [f"y{k}"]) for k in range(10_000)]
    assert "more than 10,000 fields" in refusal(wf.write_onnx(tmp_path / "b.onnx", nodes, []))


def test_an_onnx_file_larger_than_protobuf_allows(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x08\x07")
    os.truncate(tmp_path / "a.onnx", 1 << 40)
    with at_most(MB):
        assert "an ONNX model of 1,099,511,627,776 bytes" in refusal(tmp_path / "a.onnx")


@pytest.mark.parametrize("before", [True, False])
def test_elements_that_are_doubled_again_and_again(before: bool, tmp_path: Path) -> None:
    begin, end = ("X", "a40") if before else ("Y0", "Y0")
    doubled = [wf.onnx_node("Concat", [f"a{k}" if k else begin] * 2, [f"a{k + 1}"], axis=0) for k in range(40)]
    node, tensors = lstm(0, [CELL], x=end if before else "X")
    nodes = [*doubled, node] if before else [node, *doubled]
    path = wf.write_onnx(tmp_path / "a", nodes, tensors, {"X": ("T", "N", 4)}, ["Y0" if before else "a40"])
    with at_most(600 * MB), pytest.raises(DataError, match=r"node 'a\d+': Concat cannot be computed of"):
        load_chain(str(path), Choices())


CIRCLES = {
    "of its own": ([wf.onnx_node("Identity", ["b"], ["a"]), wf.onnx_node("Identity", ["a"], ["b"])], "X"),
    "through the LSTM": ([wf.onnx_node("Add", ["X", "Y0"], ["a"])], "a"),
    "in front": ([wf.onnx_node("Add", ["X", "b"], ["a"]), wf.onnx_node("Relu", ["a"], ["b"])], "a"),
}


@pytest.mark.parametrize("name", CIRCLES)
def test_a_circle_is_no_model_to_anybody(name: str, tmp_path: Path) -> None:
    others, x = CIRCLES[name]
    node, tensors = lstm(0, [CELL], x=x)
    path = wf.write_onnx(tmp_path / "a", [*others, node], tensors, {"X": ("T", "N", 4)}, ["Y0"])
    assert "damaged: node" in (text := refusal(path))
    with pytest.raises(DataError) as caught:
        load_chain(str(path), Choices())
    assert str(caught.value) == text


def compressed(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_an_array_that_is_longer_than_it_claims(tmp_path: Path) -> None:
    path = compressed(tmp_path / "a.npz", a=np.zeros(64 * MB, np.uint8))
    content = path.read_bytes().replace((64 * MB + 128).to_bytes(4, "little"), (256).to_bytes(4, "little"))
    path.write_bytes(content)
    with at_most(16 * MB), open_by_kind(str(path)) as (file, _), pytest.raises(DataError, match="damaged ZIP archive"):
        zip_reader.NpzMember(file, ["a"], "a")


def test_arrays_that_are_compressed_are_decoded_one_by_one(tmp_path: Path) -> None:
    arrays = {f"{k}/c": np.zeros((2, MB), np.float32) for k in range(10)}
    a, b = (str(compressed(tmp_path / name, **arrays)) for name in ("a.npz", "b.npz"))
    with at_most(80 * MB):
        assert compare(a, b)["equal"]
