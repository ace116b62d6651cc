"""safetensors: what headers are taken, in how much memory; and a file is on disk before it has its name."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lstmcli.errors import DataError
from lstmcli.files.positioned_file import FileBytes
from lstmcli.weights.containers import safetensors


def test_data_are_on_disk_before_the_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, calls = tmp_path / "out.safetensors", []

    def fsync(fd: int, real: object = os.fsync) -> None:
        calls.append((os.fstat(fd).st_size, target.exists()))
        real(fd)  # type: ignore[operator]

    monkeypatch.setattr(os, "fsync", fsync)
    safetensors.save({"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.float64)}, target, overwrite=False)
    assert (target.stat().st_size, False) in calls


def write(path: Path, header: str, values: int) -> FileBytes:
    path.write_bytes(struct.pack("<Q", len(header.encode())) + header.encode() + bytes(values))
    return FileBytes(os.open(path, os.O_RDONLY), "x.safetensors")


TENSOR = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ('{"a": %s}', ["a"]),
        (' \n{ "a"\t: %s , "__metadata__": {"x": "y"} }  ', ["a"]),
        ('{"__metadata__":{"format":"pt"},"a,}":%s}', ["a,}"]),
        ('{"\\u00e9": %s}', ["é"]),
        ('{"a": %s,}', None),
        ('{"a": %s} x', None),
        ('{"a": %s "b": 1}', None),
        ('{"a" %s}', None),
        ('{, "a": %s}', None),
        ('{"a": %s', None),
        ("[%s]", None),
        ("{1: %s}", None),
        ('{"__metadata__": 1, "a": %s, "a": 1}', None),
        ('{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": %s}', None),
    ],
)
def test_headers(header: str, names: list[str] | None, tmp_path: Path) -> None:
    file = write(tmp_path / "x", header % TENSOR, 8)
    if names is None:
        with pytest.raises(DataError, match="damaged"):
            safetensors.read_entries(file)
    else:
        assert [entry.name for entry in safetensors.read_entries(file)] == names
    os.close(file.fd)


def test_an_empty_header(tmp_path: Path) -> None:
    file = write(tmp_path / "x", "{ }", 0)
    assert safetensors.read_entries(file) == []
    os.close(file.fd)


def test_a_header_takes_a_few_times_its_bytes(tmp_path: Path) -> None:
    header = json.dumps({f"layer.{k}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for k in range(50_000)})
    file = write(tmp_path / "x", header, 0)
    tracemalloc.start()
    try:
        assert len(safetensors.read_entries(file)) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 9 * len(header)
    finally:
        tracemalloc.stop()
    os.close(file.fd)
