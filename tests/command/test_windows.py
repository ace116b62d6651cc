"""--window: the result of the windows as an array of their own, and which they are."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.command import assert_one_line, lstmcli, refuse, succeed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """series.npy, one of 200 steps; many.h5, three of them with ids; windows.npy, those of 20 steps of the three, 3 apart."""
    x = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    files.write_npy(tmp_path / "series.npy", x)
    series = {"a": x[:90], "b": x[90:100], "c": x[100:]}
    files.write_h5(tmp_path / "many.h5", **series)
    rows = [s[at : at + 20] for s in series.values() for at in range(0, len(s) - 19, 3)]
    files.write_npy(tmp_path / "windows.npy", rows)
    files.write_model(tmp_path / "model.h5", files.random_model(5, [6]))
    return tmp_path


MANY = ("-i", "many.h5", "--window", 20, "--stride", 3, "-w", "model.h5")


def test_the_bits_of_the_windows(folder: Path) -> None:
    succeed("run", "-i", "windows.npy", "-w", "model.h5", "-o", "want.h5", cwd=folder)
    for memory in ("1GB", "50KB"):
        succeed("run", *MANY, "-o", "whole.h5", "--max-memory", memory, "--overwrite", "-q", cwd=folder)
        files.assert_same_bits(files.read_result(folder / "whole.h5"), files.read_result(folder / "want.h5"))
    succeed("verify", "whole.h5", cwd=folder)
    with h5py.File(folder / "whole.h5") as file:
        assert file["series"][:].tolist() == [0] * 24 + [2] * 27
        assert file["first_step"][:].tolist() == [*range(0, 71, 3), *range(0, 81, 3)]
        assert list(file["series_ids"].asstr()[:]) == ["a", "b", "c"]
    succeed("plan", *MANY, "--shards", 3, "-o", "plan.json", cwd=folder)
    for number in (1, 2, 3):
        succeed("run", "--plan", "plan.json", "--shard", number, cwd=folder)
    succeed("merge", "plan.json", "-o", "merged.h5", cwd=folder)
    assert (folder / "merged.h5").read_bytes() == (folder / "whole.h5").read_bytes()


def test_one_series_and_a_table(folder: Path) -> None:
    ran = succeed(
        "run", "-i", "series.npy", "--window", 60, "--stride", 70, "-u", 3, "--save", "states", "-o", "s.csv", cwd=folder
    )
    assert ran.code == 0
    with (folder / "s.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[:2] for row in rows] == [["series", "first_step"], ["series", "0"], ["series", "70"], ["series", "140"]]


@pytest.mark.parametrize("layout", ["padded", "flat", "per-sequence"])
def test_converted_results_say_which_windows(layout: str, folder: Path) -> None:
    succeed("run", *MANY, "-o", "padded.h5", cwd=folder)
    succeed("run", *MANY, "-o", "want.h5", "--layout", layout, cwd=folder)
    succeed("convert", "padded.h5", "got.h5", "--layout", layout, cwd=folder)
    assert (folder / "got.h5").read_bytes() == (folder / "want.h5").read_bytes()


def test_refused(folder: Path) -> None:
    assert_one_line(lstmcli("run", "-i", "series.npy", "--stride", 2, "-u", 3, cwd=folder), 2, "give --window as well")
    refuse(folder, 65, "at least 201 steps", args=["-i", "series.npy", "--window", "201", "-u", "3"])
    pipe = (folder / "windows.npy").read_bytes()
    refuse(folder, 2, "is a pipe", args=["-i", "-", "--window", "5", "-u", "3"], stdin=pipe)
