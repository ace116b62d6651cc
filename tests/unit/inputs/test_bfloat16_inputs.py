"""Inputs of bfloat16 numbers, which NumPy stores as two bytes of any meaning, are read as the float32 numbers that they are."""

import json
import struct
from contextlib import closing

import h5py
import numpy as np
import pytest
from helpers.sources import open_stream, read

from lstmcli.errors import DataError
from lstmcli.inputs.ragged.open_sequences import open_sequences

LENGTHS = np.array([3, 0, 700, 1, 2])  # the third alone takes more than what is read at a time to drop gaps


def value(bits):
    """The number that 16 bits are, by the definition: 1 bit of sign, 8 of exponent, 7 of significand."""
    sign, exponent, rest = (-1.0) ** (bits >> 15), int(bits >> 7) & 0xFF, int(bits) & 0x7F
    if exponent == 0xFF:
        return sign * np.inf if not rest else np.nan
    return sign * (np.ldexp(rest / 128, -126) if exponent == 0 else np.ldexp(1 + rest / 128, exponent - 127))


@pytest.fixture(scope="module")
def padded():
    """(N, T, E) of 16 bits each, all numbers there are among them, and the valid rows as float32."""
    x = np.random.default_rng(0).permutation(np.arange(5 * 700 * 20) % 65536).astype("<u2").reshape(5, 700, 20)
    every = np.array([value(bits) for bits in range(65536)]).astype(np.float32)
    return x.view("V2"), every[np.concatenate([row[:n] for row, n in zip(x, LENGTHS, strict=True)])]


def in_c_order(folder, x):
    np.save(folder / "x.npy", x)
    return open_sequences(f"{folder}/x.npy")


def in_fortran_order(folder, x):
    np.save(folder / "x.npy", np.asfortranarray(x))
    return open_sequences(f"{folder}/x.npy")


def time_major(folder, x):
    np.save(folder / "x.npy", np.ascontiguousarray(x.swapaxes(0, 1)))
    return open_sequences(f"{folder}/x.npy", axes="TNE")


def in_npz(folder, x):
    np.savez(folder / "x.npz", x=x)
    return open_sequences(f"{folder}/x.npz")


def in_a_pipe(folder, x):
    np.save(folder / "x.npy", x)
    return open_stream((folder / "x.npy").read_bytes(), 5000)


def flat(folder, x):
    np.save(folder / "x.npy", np.concatenate([row[:n] for row, n in zip(x, LENGTHS, strict=True)]))
    np.savetxt(folder / "lens.txt", LENGTHS, "%d")
    return open_sequences(f"{folder}/x.npy", lens=f"{folder}/lens.txt")


def sequences(x):
    return {f"s{k}": row[:n] for k, (row, n) in enumerate(zip(x, LENGTHS, strict=True))}


def folder_of_npy(folder, x):
    for name, rows in sequences(x).items():
        np.save(folder / f"{name}.npy", np.asfortranarray(rows) if name == "s0" else rows)
    return open_sequences(str(folder))


def npz_of_sequences(folder, x):
    np.savez_compressed(folder / "x.npz", **sequences(x))
    return open_sequences(f"{folder}/x.npz")


def safetensors(folder, x):
    header, data = {}, b""
    for name, rows in sequences(x).items():
        header[name] = {"dtype": "BF16", "shape": rows.shape, "data_offsets": [len(data), len(data) + rows.nbytes]}
        data += rows.tobytes()
    text = json.dumps(header).encode()
    (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return open_sequences(f"{folder}/x.safetensors")


def torch_tensors(folder, x, turned=False):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    tensors = {name: torch.from_numpy(rows.view("<i2").copy()).view(torch.bfloat16) for name, rows in sequences(x).items()}
    if turned:
        tensors = {name: tensor.T.contiguous().T for name, tensor in tensors.items()}
    torch.save(tensors, folder / "x.pt")
    return open_sequences(f"{folder}/x.pt")


def torch_by_columns(folder, x):
    return torch_tensors(folder, x, turned=True)


FORMS = (
    in_c_order, in_fortran_order, time_major, in_npz, in_a_pipe, flat, folder_of_npy, npz_of_sequences, safetensors,
    torch_tensors, torch_by_columns,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_numbers(form, dtype, padded, tmp_path):
    x, want = padded
    with closing(form(tmp_path, x)) as source:
        np.testing.assert_array_equal(read(source, 0, 0, LENGTHS, dtype), want)
        assert source.exact_dtype == np.float32


def test_sequences_of_bfloat16_and_float16_go_together(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.full((2, 3), 0x7F00, "<u2").view("V2"), b=np.full((1, 3), 2**-24, np.float16))
    with closing(open_sequences(f"{tmp_path}/x.npz")) as source:
        got = read(source, 0, 0, [2, 1], source.exact_dtype)
        np.testing.assert_array_equal(got, np.float32([[2.0**127] * 3] * 2 + [[2.0**-24] * 3]))


def test_opaque_values_of_hdf5_may_mean_anything(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.zeros((2, 3, 4), "V2")
        file["rows"] = np.zeros((6, 4), "V2")
        file["lengths"] = [3, 3]
    for name in ("x", "rows"):
        with pytest.raises(DataError, match=r"expected float16, float32 or float64, got \|V2|expected plain numbers"):
            open_sequences(f"{tmp_path}/x.h5::/{name}").close()
