"""Weights from elsewhere, with none of the frameworks that made them. What a file is shows in its bytes, not in its name.

Every importer gives an Imported: the tree, and which tensor became which field. Nothing in a file is ever run, and no file is
read that the user did not name (but for the parts of a checkpoint, and ONNX's data in the same folder).
"""

import os
import re
import stat
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from lstmcli.errors import DataError, UsageError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import FileKind, open_by_kind
from lstmcli.files.positioned_file import FileBytes, is_file, mode_of
from lstmcli.model.model_file import is_chain, model_in, undamaged
from lstmcli.model.tree import Model, Stack
from lstmcli.weights.draft import Choices, Imported
from lstmcli.weights.selection import layers_of

if TYPE_CHECKING:
    from lstmcli.weights.containers.zip_archive import Archive
    from lstmcli.weights.torch_format.saved_files import Contents

__all__ = ["Choices", "Imported", "load_weights"]

KNOWN = (
    "a model file, a result of a run, safetensors, .pt, .keras, .h5 of Keras, a TensorFlow checkpoint or SavedModel, or ONNX"
)
STAND_IN = 1024  # bytes; what a repository may have instead of a large file is smaller
SMALLEST = 16  # bytes; nothing that holds weights is smaller
TABLE_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")  # a checkpoint's index ends with it
KERAS_MEMBERS = {"config.json", "model.weights.h5"}  # of a .keras archive
PICKLES = [bytes([0x80, protocol]) for protocol in range(2, 6)]
FOLDER_FILES = ("checkpoint", "saved_model.pb", "keras_metadata.pb", "fingerprint.pb")  # that stand for their folder
SHARD = re.compile(r"-\d{5}-of-(?!0*1\.)\d{5}\.(safetensors|bin|pth?)$")  # as model hubs call a part of a model's weights
KERAS_SHARD = re.compile(r"_\d{5}(?=\.weights\.h5$)")  # where an X.weights.json lies beside
INDEX = re.compile(r"\.(index|weights)\.json$")  # of shards
IR_VERSION = b"\x08"  # the key of the field that comes first in an ONNX model


def load_weights(path: str, choices: Choices) -> Imported:
    """Reads the LSTMs of a model file, a result, or weights of PyTorch, Keras, TensorFlow or ONNX.

    MissingInputError: no such file. DataError: not such a file, damaged, or several LSTMs. UsageError: a choice that the file
    leaves nobody.
    """
    return read_weights(path, LstmReader(choices))


Model_co = TypeVar("Model_co", covariant=True)


class WeightsReader(Protocol[Model_co]):
    """What is made of each kind of file; it imports what that kind needs: all together would take as long as a small run."""

    def model_file(self, path: str, where: str) -> Model_co: ...
    def keras_archive(self, archive: "Archive") -> Model_co: ...
    def keras_file(self, file: Any, where: str) -> Model_co: ...
    def other_hdf5(self, file: Any, where: str) -> Model_co: ...
    def torch(self, contents: "Contents", where: str) -> Model_co: ...
    def tensorflow(self, file: FileBytes, path: str) -> Model_co: ...
    def onnx(self, file: FileBytes, path: str) -> Model_co: ...


class LstmReader(NamedTuple):
    """Takes the LSTMs alone."""

    choices: Choices

    def model_file(self, path: str, where: str) -> Imported:
        with undamaged(path) as file:
            if not is_chain(hdf5_safety.find(file, "model")):
                self.choices.allow(where)
                return Imported(model_in(file), "lstmcli")
            from lstmcli.model.chain_file import any_model_in

            self.choices.allow(where, "select")
            return lstms_of(any_model_in(file), self.choices.select, where)

    def keras_archive(self, archive: "Archive") -> Imported:
        from lstmcli.weights import keras

        return keras.import_archive(archive, self.choices, keras.import_layers)

    def keras_file(self, file: Any, where: str) -> Imported:
        from lstmcli.weights import keras

        return keras.import_file(file, where, self.choices, keras.import_layers)

    def other_hdf5(self, file: Any, where: str) -> Imported:
        from lstmcli.weights import hdf5_names

        return hdf5_names.import_file(file, where, self.choices)

    def torch(self, contents: "Contents", where: str) -> Imported:
        from lstmcli.weights import pytorch

        return pytorch.import_contents(contents, where, self.choices)

    def tensorflow(self, file: FileBytes, path: str) -> Imported:
        from lstmcli.weights import tensorflow

        return tensorflow.import_checkpoint(file, path, self.choices)

    def onnx(self, file: FileBytes, path: str) -> Imported:
        from lstmcli.weights import onnx

        return onnx.import_model(file, path, self.choices)


def lstms_of(chain: Any, select: tuple[str, ...], where: str) -> Imported:
    """Returns the LSTMs of a whole model alone, and what stands around them. Those in a row are a stack; of several with other
    layers between, the one whose lowest LSTM is selected. Raises DataError, UsageError."""
    rows = [list(row) for lstm, row in groupby(range(len(chain.layers)), lambda k: isinstance(chain.layers[k], Model)) if lstm]
    stacks = {chain.names[row[0]]: row for row in rows}
    names = ", ".join(map(shown, stacks))
    if not stacks:
        raise DataError(f"{where}: a whole model without an LSTM; lstmcli predict runs it")
    if select and (len(select) > 1 or select[0] not in stacks):
        raise UsageError(f"--select {','.join(select)}: expected one of the LSTMs {names} in {where}")
    if not select and len(stacks) > 1:
        raise DataError(f"{where}: holds LSTMs with other layers between: {names}; say one of them with --select")
    row = stacks[select[0]] if select else rows[0]
    layers = [layer for k in row for layer in layers_of(chain.layers[k])]
    labels = [f"{layer.kind} {shown(name)!r}" for layer, name in zip(chain.layers, chain.names, strict=True)]
    return Imported(Stack(tuple(layers)), "lstmcli", before=tuple(labels[: row[0]]), after=tuple(labels[row[-1] + 1 :]))


def read_weights(path: str, reader: WeightsReader[Model_co]) -> Model_co:
    """Returns what the reader makes of a file, whose kind shows in its bytes. Raises MissingInputError and DataError."""
    path = index_path(str(path))
    with open_by_kind(path) as (file, kind):
        where, size = file.name, file.opened.st_size
        refuse_stand_in(file, path)
        refuse_shard(path, where)
        if size < SMALLEST:
            raise DataError(f"{where}: expected {KNOWN}; got {f'a file of {size} bytes' if size else 'an empty file'}")
        begin, end = file.take(0, SMALLEST), file.take(size - SMALLEST, SMALLEST)
        if kind is FileKind.HDF5:
            return read_hdf5(file, path, reader)
        if kind is FileKind.ZIP:
            return read_archive(file.fd, where, reader)
        if end.endswith(TABLE_MAGIC):
            return reader.tensorflow(file, path)
        if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= size - 8:
            from lstmcli.weights.containers import safetensors
            from lstmcli.weights.torch_format.saved_files import Contents

            return reader.torch(Contents("PyTorch (safetensors)", safetensors.read_tensors(file), {}, []), where)
        if begin[:2] in PICKLES:
            from lstmcli.weights.torch_format import saved_files

            return reader.torch(saved_files.read_stream(file.take(0, size), where), where)
        if begin.startswith(IR_VERSION):
            from lstmcli.weights.containers.protobuf import MAX_BYTES

            if size > MAX_BYTES:
                raise DataError(f"{where}: an ONNX model of {size:,} bytes, where protobuf allows {MAX_BYTES:,}; damaged?")
            return reader.onnx(file, path)
        raise DataError(f"{where}: expected {KNOWN}; got a file that begins with {begin[:8]!r}")


def refuse_stand_in(file: FileBytes, path: str) -> None:
    """Raises DataError for a pointer of Git LFS, and for a link that was copied as the text of where it leads."""
    if not 0 < file.opened.st_size <= STAND_IN:
        return
    text = file.take(0, file.opened.st_size).decode("latin-1").strip()
    if text.startswith("version https://git-lfs"):
        raise DataError(f"{file.name}: is a pointer of Git LFS, not the file itself; fetch that with `git lfs pull`")
    if text.isascii() and text.isprintable() and is_file(target := Path(path).parent / text):
        raise DataError(f"{file.name}: is a link that was copied as text; give what it leads to, {shown(str(target))}")


def refuse_shard(path: str, where: str) -> None:
    """Raises DataError for a part of a model's weights, or their index: layers in other parts would be missed in silence."""
    of_keras = KERAS_SHARD.sub("", path) != path and is_file(KERAS_SHARD.sub("", path).removesuffix("h5") + "json")
    if INDEX.search(path) or SHARD.search(path) or of_keras:
        what = "the index of shards" if INDEX.search(path) else "one of several shards"
        raise DataError(
            f"{where}: is {what}, which together hold a model's weights; load them in the framework and save one file: "
            "model.save_weights('m.weights.h5') of Keras, torch.save(model.state_dict(), 'm.pt')"
        )


def holds_chain(path: str) -> bool:
    """Returns whether a file is a model file, or a result, that holds a whole model. Raises MissingInputError, DataError."""
    path = index_path(path)
    with open_by_kind(path) as (_, kind):
        if kind is not FileKind.HDF5:
            return False
    with hdf5.open_file(path) as file, hdf5.reading(shown(path)):
        if "format" not in file.attrs:
            return False
    with undamaged(path) as file:
        return is_chain(hdf5_safety.find(file, "model"))


def index_path(path: str) -> str:
    """The X.index of a checkpoint that is named as X, as TensorFlow does, by its other files or by its folder; else `path`."""
    prefix = re.sub(r"\.(data-\d{5}-of-\d{5}|meta)$", "", path)
    index = f"{prefix}.index"
    if is_file(index) and (prefix != path or not os.path.lexists(path)):
        return index
    if stat.S_ISDIR(mode_of(path)) or Path(path).name in FOLDER_FILES:
        from lstmcli.weights.containers.tf_folder import index_of

        return index_of(path)
    return path


def read_hdf5(data: FileBytes, path: str, reader: WeightsReader[Model_co]) -> Model_co:
    where = data.name
    with hdf5.open_file(path) as file:
        with hdf5.reading(where):
            ours = "format" in file.attrs
        if not ours:
            from lstmcli.weights import keras

            hdf5_safety.check_heaps(data.take, data.opened.st_size, where)
            return reader.keras_file(file, where) if keras.looks_like(file) else reader.other_hdf5(file, where)
    return reader.model_file(path, where)


def read_archive(fd: int, where: str, reader: WeightsReader[Model_co]) -> Model_co:
    from lstmcli.weights.containers.zip_archive import Archive

    with closing(Archive(fd, where)) as archive:
        if archive.members.keys() >= KERAS_MEMBERS:
            return reader.keras_archive(archive)
        from lstmcli.weights.torch_format import saved_files

        if saved_files.is_torch(archive):
            return reader.torch(saved_files.read_archive(archive), where)
    held = ", ".join(map(shown, list(archive.members)[:5])) or "nothing"
    raise DataError(f"{where}: a ZIP archive, but neither PyTorch's nor Keras's: it holds {held}")
