"""OUT.journal: which spans of a run are on disk, so that a run that was stopped at any instant can go on.

A line is a JSON value and the CRC-32 of its text. The first holds the fingerprint of the run; then comes a line for each stored
span, in order, and at last `"sealed"`. A line is written after the data that it speaks of are on disk. A line that is torn,
damaged or out of order does not count, nor do those after it: that work is done again.

Workers of a cluster may have stored sequences when some in front of them are not done. `{"ahead": [...]}` holds the spans of
such sequences, so that a run with a cluster does not compute them again; one without does.
"""

import json
import os
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from lstmcli.blocks import Span, State
from lstmcli.errors import DataError, StorageError, shown
from lstmcli.files.partial_file import claim, partial_name, sync_folder
from lstmcli.files.positioned_file import storing, sync_data, write_at
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.results.formats.paths import journal_name

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

SECONDS = 2.0  # between two syncs: so much work may be lost when the process is killed
FORMAT = {"format": "lstmcli-journal", "format_version": 2}

Fingerprint = dict[str, Any]  # JSON
StateForms = Mapping[str, tuple[np.dtype[Any], int]]  # dtype and width of the arrays (n, width) of a state


class Synced(Protocol):
    """Files that can be put on disk."""

    def start_sync(self) -> None: ...
    def sync(self) -> None: ...


class StoredSpan(NamedTuple):
    """A span that is stored, as a line of the journal holds it."""

    span: Span
    checksum: int  # what Result.put() gave
    nonfinite: Nonfinite  # in all spans up to this one
    state: State | None  # after the span, if more steps of its sequences come; the last line of a sync alone keeps it
    read: int = 0  # the checksum of what was read for it; 0 in a merge, whose parts have checksums

    def encode(self) -> list[Any]:
        """Returns the span ready for JSON."""
        texts = {
            name: [rows.dtype.str, rows.shape[1], b64encode(rows.data).decode()] for name, rows in (self.state or {}).items()
        }
        span = self.span
        about = [span.first, span.count, span.start, span.stop, span.last]
        return [*about, self.checksum, self.read, list(self.nonfinite), texts]

    def fits(self, forms: StateForms) -> bool:
        """Says whether the state, if there is one, has these forms."""
        found = {name: (rows.dtype, rows.shape[1]) for name, rows in (self.state or {}).items()}
        return self.span.last or not found or found == forms

    @classmethod
    def decode(cls, value: Any) -> "StoredSpan":
        """Makes the span again. Raises ValueError, TypeError and the like for anything that encode() does not make."""
        first, count, start, stop, last, checksum, read, nonfinite, texts = value
        numbers = [first, count, start, stop, checksum, read, *(number + 1 for number in nonfinite)]
        if not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers) or type(last) is not bool:
            raise ValueError("not a span")
        state = {
            name: np.frombuffer(b64decode(text), np.dtype(dtype)).reshape(count, width).copy()
            for name, (dtype, width, text) in texts.items()
        }
        return cls(Span(first, count, start, stop, last), checksum, Nonfinite(*nonfinite), state or None, read)


class Journal:
    """The journal of a run on OUT. While it is open, no other run can write OUT."""

    def __init__(
        self,
        path: Path,
        fingerprint: Fingerprint,
        resume: bool,
        beside: Sequence[Path] = (),
        about: Mapping[str, Any] = {},
    ) -> None:
        """Opens the journal and, with `resume`, reads what an earlier run has left. Nothing is changed before begin().

        beside: the other files of the result; about: more facts, for JSON. They must be the same when the run is resumed.

        Raises DataError if it is another run's, or damaged; OutputError if another run has it open, or it cannot be made.
        """
        self.path, self.name = path, journal_name(path)
        self.fingerprint: Fingerprint = FORMAT | {"run": fingerprint, **about}
        if beside:
            self.fingerprint["files"] = [os.path.relpath(other, path.parent) for other in beside]
        self.done: list[StoredSpan] = []
        self.ahead: dict[int, list[StoredSpan]] = {}  # by their first sequence; whole sequences, which lie behind a gap
        self.sealed = False
        self.size = 0  # bytes of the lines that count
        self.waiting: list[StoredSpan] = []  # recorded, and not yet on disk
        self.syncing: Future[None] | None = None
        self.due = time.monotonic() + SECONDS
        self.failed = False
        self.thread: ThreadPoolExecutor | None = None
        self.fd = claim(self.name, path)
        try:
            if resume:
                self._replay()
        except BaseException:
            self.close()
            raise

    def _replay(self) -> None:
        where = shown(str(self.name))
        with storing(self.name):
            content = b"".join(iter(lambda: os.read(self.fd, 1 << 24), b""))
        self.done, self.ahead, self.sealed, self.size = read_journal(content, self._compare)
        partial = partial_name(self.path)
        if not self.size and partial.exists() and partial.stat().st_size:
            what = "damaged" if content else "missing"
            raise DataError(f"{where}: is {what}, so nothing tells what of {partial.name!r} is done; --overwrite starts again")

    def _compare(self, found: Any) -> None:
        check_format(found, self.name)
        if differences := list(differing(found, self.fingerprint)):
            raise DataError(
                f"{shown(str(self.name))}: belongs to another run than this one; {'; '.join(differences)}; "
                "run as before, or start again with --overwrite"
            )

    def begin(self) -> None:
        """Cuts off the lines that do not count. To be called before anything else of the result is made."""
        with storing(self.name):
            os.ftruncate(self.fd, self.size)
            if not self.size:
                self._append(self.fingerprint)
            sync_data(self.fd)
            sync_folder(self.path.parent)

    def keep(self, count: int) -> None:
        """Keeps only sequences that are complete in the first `count` spans: the data of the next is not what was stored."""
        self.done, self.ahead = self.done[:count], {}
        while self.done and not self.done[-1].span.last:
            self.done.pop()
        self.size = 0
        self.begin()
        self._write(self.done)

    def record(self, done: StoredSpan, result: Synced) -> None:
        """Records a span that was written. Now and then a thread puts on disk what was recorded, and then writes its lines."""
        self.waiting.append(done)
        if self.syncing and not self.syncing.done():
            return
        self._await()
        if time.monotonic() >= self.due:
            self._begin(self._sync, result)
        elif len(self.waiting) > 1:  # a single span may be all there is, and little
            self._begin(result.start_sync)

    def note_ahead(self, groups: Sequence[list[StoredSpan]]) -> None:
        """Notes spans of whole sequences that are on disk, while some in front of them are not; nonfinite: of a group alone."""
        self._await()
        with storing(self.name):
            for spans in groups:
                self._append({"ahead": [done.encode() for done in spans]})
                self.ahead[spans[0].span.first] = spans
            sync_data(self.fd)

    def _begin(self, work: Callable[..., None], *of: Any) -> None:
        from concurrent.futures import ThreadPoolExecutor  # takes a short run 3 ms, and that one never comes here

        self.thread = self.thread or ThreadPoolExecutor(1)
        self.syncing = self.thread.submit(work, *of)

    def flush(self, result: Synced) -> None:
        """Puts all on disk that was recorded, and writes its lines. Raises StorageError."""
        self._await()
        if self.waiting:
            self._sync(result)

    def _await(self) -> None:
        if self.syncing:
            syncing, self.syncing = self.syncing, None
            syncing.result()

    def _sync(self, result: Synced) -> None:
        if self.failed:
            raise StorageError(f"{shown(str(self.path))}: an earlier write to disk failed")
        count = len(self.waiting)
        self.failed = True  # until what follows has succeeded: after a failure the next sync may wrongly report success
        result.sync()
        self._write(self.waiting[:count])
        self.failed = False
        self.done += self.waiting[:count]
        del self.waiting[:count]
        self.due = time.monotonic() + SECONDS

    def _write(self, blocks: list[StoredSpan]) -> None:
        with storing(self.name):
            for k, done in enumerate(blocks):
                self._append((done if k == len(blocks) - 1 else done._replace(state=None)).encode())
            sync_data(self.fd)

    def seal(self) -> None:
        """Notes that the result is whole and on disk: all that is left to do is to name its files."""
        self._await()
        with storing(self.name):
            self._append("sealed")
            sync_data(self.fd)
        self.sealed = True

    def _append(self, value: Any) -> None:
        line = encode_line(value)
        write_at(self.fd, memoryview(line), self.size)
        self.size += len(line)

    def close(self) -> None:
        """Ends the claim on OUT. An empty journal does not stay."""
        if self.thread:
            self.thread.shutdown()
        with storing(self.name):
            if not os.fstat(self.fd).st_size:
                self.name.unlink(missing_ok=True)
            os.close(self.fd)

    def remove(self) -> None:
        """Removes the journal while it is still locked, so that it cannot be another run's."""
        with storing(self.name):
            os.ftruncate(self.fd, 0)
        self.close()


class Noted(NamedTuple):
    """What a journal says that is on disk."""

    done: list[StoredSpan]  # in order, up to the last one after which a run can go on
    ahead: dict[int, list[StoredSpan]]  # as Journal.ahead
    sealed: bool
    size: int  # bytes of the lines that count; 0 where the first does not


def check_format(found: Any, name: Path) -> None:
    """Raises ValueError unless the first value of a journal is that of one, DataError where another version made it."""
    if not isinstance(found, dict) or found.get("format") != FORMAT["format"]:
        raise ValueError("not a journal")
    if found.get("format_version") != FORMAT["format_version"] and isinstance(found.get("run"), dict):
        made = shown(str(found["run"].get("lstmcli")))
        raise DataError(
            f"{shown(str(name))}: was made by lstmcli {made}, whose journals this one does not read; "
            "go on with that one, or start again with --overwrite"
        )


def read_journal(content: bytes, check: Callable[[Any], None]) -> Noted:
    """Reads a journal as far as its lines count.

    check: called with the first value; raises DataError, or ValueError and the like where that is not of a journal.
    """
    done: list[StoredSpan] = []
    ahead: dict[int, list[StoredSpan]] = {}
    sealed, size = False, 0
    for number, line in enumerate(content.splitlines(keepends=True)):
        try:
            value = decode_line(line)
            if number == 0:
                check(value)
            elif value == "sealed":
                sealed = True
            elif isinstance(value, dict):
                spans = spans_ahead(value["ahead"])
                ahead[spans[0].span.first] = spans
            else:
                stored = StoredSpan.decode(value)
                if not follows(stored.span, done[-1].span if done else None):
                    break
                done.append(stored)
        except DataError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            break
        size += len(line)
    while done and not (done[-1].span.last or done[-1].state):
        done.pop()
    stop = sequences_until(done)
    for first, spans in sorted(ahead.items()):
        if first < stop:  # was done again, in order or in other cuts
            del ahead[first]
        else:
            stop = sequences_until(spans)
    return Noted(done, ahead, sealed, size)


def encode_line(value: Any) -> bytes:
    """Returns a line of the journal."""
    text = json.dumps(value).encode()
    return text + b" %08x\n" % zlib.crc32(text)


def decode_line(line: bytes) -> Any:
    """Returns the value of a line. Raises ValueError if it is torn or damaged."""
    text, _, checksum = line.rpartition(b" ")
    if checksum != b"%08x\n" % zlib.crc32(text):
        raise ValueError("torn or damaged")
    return json.loads(text)


def follows(span: Span, before: Span | None) -> bool:
    """Says whether a span can be the next one after `before`; None: the first one."""
    if before is None or before.last:
        expected = (before.first + before.count if before else 0, span.count, 0)
    else:
        expected = (before.first, before.count, before.stop)
    return (span.first, span.count, span.start) == expected and span.count > 0 and span.stop >= span.start


def spans_ahead(values: Any) -> list[StoredSpan]:
    """Makes the spans of a line about sequences behind a gap. Raises ValueError, TypeError and the like for bad ones."""
    spans = [StoredSpan.decode(value) for value in values]
    if not spans or not spans[-1].span.last:
        raise ValueError("not whole sequences")
    before = Span(0, spans[0].span.first, 0, 0, last=True)
    if not all(follows(span, ahead) for ahead, span in pairwise([before, *(done.span for done in spans)])):
        raise ValueError("not in order")
    return spans


def sequences_until(spans: Sequence[StoredSpan]) -> int:
    """Returns the number of the first sequence after some spans."""
    return spans[-1].span.first + spans[-1].span.count if spans else 0


def differing(old: Any, new: Any, name: str = "") -> list[str]:
    """Returns `NAME was OLD, is now NEW` for each leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            differing(old.get(key), new.get(key), f"{name} {key}".removeprefix(" run").strip())
            for key in dict.fromkeys([*old, *new])
        ]
        return [text for part in parts for text in part]
    return [] if old == new else [f"{name} was {old}, is now {new}"]
