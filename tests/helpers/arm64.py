"""The Python of an arm64 root, run by qemu: what the page about the kernel says how to make."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from helpers.system_tools import need

QEMU, ROOT = "qemu-aarch64-static", "LSTMCLI_ARM64_ROOT"
PACKAGE = Path(__file__).parents[2]
LONGEST = 3 * 3600  # seconds, for twenty kernels that are compiled on a busy machine


def run_on_arm64(*args: object, cwd: Path) -> str:
    """What Python prints there. Kernels stay in the root, where they are found again while the sources stay the same."""
    need(QEMU)
    if ROOT not in os.environ:
        pytest.skip(f"{ROOT} is not set: the folder of an arm64 root with Python, numba and h5py (lstmcli help kernel)")
    root = Path(os.environ[ROOT]).absolute()
    command = [QEMU, "-L", str(root), str(root / "usr/bin/python3"), *map(str, args)]
    own = {"PYTHONPATH": str(PACKAGE), "LSTMCLI_CACHE_DIR": str(root / "var/cache/lstmcli")}
    env = os.environ | own
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
