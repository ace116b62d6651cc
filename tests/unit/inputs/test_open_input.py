"""The readers of inputs and lengths: each against numpy, each malformed file against its error."""

import fcntl
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
from contextlib import closing, suppress
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmcli.errors import DataError, MissingInputError, StorageError, UsageError
from lstmcli.files import hdf5
from lstmcli.inputs import padded_arrays
from lstmcli.inputs.lengths import read_lengths
from lstmcli.inputs.open_input import open_source

FLOATS = ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]


def padded(lengths, steps, width, dtype="<f4", seed=0):
    """(N, T, E) with NaN in the padding."""
    x = np.random.default_rng(seed).normal(size=(len(lengths), steps, width)).astype(dtype)
    x[np.arange(steps) >= np.asarray(lengths)[:, None]] = np.nan
    return x


def packed(x, first, start, lengths, dtype):
    parts = [x[first + s, start : start + n].astype(dtype) for s, n in enumerate(lengths)]
    return np.concatenate([np.empty((0, x.shape[2]), dtype), *parts])


def read(source, first, start, lengths, dtype=np.float32):
    lengths = np.asarray(lengths, np.int64)
    rows = np.full((lengths.sum(), source.shape[2]), -7.0, dtype)
    source.read(first, start, lengths, rows)
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


def open_layout(layout, path, x, time_major=False):
    stored = np.ascontiguousarray(x.swapaxes(0, 1)) if time_major else x
    return open_source(LAYOUTS[layout](path, stored), time_major)


@pytest.fixture(params=[(layout, time_major) for time_major in (False, True) for layout in LAYOUTS])
def opened(request, tmp_path):
    """Opens (N, T, E) in every layout, stored as it is or as (T, N, E)."""
    layout, time_major = request.param
    return lambda x: open_layout(layout, tmp_path / "x.bin.npy", x, time_major)


# Reading


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("wanted", [np.float32, np.float64])
def test_rows_are_those_of_numpy(opened, stored, wanted):
    lengths = [4, 9, 0, 1, 9, 9, 0, 5]
    x = padded(lengths, 9, 5, stored)
    with closing(opened(x)) as source:
        assert source.shape == x.shape
        assert source.dtype == np.dtype(stored)
        assert not source.sequential
        got = read(source, 0, 0, lengths, wanted)
        np.testing.assert_array_equal(got, packed(x, 0, 0, lengths, wanted), strict=True)
        assert not np.isnan(got).any()
        np.testing.assert_array_equal(read(source, 2, 0, lengths[2:6], wanted), packed(x, 2, 0, lengths[2:6], wanted))
        source.finish()


def test_windows_of_time(opened):
    lengths = [4, 9, 0, 1, 9, 9, 2]
    x = padded(lengths, 9, 5)
    with closing(opened(x)) as source:
        for start, stop in [(0, 3), (3, 4), (4, 9), (8, 9), (1, 8)]:
            got, inside = read_window(source, lengths, 1, 5, start, stop)
            np.testing.assert_array_equal(got, packed(x, 1, start, inside, np.float32))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_shape_and_window(data, tmp_path_factory):
    steps, width = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=1, max_size=8))
    x = padded(lengths, steps, width, data.draw(st.sampled_from(FLOATS)))
    path = tmp_path_factory.mktemp("any") / "x"
    time_major = data.draw(st.booleans())
    stored = np.ascontiguousarray(x.swapaxes(0, 1)) if time_major else x
    if data.draw(st.booleans()):
        chunks = tuple(data.draw(st.integers(1, size)) for size in stored.shape)
        spec = save_h5(path, stored, chunks=chunks, compression=data.draw(st.sampled_from([None, "gzip", "lzf"])))
    else:
        spec = LAYOUTS[data.draw(st.sampled_from(["npy", "npy-fortran", "h5-contiguous"]))](f"{path}.npy", stored)
    first = data.draw(st.integers(0, len(lengths) - 1))
    count = data.draw(st.integers(1, len(lengths) - first))
    start = data.draw(st.integers(0, steps - 1))
    stop = data.draw(st.integers(start + 1, steps))
    small = {name: data.draw(st.integers(8, 200)) for name in ("STAGING", "CALL", "TILE")}
    with patch.multiple("lstmcli.inputs.padded_arrays", **small), closing(open_source(spec, time_major)) as source:
        assert source.shape == x.shape
        assert source.stored_shape == stored.shape
        got, inside = read_window(source, lengths, first, count, start, stop)
    np.testing.assert_array_equal(got, packed(x, first, start, inside, np.float32))


ORDERS = [(layout, time_major) for layout in ("npy", "npy-fortran") for time_major in (False, True)]


@pytest.mark.parametrize(("layout", "time_major"), ORDERS)
def test_more_than_the_staging_buffer_holds(layout, time_major, tmp_path):
    lengths = np.random.default_rng(1).integers(0, 51, 600)
    x = padded(lengths, 50, 16, ">f8")
    with closing(open_layout(layout, tmp_path / "x.npy", x, time_major)) as source:
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))
        np.testing.assert_array_equal(read(source, 9, 0, lengths[9:]), packed(x, 9, 0, lengths[9:], np.float32))


@pytest.mark.parametrize(("layout", "time_major"), ORDERS)
def test_more_sequences_than_the_staging_buffer_holds(layout, time_major, tmp_path):
    x = np.arange(300_000 * 2, dtype="<f4").reshape(-1, 2, 1)
    lengths = np.random.default_rng(2).integers(0, 3, len(x))
    with closing(open_layout(layout, tmp_path / "x.npy", x, time_major)) as source:
        mask = np.arange(2) < lengths[:, None]
        np.testing.assert_array_equal(read(source, 0, 0, lengths), x[mask])


@pytest.mark.parametrize(("layout", "time_major"), ORDERS)
def test_many_neighbours_without_a_step(layout, time_major, tmp_path, monkeypatch):
    monkeypatch.setattr(padded_arrays, "TILE", 8)
    lengths = [0] * 20 + [4] + [0] * 20 + [1, 2] + [0] * 20
    x = padded(lengths, 6, 3)
    with closing(open_layout(layout, tmp_path / "x.npy", x, time_major)) as source:
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))


def open_empty(layout, path, shape):
    x = np.empty(shape, np.float32)
    if layout == "pipe":
        return open_stream(as_npy(x))
    if layout == "h5-resizable":
        return open_source(save_h5(path, x, maxshape=(None, None, None), chunks=(2, 2, 2)))
    return open_source(LAYOUTS[layout](path, x))


EMPTY_LAYOUTS = ["npy", "npy-fortran", "h5-contiguous", "pipe", "h5-resizable"]


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 0, 2), (0, 0, 1)])
@pytest.mark.parametrize("layout", EMPTY_LAYOUTS)
def test_empty_arrays(shape, layout, tmp_path):
    with closing(open_empty(layout, tmp_path / "x.npy", shape)) as source:
        lengths, _ = read_lengths(None, source)
        assert source.shape == shape
        assert read(source, 0, 0, lengths).shape == (lengths.sum(), shape[2])
        source.finish()


@pytest.mark.parametrize("layout", EMPTY_LAYOUTS)
def test_no_features(layout, tmp_path):
    name = "/dev/fd" if layout == "pipe" else "x.npy"
    with pytest.raises(DataError, match=rf"{name}.*: expected at least one feature, got shape \(3, 4, 0\)"):
        open_empty(layout, tmp_path / "x.npy", (3, 4, 0))


def test_compact_dataset(tmp_path):
    x = padded([2, 3], 3, 2)
    with h5py.File(tmp_path / "x.h5", "w") as f:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space, kind = h5py.h5s.create_simple(x.shape), h5py.h5t.py_create(x.dtype)
        h5py.h5d.create(f.id, b"x", kind, space, properties).write(h5py.h5s.ALL, h5py.h5s.ALL, x)
    with closing(open_source(str(tmp_path / "x.h5"))) as source:
        np.testing.assert_array_equal(read(source, 0, 0, [2, 3]), packed(x, 0, 0, [2, 3], np.float32))


def test_user_block(tmp_path):
    x = padded([2, 3], 3, 2)
    for options in ({}, {"chunks": (1, 2, 2), "compression": "gzip"}):
        with h5py.File(tmp_path / "x.h5", "w", userblock_size=1024) as f:
            f.create_dataset("x", data=x, **options)
        with closing(open_source(str(tmp_path / "x.h5"))) as source:
            np.testing.assert_array_equal(read(source, 0, 0, [2, 3]), packed(x, 0, 0, [2, 3], np.float32))


def test_chunk_is_the_extent_in_the_file(tmp_path):
    x = np.zeros((10, 6, 4), np.float32)
    with closing(open_source(save_h5(tmp_path / "x.h5", x, chunks=(3, 4, 2)))) as source:
        assert source.chunk == (3, 4)
    with closing(open_source(save_npy(tmp_path / "x.npy", x))) as source:
        assert source.chunk == (1, 1)


def test_values_too_large_for_float32(opened):
    x = padded([2, 3], 4, 3, "<f8")
    x[0, 2:] = 1e300  # padding: of no concern
    x[1, 1, 0] = np.inf
    with closing(opened(x)) as source:
        assert np.isinf(read(source, 0, 0, [2, 3])).sum() == 1
    x[1, 2, 2] = -1e39
    with closing(opened(x)) as source:
        with pytest.raises(DataError, match=r"sequences 0 to 1: a value is too large for float32"):
            read(source, 0, 0, [2, 3])
        assert read(source, 0, 0, [2, 3], np.float64).min() == -1e39


# Only valid rows are read


@pytest.mark.parametrize("stored", ["<f4", ">f8"])
@pytest.mark.parametrize("layout", ["npy", "h5-contiguous"])
def test_only_valid_rows_are_read(stored, layout, tmp_path, monkeypatch):
    lengths = [4, 9, 9, 0, 2, 9]
    x = padded(lengths, 9, 5, stored)
    calls = []
    preadv = os.preadv

    def counted(fd, views, offset):
        calls.append(preadv(fd, views, offset))
        return calls[-1]

    with closing(open_source(LAYOUTS[layout](tmp_path / "x.npy", x))) as source:
        monkeypatch.setattr(os, "preadv", counted)
        read(source, 0, 0, lengths)
    row = 5 * x.itemsize
    assert calls == [4 * row, 18 * row, 2 * row, 9 * row]  # full neighbours are one read


@pytest.mark.parametrize(("layout", "time_major"), ORDERS[1:])
@pytest.mark.parametrize("stored", ["<f4", ">f8"])
def test_wide_gaps_are_not_read(layout, time_major, stored, tmp_path, monkeypatch):
    lengths = [1, 0, 2, 2, 0, 1]
    x = padded(lengths, 4, 3, stored)
    read_bytes = []
    preadv = os.preadv

    def counted(fd, views, offset):
        read_bytes.append(preadv(fd, views, offset))
        return read_bytes[-1]

    with closing(open_layout(layout, tmp_path / "x.npy", x, time_major)) as source:
        monkeypatch.setattr(os, "preadv", counted)
        monkeypatch.setattr(padded_arrays, "CALL", x.itemsize)
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))
    assert sum(read_bytes) == sum(lengths) * 3 * x.itemsize


def chunk_at(path, place):
    with h5py.File(path) as f:
        return f["x"].id.get_chunk_info_by_coord(place)


def test_chunks_of_padding_are_not_read(tmp_path):
    path, lengths = tmp_path / "x.h5", [2, 3, 8, 1, 0, 0]
    x = padded(lengths, 8, 4)
    spec = save_h5(path, x, chunks=(2, 4, 2), fletcher32=True)
    spoiled = [(0, 4, 0), (0, 4, 2), (4, 0, 0), (4, 4, 2)]
    places = [chunk_at(path, place) for place in spoiled]
    with path.open("r+b") as f:
        for place in places:
            f.seek(place.byte_offset)
            f.write(b"\xa5" * place.size)
    with closing(open_source(spec)) as source:
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))
        with pytest.raises(DataError, match=r"x\.h5::/x, chunk at \(0, 4, 0\): damaged"):
            read(source, 0, 0, [5, 0])


def test_chunks_that_were_never_written(tmp_path):
    path, lengths = tmp_path / "x.h5", [2, 3, 8, 1]
    x = padded(lengths, 8, 4)
    with h5py.File(path, "w") as f:
        f.create_dataset("x", x.shape, "f4", chunks=(2, 4, 4))
        f["x"][:2, :4], f["x"][2:] = x[:2, :4], x[2:]
    with closing(open_source(str(path))) as source:
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))
        with pytest.raises(DataError, match=r"::/x, chunk at \(0, 4, 0\): was never written"):
            read(source, 0, 0, [2, 5])


@pytest.mark.parametrize("userblock", [0, 1024])
def test_contiguous_dataset_that_was_never_written(userblock, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=userblock) as f:
        f.create_dataset("x", (2, 3, 4), "f4")
    with pytest.raises(DataError, match="::/x: was never written"):
        open_source(str(tmp_path / "x.h5"))


def test_a_chunk_is_decoded_once_in_a_read(tmp_path, monkeypatch):
    lengths = [7, 3, 8, 1, 8]
    x = padded(lengths, 8, 4)
    with closing(open_source(save_h5(tmp_path / "x.h5", x, chunks=(2, 3, 3), compression="gzip"))) as source:
        decoded = []
        decode = source._decode

        def counted(begin, count):
            decoded.append(tuple(np.array(begin) // (2, 3, 3)))
            return decode(begin, count)

        monkeypatch.setattr(source, "_decode", counted)
        read(source, 0, 0, lengths)
    assert len(decoded) == len(set(decoded)) == 3 * 3 * 2


# Files that change or fail


def test_short_reads_are_continued(tmp_path, monkeypatch):
    lengths = [4, 9, 9, 0]
    x = padded(lengths, 9, 5, ">f4")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, [views[0][:7]], offset))
    with closing(open_source(save_npy(tmp_path / "x.npy", x))) as source:
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))


@pytest.mark.parametrize("layout", ["npy", "npy-fortran", "h5-contiguous"])
def test_cut_while_read(layout, tmp_path):
    path = tmp_path / "x.npy"
    with closing(open_source(LAYOUTS[layout](path, np.ones((4, 50, 30), np.float32)))) as source:
        os.truncate(path, 10_000)
        with pytest.raises(DataError, match=r"ended at byte 10000, expected \d+ bytes more$"):
            read(source, 0, 0, [50] * 4)


def test_changed_while_read(opened):
    with closing(opened(np.ones((4, 5, 3), np.float32))) as source:
        source.finish()
        os.utime(source.name.partition("::")[0], ns=(1, 1))
        with pytest.raises(DataError, match="was changed while it was read"):
            source.finish()


def test_device_error(tmp_path, monkeypatch):
    with closing(open_source(save_npy(tmp_path / "x.npy", np.ones((2, 3, 4), np.float32)))) as source:

        def broken(fd, views, offset):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(StorageError, match=r"x\.npy: reading at byte 128 failed: Input/output error"):
            read(source, 0, 0, [3, 3])


LIBHDF5_EIO = "no object (file read failed: time = Mon, errno = 5, error message = 'x', buf = 0x7, offset = 96)"


@pytest.mark.parametrize("raised", [OSError(5, LIBHDF5_EIO), KeyError(LIBHDF5_EIO), RuntimeError(LIBHDF5_EIO)])
def test_device_error_inside_libhdf5(raised):
    message = r"f\.h5: reading at byte 96 failed: Input/output error"
    with pytest.raises(StorageError, match=message), hdf5.reading("f.h5"):
        raise raised


def test_file_that_another_program_is_writing(tmp_path):
    path = tmp_path / "x.h5"
    save_h5(path, np.ones((2, 3, 4), np.float32))
    with path.open() as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"x\.h5: another program is writing it; run again when that has ended$"):
            open_source(str(path))
    open_source(str(path)).close()


def test_descriptors_are_closed(tmp_path):
    def count():
        return len(list(Path("/dev/fd").iterdir()))

    specs = [LAYOUTS[layout](tmp_path / f"{layout}.npy", np.ones((2, 2, 2), np.float32)) for layout in LAYOUTS]
    (tmp_path / "bad.npy").write_bytes(npy_bytes("{"))
    with h5py.File(tmp_path / "bad.h5", "w") as f:
        f["y"] = [1]
    before = count()
    for spec in specs:
        open_source(spec).close()
    for bad in ("bad.npy", "bad.h5"):
        with pytest.raises(DataError):
            open_source(str(tmp_path / bad))
    assert count() == before


# Pipes


@pytest.mark.parametrize("stored", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("piece", [None, 7, 1000])
def test_pipe(stored, piece):
    lengths = [4, 9, 0, 9, 9, 1]
    x = padded(lengths, 9, 5, stored)
    with closing(open_stream(as_npy(x), piece)) as source:
        assert source.sequential
        for first, last in [(0, 2), (2, 3), (3, 6)]:
            part = lengths[first:last]
            np.testing.assert_array_equal(read(source, first, 0, part), packed(x, first, 0, part, np.float32))
        source.finish()


def test_pipe_in_pieces_of_time():
    x = padded([9, 5], 9, 5)
    with closing(open_stream(as_npy(x))) as source:
        for first, start, count in [(0, 0, 4), (0, 4, 4), (0, 8, 1), (1, 0, 4), (1, 4, 1)]:
            np.testing.assert_array_equal(read(source, first, start, [count]), x[first, start : start + count])
        source.finish()


def test_pipe_read_backwards_is_a_bug():
    with closing(open_stream(as_npy(padded([3, 3], 3, 2)))) as source:
        read(source, 1, 0, [3])
        with pytest.raises(ValueError, match="of a stream after byte") as caught:
            read(source, 0, 0, [3])
        assert not isinstance(caught.value, DataError)


def test_pipe_ends_early():
    content = as_npy(padded([3, 3], 3, 2))
    with (
        closing(open_stream(content[:-5])) as source,
        pytest.raises(DataError, match="ended after 171 bytes, expected 176"),
    ):
        read(source, 0, 0, [3, 3])
    with closing(open_stream(content[:-5])) as source:
        read(source, 0, 0, [3, 1])
        with pytest.raises(DataError, match="ended after 171 bytes, expected 176"):
            source.finish()
    for cut in (0, 3, 9, 60):
        with pytest.raises(DataError, match=f"ended after {cut} bytes, expected its header"):
            open_stream(content[:cut])


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_read_of_a_pipe_can_be_stopped(busy):
    fd, target = os.pipe()
    # Busy: there is always something to read, and a thread that skips 4 GiB would go on for long.
    os.write(target, npy_bytes(header(shape=f"(2, {1 << 30}, 1)")))

    def write():
        with suppress(BrokenPipeError):
            while True:
                os.write(target, bytes(1000))

    with closing(open_source(f"/dev/fd/{fd}")) as source:
        os.close(fd)
        if busy:
            threading.Thread(target=write, daemon=True).start()
        raised = []

        def wait():
            try:
                read(source, 1, 0, [1])
            except StorageError as error:
                raised.append(str(error))

        reader = threading.Thread(target=wait, daemon=True)
        reader.start()
        reader.join(0.05)
        assert reader.is_alive()
        source.stop()
        reader.join(5)
        assert not reader.is_alive()
        assert "reading was stopped at byte" in raised[0]
    if not busy:
        os.close(target)


def test_files_take_no_notice_of_a_stop(opened):
    with closing(opened(np.ones((2, 3, 4), np.float32))) as source:
        source.stop()
        assert read(source, 0, 0, [3, 3]).all()


def test_pipe_with_more_behind():
    with closing(open_stream(as_npy(padded([3, 3], 3, 2)) + b"!")) as source:
        read(source, 0, 0, [3, 3])
        with pytest.raises(DataError, match="more bytes follow after the 176"):
            source.finish()


def test_pipe_in_fortran_order():
    with pytest.raises(DataError, match="is in Fortran order"):
        open_stream(as_npy(np.asfortranarray(np.ones((2, 3, 4), np.float32))))


def test_standard_input(monkeypatch):
    x = padded([3, 2], 3, 2)
    kept = os.dup(0)
    try:
        os.dup2(stream(as_npy(x)), 0)
        with closing(open_source("-")) as source:
            assert source.name == "-"
            np.testing.assert_array_equal(read(source, 0, 0, [3, 2]), packed(x, 0, 0, [3, 2], np.float32))
        os.close(0)
        with pytest.raises(MissingInputError, match="standard input is closed"):
            open_source("-")
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_fifo(tmp_path):
    x, path = padded([3, 2], 3, 2), tmp_path / "fifo"
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(as_npy(x),), daemon=True).start()
    with closing(open_source(str(path))) as source:
        np.testing.assert_array_equal(read(source, 0, 0, [3, 2]), packed(x, 0, 0, [3, 2], np.float32))


# Malformed NPY


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4), }"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_npy_versions(version, tmp_path):
    x = np.arange(24, dtype="<f4").reshape(2, 3, 4)
    (tmp_path / "x").write_bytes(npy_bytes(GOOD + "\n", x.tobytes(), version))
    with closing(open_source(str(tmp_path / "x"))) as source:
        np.testing.assert_array_equal(read(source, 0, 0, [3, 3]), x.reshape(6, 4))


def header(descr="'<f4'", order="False", shape="(2, 3, 4)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


BAD_NPY = {
    "empty": (b"", r"x\.npy: expected NPY or HDF5, got an empty file$"),
    "2 bytes": (b"no", r"x\.npy: expected NPY or HDF5, got 2 bytes$"),
    "8 bytes": (b"\x93NUMPY\1\0", r"x\.npy: expected NPY or HDF5, got 8 bytes$"),
    "other magic": (b"PK\x03\x04" + bytes(99), "expected NPY or HDF5 .* begins with b'PK"),
    "version 9": (npy_bytes(GOOD, bytes(96), 1).replace(b"Y\x01", b"Y\x09"), "expected NPY version 1, 2 or 3, got 9"),
    "version 0": (npy_bytes(GOOD, bytes(96), 1).replace(b"Y\x01", b"Y\x00"), "expected NPY version 1, 2 or 3, got 0"),
    "3 GiB header": (npy_bytes(GOOD, bytes(96), 2, 3 << 30), "header of at most 65536 bytes, got 3221225472"),
    "header past the end": (npy_bytes(GOOD, b"", 1, 60_000), r"ended at byte 72, expected \d+ bytes more$"),
    "not a dict": (npy_bytes("[1, 2, 3]"), "damaged NPY header: expected the keys"),
    "no literal": (npy_bytes("{'descr': open('x')}"), "damaged NPY header: malformed node"),
    "odd literal": (npy_bytes("{'descr': '\\d', 'shape': 1or 2}"), "damaged NPY header"),
    "no syntax": (npy_bytes("{'descr': "), "damaged NPY header"),
    "not utf-8": (npy_bytes(b"{'\xff': 1}", b"", 3), "damaged NPY header"),
    "null byte": (npy_bytes("{'descr': '<f4\0'}"), "damaged NPY header"),
    "nested": (npy_bytes("(" * 18_000), "damaged NPY header"),
    "nested minus": (npy_bytes("-" * 60_000 + "1"), "damaged NPY header"),
    "nested sum": (npy_bytes("1+" * 30_000 + "1"), "damaged NPY header"),
    "unhashable key": (npy_bytes("{[]: 1}"), "damaged NPY header"),
    "key missing": (npy_bytes("{'descr': '<f4', 'shape': (2, 3, 4)}"), "expected the keys"),
    "key twice": (npy_bytes(GOOD[:-1] + "'shape': (1, 1, 1)}", bytes(4)), "expected the keys"),
    "key too many": (npy_bytes(GOOD[:-1] + "'more': 1}", bytes(96)), "expected the keys"),
    "order is a number": (npy_bytes(header(order="0"), bytes(96)), "fortran_order is 0"),
    "shape is a list": (npy_bytes(header(shape="[2, 3, 4]"), bytes(96)), r"shape is \[2, 3, 4\]"),
    "dim is a bool": (npy_bytes(header(shape="(True, 3, 4)"), bytes(48)), "shape is .True, 3, 4"),
    "dim is a float": (npy_bytes(header(shape="(2.0, 3, 4)"), bytes(96)), "shape is .2.0"),
    "dim is negative": (npy_bytes(header(shape="(-2, -3, 4)"), bytes(96)), "shape is .-2"),
    "dim is huge": (npy_bytes(header(shape=f"({1 << 64}, 0, 1)")), "shape is .18446744073709551616"),
    "product is huge": (
        npy_bytes(header(shape=f"({1 << 40}, {1 << 40}, 4)"), bytes(96)),
        "expected .* bytes for shape",
    ),
    "bomb of nothing": (npy_bytes(header(shape=f"({1 << 40}, 0, 4)")), "holds only 0 bytes"),
    "cut": (npy_bytes(GOOD, bytes(95)), "expected 168 bytes for shape .* of float32, got 167"),
    "bytes behind": (npy_bytes(GOOD, bytes(97)), "expected 168 bytes for shape .* of float32, got 169"),
    "objects": (npy_bytes(header("'|O'"), bytes(192)), r"got \|O; objects and records are never read"),
    "records": (npy_bytes(header("[('a', '<f4')]"), bytes(96)), "objects and records are never read"),
    "descr a tuple": (npy_bytes(header("('<f4',)"), bytes(96)), "objects and records are never read"),
    "descr unknown": (npy_bytes(header("'<f3'"), bytes(72)), "expected an array of numbers, got <f3"),
    "dates": (npy_bytes(header("'<M8[s]'"), bytes(192)), "expected an array of numbers"),
    "void": (npy_bytes(header("'|V4'"), bytes(96)), "expected float16, float32 or float64, got .*V4"),
    "strings": (npy_bytes(header("'<U1'"), bytes(96)), "expected float16, float32 or float64, got <U1"),
    "long double": (npy_bytes(header("'<f16'"), bytes(384)), "expected float16, float32 or float64, got float128"),
    "complex": (npy_bytes(header("'<c8'"), bytes(192)), "expected float16, float32 or float64, got complex64"),
    "integers": (npy_bytes(header("'<i4'"), bytes(96)), r"got int32; convert it with: x\.astype\('float32'\)"),
    "bools": (npy_bytes(header("'|b1'"), bytes(24)), "got bool; convert"),
    "scalar": (npy_bytes(header(shape="()"), bytes(4)), r"expected shape \(sequences, steps, features\), got \(\)"),
    "rank 2": (npy_bytes(header(shape="(2, 3)"), bytes(24)), r"got \(2, 3\)"),
    "rank 4": (npy_bytes(header(shape="(1, 2, 3, 4)"), bytes(96)), r"got \(1, 2, 3, 4\)"),
}


@pytest.mark.parametrize("case", BAD_NPY)
def test_bad_npy(case, tmp_path):
    content, message = BAD_NPY[case]
    (tmp_path / "x.npy").write_bytes(content)
    with (
        warnings.catch_warnings(record=True, action="always") as warned,
        pytest.raises(DataError, match=message) as caught,
    ):
        open_source(str(tmp_path / "x.npy"))
    assert str(caught.value).isprintable()  # and so one line
    assert not warned  # of the parser, about literals


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 90), byte=st.integers(0, 255))
def test_a_damaged_header_raises_nothing_else(at, byte, tmp_path_factory):
    content = bytearray(npy_bytes(GOOD + " " * 17 + "\n", bytes(96)))
    content[at] = byte
    path = tmp_path_factory.mktemp("damaged") / "x.npy"
    path.write_bytes(content)
    with suppress(DataError):
        open_source(str(path)).close()


def test_missing_input(tmp_path):
    with pytest.raises(MissingInputError, match="No such file"):
        open_source(str(tmp_path / "no.npy"))
    with pytest.raises(MissingInputError, match="expected a file, got a directory"):
        open_source(str(tmp_path))
    with pytest.raises(MissingInputError, match="No such file"):
        open_source(f"{tmp_path}/no.h5::/x")
    with pytest.raises(MissingInputError, match="null byte"):
        open_source("a\0b")


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    for name in ("a\x1b[2J", "b\nc"):
        with pytest.raises(MissingInputError) as caught:
            open_source(str(tmp_path / name))
        assert str(caught.value).isprintable()
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["a\x1b[2J"] = np.ones((2, 3))
    for spec in ("", "::/a\x1b[2J", "::/b\r"):
        with pytest.raises(DataError) as caught:
            open_source(f"{tmp_path}/x.h5{spec}")
        assert str(caught.value).isprintable()


# HDF5: naming and refusing


def test_naming_a_dataset(tmp_path):
    path = tmp_path / "x.npy"  # told by its first bytes, not by its ending
    x = np.ones((2, 3, 4), np.float32)
    with h5py.File(path, "w") as f:
        f["g/x"], f["y"], f["lens"], f["flat"] = x, x[:1], [1, 2], x[0]
    for spec in ("::/g/x", ":/g/x", "::g/x", "::/g//x"):
        with closing(open_source(f"{path}{spec}")) as source:
            assert source.name == f"{path}::/g/x"
            assert source.shape == (2, 3, 4)
    with pytest.raises(DataError, match=r"found 2: /g/x \(2, 3, 4\) float32, /y \(1, 3, 4\) float32; .*: \S*::/g/x$"):
        open_source(str(path))
    with pytest.raises(DataError, match=r"::/z: no such dataset; there is /flat \(3, 4\) float32, /g/x \(2, 3, 4\)"):
        open_source(f"{path}::/z")
    for name in ("/g", "/"):
        with pytest.raises(DataError, match=r"expected a dataset, got a (group|file); there is /flat"):
            open_source(f"{path}::{name}")
    with pytest.raises(DataError, match="no such dataset"):
        open_source(f"{path}::/y/x")


def test_the_only_float_dataset_of_rank_3(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as f:
        f["i"], f["two"] = np.ones((2, 3, 4), int), np.ones((2, 3))
        f["loop"] = f["/"]
    with pytest.raises(DataError, match=r"found 0: /i \(2, 3, 4\) int64, /two \(2, 3\) float64; name the one to read"):
        open_source(str(path))
    with pytest.raises(DataError, match=r"got int64; convert it with: x\.astype\('float32'\)"):
        open_source(f"{path}::/i")
    with h5py.File(path, "a") as f:
        f["deep/er/x"] = np.ones((2, 3, 4))
        f["again"] = f["deep/er/x"]  # one dataset with two names
    with closing(open_source(str(path))) as source:
        assert source.shape == (2, 3, 4)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(DataError, match="no dataset at all"):
        open_source(str(path))


def test_many_candidates_are_cut(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        for k in range(30):
            f[f"x{k}"] = np.ones((1, 1, 1))
    with pytest.raises(DataError, match=r"found 30: .* and 20 more"):
        open_source(str(tmp_path / "x.h5"))


def test_a_file_whose_name_looks_like_a_spec(tmp_path):
    path = tmp_path / "a::b.npy"
    with closing(open_source(save_npy(path, np.ones((1, 2, 3))))) as source:
        assert source.name == str(path)
    with pytest.raises(DataError, match="dataset /x is named, but this is not an HDF5 file"):
        open_source(f"{save_npy(tmp_path / 'c.npy', np.ones((1, 2, 3)))}::/x")


def hostile(path):
    other = path.with_name("other.h5")
    x = np.ones((2, 3, 4), np.float32)
    with h5py.File(other, "w") as f:
        f["x"], f["g/x"] = x, x
    path.with_name("raw.bin").write_bytes(x.tobytes())
    virtual = h5py.VirtualLayout(x.shape, x.dtype)
    virtual[:] = h5py.VirtualSource(str(other), "x", x.shape)
    with h5py.File(path, "w") as f:
        f["x"] = x
        f["external"] = h5py.ExternalLink(str(other), "/x")
        f["group"] = h5py.ExternalLink(str(other), "/g")
        f["soft"], f["dangling"], f["circle"] = h5py.SoftLink("/x"), h5py.SoftLink("/no"), h5py.SoftLink("/circle")
        f.create_dataset("raw", x.shape, "f4", external=[(str(path.with_name("raw.bin")), 0, x.nbytes)])
        f.create_virtual_dataset("virtual", virtual)
        f.create_dataset("scaled", data=x, scaleoffset=3)
        f["empty"], f["text"], f["scalar"] = h5py.Empty("f4"), "abc", 1.0
        f["record"] = np.zeros((2, 3, 4), [("a", "<f4")])
        f["enum"] = np.zeros((2, 3, 4), h5py.enum_dtype({"a": 0}))
        f["complex"] = np.zeros((2, 3, 4), complex)
        f.create_dataset("ragged", x.shape, h5py.vlen_dtype("f4"))
        brain = h5py.h5t.IEEE_F32LE.copy()
        brain.set_fields(15, 7, 8, 0, 7)
        brain.set_precision(16)
        brain.set_size(2)
        h5py.h5d.create(f.id, b"bfloat16", brain, h5py.h5s.create_simple(x.shape))
        plugin = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plugin.set_chunk(x.shape)
        plugin.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(f.id, b"blosc", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(x.shape), plugin)
        f["type"] = np.dtype("f4")


HOSTILE = {
    "external": "external is a soft or external link",
    "group/x": "group is a soft or external link",
    "soft": "soft is a soft or external link",
    "dangling": "soft or external link",
    "circle": "soft or external link",
    "raw": "its data lies in other files",
    "virtual": "its data lies in other files",
    "scaled": "compressed with filter 6; expected deflate, shuffle, fletcher32, lzf",
    "blosc": "compressed with filter 32001",
    "empty": "a dataset without a shape",
    "text": "damaged|special type",
    "scalar": r"expected shape \(sequences, steps, features\), got \(\)",
    "record": "expected float16, float32 or float64",
    "enum": "expected plain numbers",
    "complex": "got complex128",
    "ragged": "expected plain numbers|damaged|Object dtype",
    "bfloat16": "expected plain numbers",
    "type": "expected a dataset, got a datatype",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_hdf5(name, tmp_path):
    hostile(tmp_path / "x.h5")
    with pytest.raises(DataError, match=HOSTILE[name]) as caught:
        open_source(f"{tmp_path}/x.h5::/{name}")
    assert "\n" not in str(caught.value)


def test_links_are_not_candidates(tmp_path):
    hostile(tmp_path / "x.h5")
    assert {"/external", "/soft", "/group/x"}.isdisjoint(entry.name for entry in hdf5.entries(h5py.File(tmp_path / "x.h5")))


def test_the_command_searches_for_no_filter_plugins(tmp_path):
    """Not even for a file that asks for one: its filter is refused by number."""
    save_h5(tmp_path / "x.h5", np.ones((20, 30, 4), np.float32), chunks=(20, 30, 4))
    code = (
        "import sys; sys.argv = ['lstmcli', 'run', '-i', 'x.h5', '-u', '3', '--dry-run']; import os\n"
        "os._exit = lambda code: print(os.environ['HDF5_PLUGIN_PRELOAD'])\n"
        "from lstmcli.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "::"


def test_import_leaves_the_environment_alone():
    code = "import os; before = dict(os.environ); import lstmcli, lstmcli.files.hdf5; assert os.environ == before"
    env = {name: value for name, value in os.environ.items() if name != "HDF5_PLUGIN_PRELOAD"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_damaged_hdf5(tmp_path):
    path = tmp_path / "x.h5"
    save_h5(path, np.ones((20, 30, 40), np.float32))
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:600], whole[:8], whole[:100] + bytes(1000) + whole[1100:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.h5"):
            open_source(str(path))


def test_contiguous_data_past_the_end_of_the_file(tmp_path):
    path = tmp_path / "x.h5"
    save_h5(path, np.ones((20, 30, 40), np.float32))
    size = path.stat().st_size - 100
    os.truncate(path, size)
    with path.open("r+b") as f:
        f.seek(40)  # end of file, as the superblock has it
        f.write(struct.pack("<Q", size))
    with pytest.raises(DataError, match=r"x\.h5"):
        open_source(str(path))


def test_a_small_file_that_declares_much(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("x", (1 << 34, 2, 2), "f4", chunks=(1 << 12, 2, 2), compression="gzip")
    with pytest.raises(DataError, match=r"declares shape .* but holds only 0 bytes"):
        open_source(str(tmp_path / "x.h5"))


def test_a_large_array_of_which_little_is_stored(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        x = f.create_dataset("x", (2000, 2000, 400), "f4", chunks=(1000, 1, 400), compression="gzip")
        x[:, 0] = 3
    with closing(open_source(str(tmp_path / "x.h5"))) as source:
        assert (read(source, 1500, 0, [1, 0, 1]) == 3).all()


def test_a_large_chunk_of_which_little_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(padded_arrays, "LARGE", 1 << 20)
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("x", (10, 10, 10), "f4", maxshape=(None, None, None), chunks=(100, 100, 100))
    with pytest.raises(DataError, match=r"declares chunks of 4000000 bytes, but holds only 0 bytes"):
        open_source(str(tmp_path / "x.h5"))


# Lengths


@pytest.fixture
def source(tmp_path):
    with closing(open_source(save_npy(tmp_path / "x.npy", np.ones((4, 200, 3), np.float32)))) as opened:
        yield opened


LENS = [0, 200, 3, 17]


@pytest.mark.parametrize("dtype", [o + k for o in "<>" for k in ("i2", "i4", "i8", "u2", "u4", "u8")] + ["u1"])
@pytest.mark.parametrize("kind", ["npy", "h5", "h5-gzip", "pipe"])
def test_lengths_of_any_integer_dtype(dtype, kind, source, tmp_path):
    lens, path = np.array(LENS, dtype), tmp_path / "lens"
    if kind == "npy":
        path.write_bytes(as_npy(lens))
        got, name = read_lengths(str(path), source)
        assert name == str(path)
    elif kind == "pipe":
        fd = stream(as_npy(lens))
        got, _ = read_lengths(f"/dev/fd/{fd}", source)
        os.close(fd)
    else:
        save_h5(path, lens, **({"compression": "gzip"} if kind == "h5-gzip" else {}))
        got, name = read_lengths(f"{path}::/x", source)
        assert name == f"{path}::/x"
    np.testing.assert_array_equal(got, np.array(LENS, np.int64), strict=True)


def test_lengths_as_text(source, tmp_path):
    path = tmp_path / "lens.txt"
    for content in ("0\n200\n3\n17", "0\n200\n3\n17\n\n \n", " 0\r\n+200\r\n3 \r\n017\r\n", "\ufeff0\n200\n3\n17\n"):
        path.write_bytes(content.encode())
        np.testing.assert_array_equal(read_lengths(str(path), source)[0], LENS)
    path.write_text("")
    with closing(open_source(save_npy(tmp_path / "none.npy", np.ones((0, 2, 3))))) as empty:
        assert read_lengths(str(path), empty)[0].shape == (0,)


BAD_TEXT = {
    "0\n200\n3.0\n17\n": "line 3: expected one integer, got 3.0",
    "0\n\n3\n17\n": "line 2: expected one integer, got an empty line",
    "0 200 3 17\n": "line 1: expected one integer, got 0 200 3 17",
    "0\n1_0\n3\n17\n": "line 2: expected one integer, got 1_0",
    "0\n\x1b[2J\n3\n17\n": r"line 2: expected one integer, got '\\x1b\[2J'",
    f"0\n{1 << 64}\n3\n17\n": "line 2: expected one integer, got 18446744073709551616",
    "0\n200\n3\n": "expected 4 lengths, one for each sequence of the input, got 3 of them",
    "0\n200\n-3\n17\n": r"row 2: expected 0 <= length <= 200 \(the steps of .*x\.npy\), got -3; rows like that: 1 of 4",
    "0\n" * 100_000: "expected 4 lengths, one a line, got more than",
}


@pytest.mark.parametrize("content", BAD_TEXT, ids=lambda content: repr(content[:12]))
def test_bad_lengths_as_text(content, source, tmp_path):
    (tmp_path / "lens.txt").write_text(content)
    with pytest.raises(DataError, match=BAD_TEXT[content]) as caught:
        read_lengths(str(tmp_path / "lens.txt"), source)
    assert str(caught.value).isprintable()


BAD_LENS = {
    "negative": (np.array([0, -1, -2, 3]), "row 1: expected 0 <= length <= 200 .*, got -1; rows like that: 2 of 4"),
    "too long": (np.array([0, 1, 201, 3]), "row 2: expected 0 <= length <= 200 .*, got 201; rows like that: 1 of 4"),
    "uint64": (np.array([0, 1, 2, 1 << 63], "u8"), "row 3: .*, got 9223372036854775808"),
    "big-endian": (np.array([0, 1, 2, 300], ">u2"), "row 3: .*, got 300"),
    "nan": (np.array([0, 1, np.nan, 2.5]), "row 2: expected a whole number, got nan; rows like that: 2 of 4"),
    "fraction": (np.array([0, 1.5, 2, 3], "f4"), "row 1: expected a whole number, got 1.5; rows like that: 1 of 4"),
    "infinite": (np.array([0, 1, 2, np.inf], "f2"), "row 3: expected a whole number, got inf"),
    "whole floats": (np.array([0.0, 1, 2, 3]), r"integer dtype, got float64; convert them: lengths\.astype\('int64'\)"),
    "bool": (np.array([True] * 4), "expected lengths of an integer dtype, got bool"),
    "complex": (np.ones(4, complex), "expected lengths of an integer dtype, got complex128"),
    "rank 2": (np.ones((4, 1), int), r"expected 4 lengths, .* got shape \(4, 1\)"),
    "rank 0": (np.array(4), r"expected 4 lengths, .* got shape \(\)"),
    "too few": (np.ones(3, int), "expected 4 lengths, one for each sequence of the input, got 3 of them"),
    "too many": (np.ones(90_000, int), "expected 4 lengths, .* got 90000 of them"),
}


@pytest.mark.parametrize("case", BAD_LENS)
@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_bad_lengths(case, kind, source, tmp_path):
    lens, message = BAD_LENS[case]
    spec = save_npy(tmp_path / "lens.npy", lens) if kind == "npy" else save_h5(tmp_path / "lens.h5", lens)
    with pytest.raises(DataError, match=message):
        read_lengths(spec, source)


def test_bad_lengths_files(source, tmp_path):
    path = tmp_path / "lens.npy"
    whole = as_npy(np.array(LENS))
    for content, message in [
        (whole[:-1], "expected 160 bytes for 4 lengths of int64, got 159"),
        (whole + b"!", "expected 160 bytes for 4 lengths of int64, got more"),
        (whole[:50], "ended at byte 50, inside its header"),
        (npy_bytes(header("'|O'", shape="(4,)"), bytes(32)), "objects and records are never read"),
        (as_npy(np.array(["a"] * 4)), "expected lengths of an integer dtype, got <U1"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_lengths(str(path), source)
    with pytest.raises(MissingInputError):
        read_lengths(str(tmp_path / "no.npy"), source)
    with pytest.raises(MissingInputError):
        read_lengths(str(tmp_path), source)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="not an HDF5 file"):
        read_lengths(f"{path}::/x", source)


def test_lengths_are_not_read_from_standard_input(source):
    with pytest.raises(UsageError, match=r"^--lens -: only --input may be -"):
        read_lengths("-", source)


def test_lengths_in_hdf5_without_a_name(source, tmp_path):
    path = tmp_path / "lens.h5"
    with h5py.File(path, "w") as f:
        f["any"], f["x"] = LENS, np.ones((4, 2))
    assert read_lengths(str(path), source)[1] == f"{path}::/any"
    with h5py.File(path, "a") as f:
        f["other"] = [1, 2, 3, 4]
    with pytest.raises(DataError, match=r"found 2: /any \(4,\) int64, /other \(4,\) int64; name the one"):
        read_lengths(str(path), source)
    with h5py.File(path, "a") as f:
        f["lens"] = [4, 3, 2, 1]
    np.testing.assert_array_equal(read_lengths(str(path), source)[0], [4, 3, 2, 1])


def test_lengths_that_were_never_written(source, tmp_path):
    path = tmp_path / "lens.h5"
    for options in ({}, {"chunks": (2,)}):
        with h5py.File(path, "w") as f:
            f.create_dataset("lens", (4,), "i8", **options)
            if options:
                f["lens"][:2] = 1
        with pytest.raises(DataError, match=r"::/lens: .*written"):
            read_lengths(str(path), source)


def test_lengths_beside_the_input(tmp_path):
    path = tmp_path / "x.h5"
    x = np.ones((4, 200, 3), np.float32)
    for layout in ({}, {"compression": "gzip"}):
        with h5py.File(path, "w") as f:
            f.create_dataset("g/x", data=x, **layout)
        with closing(open_source(str(path))) as source:
            lengths, name = read_lengths(None, source)
            assert name is None
            np.testing.assert_array_equal(lengths, np.full(4, 200), strict=True)
        for added, expected in [("sequence_length", 3), ("g/lens", 5), ("g/lengths", 7)]:
            with h5py.File(path, "a") as f:
                f[added] = np.full(4, expected, ">i2")
            with closing(open_source(str(path))) as source:
                lengths, name = read_lengths(None, source)
                assert name == f"{path}::/{added}"
                np.testing.assert_array_equal(lengths, np.full(4, expected), strict=True)
                assert read_lengths("none", source)[1] is None
                assert read_lengths("none", source)[0].tolist() == [200] * 4


def test_bad_lengths_beside_the_input_are_not_ignored(tmp_path):
    path = tmp_path / "x.h5"
    for lens in (np.ones(3, int), np.ones(4), h5py.SoftLink("/y"), np.array([1, 2, 3, 999])):
        with h5py.File(path, "w") as f:
            f["x"], f["lengths"] = np.ones((4, 200, 3)), lens
        with closing(open_source(str(path))) as source:
            with pytest.raises(DataError, match="lies beside the input, --lens none ignores it"):
                read_lengths(None, source)
            assert read_lengths("none", source)[1] is None


def test_no_lengths(source):
    for spec in (None, "none"):
        lengths, name = read_lengths(spec, source)
        assert name is None
        np.testing.assert_array_equal(lengths, np.full(4, 200, np.int64), strict=True)


# hdf5.py, as models are read


def test_find_and_read_array(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as f:
        f["model/0/bias"] = np.arange(4, dtype=">f4")
        f["model/soft"] = h5py.SoftLink("/model/0")
    with hdf5.open_file(str(tmp_path / "m.h5")) as file:
        cell = hdf5.find(file, "model/0")
        assert hdf5.find(cell, "peephole") is None
        np.testing.assert_array_equal(hdf5.read_array(hdf5.dataset(cell, "bias")), np.arange(4))
        with pytest.raises(DataError, match=r"m\.h5::/model/0/kernel: no such dataset; there is /bias \(4,\) >f4"):
            hdf5.dataset(cell, "kernel")
        with pytest.raises(DataError, match="soft or external link"):
            hdf5.find(file, "/model/soft/bias")


def test_open_file_refuses_what_is_not_hdf5(tmp_path):
    with pytest.raises(MissingInputError):
        hdf5.open_file(str(tmp_path / "no.h5"))
    Path(tmp_path / "x").write_bytes(b"no")
    with pytest.raises(DataError, match="damaged, or not something this program reads"):
        hdf5.open_file(str(tmp_path / "x"))
