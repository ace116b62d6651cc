"""Whole models: what stands before, between and after the LSTMs too, out of a model file or of a file of a framework."""

import os
import warnings
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lstmcli.errors import DataError, LstmcliError, UsageError, shown
from lstmcli.files.positioned_file import FileBytes
from lstmcli.model.chain import Chain
from lstmcli.model.chain_file import load_any_model
from lstmcli.model.tree import Model
from lstmcli.weights.draft import Choices, Draft, is_slot, left_out_before
from lstmcli.weights.load import load_weights, read_weights

if TYPE_CHECKING:
    from lstmcli.weights.containers.zip_archive import Archive
    from lstmcli.weights.torch_format.saved_files import Contents

GRAPHS = ("Keras", "TensorFlow 2", "an ONNX")  # the kinds of files that say how their layers go together


class WholeModel(NamedTuple):
    """A chain, where it came from, and what is to be known of it (see draft.Imported)."""

    chain: Chain
    kind: str
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    masked: bool | None = None  # False: its framework computes padding as data; None: not known, or it masks padding itself


def load_model(path: str | os.PathLike[str], chain: str | None = None, **choices: Any) -> Model | Chain:
    """Returns the model of any file that `--weights` takes: also of PyTorch, Keras, TensorFlow and ONNX.

    choices: select, forget_bias, cell_clip, projection_clip, activation, recurrent_activation, merge and residual, as the
    options of these names: what the file does not say.

    Its LSTMs, whose predict() runs the whole model of the file. A Chain, which has predict() alone, where `chain` says the
    layers, as --chain does, and where the LSTMs are no model of their own because other layers stand between them.

    Warns of what was assumed about the weights, and of layers before the LSTMs; of those that predict() runs only when the
    LSTMs are called alone.
    Raises MissingInputError for no such file; DataError for another file, a damaged one, or one with several LSTMs, which
    `select` chooses from; UsageError for a choice that the file leaves nobody, and for a line that does not fit.
    """
    path, told = os.fspath(path), Choices(**choices)
    if chain is not None:
        return whole(path, told, chain)
    try:
        found = load_weights(path, told)
    except DataError:
        with suppress(LstmcliError):
            return whole(path, told)
        raise
    says_layers = found.kind.startswith(GRAPHS)
    for sentence in found.assumed if says_layers else found.warnings():
        warnings.warn(f"{shown(path)}: {sentence}", stacklevel=3)
    object.__setattr__(found.model, "read_whole", partial(whole, path, told))
    if found.before and says_layers:  # predict() has these layers, so they are left out only where the LSTMs are called
        object.__setattr__(found.model, "left_out", f"{shown(path)}: {left_out_before(found.before)}")
    return found.model


def whole(path: str, choices: Choices, line: str | None = None) -> Chain:
    """Reads a whole model, and warns of what was assumed about it."""
    found = load_chain(path, choices, line)
    for sentence in found.assumed:
        warnings.warn(f"{shown(path)}: {sentence}", stacklevel=3)
    return found.chain


def load_chain(path: str, choices: Choices, line: str | None = None, takes_ids: bool | None = None) -> WholeModel:
    """Reads a whole model.

    line: what --chain says, for a file that does not hold its graph. takes_ids: whether the input is token ids, where known.
    Raises MissingInputError, DataError and UsageError, as load_weights() does.
    """
    return read_weights(path, ChainReader(choices, line, takes_ids))


class ChainReader(NamedTuple):
    """Takes all layers of a file."""

    choices: Choices
    line: str | None
    takes_ids: bool | None

    def model_file(self, path: str, where: str) -> WholeModel:
        self.refuse_line(where)
        self.choices.allow(where)
        model = load_any_model(path)
        return WholeModel(model if isinstance(model, Chain) else Chain((model,), ("model",)), "lstmcli")

    def keras_archive(self, archive: "Archive") -> WholeModel:
        from lstmcli.weights import keras

        self.refuse_line(archive.where)
        return keras.import_archive(archive, self.choices, make_of_keras)

    def keras_file(self, file: Any, where: str) -> WholeModel:
        from lstmcli.weights import keras

        self.refuse_line(where)
        return keras.import_file(file, where, self.choices, make_of_keras)

    def other_hdf5(self, file: Any, where: str) -> WholeModel:
        from lstmcli.weights import keras
        from lstmcli.weights.torch_format.saved_files import Contents

        return self.torch(Contents("HDF5", keras.read_tensors(file), {}, []), where)

    def torch(self, contents: "Contents", where: str) -> WholeModel:
        from lstmcli.weights import pytorch
        from lstmcli.weights.chains import chain_line

        if self.line is None:
            raise UsageError(
                f"{where}: holds weights, but not how the model uses them: say it with --chain; by names and shapes it may be "
                f"--chain '{chain_line.proposal(contents.tensors)}', with activations between, which no shape shows"
            )
        found = []

        def read_lstm(prefix: str) -> Any:
            found.append(pytorch.import_contents(contents, where, replace(self.choices, select=(prefix,))))
            return found[-1].model

        chain, assumed, left_out = chain_line.build(self.line, contents.tensors, read_lstm, where, self.takes_ids)
        notes = [note for each in found for note in each.notes]
        if missing := [tensor for tensor in left_out if not is_slot(tensor.name)]:
            more = f" and {len(missing) - chain_line.MANY} more" if len(missing) > chain_line.MANY else ""
            notes.append(f"not in the chain: {', '.join(map(str, missing[: chain_line.MANY]))}{more}")
        assumed += [sentence for each in found for sentence in each.assumed]
        return WholeModel(chain, contents.kind, tuple(dict.fromkeys(notes)), tuple(dict.fromkeys(assumed)))

    def tensorflow(self, file: FileBytes, path: str) -> WholeModel:
        from lstmcli.weights import keras, tensorflow
        from lstmcli.weights.containers.tf_checkpoint import read_tensors

        self.refuse_line(file.name)
        with ExitStack() as files:
            tensors = read_tensors(file, path.removesuffix(".index"), files)
            found = tensorflow.of_objects(file, path, tensors)
            if found is None:
                raise DataError(
                    f"{file.name}: a checkpoint of TensorFlow 1, which does not hold what stands around its LSTMs; "
                    "lstmcli run computes these"
                )
            objects, where, metadata = found
            try:
                return keras.import_objects(objects, where, metadata, self.choices, make_of_keras)
            except DataError as error:
                described = Path(path).parent.parent / "saved_model.pb"
                if Path(path).name != "variables.index" or not described.is_file():
                    raise
                from lstmcli.weights.chains.saved_model.chain import build

                try:
                    draft, chain = build(described, where, tensors, self.choices)
                except DataError as other:
                    raise error if metadata else other from other
                return WholeModel(chain, draft.kind, tuple(draft.notes), tuple(draft.assumed), draft.masked)

    def onnx(self, file: FileBytes, path: str) -> WholeModel:
        from lstmcli.weights.chains.graphs import onnx_chain

        self.refuse_line(file.name)
        draft, chain = onnx_chain.build(file, path, self.choices)
        return WholeModel(chain, draft.kind, tuple(draft.notes), tuple(draft.assumed), draft.masked)

    def refuse_line(self, where: str) -> None:
        if self.line is not None:
            raise UsageError(f"--chain: {where} says its layers itself; leave the option out")


def make_of_keras(draft: Draft, *what: Any) -> WholeModel:
    from lstmcli.weights.chains import keras_layers

    chain = keras_layers.build(draft, *what)
    return WholeModel(chain, draft.kind, tuple(draft.notes), tuple(draft.assumed), None if chain.masks else False)
