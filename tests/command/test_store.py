"""--store: what is stored is what was computed, rounded once; what does not fit is told by its place."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed

SAVE = ("--pool", "mean", "--save", "outputs,states,cells,layers,pooled")
STORED = ("outputs", "cells", "layers/0", "layers/1", "pooled")


@pytest.mark.parametrize("layout", ["padded", "flat", "per-sequence"])
def test_half_the_bits(layout: str, case: Case, tmp_path: Path) -> None:
    """Of all but the states, in one block and in many."""
    words = ("run", *case.inputs, *SAVE, "--layout", layout, "-q", "--overwrite")
    succeed(*words, "-o", "whole.h5", cwd=tmp_path)
    whole = files.read_all(tmp_path / "whole.h5")
    for memory in ("1GB", "50KB"):
        succeed(*words, "--store", "float16", "--max-memory", memory, "-o", "half.h5", cwd=tmp_path)
        half = files.read_all(tmp_path / "half.h5")
        assert half.keys() == whole.keys()
        for name, value in whole.items():
            stored = name.startswith(STORED)
            if name != "ids" and not name.startswith("checksums/"):
                assert files.bits(half[name]) == files.bits(value.astype(np.float16) if stored else value), name
    assert "all checksums right" in succeed("verify", "half.h5", cwd=tmp_path).text


def test_float64_in_float32(case: Case, tmp_path: Path) -> None:
    words = ("run", *case.inputs, "--dtype", "float64", "-q")
    succeed(*words, "-o", "whole.npy", cwd=tmp_path)
    succeed(*words, "--store", "float32", "-o", "half.npy", cwd=tmp_path)
    assert files.bits(np.load(tmp_path / "half.npy")) == files.bits(np.load(tmp_path / "whole.npy").astype(np.float32))
    assert np.load(tmp_path / "half.states.npz")["0/c"].dtype == np.float64


def test_the_format_of_the_computation_is_no_choice(case: Case, tmp_path: Path) -> None:
    succeed("run", *case.inputs, "-o", "plain.h5", "-q", cwd=tmp_path)
    succeed("run", *case.inputs, "-o", "said.h5", "--store", "float32", "-q", cwd=tmp_path)
    assert (tmp_path / "said.h5").read_bytes() == (tmp_path / "plain.h5").read_bytes()


def test_parts(case: Case, tmp_path: Path) -> None:
    words = (*case.inputs, *SAVE, "--store", "float16")
    succeed("run", *words, "-o", "whole.h5", "-q", cwd=tmp_path)
    succeed("plan", *words, "--shards", 3, "-o", "plan.json", "-q", cwd=tmp_path)
    for number in (1, 2, 3):
        succeed("run", "--plan", "plan.json", "--shard", number, "-q", cwd=tmp_path)
    succeed("merge", "plan.json", "-o", "merged.h5", "-q", cwd=tmp_path)
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.fixture
def large(tmp_path: Path) -> tuple[str, ...]:
    """A run whose outputs grow with relu, above 65,504 in sequence 3 from step 2 on."""
    x = np.ones((5, 4, 3), np.float32)
    x[3, 2:] = 3e5
    files.write_npy(tmp_path / "x.npy", x)
    files.write_npy(tmp_path / "lens.npy", [4, 0, 2, 4, 1])
    cell = {"input_kernel": np.full((3, 8), 1.0, "f4"), "recurrent_kernel": np.zeros((2, 8), "f4"), "bias": np.zeros(8, "f4")}
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["format"], file.attrs["format_version"] = "lstmcli-model", 1
        group = file.create_group("model")
        group.attrs["kind"] = "cell"
        for name, value in cell.items():
            group[name] = value
        group.attrs["units"], group.attrs["activation"], group.attrs["recurrent_activation"] = 2, "relu", "sigmoid"
        group.attrs["forget_bias"], group.attrs["gate_order"] = 0.0, "i,f,g,o"
    return ("run", "-i", "x.npy", "-l", "lens.npy", "-w", "model.h5", "--store", "float16", "-o", "out.h5")


@pytest.mark.parametrize("memory", ["1GB", "1KB"])
def test_a_value_that_does_not_fit(memory: str, large: tuple[str, ...], tmp_path: Path) -> None:
    ran = lstmcli(*large, "--max-memory", memory, "-q", cwd=tmp_path)
    assert_one_line(ran, 65, "x.npy, sequence 3, step 2", "of /outputs is too large for float16")
    assert not list(tmp_path.glob("out.h5*"))
    ran = lstmcli(*large, "--pool", "sum", "--save", "pooled", "-q", cwd=tmp_path)
    assert_one_line(ran, 65, "x.npy, sequence 3: ", "of /pooled is too large for float16")
    succeed(*large, "--nonfinite", "pass", "-q", cwd=tmp_path)
    with h5py.File(tmp_path / "out.h5") as file:
        assert np.isinf(file["outputs"][3, 2:]).all()
        assert np.isfinite(file["outputs"][:3]).all()
