"""HDF5 files whose datasets are weights under names of other formats: ELMo's, and what was written out name by name.

ELMo (bilm-tf, allennlp/modules/elmo_lstm.py): RNN_0 runs forward, RNN_1 backward, each a stack of TensorFlow 1's LSTMCell with
a projection, under the names of the oldest versions: RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/{W_0,B,W_P_0}.
"""

import re
from dataclasses import replace
from typing import Any

from lstmcli.errors import DataError
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.weights import pytorch, tensorflow
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.draft import ABOUT_USE, Choices, Draft, Imported
from lstmcli.weights.keras import read_tensors

ELMO = re.compile(r"(RNN_[01])/RNN/MultiRNNCell/Cell(\d{1,4})/LSTMCell/(W_0|B|W_P_0)")
TORCH = re.compile(r"(.*\.)?(weight|bias)_(ih|hh|hr)(_l\d+(_reverse)?)?(_raw|_g|_v|_orig|_mask)?", re.DOTALL)
# What the options.json of the published models says ("lstm"), and LSTMCell adds by itself.
ELMO_OPTIONS: dict[str, Any] = {"forget_bias": 1.0, "cell_clip": 3.0, "projection_clip": 3.0, "residual": "upper"}


def import_file(file: Any, where: str, choices: Choices) -> Imported:
    """Reads the LSTM in an h5py.File that is no model file, result, or file of Keras. DataError: none, several, incomplete."""
    hdf5_safety.refuse_links(file)
    tensors = read_tensors(file)
    dotted = [replace(tensor, name=tensor.name.replace("/", ".")) for tensor in tensors]
    if any(ELMO.fullmatch(tensor.name) for tensor in tensors):
        return import_elmo(tensors, where, choices)
    if any(TORCH.fullmatch(tensor.name) for tensor in dotted):
        return pytorch.import_tensors("PyTorch's names (HDF5)", where, dotted, choices)
    if any(tensorflow.ADDRESS.fullmatch(tensor.name) for tensor in tensors):
        choices.allow(where, "forget_bias", *ABOUT_USE)
        return tensorflow.import_variables(Draft("TensorFlow 1's names (HDF5)", where, tensors, choices))
    raise DataError(
        f"{where}: expected a model file or a result of a run (attribute format), weights of Keras or ELMo, or datasets under "
        f"the names of torch.nn.LSTM (weight_ih_l0, ...) or TensorFlow 1; it holds ",
        hdf5.listed(hdf5.entries(file)),
    )


def import_elmo(tensors: list[Tensor], where: str, choices: Choices) -> Imported:
    """Reads both directions of ELMo's language model, side by side, with what its options say where the user does not."""
    choices.allow(where, "forget_bias", *ABOUT_USE)
    matches = [match for tensor in tensors if (match := ELMO.fullmatch(tensor.name))]
    unsaid = {name: value for name, value in ELMO_OPTIONS.items() if getattr(choices, name) is None}
    if all(match[2] == "0" for match in matches):
        unsaid.pop("residual", None)
    if not choices.select and {match[1] for match in matches} == {"RNN_0", "RNN_1"}:
        choices = replace(choices, select=("fw=RNN_0", "bw=RNN_1"))
    draft = Draft("ELMo (HDF5)", where, tensors, replace(choices, **unsaid))
    said = {name: f"{name} {value}" for name, value in unsaid.items()}
    if "residual" in unsaid:
        said["residual"] = "all layers but the lowest add their input (residual)"
    if said:
        draft.assume(f"{', '.join(said.values())}: assumed, as in the options.json of the published models of ELMo")
    if around := sorted({tensor.name.split("/")[0] for tensor in tensors if not tensor.name.startswith("RNN_")}):
        draft.before.append(f"the character encoder ({', '.join(around)})")
    return tensorflow.import_variables(draft)
