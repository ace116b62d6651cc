"""--follow-links: other files are read on purpose, and never taken for zeros where they are missing."""

from __future__ import annotations

import shutil
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
