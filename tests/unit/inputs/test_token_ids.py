"""Token ids as inputs: integers (N, T), wherever they lie."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest

from lstmcli.errors import DataError
from lstmcli.inputs.open_input import open_source

LENGTHS = np.array([3, 0, 5, 1, 5, 2])
IDS = np.arange(30).reshape(6, 5) * 7 % 31


def read(spec: Path | str, axes: str = "NTE") -> np.ndarray:
    with closing(open_source(str(spec), axes, token_ids=True)) as source:
        assert source.token_ids
        assert source.shape == (6, 5, 1)
        rows = np.full((LENGTHS.sum(), 1), -1)
        source.read(0, np.zeros(6, np.int64), LENGTHS, rows)
        source.finish()
    return rows[:, 0]


def wanted() -> list[int]:
    return [value for row, length in zip(IDS.tolist(), LENGTHS.tolist(), strict=True) for value in row[:length]]


@pytest.mark.parametrize("dtype", ["i1", "u1", ">i2", "<u2", "i4", ">i8", "u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(dtype: str, order: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array(IDS, dtype, order=order))
    assert read(tmp_path / "x.npy").tolist() == wanted()


@pytest.mark.parametrize("dtype", ["<u8", ">u8"])
def test_ids_that_no_int64_has_stay_what_they_are(dtype: str, tmp_path: Path) -> None:
    """No model has them, and the message says them."""
    stored = np.array([[1, 2**63], [2**64 - 1, 0]], dtype)
    np.save(tmp_path / "x.npy", stored)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=stored, chunks=(1, 2), compression="gzip")
    for spec in (tmp_path / "x.npy", tmp_path / "x.h5"):
        with closing(open_source(str(spec), token_ids=True)) as source:
            rows = np.empty((4, 1), source.exact_dtype)
            source.read(0, np.zeros(2, np.int64), np.array([2, 2]), rows)
        assert rows[:, 0].tolist() == stored.reshape(-1).tolist()


def test_steps_first(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ascontiguousarray(IDS.T))
    assert read(tmp_path / "x.npy", "TNE").tolist() == wanted()


@pytest.mark.parametrize("chunks", [None, (2, 2), (6, 5), (1, 4)])
def test_hdf5(chunks: tuple[int, int] | None, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("ids", data=IDS.astype(np.int32), chunks=chunks, compression=chunks and "gzip")
        file["mask"] = (IDS > 0).astype(np.int8)
        file["lengths"] = LENGTHS
    assert read(tmp_path / "x.h5").tolist() == wanted()
    assert read(f"{tmp_path / 'x.h5'}::/ids").tolist() == wanted()


def test_what_is_neither_ids_nor_features(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IDS.astype(bool))
    with pytest.raises(DataError, match="got bool"):
        open_source(str(tmp_path / "x.npy"), token_ids=True)
    np.save(tmp_path / "x.npy", IDS[:, :, None, None])
    with pytest.raises(DataError, match="got int64"):
        open_source(str(tmp_path / "x.npy"), token_ids=True)
    np.save(tmp_path / "x.npy", IDS)
    with pytest.raises(DataError, match="token ids are for lstmcli predict"):
        open_source(str(tmp_path / "x.npy"))
