"""Arrays in C order: what is read of a file, and pipes."""

import os
import threading
from contextlib import closing, suppress

import numpy as np
import pytest
from helpers.sources import LAYOUTS, as_npy, header, npy_bytes, open_stream, packed, padded, padded_from, read, save_npy, stream

from lstmcli.errors import DataError, MissingInputError, StorageError
from lstmcli.inputs.open_input import open_source


@pytest.mark.parametrize("stored", ["<f4", ">f8"])
@pytest.mark.parametrize("layout", ["npy", "h5-contiguous"])
@pytest.mark.parametrize("features", [5, 3000])
def test_only_valid_rows_and_short_gaps_are_read(stored, layout, features, tmp_path, monkeypatch):
    lengths = [4, 9, 9, 0, 2, 9]
    x = padded(lengths, 9, features, stored)
    calls = []
    preadv = os.preadv

    def counted(fd, views, offset):
        calls.append(preadv(fd, views, offset))
        return calls[-1]

    with closing(open_source(LAYOUTS[layout](tmp_path / "x.npy", x))) as source:
        monkeypatch.setattr(os, "preadv", counted)
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))
    row = features * x.itemsize
    # Full neighbours are one read; gaps of less than a call is worth are read over.
    assert calls == ([4 * row, 18 * row, 2 * row, 9 * row] if features == 3000 else [54 * row])


def test_many_short_sequences_take_few_reads(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 17, 20_000)
    x = padded(lengths, 16, 8)
    preadv, calls = os.preadv, []
    monkeypatch.setattr(os, "preadv", lambda *args: calls.append(1) or preadv(*args))
    with closing(open_source(save_npy(tmp_path / "x.npy", x))) as source:
        calls.clear()
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))
    assert len(calls) < 20


def test_short_reads_are_continued(tmp_path, monkeypatch):
    lengths = [4, 9, 9, 0]
    x = padded(lengths, 9, 5, ">f4")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, [views[0][:7]], offset))
    with closing(open_source(save_npy(tmp_path / "x.npy", x))) as source:
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))


def test_device_error(tmp_path, monkeypatch):
    with closing(open_source(save_npy(tmp_path / "x.npy", np.ones((2, 3, 4), np.float32)))) as source:

        def broken(fd, views, offset):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(StorageError, match=r"x\.npy: reading at byte 128 failed: Input/output error"):
            read(source, 0, 0, [3, 3])


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


def test_pipe_with_padding_in_front():
    starts, lengths = [5, 0, 3], [4, 9, 2]
    x = padded_from(starts, lengths, 9, 5)
    with closing(open_stream(as_npy(x))) as source:
        np.testing.assert_array_equal(read(source, 0, starts, lengths), packed(x, 0, starts, lengths, np.float32))
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
