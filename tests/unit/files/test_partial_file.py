"""A file gets its name only when it is whole; until then it is locked, and after a failure nothing is left."""

import errno
import os
import stat

import numpy as np
import pytest

from lstmcli.errors import OutputError, StorageError
from lstmcli.files.partial_file import Partial, check_left_over, write_whole
from lstmcli.files.standard_output import StandardOutput


def test_published_whole_and_at_once(tmp_path):
    partial = Partial(tmp_path / "out", overwrite=False)
    partial.reserve(10)
    assert os.fstat(partial.fd).st_blocks * 512 >= 10
    partial.write(b"abc", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    partial.seal()
    partial.publish()
    partial.close()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == b"\0\0\0\0abc\0\0\0"


def test_discarded_without_a_trace(tmp_path):
    Partial(tmp_path / "out", overwrite=False).discard()
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "out").write_bytes(b"old")
    partial = Partial(tmp_path / "out", overwrite=True)
    partial.write(b"new", 0)
    assert (tmp_path / "out").read_bytes() == b"old"
    partial.seal()
    partial.publish()
    partial.close()
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    first = Partial(tmp_path / "out", overwrite=True)
    first.write(b"first", 0)
    with pytest.raises(OutputError, match="another run is writing"):
        Partial(tmp_path / "out", overwrite=True)
    first.publish()
    first.close()
    assert (tmp_path / "out").read_bytes() == b"first"


def test_what_a_dead_run_left_is_not_taken_silently(tmp_path):
    (tmp_path / "out.partial").write_bytes(b"half")
    with pytest.raises(OutputError, match=r"command that was stopped; --overwrite"):
        check_left_over(tmp_path / "out", tmp_path / "out.journal")
    (tmp_path / "out.journal").write_bytes(b"{}")
    with pytest.raises(OutputError, match=r"--resume .* --overwrite"):
        check_left_over(tmp_path / "out", tmp_path / "out.journal")
    partial = Partial(tmp_path / "out", overwrite=False, resume=True)
    partial.close()
    assert (tmp_path / "out.partial").read_bytes() == b"half"
    partial = Partial(tmp_path / "out", overwrite=True)
    partial.reserve(2)
    partial.seal()
    partial.publish()
    partial.close()
    assert (tmp_path / "out").read_bytes() == b"\0\0"


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path):
    partial = Partial(tmp_path / "out", overwrite=False)
    (tmp_path / "out").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="meanwhile"):
        partial.publish()
    partial.discard()
    assert (tmp_path / "out").read_bytes() == b"theirs"
    assert (tmp_path / "out.partial").exists()  # complete, and all that is left of the work


def test_a_file_that_a_killed_command_left_with_both_names_is_replaced(tmp_path):
    write_whole(tmp_path / "out", [b"first"], overwrite=False)
    (tmp_path / "out.partial").hardlink_to(tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        write_whole(tmp_path / "out", [b"other"], overwrite=False)
    write_whole(tmp_path / "out", [b"second"], overwrite=True)
    assert (tmp_path / "out").read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("call", "where"), [("link", "out.partial"), ("fsync", "out")])
def test_a_whole_file_whose_name_cannot_be_put_on_disk_is_where_the_error_says(call, where, tmp_path, monkeypatch):
    real = getattr(os, call)

    def refuse(*names, **options):
        if call == "fsync" and stat.S_ISREG(os.fstat(names[0]).st_mode):
            return real(*names, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StorageError, match=rf"complete in .*/{where}$"):
        write_whole(tmp_path / "out", [b"whole"], overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == [where]
    assert (tmp_path / where).read_bytes() == b"whole"


def test_a_file_that_came_meanwhile_is_not_replaced_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    partial = Partial(tmp_path / "out", overwrite=False)
    (tmp_path / "out").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="meanwhile"):
        partial.publish()
    partial.discard()
    assert (tmp_path / "out").read_bytes() == b"theirs"
    (tmp_path / "out").unlink()
    partial = Partial(tmp_path / "out", overwrite=False, resume=True)
    partial.publish()
    partial.close()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_result_whose_later_part_failed_is_not_left_in_parts(tmp_path):
    partial = Partial(tmp_path / "out", overwrite=False)
    partial.publish()
    partial.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("plant", ["link", "hard link", "folder", "pipe"])
def test_planted_names_are_not_followed(plant, tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    name = tmp_path / "out.partial"
    if plant == "link":
        name.symlink_to(tmp_path / "precious")
    elif plant == "hard link":
        name.hardlink_to(tmp_path / "precious")
    elif plant == "folder":
        name.mkdir()
    else:
        os.mkfifo(name)
    with pytest.raises(OutputError):
        Partial(tmp_path / "out", overwrite=True)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["exists", "folder", "link", "no folder", "name too long"])
def test_targets_that_are_refused(kind, tmp_path):
    path = tmp_path / "out"
    if kind == "exists":
        path.write_bytes(b"old")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "no folder":
        path = tmp_path / "nowhere" / "out"
    else:
        path = tmp_path / ("x" * 300)
    with pytest.raises(OutputError, match=path.name):
        Partial(path, overwrite=False)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_mode_follows_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        partial = Partial(tmp_path / "out", overwrite=False)
    finally:
        os.umask(before)
    assert (tmp_path / "out.partial").stat().st_mode & 0o777 == 0o666 & ~umask
    partial.seal()
    partial.publish()
    partial.close()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o666 & ~umask


def test_more_space_than_there_is(tmp_path):
    partial = Partial(tmp_path / "out", overwrite=False)
    with pytest.raises(StorageError, match="bytes of space"):
        partial.reserve(1 << 60)
    partial.discard()


def test_a_stream_fills_what_is_left_out_with_zeros(capfd):
    stream = StandardOutput()
    stream.reserve(12)
    stream.write(b"ab", 0)
    stream.write(b"cd", 5)
    stream.seal()
    stream.close()
    assert capfd.readouterr().out == "ab\0\0\0cd" + "\0" * 5


def test_a_whole_file_of_pieces(tmp_path):
    pieces = [b"ab", np.arange(3, dtype="<u2"), np.zeros((0, 4), "<f4"), memoryview(b"z")]
    write_whole(tmp_path / "out", pieces, overwrite=False)
    assert (tmp_path / "out").read_bytes() == b"ab\0\0\1\0\2\0z"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
