"""The journal: what it says was stored is what was stored, however it was cut or damaged."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from lstmcli.blocks import Span
from lstmcli.errors import DataError, OutputError, StorageError
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.results.journal import Journal, StoredSpan, differing

RUN = {"input": {"bytes": 100}, "options": {"dtype": "float32"}}
STATE = {"0/c": np.arange(6, dtype="<f4").reshape(2, 3), "0/h": np.zeros((2, 3), "<f4")}
BLOCKS = [
    StoredSpan(Span(0, 4, 0, 9, last=True), 11, Nonfinite(), None, read=12),
    StoredSpan(Span(4, 2, 0, 5, last=False), 22, Nonfinite(1, 4, 3), STATE),
    StoredSpan(Span(4, 2, 5, 9, last=True), 33, Nonfinite(1, 4, 3), None),
    StoredSpan(Span(6, 1, 0, 0, last=True), 2**32 - 1, Nonfinite(1, 4, 3), None),
]


class Synced:
    def __init__(self, fails: bool = False) -> None:
        self.count, self.started, self.fails = 0, 0, fails

    def start_sync(self) -> None:
        self.started += 1

    def sync(self) -> None:
        self.count += 1
        if self.fails:
            raise StorageError("no")


def written(folder, blocks=BLOCKS, run=RUN):
    journal = Journal(folder / "out", run, resume=False)
    journal.begin()
    for block in blocks:
        journal.record(block, Synced())
        journal.flush(Synced())
    return journal


def read(folder, run=RUN):
    journal = Journal(folder / "out", run, resume=True)
    journal.close()
    return journal


def same(got, want):
    assert [d._replace(state=None) for d in got] == [d._replace(state=None) for d in want]


def test_what_is_written_is_read(tmp_path):
    written(tmp_path).close()
    found = read(tmp_path)
    same(found.done, BLOCKS)
    assert not found.sealed
    assert found.done[1].state is not None
    for name, rows in STATE.items():
        np.testing.assert_array_equal(found.done[1].state[name], rows, strict=True)


def test_cut_at_every_byte(tmp_path):
    written(tmp_path).close()
    content = (tmp_path / "out.journal").read_bytes()
    ends = [k + 1 for k, byte in enumerate(content) if byte == 10]
    for size in range(len(content)):
        (tmp_path / "out.journal").write_bytes(content[:size])
        count = sum(end <= size for end in ends) - 1
        same(read(tmp_path).done, BLOCKS[: max(count, 0)])


def test_every_byte_flipped(tmp_path):
    """In the header nothing is left of the run, in a line nothing from there on."""
    written(tmp_path).close()
    content = (tmp_path / "out.journal").read_bytes()
    for at in range(len(content)):
        for bit in (1, 32):
            damaged = bytearray(content)
            damaged[at] ^= bit
            (tmp_path / "out.journal").write_bytes(damaged)
            line = content[:at].count(b"\n")
            same(read(tmp_path).done, BLOCKS[: max(line - 1, 0)])


def test_a_damaged_header_is_refused_where_there_is_work(tmp_path):
    written(tmp_path).close()
    (tmp_path / "out.journal").write_bytes(b"x" + (tmp_path / "out.journal").read_bytes())
    (tmp_path / "out.partial").write_bytes(b"work")
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path)
    (tmp_path / "out.journal").unlink()
    with pytest.raises(DataError, match="missing"):
        read(tmp_path)
    assert not (tmp_path / "out.journal").exists()


@pytest.mark.parametrize("order", [[1, 2], [0, 2], [0, 0], [0, 1, 3], [0, 1, 1]])
def test_lines_out_of_order_count_for_nothing(order, tmp_path):
    written(tmp_path, [BLOCKS[k] for k in order]).close()
    count = next(k for k, block in enumerate(order) if k != block)
    same(read(tmp_path).done, BLOCKS[:count])


AHEAD = [
    [
        StoredSpan(Span(8, 2, 0, 5, last=False), 44, Nonfinite(), None, read=1),
        StoredSpan(Span(8, 2, 5, 9, last=True), 55, Nonfinite(2, 9, 0), None),
    ],
    [StoredSpan(Span(11, 3, 0, 4, last=True), 66, Nonfinite(), None)],
]


def test_what_is_ahead_of_its_turn(tmp_path):
    journal = written(tmp_path, BLOCKS[:1])
    journal.note_ahead(AHEAD)
    journal.record(BLOCKS[1], Synced())  # goes on in order
    journal.flush(Synced())
    journal.close()
    found = read(tmp_path)
    same(found.done, BLOCKS[:2])
    assert found.ahead == {8: AHEAD[0], 11: AHEAD[1]}
    content = (tmp_path / "out.journal").read_bytes()
    ends = [k + 1 for k, byte in enumerate(content) if byte == 10]
    for size in range(ends[1], len(content)):
        (tmp_path / "out.journal").write_bytes(content[:size])
        found = read(tmp_path)
        same(found.done, BLOCKS[:1])
        assert list(found.ahead) == [8, 11][: sum(end <= size for end in ends[2:4])]


def test_what_is_ahead_and_done_again_counts_once(tmp_path):
    journal = written(tmp_path)
    again = StoredSpan(Span(10, 2, 0, 4, last=True), 77, Nonfinite(), None)  # of other cuts: sequence 11 is in two
    journal.note_ahead([*AHEAD, [again]])
    journal.record(StoredSpan(Span(7, 2, 0, 4, last=True), 88, Nonfinite(), None), Synced())
    journal.flush(Synced())
    journal.close()
    assert read(tmp_path).ahead == {10: [again]}


@pytest.mark.parametrize(
    "groups",
    [[[]], [AHEAD[0][:1]], [AHEAD[0][1:]], [AHEAD[0][::-1]], [AHEAD[0] + AHEAD[1]]],
    ids=["none", "an end is missing", "the beginning is missing", "not in order", "a gap"],
)
def test_a_line_that_is_not_about_whole_sequences_counts_for_nothing(groups, tmp_path):
    journal = written(tmp_path, BLOCKS[:1])
    journal._append({"ahead": [done.encode() for done in groups[0]]})
    journal.record(BLOCKS[1], Synced())
    journal.flush(Synced())
    journal.close()
    found = read(tmp_path)
    same(found.done, BLOCKS[:1])
    assert not found.ahead


def test_a_line_of_too_many_brackets_counts_for_nothing(tmp_path):
    journal = written(tmp_path, BLOCKS[:1])
    with (tmp_path / "out.journal").open("ab") as file:
        text = b"[" * 100_000 + b"]" * 100_000
        file.write(text + b" %08x\n" % zlib.crc32(text))
    journal.close()
    same(read(tmp_path).done, BLOCKS[:1])


def test_a_state_that_is_missing_takes_its_span_along(tmp_path):
    journal = Journal(tmp_path / "out", RUN, resume=False)
    journal.begin()
    journal.waiting = [*BLOCKS[:2], StoredSpan(Span(4, 2, 5, 7, last=False), 5, Nonfinite(), STATE)]
    journal.flush(Synced())  # of spans that are noted together only the last keeps its state
    journal.close()
    found = read(tmp_path)
    assert [done.state is not None for done in found.done] == [False, False, True]
    lines = (tmp_path / "out.journal").read_bytes().splitlines(keepends=True)
    (tmp_path / "out.journal").write_bytes(b"".join(lines[:3]))
    same(read(tmp_path).done, BLOCKS[:1])


def test_what_follows_a_torn_line_is_cut_off(tmp_path):
    written(tmp_path, BLOCKS[:2]).close()
    with (tmp_path / "out.journal").open("ab") as file:
        file.write(b"[4, 2, 5")
    journal = Journal(tmp_path / "out", RUN, resume=True)
    journal.begin()
    for block in BLOCKS[2:]:
        journal.record(block, Synced())
    journal.flush(Synced())
    journal.seal()
    journal.close()
    found = read(tmp_path)
    same(found.done, BLOCKS)
    assert found.sealed


def test_nothing_is_noted_after_a_sync_that_failed(tmp_path):
    journal = written(tmp_path, BLOCKS[:1])
    journal.record(BLOCKS[1], Synced())
    with pytest.raises(StorageError):
        journal.flush(Synced(fails=True))
    with pytest.raises(StorageError, match="earlier"):
        journal.flush(Synced())
    journal.close()
    same(read(tmp_path).done, BLOCKS[:1])


def test_data_are_put_on_disk_before_they_are_noted(tmp_path):
    journal = written(tmp_path, [])

    class Watched:
        def sync(self) -> None:
            assert (tmp_path / "out.journal").read_bytes().count(b"\n") == 1

    journal.record(BLOCKS[0], Watched())
    journal.flush(Watched())
    assert (tmp_path / "out.journal").read_bytes().count(b"\n") == 2
    journal.close()


def test_the_system_writes_meanwhile_what_is_more_than_a_span(tmp_path):
    journal, watched = written(tmp_path, []), Synced()
    journal.record(BLOCKS[0], watched)
    journal.record(BLOCKS[1], watched)
    journal.flush(watched)
    journal.close()
    assert (watched.started, watched.count) == (1, 1)


def test_now_and_then_in_a_thread(tmp_path, monkeypatch):
    monkeypatch.setattr("lstmcli.results.journal.SECONDS", 0.0)
    journal = Journal(tmp_path / "out", RUN, resume=False)
    journal.begin()
    for block in BLOCKS:
        journal.record(block, Synced())
    journal.flush(Synced())
    journal.close()
    same(read(tmp_path).done, BLOCKS)


def test_a_failure_in_the_thread_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("lstmcli.results.journal.SECONDS", 0.0)
    journal = Journal(tmp_path / "out", RUN, resume=False)
    journal.begin()
    journal.record(BLOCKS[0], Synced(fails=True))
    with pytest.raises(StorageError):
        journal.flush(Synced())
    journal.close()
    same(read(tmp_path).done, [])


def test_only_one_at_a_time(tmp_path):
    first = written(tmp_path)
    with pytest.raises(OutputError, match="another run"):
        Journal(tmp_path / "out", RUN, resume=True)
    first.close()
    read(tmp_path)


def test_another_run(tmp_path):
    written(tmp_path).close()
    other = {"input": {"bytes": 101}, "options": {"dtype": "float64", "more": 1}}
    with pytest.raises(DataError, match="bytes was 100, is now 101; options dtype was float32, is now float64; options more"):
        read(tmp_path, other)


def test_differences():
    assert differing({"a": 1}, {"a": 1}) == []
    assert differing({"run": {"a": [1]}}, {"run": {"a": [2], "b": 3}}) == ["a was [1], is now [2]", "b was None, is now 3"]


def test_an_empty_journal_does_not_stay(tmp_path):
    Journal(tmp_path / "out", RUN, resume=False).close()
    assert list(tmp_path.iterdir()) == []
