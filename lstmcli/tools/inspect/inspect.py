"""What a file is and holds, as facts: inputs, lengths, results, models, weights, plans."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lstmcli.errors import DataError, MissingInputError, UsageError, shown
from lstmcli.files import hdf5
from lstmcli.files.file_kind import split_spec
from lstmcli.tools.what_is import What, what_is

Facts = dict[str, Any]  # JSON


def inspect(spec: str, lens: str | None = None) -> Facts:
    """Returns the facts of a file, ready for JSON; `kind` says what it is, `what` in words.

    lens: as --lens, for an input that has no lengths beside it. Nothing large is read as a whole: values are sampled.
    Raises MissingInputError, StorageError, UsageError for `-`, and DataError for what this program knows nothing of.
    """
    if spec == "-":
        raise UsageError("-: inspect reads a file more than once; give a file")
    kind = what_is(spec)
    if lens is not None and kind not in (What.DATA, What.WEIGHTS):
        raise UsageError(f"--lens {lens}: is for an input; {shown(spec)} is a {kind.value}")
    facts: Facts = {"path": spec, "kind": kind.value, "bytes": size_of(split_spec(spec)[0])}
    facts |= ABOUT[kind](spec, lens)
    return facts | {"notes": [*facts["notes"], *hdf5.notes_on_locks()]}


def size_of(path: str) -> int | None:
    """Returns the size of a file, or of the files in a folder; None where there is no file of that name."""
    try:
        if Path(path).is_dir():
            return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
        return Path(path).stat().st_size
    except OSError:
        return None


def about_result(spec: str, lens: str | None) -> Facts:
    from lstmcli.tools.inspect import results

    return results.about_result(spec)


def about_stopped(spec: str, lens: str | None) -> Facts:
    from lstmcli.tools.inspect import unfinished

    return unfinished.about_stopped(spec)


def about_plan(spec: str, lens: str | None) -> Facts:
    from lstmcli.tools.inspect import unfinished

    return unfinished.about_plan(spec)


def about_data(spec: str, lens: str | None) -> Facts:
    from lstmcli.tools.inspect import data

    return data.about_data(spec, lens)


def about_text(spec: str, lens: str | None) -> Facts:
    from lstmcli.tools.inspect import data

    return data.about_text(spec)


def about_weights(spec: str, lens: str | None) -> Facts:
    """Returns the facts of a model; a file that may hold one and holds none may be an input."""
    from lstmcli.tools.inspect import data, models

    try:
        return models.about_weights(spec)
    except DataError as error:
        try:
            return data.about_sequences(spec, lens) | {"kind": What.DATA.value}
        except (DataError, UsageError, MissingInputError):
            if table := data.about_arrow_table(spec):
                return table | {"kind": What.DATA.value}
            raise error from None


ABOUT: dict[What, Callable[[str, str | None], Facts]] = {
    What.RESULT: about_result,
    What.MODEL: about_weights,
    What.WEIGHTS: about_weights,
    What.DATA: about_data,
    What.STOPPED: about_stopped,
    What.PLAN: about_plan,
    What.TEXT: about_text,
}
