"""What a worker of a cluster holds of the client's files, which is nothing after its task."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from lstmcli.cluster.dask_worker import SharedPartial
from lstmcli.errors import BusyError, ClusterError, LstmcliError
from lstmcli.files.partial_file import Partial


@pytest.mark.parametrize("why", ["another file", "another run", "no file"])
def test_a_file_that_is_not_taken_is_let_go(why: str, tmp_path: Path) -> None:
    """A worker lives on: a lock that it kept would keep every other run out."""
    out = tmp_path / "out"
    partial = Partial(out, overwrite=False)
    inode = os.fstat(partial.fd).st_ino
    if why != "another run":
        partial.share()
    if why == "no file":
        partial.name.unlink()
    before = len(list(Path("/proc/self/fd").iterdir()))
    expected: type[LstmcliError] = BusyError if why == "another run" else ClusterError
    with pytest.raises(expected, match="out"):
        SharedPartial(out, inode + (why == "another file"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    partial.close()
    Partial(out, overwrite=False, resume=True).discard()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(fd: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    partial = Partial(tmp_path / "out", overwrite=False)  # for one machine that is no hindrance
    partial.share()
    with pytest.raises(ClusterError, match=r"no lock \(No locks available\).* plan and merge"):
        SharedPartial(tmp_path / "out", os.fstat(partial.fd).st_ino)
    partial.discard()
