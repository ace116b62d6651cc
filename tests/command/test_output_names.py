"""Names of outputs that are those of other files: nothing of anybody is lost."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import LSTMCLI, assert_one_line, lstmcli


@pytest.mark.parametrize("option", ["--input", "--lens", "--weights"])
def test_an_input_that_has_the_partial_name_is_not_overwritten(option: str, case: Case, tmp_path: Path) -> None:
    name = "out.h5.partial"
    given = {"--input": case.x_npy, "--lens": case.lens_npy, "--weights": case.weights}
    (tmp_path / name).write_bytes(given[option].read_bytes())
    given[option] = tmp_path / name
    before = (tmp_path / name).read_bytes()
    options = [text for pair in given.items() for text in pair]
    ran = lstmcli("run", *options, "--output", "out.h5", "--overwrite", cwd=tmp_path)
    assert_one_line(ran, 73, name)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("states", ["out.npy", "out.model.h5", "out.npy.partial"])
def test_two_files_of_a_result_under_one_name(states: str, case: Case, tmp_path: Path) -> None:
    options = (*case.inputs, "-o", "out.npy", "--states", states)
    assert_one_line(lstmcli("run", *options, "--overwrite", cwd=tmp_path), 2, states)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_came_meanwhile_costs_no_work(tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.zeros((2000, 100, 64), np.float32))
    command = [*LSTMCLI, "run", "-i", "x.npy", "-u", "256", "-o", "out.h5", "--threads", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        while not (tmp_path / "out.h5.partial").exists():
            assert running.poll() is None
            time.sleep(0.01)
        (tmp_path / "out.h5").write_bytes(b"theirs")
        _, err = running.communicate()
    assert running.returncode == 73
    assert "out.h5.partial" in err
    assert (tmp_path / "out.h5").read_bytes() == b"theirs"
    (tmp_path / "out.h5").unlink()
    (tmp_path / "out.h5.partial").rename(tmp_path / "out.h5")
    assert files.read_result(tmp_path / "out.h5")[0].shape == (2000, 100, 256)


@pytest.mark.parametrize(
    "states", ["out.model.h5", "sub/../out.model.h5", "{}/out.npy.journal", "link/out.npy.partial", "out.npy"]
)
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_states_in_the_place_of_another_file_of_the_result(states: str, overwrite: tuple[str, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3, 4), np.float32))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(".")
    before = sorted(tmp_path.rglob("*"))
    words = ("run", "-i", "x.npy", "-u", 2, "-o", "out.npy", "--states", states.format(tmp_path), *overwrite)
    assert_one_line(lstmcli(*words, cwd=tmp_path), 2, "--states", "is also the name of another file")
    assert sorted(tmp_path.rglob("*")) == before
