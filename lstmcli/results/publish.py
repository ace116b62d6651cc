"""The way of a result to its name: claimed, laid out, filled, on disk, named; or left for a run that goes on with it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from lstmcli.blocks import Valid
from lstmcli.errors import BusyError, DataError, LstmcliError, StorageError, UsageError
from lstmcli.files.partial_file import Partial, check_left_over, check_target, partial_name
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.results.journal import Done, Fingerprint, Journal
from lstmcli.results.paths import Paths
from lstmcli.results.result import Arrays, Facts, Result, create_result
from lstmcli.results.verify import verify


def open_journal(targets: Paths, fingerprint: Fingerprint, overwrite: bool, resume: bool) -> Journal:
    """Claims the output for this run. DataError: what is there belongs to another run. OutputError: it may not be resumed."""
    assert targets.main
    journal = Journal(targets.main, fingerprint, resume, targets.all()[1:])
    try:
        for path in targets.all():
            if not journal.sealed:
                check_target(path, overwrite)
            if not (resume or overwrite):
                check_left_over(path)
    except BaseException:
        journal.close()
        raise
    return journal


def complete(
    targets: Paths,
    overwrite: bool,
    journal: Journal | None,
    arrays: Arrays,
    about: Callable[[Nonfinite], Facts],
    fill: Callable[[Result], Nonfinite],
) -> Nonfinite | None:
    """Makes the result, or what is missing of it; None: an earlier run has done all but name it.

    fill: stores what the journal has not, and gives what is not finite in the whole.
    """
    if journal and journal.sealed:
        name_sealed(targets, overwrite)
        journal.remove()
        return None
    resumes = bool(journal and journal.done)
    result: Result | None = None
    try:
        if journal:
            journal.begin()
        result = create_result(targets, arrays, about(Nonfinite()), overwrite, resumes)
        found = fill(result)
        result.seal(about(found))
        if journal:
            journal.seal()
        result.publish()
    except BaseException as error:
        if leave(result, journal, error) and isinstance(error, StorageError):
            raise StorageError(f"{error}; --resume goes on from what was done") from error
        raise
    if journal:
        journal.remove()
    result.close()
    return found


def leave(result: Result | None, journal: Journal | None, error: BaseException) -> bool:
    """Whether what was done stays for --resume: if anything was, and if it can be of use."""
    useless = isinstance(error, DataError | UsageError)  # the input, or the options, will be others
    if journal and result and not useless and not journal.sealed:
        with suppress(LstmcliError):
            journal.flush(result)
    busy = isinstance(error, BusyError)  # OUT.partial: it stays, and needs its journal
    if journal and (journal.done or journal.sealed or busy) and not useless:
        if result:
            result.close()
        journal.close()
        return True
    if result:
        result.discard()
    if journal:
        journal.remove()
    return False


def name_sealed(targets: Paths, overwrite: bool) -> None:
    """An earlier run was stopped while it gave its files, complete and on disk, their names."""
    for path in reversed(targets.all()):
        name = partial_name(path)
        if not name.exists():
            continue  # it has its name
        if path.exists() and path.samefile(name):
            name.unlink()
            continue
        verify(str(name))
        partial = Partial(path, overwrite, resume=True)
        partial.publish()
        partial.close()


def restore(journal: Journal | None, result: Result, valid: Valid, widths: dict[str, int], dtype: np.dtype[Any]) -> Done | None:
    """The last span that an earlier run has stored, as far as its data are still what was stored.

    widths, dtype: of the states that are kept between spans of the same sequences.
    """
    if not journal:
        return None
    for count, done in enumerate(journal.done):
        fits = done.span.first + done.span.count <= len(valid.lengths) and (done.state is None or done.fits(widths, dtype))
        if not fits or result.check(done.span, valid) != done.checksum:
            journal.keep(count)
            break
    return journal.done[-1] if journal.done else None
