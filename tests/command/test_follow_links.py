"""--follow-links: other files are read on purpose, and never taken for zeros where they are missing."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import Ran, assert_one_line, lstmcli


def run(case: Case, folder: Path, name: str, *args: object) -> Ran:
    inputs = ["-i", f"links.h5::/{name}", "--lens", "links.h5::/n", "--weights", case.weights, "--max-memory", "40KB"]
    return lstmcli("run", *inputs, "-o", "out.h5", *args, cwd=folder)


@pytest.fixture
def links(case: Case, tmp_path: Path) -> Path:
    """x as a soft link, an external link, a virtual dataset, and raw bytes outside; a link to the lengths."""
    files.write_h5(tmp_path / "far.h5", x=case.x, lengths=case.lengths)
    (tmp_path / "raw.bin").write_bytes(case.x.tobytes())
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["there"] = case.x
        file["soft"] = h5py.SoftLink("/there")
        file["external"] = h5py.ExternalLink("far.h5", "/x")
        file["n"] = h5py.ExternalLink("far.h5", "/lengths")
        file.create_dataset("raw", case.x.shape, "<f4", external=[("raw.bin", 0, case.x.nbytes)])
        layout = h5py.VirtualLayout(case.x.shape, "<f4")
        layout[:5] = h5py.VirtualSource("far.h5", "x", case.x.shape)[:5]
        layout[5:] = h5py.VirtualSource(".", "there", case.x.shape)[5:]
        file.create_virtual_dataset("virtual", layout, fillvalue=7)
        file.create_virtual_dataset("holes", layout_with_a_hole(case), fillvalue=7)
    return tmp_path


def layout_with_a_hole(case: Case) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout(case.x.shape, "<f4")
    layout[:5] = h5py.VirtualSource("far.h5", "x", case.x.shape)[:5]
    return layout


@pytest.mark.parametrize("name", ["soft", "external", "raw", "virtual"])
def test_only_on_purpose(name: str, case: Case, links: Path) -> None:
    assert_one_line(run(case, links, name), 65, "links.h5", "--follow-links")
    assert not (links / "out.h5").exists()
    ran = run(case, links, name, "--follow-links")
    assert ran.code == 0, ran.err
    files.assert_same_bits(files.read_result(links / "out.h5"), case.result)


@pytest.mark.parametrize(("name", "gone"), [("external", "far.h5"), ("raw", "raw.bin"), ("virtual", "far.h5")])
def test_what_is_missing_is_refused(name: str, gone: str, case: Case, links: Path) -> None:
    shutil.copy(case.lens_npy, links)
    (links / gone).unlink()
    inputs = ["-i", f"links.h5::/{name}", "--lens", "lens.npy", "--weights", case.weights]
    assert_one_line(lstmcli("run", *inputs, "-o", "out.h5", "--follow-links", cwd=links), 65, "links.h5", gone)
    assert not (links / "out.h5").exists()


def test_a_dataset_that_is_missing_in_another_file(case: Case, links: Path) -> None:
    with h5py.File(links / "far.h5", "a") as file:
        del file["x"]
    assert_one_line(run(case, links, "virtual", "--follow-links"), 65, "links.h5::/virtual", "missing")


def test_values_that_are_in_no_file(case: Case, links: Path) -> None:
    assert_one_line(run(case, links, "holes", "--follow-links"), 65, "links.h5::/holes", "in none of its files")


def test_a_change_of_another_file_is_noticed(case: Case, links: Path) -> None:
    from lstmcli.errors import DataError
    from lstmcli.inputs.open_input import open_source

    source = open_source(f"{links}/links.h5::/virtual", follow_links=True)
    before = source.identity()
    with h5py.File(links / "far.h5", "a") as file:
        file["x"][0, 0, 0] = 5
    with pytest.raises(DataError, match=r"far\.h5.*changed"):
        source.finish()
    source.close()
    again = open_source(f"{links}/links.h5::/virtual", follow_links=True)
    assert again.identity() != before
    again.close()
    np.testing.assert_equal(again.shape, case.x.shape)


def test_initial_states_in_other_files(case: Case, tmp_path: Path) -> None:
    """A run goes on from the parts of a virtual merge as from the merged result."""
    plan = ["plan", *case.inputs, "--shards", "2", "-o", "plan.json"]
    for words in (plan, *(["run", "--plan", "plan.json", "--shard", k] for k in (1, 2))):
        assert lstmcli(*words, cwd=tmp_path).code == 0
    assert lstmcli("merge", "plan.json", "-o", "parts.h5", "--virtual", cwd=tmp_path).code == 0
    assert lstmcli("merge", "plan.json", "-o", "whole.h5", cwd=tmp_path).code == 0
    on = ["run", *case.inputs, "--initial-state"]
    assert lstmcli(*on, "whole.h5", "-o", "expected.h5", cwd=tmp_path).code == 0
    assert_one_line(lstmcli(*on, "parts.h5", "-o", "more.h5", cwd=tmp_path), 65, "parts.h5::/state/0/c", "--follow-links")
    ran = lstmcli(*on, "parts.h5", "--follow-links", "-o", "more.h5", cwd=tmp_path)
    assert ran.code == 0, ran.err
    files.assert_same_bits(files.read_result(tmp_path / "more.h5"), files.read_result(tmp_path / "expected.h5"))


def test_a_change_of_initial_states_in_another_file_is_noticed(tmp_path: Path) -> None:
    from lstmcli.errors import DataError
    from lstmcli.inputs.beside.initial_state import open_states

    files.write_h5(tmp_path / "far.h5", x=np.ones((2, 3), "f4"))
    with h5py.File(tmp_path / "states.h5", "w") as file:
        layout = h5py.VirtualLayout((2, 3), "<f4")
        layout[:] = h5py.VirtualSource("far.h5", "x", (2, 3))
        file.create_virtual_dataset("state/0/c", layout)
    arguments = (f"{tmp_path}/states.h5", {"0/c": 3}, 2, np.dtype("f4"))
    with closing(open_states(*arguments, follow_links=True)) as states:
        before = states.identity()
        states.finish()
        with h5py.File(tmp_path / "far.h5", "a") as file:
            file["x"][0, 0] = 5
        with pytest.raises(DataError, match=r"far\.h5.*changed"):
            states.finish()
    with closing(open_states(*arguments, follow_links=True)) as states:
        assert states.identity() != before


def shown_as_one(path: Path, shape: tuple[int, ...], *parts: tuple[slice, str, slice]) -> None:
    """A virtual dataset /x over rows of /x in other files: (rows here, file, rows there)."""
    layout = h5py.VirtualLayout(shape, "<f4")
    for rows, source, taken in parts:
        with h5py.File(path.parent / source) as file:
            layout[rows] = h5py.VirtualSource(source, "x", file["x"].shape)[taken]
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout, fillvalue=7)


def in_raw_bytes(path: Path, x: np.ndarray, offset: int, *, written: int | None = None) -> None:
    """A dataset /x in external storage raw.bin, which has only the first `written` bytes of what it should."""
    (path.parent / "raw.bin").write_bytes((bytes(offset) + x.tobytes())[:written])
    with h5py.File(path, "w") as file:
        file.create_dataset("x", x.shape, "<f4", external=[("raw.bin", offset, x.nbytes)])


def unwritten(path: Path, shape: tuple[int, ...], *, chunked: bool, rows: int = 0) -> None:
    """A dataset /x whose writer was stopped after `rows` rows."""
    with h5py.File(path, "w") as file:
        item = file.create_dataset("x", shape, "<f4", chunks=(2, *shape[1:]) if chunked else None)
        if rows:
            item[:rows] = 1


BELOW = ["cut storage", "empty storage", "storage at an offset", "chunks", "never written", "over a missing file", "short"]


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("fault", BELOW)
def test_zeros_are_never_taken_for_values(fault: str, depth: int, case: Case, tmp_path: Path) -> None:
    """libhdf5 gives zeros or fill values for all of these. depth: of virtual datasets over what is at fault."""
    x, shape, source = case.x, case.x.shape, tmp_path / "depth0.h5"
    if "storage" in fault:
        written = {"cut storage": x.nbytes - 1, "empty storage": 0, "storage at an offset": 100}[fault]
        in_raw_bytes(source, x, 200 if "offset" in fault else 0, written=written)
    elif fault == "chunks":
        unwritten(source, shape, chunked=True, rows=4)
    elif fault == "never written":
        unwritten(source, shape, chunked=False)
    else:
        files.write_h5(tmp_path / "far.h5", x=x)
        shown_as_one(source, shape, (slice(None), "far.h5", slice(None)))
        (tmp_path / "far.h5").unlink()
        if fault == "short":
            files.write_h5(tmp_path / "far.h5", x=x[:-1])
    for level in range(depth):
        shown_as_one(tmp_path / f"depth{level + 1}.h5", shape, (slice(None), f"depth{level}.h5", slice(None)))
    inputs = ["-i", f"depth{depth}.h5", "--lens", "none", "--units", 3]
    assert_one_line(lstmcli("run", *inputs, "-o", "out.h5", "--follow-links", cwd=tmp_path), 65, "h5::/x")
    assert not (tmp_path / "out.h5").exists()


def test_rows_that_are_mapped_twice_do_not_stand_for_others(case: Case, tmp_path: Path) -> None:
    files.write_h5(tmp_path / "far.h5", x=case.x)
    parts = [(slice(0, 5), "far.h5", slice(0, 5)), (slice(0, 8), "far.h5", slice(5, 13))]
    shown_as_one(tmp_path / "x.h5", case.x.shape, *parts)
    inputs = ["-i", "x.h5", "--lens", "none", "--units", 3, "-o", "out.h5", "--follow-links"]
    assert_one_line(lstmcli("run", *inputs, cwd=tmp_path), 65, "x.h5::/x", "in none of its files")


def test_a_virtual_dataset_without_a_fixed_size(case: Case, tmp_path: Path) -> None:
    """Its size is what libhdf5 finds at the moment: a file that is missing makes it shorter, and nothing else."""
    growing, every = (None, *case.x.shape[1:]), slice(0, h5py.h5s.UNLIMITED)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("far", data=case.x, maxshape=growing, chunks=(2, *case.x.shape[1:]))
        layout = h5py.VirtualLayout(case.x.shape, "<f4", maxshape=growing)
        layout[every] = h5py.VirtualSource("x.h5", "far", case.x.shape, maxshape=growing)[every]
        file.create_virtual_dataset("x", layout)
    inputs = ["-i", "x.h5::/x", "--lens", "none", "--units", 3, "-o", "out.h5", "--follow-links"]
    assert_one_line(lstmcli("run", *inputs, cwd=tmp_path), 65, "x.h5::/x", "fixed number")


def test_a_virtual_dataset_of_itself(case: Case, tmp_path: Path) -> None:
    """libhdf5 goes round in it until the stack is full."""
    layout = h5py.VirtualLayout(case.x.shape, "<f4")
    layout[:] = h5py.VirtualSource("x.h5", "x", case.x.shape)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    inputs = ["-i", "x.h5", "--lens", "none", "--units", 3, "-o", "out.h5", "--follow-links"]
    assert_one_line(lstmcli("run", *inputs, cwd=tmp_path), 65, "x.h5::/x", "made of itself")


def test_storage_is_looked_for_where_libhdf5_takes_it_from(case: Case, tmp_path: Path) -> None:
    """That is the working folder: a file of the same name beside the dataset says nothing of what is read."""
    (tmp_path / "data").mkdir()
    in_raw_bytes(tmp_path / "data" / "x.h5", case.x, 0)
    inputs = ["-i", "data/x.h5", "--lens", case.lens_npy, "--weights", case.weights, "-o", "out.h5", "--follow-links"]
    assert_one_line(lstmcli("run", *inputs, cwd=tmp_path), 65, "data/x.h5::/x", "raw.bin", "HDF5_EXTFILE_PREFIX")
    ran = lstmcli("run", *inputs, cwd=tmp_path, env={**os.environ, "HDF5_EXTFILE_PREFIX": "${ORIGIN}"})
    assert ran.code == 0, ran.err
    files.assert_same_bits(files.read_result(tmp_path / "out.h5"), case.result)
    shutil.move(tmp_path / "data" / "raw.bin", tmp_path)
    assert lstmcli("run", *inputs, "--overwrite", cwd=tmp_path).code == 0
    files.assert_same_bits(files.read_result(tmp_path / "out.h5"), case.result)


@pytest.mark.parametrize(("name", "target"), [("external", "far.h5"), ("virtual", "far.h5"), ("raw", "raw.h5")])
@pytest.mark.parametrize("below", [False, True])
def test_files_that_the_input_is_made_of_are_not_replaced(name: str, target: str, below: bool, case: Case, links: Path) -> None:
    with h5py.File(links / "links.h5", "a") as file:
        del file["raw"]
        (links / "raw.bin").rename(links / "raw.h5")
        file.create_dataset("raw", case.x.shape, "<f4", external=[("raw.h5", 0, case.x.nbytes)])
        if below:
            file.move(name, "hidden")
    source = "links.h5"
    if below:
        source = "above.h5"
        with h5py.File(links / source, "w") as file:
            file[name] = h5py.ExternalLink("links.h5", "/hidden")
    before = files.snapshot(links)
    inputs = ["-i", f"{source}::/{name}", "--lens", "none", "--units", 3, "-o", target, "--follow-links"]
    assert_one_line(lstmcli("run", *inputs, "--overwrite", cwd=links), 73, target, "input")
    assert files.snapshot(links) == before
