"""Files that were read without a lock, as the file system gives none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import pytest

from lstmcli.files import hdf5
from lstmcli.files.hdf5 import notes_on_locks


def test_files_without_locks_are_told_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that runs one file after the other is not told of the first with the second."""
    real = h5py.File

    def file(path: str, mode: str, locking: Any) -> Any:
        if locking:
            raise OSError("Unable to synchronously open file (unable to lock file, errno = 524, error message = '...')")
        return real(path, mode, locking=False)

    for name in ("a.h5", "b.h5", "c.h5"):
        real(tmp_path / name, "w").close()
    monkeypatch.setattr(h5py, "File", file)
    monkeypatch.chdir(tmp_path)
    for name in ("a.h5", "b.h5"):
        hdf5.open_file(name).close()
    (note,) = notes_on_locks()
    assert note.startswith("a.h5 and 1 more: the file system gives no lock")
    assert notes_on_locks() == []
    hdf5.open_file("c.h5").close()
    (note,) = notes_on_locks()
    assert note.startswith("c.h5: the file system gives no lock")
