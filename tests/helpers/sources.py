"""Padded arrays in every form that a run reads, written with NumPy and h5py, and what is to be read of them."""

import io
import os
import struct
import threading

import h5py
import numpy as np

from lstmcli.inputs.open_input import open_source

FLOATS = ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]


def padded(lengths, steps, width, dtype="<f4", seed=0):
    """(N, T, E) with NaN in the padding, which stands behind."""
    return padded_from(np.zeros_like(lengths), lengths, steps, width, dtype, seed)


def padded_from(starts, lengths, steps, width, dtype="<f4", seed=0):
    """(N, T, E) with NaN outside of steps starts[s] .. starts[s] + lengths[s]."""
    x = np.random.default_rng(seed).normal(size=(len(lengths), steps, width)).astype(dtype)
    starts, ends = np.asarray(starts)[:, None], np.add(starts, lengths)[:, None]
    x[(np.arange(steps) < starts) | (np.arange(steps) >= ends)] = np.nan
    return x


def packed(x, first, start, lengths, dtype):
    begins = np.broadcast_to(start, len(lengths))
    parts = [x[first + s, at : at + n].astype(dtype) for s, (at, n) in enumerate(zip(begins, lengths, strict=True))]
    return np.concatenate([np.empty((0, x.shape[2]), dtype), *parts])


def read(source, first, start, lengths, dtype=np.float32):
    """The rows that a source reads; start: of all sequences, or of each of them."""
    lengths = np.asarray(lengths, np.int64)
    rows = np.full((lengths.sum(), source.shape[2]), -7.0, dtype)
    source.read(first, np.broadcast_to(np.asarray(start, np.int64), lengths.shape), lengths, rows)
    return rows


def read_window(source, lengths, first, count, start, stop):
    """Steps start .. stop of `count` sequences, as (rows, their lengths)."""
    inside = np.clip(np.asarray(lengths)[first : first + count] - start, 0, stop - start)
    return read(source, first, start, inside), inside


def save_npy(path, x):
    np.save(path, x)
    return str(path)


def save_h5(path, x, **options):
    """`chunks` may be larger than x."""
    if "chunks" in options and x.size:
        options["chunks"] = tuple(np.minimum(options["chunks"], x.shape))
    with h5py.File(path, "w") as f:
        f.create_dataset("x", data=x, **options)
    return f"{path}::/x"


def npy_bytes(header, data=b"", version=1, length=None):
    raw = header.encode() if isinstance(header, str) else header
    layout = "<H" if version == 1 else "<I"
    size = struct.pack(layout, len(raw) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + raw + data


def stream(content, piece=None):
    """The reading end of a pipe that `content` is written into, `piece` bytes at a time."""
    fd, target = os.pipe()
    piece = piece or max(1, len(content))

    def write():
        try:
            for at in range(0, len(content), piece):
                os.write(target, content[at : at + piece])
        except BrokenPipeError:
            pass
        finally:
            os.close(target)

    threading.Thread(target=write, daemon=True).start()
    return fd


def open_stream(content, piece=None):
    fd = stream(content, piece)
    try:
        return open_source(f"/dev/fd/{fd}")
    finally:
        os.close(fd)


def as_npy(x):
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


LAYOUTS = {
    "npy": lambda path, x: save_npy(path, x),
    "npy-fortran": lambda path, x: save_npy(path, np.asfortranarray(x)),
    "h5-contiguous": lambda path, x: save_h5(path, x),
    "h5-chunked": lambda path, x: save_h5(path, x, chunks=(3, 4, 2)),
    "h5-gzip": lambda path, x: save_h5(path, x, chunks=(2, 5, 5), compression="gzip", shuffle=True, fletcher32=True),
    "h5-lzf": lambda path, x: save_h5(path, x, chunks=(1, 1, 3), compression="lzf"),
    "h5-one-chunk": lambda path, x: save_h5(path, x, chunks=x.shape, compression="gzip"),
}


AXES = ["NTE", "TNE", "ETN", "ENT"]
ORDERS = [("npy", "NTE"), ("npy", "TNE"), ("npy-fortran", "NTE"), ("npy-fortran", "TNE"), ("npy", "ETN"), ("npy", "ENT")]


def turned(x, axes):
    """(N, T, E) with its axes in another order."""
    return np.ascontiguousarray(x.transpose(["NTE".index(axis) for axis in axes]))


def open_layout(layout, path, x, axes="NTE"):
    return open_source(LAYOUTS[layout](path, turned(x, axes)), axes)


def header(descr="'<f4'", order="False", shape="(2, 3, 4)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"
