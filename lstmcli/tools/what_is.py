"""What kind of file a user has named, told by what is in it."""

import os
from enum import Enum
from pathlib import Path

from lstmcli.errors import LstmcliError, MissingInputError
from lstmcli.files import hdf5
from lstmcli.files.file_kind import FileKind, is_several, open_by_kind, split_spec
from lstmcli.files.partial_file import partial_name
from lstmcli.files.positioned_file import is_file
from lstmcli.model.model_file import FORMAT as MODEL_FORMAT
from lstmcli.model.model_file import RESULT_FORMAT
from lstmcli.results.formats.paths import journal_name

BEGIN = 4096  # bytes of a file that are looked at
TEXT = set(range(32, 256)) - {127} | {9, 10, 13}  # bytes of a text in any encoding that people use


class What(Enum):
    """The kinds of files that differ in how they are opened."""

    RESULT = "result"
    MODEL = "model file"
    WEIGHTS = "weights"
    DATA = "data"  # sequences, lengths, a mask, or arrays
    STOPPED = "stopped result"  # OUT.partial or OUT.journal, or OUT where these two are all there is
    PLAN = "plan"
    TEXT = "text"


def what_is(spec: str) -> What:
    """Says what `path` or `path::name` is. Raises MissingInputError, StorageError, and DataError for a damaged file."""
    path, name = split_spec(spec)
    if path.endswith((".partial", ".journal")) or (not os.path.lexists(path) and stopped_files(path)):
        return What.STOPPED
    if is_several(path) and not Path(path).is_dir():
        return What.DATA
    if Path(path).is_dir():
        return What.WEIGHTS if is_weights_folder(path) else What.DATA
    with open_by_kind(path) as (file, kind):
        if kind is FileKind.STREAM:
            raise MissingInputError(f"{file.name}: expected a file, got a pipe or a device")
        if kind is FileKind.NPY:
            return What.DATA
        if kind is FileKind.HDF5:
            return What.DATA if name else what_is_hdf5(path)
        if kind is FileKind.ZIP:
            from lstmcli.files.zip_reader import npz_forms

            return What.DATA if name or npz_forms(file) else What.WEIGHTS
        begin = file.take(0, min(BEGIN, file.opened.st_size))
    if begin.startswith(b"{"):
        if '"lstmcli-plan"' in begin[:200].decode("latin-1"):
            return What.PLAN
        if '"lstmcli-journal"' in begin[:200].decode("latin-1"):
            return What.STOPPED
    return What.TEXT if begin and set(begin) <= TEXT else What.WEIGHTS


def what_is_hdf5(path: str) -> What:
    with hdf5.open_file(path) as file:
        form = hdf5.attribute(file, "format")
        if form in (RESULT_FORMAT, MODEL_FORMAT):
            return What.RESULT if form == RESULT_FORMAT else What.MODEL
        from lstmcli.weights import keras

        return What.WEIGHTS if keras.looks_like(file) else What.DATA


def is_weights_folder(path: str) -> bool:
    """Says whether a folder is a SavedModel or holds a checkpoint."""
    from lstmcli.weights.load import index_path

    try:
        return index_path(path) != path
    except LstmcliError:
        return is_file(Path(path) / "saved_model.pb")


def stopped_files(path: str) -> list[Path]:
    """Returns which of OUT.partial and OUT.journal there are."""
    return [name for name in (partial_name(Path(path)), journal_name(Path(path))) if is_file(name)]
