"""The valid rows of a padded array in every form, against NumPy; and files that change or fail while they are read."""

import importlib
import mmap
import os
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pytest
from helpers.sources import (
    AXES,
    FLOATS,
    LAYOUTS,
    as_npy,
    npy_bytes,
    open_stream,
    packed,
    padded,
    padded_from,
    read,
    read_window,
    save_h5,
    turned,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmcli.errors import DataError
from lstmcli.inputs.open_input import open_source
from lstmcli.inputs.ragged.open_sequences import open_sequences
from lstmcli.inputs.source import Checksum
from lstmcli.inputs.valid_steps import read_valid_steps


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


@contextmanager
def patched(sizes):
    """Gives the buffers of all readers these sizes."""
    with ExitStack() as patches:
        for module in ("contiguous", "strided", "chunked"):
            held = importlib.import_module(f"lstmcli.inputs.{module}")
            patches.enter_context(patch.multiple(held, **{name: size for name, size in sizes.items() if hasattr(held, name)}))
        yield


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_shape_and_window(data, tmp_path_factory):
    steps, width = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=1, max_size=8))
    begins = np.array([data.draw(st.integers(0, steps - length)) for length in lengths])
    x = padded_from(begins, lengths, steps, width, data.draw(st.sampled_from(FLOATS)))
    path = tmp_path_factory.mktemp("any") / "x"
    axes = data.draw(st.sampled_from(AXES))
    stored = turned(x, axes)
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
    with patched(small), closing(open_source(spec, axes)) as source:
        assert source.shape == x.shape
        assert source.stored_shape == stored.shape
        inside = np.clip(np.array(lengths)[first : first + count] - start, 0, stop - start)
        places = np.where(inside > 0, begins[first : first + count] + start, 0)
        np.testing.assert_array_equal(read(source, first, places, inside), packed(x, first, places, inside, np.float32))


def test_padding_in_front_and_on_both_sides(opened):
    lengths, starts = np.array([4, 9, 0, 1, 9, 3, 0, 5]), np.array([5, 0, 9, 8, 0, 2, 4, 4])
    x = padded_from(starts, lengths, 9, 5)
    with closing(opened(x)) as source:
        np.testing.assert_array_equal(read(source, 0, starts, lengths), packed(x, 0, starts, lengths, np.float32))
        np.testing.assert_array_equal(
            read(source, 3, starts[3:], lengths[3:]), packed(x, 3, starts[3:], lengths[3:], np.float32)
        )


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
        lengths = read_valid_steps(None, None, source).valid.lengths
        assert source.shape == shape
        assert read(source, 0, 0, lengths).shape == (lengths.sum(), shape[2])
        source.finish()


@pytest.mark.parametrize("layout", EMPTY_LAYOUTS)
def test_no_features(layout, tmp_path):
    name = "/dev/fd" if layout == "pipe" else "x.npy"
    with pytest.raises(DataError, match=rf"{name}.*: expected at least one feature, got shape \(3, 4, 0\)"):
        open_empty(layout, tmp_path / "x.npy", (3, 4, 0))


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


def test_files_take_no_notice_of_a_stop(opened):
    with closing(opened(np.ones((2, 3, 4), np.float32))) as source:
        source.stop()
        assert read(source, 0, 0, [3, 3]).all()


def test_a_write_through_an_old_mapping_is_noticed(tmp_path):
    """It moves no time, but a file of up to a megabyte is all samples."""
    x = padded([5, 2], 5, 3)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    save_h5(tmp_path / "x.h5", x)
    for name in ("x.npy", "x.npz", "x.h5"):
        with (tmp_path / name).open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            at = mapping.find(x.tobytes())
            mapping[at] = mapping[at]  # the page is to be written from now on
            with closing(open_source(str(tmp_path / name))) as source:
                source.identity()
                source.finish()
                mapping[at] ^= 1
                with pytest.raises(DataError, match="was changed while it was read"):
                    source.finish()


def test_a_checksum_is_of_all_bytes_in_their_order():
    rng = np.random.default_rng(0)
    for size in (0, 1, 4095, 4096, 4097, 20_000, 3 << 20):
        data = rng.bytes(size)
        whole, pieces, at = Checksum(), Checksum(), 0
        whole.add(data)
        while at < size:
            count = int(rng.integers(0, 9000))
            pieces.add(data[at : at + count])
            at += count
        assert whole.value() == pieces.value()
    found = {whole.value()}
    places = [(0, 8), (0, 4096), (8, 4104), (100, 2_000_000), (3, 5)]
    for first, second in places:
        swapped = bytearray(data)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        changed = bytearray(data)
        changed[second] ^= 1
        for other in (swapped, changed):
            assert other != data
            one = Checksum()
            one.add(bytes(other))
            found.add(one.value())
    assert len(found) == 1 + 2 * len(places)


@pytest.mark.parametrize("count", [1, 2])
def test_a_small_file_cannot_declare_a_step_that_fills_the_memory(count: int, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number in range(count):
            file.create_dataset(f"s{number}", (4, 1 << 33), "f4", chunks=(1, 64))
    with pytest.raises(DataError, match=r"declares shape .* but holds only"):
        open_sequences(str(tmp_path / "x.h5"))
