"""Weights from elsewhere, with none of the frameworks that made them. What a file is shows in its bytes, not in its name.

Every importer gives an Imported: the tree, and which tensor became which field. Nothing in a file is ever run, and no file is
read that the user did not name (but for the parts of a checkpoint, and ONNX's data in the same folder).
"""

import os
from typing import Any

from lstmcli import hdf5
from lstmcli.errors import DataError, shown
from lstmcli.importers import keras, onnx, pickled, pytorch, safetensors, tensorflow
from lstmcli.importers.archive import ZIP_MAGIC, Archive
from lstmcli.importers.imported import Choices, Imported
from lstmcli.model import Model
from lstmcli.model_file import load_model as load_model_file
from lstmcli.sources import FileBytes, is_hdf5

KNOWN = "a model file, a result of a run, safetensors, .pt, .keras, .h5 of Keras, a TensorFlow 1 checkpoint (X.index), or ONNX"
SMALLEST = 16  # bytes; nothing that holds weights is smaller


def load_model(path: str, **choices: Any) -> Model:
    """The model of any file that `lstmcli run --weights` takes; choices: the fields of Choices. LstmcliError."""
    return load_weights(path, Choices(**choices)).model


def load_weights(path: str, choices: Choices = Choices()) -> Imported:  # noqa: B008
    """Reads a model file, a result, or weights of PyTorch, Keras, TensorFlow 1 or ONNX.

    MissingInputError: no such file. DataError: not such a file, damaged, or several LSTMs. UsageError: a choice that the file
    leaves nobody.
    """
    path = tensorflow.index_path(str(path))
    where = shown(path)
    fd = hdf5.open_readable(path)
    try:
        file = FileBytes(fd, where)
        size = file.opened.st_size
        if size < SMALLEST:
            raise DataError(f"{where}: expected {KNOWN}; got {f'a file of {size} bytes' if size else 'an empty file'}")
        begin, end = safetensors.fetch(file, 0, SMALLEST), safetensors.fetch(file, size - SMALLEST, SMALLEST)
        if is_hdf5(fd, where):
            return load_hdf5(path, choices)
        if begin.startswith(ZIP_MAGIC):
            return load_archive(Archive(fd, where), choices)
        if end.endswith(tensorflow.MAGIC):
            return tensorflow.import_checkpoint(file, path, choices)
        if safetensors.looks_like(begin, size):
            return pytorch.import_tensors("PyTorch (safetensors)", where, safetensors.read_tensors(file), choices)
        if begin[0] == 0x80 and begin[1] in range(2, 6):
            raise DataError(
                f"{where}: is a bare pickle, of PyTorch before 1.6 or of something else; load and save it again: {pickled.ADVICE}"
            )
        if begin[0] == onnx.IR_VERSION:
            return onnx.import_model(file, path, choices)
        raise DataError(f"{where}: expected {KNOWN}; got a file that begins with {begin[:8]!r}")
    finally:
        os.close(fd)


def load_hdf5(path: str, choices: Choices) -> Imported:
    with hdf5.open_file(path) as file:
        where = shown(path)
        with hdf5.reading(where):
            ours = "format" in file.attrs or not keras.looks_like(file)
        if not ours:
            return keras.import_file(file, where, choices)
    choices.allow(where)
    return Imported(load_model_file(path), "lstmcli")


def load_archive(archive: Archive, choices: Choices) -> Imported:
    if keras.CONFIG in archive.members and keras.WEIGHTS in archive.members:
        return keras.import_archive(archive, choices)
    if any(map(pickled.is_pickle, archive.members)):
        return pytorch.import_tensors("PyTorch (.pt)", archive.where, pickled.read_tensors(archive), choices)
    raise DataError(
        f"{archive.where}: a ZIP archive, but neither PyTorch's nor Keras's: it holds {', '.join(map(shown, list(archive.members)[:5]))}"
    )
