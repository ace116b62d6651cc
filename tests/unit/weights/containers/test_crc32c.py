"""The checksum of TensorFlow's files against its definition, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import weight_files as wf

from lstmcli.weights.containers.crc32c import crc32c, unmasked


def test_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("size", [*range(70), 255, 256, 257, 4095, 65_537])
def test_any_length(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == wf.crc32c(data)


def test_mask() -> None:
    assert unmasked(int.from_bytes(wf.masked(0x12345678), "little")) == 0x12345678
