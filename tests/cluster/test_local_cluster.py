"""--scheduler local:N where its processes cannot start: 69, in one line, and soon."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers import files
from helpers.command import Ran, assert_one_line
from helpers.system_tools import under

pytest.importorskip("distributed", reason="Dask is not installed: pip install distributed")


def run(folder: Path, prefix: list[object], **env: str) -> Ran:
    files.write_npy(folder / "x.npy", np.zeros((3, 4, 2), np.float32))
    options = ["-i", folder / "x.npy", "-u", 3, "--scheduler", "local:1", "-o", folder / "out.h5", "-q"]
    ran = under(prefix, "run", *options, cwd=folder, env={**os.environ, **env})
    assert not (folder / "out.h5").exists()
    return ran


@pytest.mark.parametrize(
    "prefix",
    [
        ["prlimit", "--nofile=20"],
        ["prlimit", "--as=400000000"],
        ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh"],
    ],
    ids=["few open files", "little memory", "a deleted folder"],
)
def test_limits_that_are_too_low(prefix: list[object], tmp_path: Path) -> None:
    assert_one_line(run(tmp_path, prefix), 69, "local:1", "do not start")


def test_settings_of_dask_that_are_wrong(tmp_path: Path) -> None:
    assert_one_line(run(tmp_path, ["env"], DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="foo"), 69, "local:1", "DASK_")
