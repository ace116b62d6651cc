"""Reading and writing at a place, where the system takes only so many bytes in one call."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lstmcli.files import positioned_file
from lstmcli.files.positioned_file import PipeBytes, read_at, write_at

LIMIT = 1000  # instead of the 2 GiB - 1 of macOS
CONTENT = bytes(range(256)) * 17


def refusing(call: Callable[..., int]) -> Callable[..., int]:
    """The call as macOS has it: with more than the limit it does nothing, where Linux does a part."""

    def called(fd: int, data: Any, *args: int) -> int:
        size = sum(map(len, data)) if isinstance(data, list) else len(data)
        if size > LIMIT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return call(fd, data, *args)

    return called


@pytest.fixture(autouse=True)
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert positioned_file.MOST < 1 << 31
    monkeypatch.setattr(positioned_file, "MOST", LIMIT)
    for name in ("preadv", "readv", "pwrite"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


def test_a_file_is_written_and_read_in_pieces(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        write_at(file.fileno(), memoryview(CONTENT), 3)
        taken = bytearray(len(CONTENT))
        assert read_at(file.fileno(), memoryview(taken), 3, "file") == len(CONTENT)
    assert taken == CONTENT
    assert (tmp_path / "file").read_bytes() == bytes(3) + CONTENT


def test_a_pipe_is_read_in_pieces() -> None:
    source, target = os.pipe()
    os.write(target, CONTENT)
    os.close(target)
    assert PipeBytes(source, "pipe").take_next(len(CONTENT)) == CONTENT
    os.close(source)
