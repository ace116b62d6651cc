"""How a result gets its name: only when it is complete and on disk. Until then it is OUT.partial, which a run can resume."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

from numpy.typing import NDArray

from lstmcli.blocks import Span, State
from lstmcli.errors import BusyError, ChangedDataError, DataError, LstmcliError, StorageError, UsageError, shown
from lstmcli.files.partial_file import Partial, check_left_over, check_target, partial_name
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.results.formats.fields import Arrays
from lstmcli.results.formats.paths import TABLES, Paths, journal_name, values_of
from lstmcli.results.formats.result import Metadata, Result, TableForm
from lstmcli.results.journal import Fingerprint, Journal, StateForms, StoredSpan


class UnpublishedResult:
    """A result that is filled, and the journal of what of it is on disk; None where the run cannot be resumed."""

    def __init__(self, result: Result, journal: Journal | None) -> None:
        self.result, self.journal = result, journal

    def restored(self, forms: StateForms, check_input: Callable[[StoredSpan], None] = lambda stored: None) -> StoredSpan | None:
        """Returns the last span that an earlier run has stored, as far as the data are still what was stored.

        forms: of the state that is kept between spans of the same sequences. check_input: raises ChangedDataError where what
        was read for a span is not what is there now.
        """
        journal = self.journal
        if not journal:
            return None
        if journal.done or journal.ahead:
            self.result.clear_padding()
        for count, stored in enumerate(journal.done):
            if not (stored.fits(forms) and self._is_intact(stored)):
                journal.keep(count)
                break
        for first, spans in list(journal.ahead.items()):
            if not all(map(self._is_intact, spans)):
                del journal.ahead[first]
        for stored in chain(journal.done, *journal.ahead.values()):
            check_input(stored)
        return journal.done[-1] if journal.done else None

    def _is_intact(self, stored: StoredSpan) -> bool:
        """Says whether the files hold what was stored; called in the order of the spans."""
        span = stored.span
        fits = max(span.first + span.count, stored.nonfinite.row + 1) <= len(self.result.valid.lengths)
        return fits and self.result.check(span) == stored.checksum

    @property
    def ahead(self) -> dict[int, list[StoredSpan]]:
        """What an earlier run has stored of sequences behind a gap, by the first of them; restored() has checked it."""
        return self.journal.ahead if self.journal else {}

    def store(self, span: Span, arrays: dict[str, NDArray[Any]], nonfinite: Nonfinite, state: State | None, read: int) -> None:
        """Stores a span and notes it; as Result.put(), and nonfinite, state and read as in StoredSpan."""
        self.record(StoredSpan(span, self.result.put(span, arrays), nonfinite, state, read))

    def record(self, stored: StoredSpan) -> None:
        """Notes a span that was put into the result."""
        if self.journal:
            self.journal.record(stored, self.result)

    def note_ahead(self, groups: Sequence[list[StoredSpan]]) -> None:
        """Notes spans behind a gap, which are on disk, each group of whole sequences. Raises StorageError."""
        if self.journal:
            self.journal.note_ahead(groups)

    def flush(self) -> None:
        """Puts all on disk that was recorded. Raises StorageError."""
        if self.journal:
            self.journal.flush(self.result)

    def seal(self, nonfinite: Nonfinite | None) -> None:
        """Completes the result, all of whose spans are stored, and puts it on disk."""
        self.result.seal(nonfinite)
        if self.journal:
            self.journal.seal()


@contextmanager
def publishing(
    paths: Paths,
    arrays: Arrays,
    metadata: Metadata,
    fingerprint: Fingerprint | None,
    overwrite: bool,
    resume: bool,
    wait: Callable[[], bool] = lambda: False,
) -> Iterator[UnpublishedResult | None]:
    """Lays out a result for the body to fill and seal, and then gives its files their names.

    Yields None where an earlier run has done all but that. If the body fails, what it has recorded stays for --resume; nothing
    stays where nothing was recorded, or where the input or the options are bad. fingerprint: of the run; None: it cannot be
    resumed. wait: called where workers of a client that died still have OUT.partial; says whether to try again.

    Raises OutputError where the files are another run's or may not be replaced, DataError where what another run left
    cannot be resumed, and StorageError.
    """
    journal = open_journal(paths, fingerprint, metadata.table, overwrite, resume) if fingerprint is not None else None
    if journal and journal.sealed:
        try:
            name_sealed(paths, overwrite)
            yield None
        except BaseException:
            journal.close()
            raise
        journal.remove()
        return
    result: Result | None = None
    try:
        resumes = bool(journal and (journal.done or journal.ahead))
        if journal:
            journal.begin()
        while result is None:
            try:
                result = lay_out(paths, arrays, metadata, overwrite, resumes)
            except BusyError:  # not by a run, which would have the journal
                if not wait():
                    raise
        yield UnpublishedResult(result, journal)
        result.publish()
    except BaseException as error:
        if keep_or_discard(result, journal, error) and isinstance(error, StorageError):
            raise StorageError(f"{error}; --resume goes on from what was done") from error
        raise
    if journal:
        journal.remove()
    result.close()


def lay_out(paths: Paths, arrays: Arrays, metadata: Metadata, overwrite: bool, resume: bool) -> Result:
    """Makes a result with all its space taken. resume: keeps what an earlier run has stored. OutputError, StorageError."""
    # Each format is loaded when it is wanted: a start has a fifth of a second.
    if paths.main is not None and paths.main.suffix in TABLES:
        from lstmcli.results.formats.table_result import TableResult

        return TableResult(paths, arrays, metadata, overwrite, resume)
    if paths.main is not None and paths.is_hdf5:
        from lstmcli.results.formats.hdf5_result import Hdf5Result

        return Hdf5Result(paths.main, arrays, metadata, overwrite, resume)
    from lstmcli.results.formats.npy_result import NpyResult

    return NpyResult(paths, arrays, metadata, overwrite, resume)


def open_journal(paths: Paths, fingerprint: Fingerprint, table: TableForm, overwrite: bool, resume: bool) -> Journal:
    """Claims the output for this run."""
    assert paths.main
    about = {"table": table.identity()} if paths.main.suffix in TABLES else {}
    journal = Journal(paths.main, fingerprint, resume, paths.all()[1:], about)
    try:
        if not journal.sealed:
            # Once more, now that no other run can make the files: between the first look and this one some may have come.
            for path in paths.all():
                check_target(path, overwrite)
        if not (resume or overwrite):
            check_left_overs(paths)
    except BaseException:
        journal.close()
        raise
    return journal


def check_left_overs(paths: Paths) -> None:
    """Raises OutputError where a command that was stopped has left something under the names that files have until then."""
    for path in paths.all():
        check_left_over(path, journal_name(paths.main) if paths.main else None)


def keep_or_discard(result: Result | None, journal: Journal | None, error: BaseException) -> bool:
    """Keeps what was done for --resume, if anything was and it can be of use. Returns whether it did."""
    # The input, or the options, will be others.
    useless = isinstance(error, DataError | UsageError) and not isinstance(error, ChangedDataError)
    if journal and result and not useless and not journal.sealed:
        with suppress(LstmcliError):
            journal.flush(result)
    busy = isinstance(error, BusyError)  # OUT.partial is another run's: it stays, and needs its journal
    if journal and (journal.done or journal.ahead or journal.sealed or busy) and not useless:
        if result:
            result.close()
        journal.close()
        return True
    if result:
        result.discard()
    if journal:
        journal.remove()
    return False


def name_sealed(paths: Paths, overwrite: bool) -> None:
    """Gives names to the files of an earlier run that was stopped when they were complete and on disk."""
    from lstmcli.results.verify import verify

    for path in reversed(paths.all()):
        name = partial_name(path)
        if not name.exists():
            if not path.exists():
                raise DataError(f"{shown(str(path))}: is gone, and so is {shown(str(name))}; --overwrite starts again")
            continue  # it has its name
        if path.exists() and path.samefile(name):
            name.unlink()
            continue
        if path.suffix not in TABLES:  # which has no checksums
            verify(str(name))
        partial = Partial(path, overwrite, resume=True)
        partial.publish()
        partial.close()
    if paths.main and paths.main.suffix in TABLES:
        partial_name(values_of(paths.main)).unlink(missing_ok=True)  # which the table was made of
