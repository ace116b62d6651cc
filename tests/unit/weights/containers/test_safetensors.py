"""A safetensors file is on disk before it has its name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lstmcli.weights.containers import safetensors


def test_data_are_on_disk_before_the_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, calls = tmp_path / "out.safetensors", []

    def fsync(fd: int, real: object = os.fsync) -> None:
        calls.append((os.fstat(fd).st_size, target.exists()))
        real(fd)  # type: ignore[operator]

    monkeypatch.setattr(os, "fsync", fsync)
    safetensors.save({"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.float64)}, target, overwrite=False)
    assert (target.stat().st_size, False) in calls
