"""What lstmcli 0.1.0 made: results and models are read; plans and journals are refused by name, with the way out."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.command import assert_one_line, lstmcli, succeed
from helpers.pages import TOP

from lstmcli.version import __version__


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the files of 0.1.0."""
    folder = shutil.copytree(TOP / "tests" / "data" / "version_0_1_0", tmp_path / "old")
    for kind in ("journal", "partial"):  # git is told to leave out files with their own names
        (folder / f"stopped_{kind}").rename(folder / f"stopped.h5.{kind}")
    return folder


def outputs(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file["outputs"])


@pytest.mark.parametrize("name", ["result.h5", "result.npy", "result.states.npz", "model.h5"])
def test_verify(name: str, old: Path) -> None:
    assert name in succeed("verify", name, cwd=old).text


def test_a_changed_byte_of_an_old_result_is_found(old: Path) -> None:
    with h5py.File(old / "result.h5") as file:
        offset = file["outputs"].id.get_offset()
    content = bytearray((old / "result.h5").read_bytes())
    content[offset] ^= 1
    (old / "result.h5").write_bytes(content)
    assert_one_line(lstmcli("verify", "result.h5", cwd=old), 65, "outputs")


@pytest.mark.parametrize("weights", ["model.h5", "result.h5"])
def test_weights_give_the_same_bits(weights: str, old: Path) -> None:
    assert "peephole (3, 4)" in succeed("model", "show", weights, cwd=old).text
    succeed("run", "-i", "x.npy", "-l", "lens.npy", "-w", weights, "-o", "new.h5", cwd=old)
    assert outputs(old / "new.h5").tobytes() == outputs(old / "result.h5").tobytes() == np.load(old / "result.npy").tobytes()


@pytest.mark.parametrize("state", ["result.h5", "result.states.npz"])
def test_a_state_is_gone_on_from(state: str, old: Path) -> None:
    run = ["run", "-i", "x.npy", "-l", "lens.npy", "-w", "model.h5"]
    succeed(*run, "-o", "first.h5", cwd=old)
    succeed(*run, "--initial-state", "first.h5", "-o", "want.h5", cwd=old)
    succeed(*run, "--initial-state", state, "-o", "next.h5", cwd=old)
    assert outputs(old / "next.h5").tobytes() == outputs(old / "want.h5").tobytes() != outputs(old / "first.h5").tobytes()


def test_a_plan_is_refused(old: Path) -> None:
    words = ("plan.json", "made by lstmcli 0.1.0", f"this is {__version__}", "plan anew")
    assert_one_line(lstmcli("run", "--plan", "plan.json", "--shard", 1, cwd=old), 65, *words)
    assert_one_line(lstmcli("merge", "plan.json", "-o", "merged.h5", cwd=old), 65, *words)


def test_a_stopped_run_is_refused_and_can_begin_again(old: Path) -> None:
    run = ["run", "-i", "x.npy", "-l", "lens.npy", "-w", "model.h5", "-o", "stopped.h5"]
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    for command in ([*run, "--resume"], ["inspect", "stopped.h5"]):
        assert_one_line(lstmcli(*command, cwd=old), 65, "stopped.h5", "made by lstmcli 0.1.0", "--overwrite")
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    succeed(*run, "--overwrite", cwd=old)
    assert outputs(old / "stopped.h5").tobytes() == outputs(old / "result.h5").tobytes()
    assert not list(old.glob("stopped.h5.*"))
