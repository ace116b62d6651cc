"""TensorFlow 1: the variables of LSTMCell and its kin, and of what stacks and pairs them, by their names in a checkpoint.

kernel (E + P, 4U) with the rows of x first, bias (4U,), w_i_diag, w_f_diag, w_o_diag (U,), projection/kernel (U, P); gates
i, j, f, o (j is the candidate, our g). A checkpoint holds neither forget_bias nor clips nor the activation.
"""

import re
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from lstmcli.errors import DataError, shown
from lstmcli.files.positioned_file import FileBytes
from lstmcli.model.tree import Bidirectional, Cell, Model
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.containers.tf_checkpoint import read_tensors
from lstmcli.weights.draft import ABOUT_USE, Choices, Draft, Imported, Origin, reorder

GATES = (0, 2, 1, 3)

CELLS = (
    "lstm_cell", "basic_lstm_cell", "lstm_fused_cell", "lstm_block_wrapper", "cudnn_compatible_lstm_cell",
    "LSTMCell", "BasicLSTMCell",
)  # fmt: skip
ADDRESS = re.compile(
    r"(?P<scope>(?:.*?/)??)"
    r"(?P<pair>(?:stack_bidirectional_rnn(?:_\d+)?/cell_(?P<level>\d{1,4})/)?bidirectional_rnn(?:_\d+)?/(?P<direction>fw|bw)/)?"
    r"(?:(?:multi_rnn_cell(?:_\d+)?/cell_|MultiRNNCell(?:_\d+)?/Cell)(?P<layer>\d{1,4})/)?"
    rf"(?P<cell>{'|'.join(CELLS)})(?:_\d+)?/"
    r"(?P<field>kernel|weights|W_0|bias|biases|B|w_i_diag|w_f_diag|w_o_diag|projection/kernel|projection/weights|W_P_0|projection/bias)",
    re.DOTALL,
)
FIELDS = {  # of TensorFlow 1.1 and before, as they are called since
    "weights": "kernel", "W_0": "kernel", "biases": "bias", "B": "bias",
    "projection/kernel": "projection", "projection/weights": "projection", "W_P_0": "projection",
}  # fmt: skip


class Place(NamedTuple):
    """Of a cell in its LSTM: which bidirectional pair, which direction of it, which layer of that; None: no such level."""

    level: int | None
    direction: str | None
    layer: int | None


Variables = dict[str, Tensor]  # by field


def import_checkpoint(index: FileBytes, path: str, choices: Choices) -> Imported:
    """The LSTM of a checkpoint. forget_bias (TensorFlow's default is 1), clips and activation come from `choices` alone.

    DataError: damaged, none or several LSTMs, incomplete. MissingInputError: a data file is missing.
    """
    choices.allow(index.name, "forget_bias", *ABOUT_USE)
    with ExitStack() as files:
        draft = Draft("a TensorFlow 1 checkpoint", index.name, read_tensors(index, path.removesuffix(".index"), files), choices)
        lstms: dict[str, dict[Place, Variables]] = {}
        for tensor in draft.tensors:
            if match := ADDRESS.fullmatch(tensor.name):
                level, direction, layer = match["level"], match["direction"], match["layer"]
                place = Place(int(level) if level else None, direction, int(layer) if layer else None)
                field = FIELDS.get(match["field"], match["field"])
                draft.place(lstms.setdefault(lstm_name(match), {}).setdefault(place, {}), field, tensor)
        found = {name: described(cells) for name, cells in lstms.items()}
        return draft.assemble(found, lambda name: read_pairs(lstms[name], draft, forget_bias(lstms[name], draft)))


def lstm_name(match: re.Match[str]) -> str:
    """What the names of all cells of an LSTM begin with."""
    pair = re.match(r"[^/]*", match["pair"] or "")
    return f"{match['scope']}{pair[0] if pair else ''}".rstrip("/")


def forget_bias(cells: dict[Place, Variables], draft: Draft) -> float:
    """What is added to the forget gate's bias where the user does not say it; and what else is assumed, said."""
    cudnn = any("cudnn_compatible_lstm_cell/" in tensor.name for variables in cells.values() for tensor in variables.values())
    assumed = 0.0 if cudnn else 1.0
    if draft.choices.forget_bias is None:
        why = "as CudnnLSTM has it in its bias" if cudnn else "TensorFlow's default"
        draft.assume(f"forget_bias {assumed} is assumed, {why}: a checkpoint does not hold it; --forget-bias says another")
    unsaid = {"activation": "tanh", "cell_clip": "none"}
    if any("projection" in variables for variables in cells.values()):
        unsaid["projection_clip"] = "none"
    if left := [f"{name} {value}" for name, value in unsaid.items() if getattr(draft.choices, name) is None]:
        draft.assume(f"also assumed: {', '.join(left)}; a checkpoint does not hold them")
    return assumed


def described(cells: dict[Place, Variables]) -> str:
    return ", ".join(str(variables["kernel"]) for variables in cells.values() if "kernel" in variables)[:200] or "no kernel"


def read_pairs(cells: dict[Place, Variables], draft: Draft, added: float) -> Model:
    """A stack of bidirectional pairs (stack_bidirectional_dynamic_rnn), or what is below one of them."""
    levels = in_order({place.level for place in cells}, "stack_bidirectional_rnn/cell_")
    pairs = []
    for level in levels:
        below = {place: variables for place, variables in cells.items() if place.level == level}
        found = sorted({place.direction for place in below}, key=str)
        if found not in ([None], ["bw", "fw"]):
            raise DataError(f"expected both fw and bw, or neither, got {', '.join(map(str, found))}")
        directions = [
            read_stack({place: variables for place, variables in below.items() if place.direction == direction}, draft, added)
            for direction in sorted(found, key=str, reverse=True)
        ]
        pairs.append(Bidirectional(directions[0], directions[1]) if len(directions) == 2 else directions[0])
    return pairs[0] if levels == [None] else draft.stack(pairs)


def read_stack(cells: dict[Place, Variables], draft: Draft, added: float) -> Model:
    layers = in_order({place.layer for place in cells}, "multi_rnn_cell/cell_")
    by_layer = {place.layer: variables for place, variables in cells.items()}
    made = [read_cell(by_layer[layer], added, draft) for layer in layers]
    return made[0] if layers == [None] else draft.stack(made)


def in_order(numbers: set[int | None], what: str) -> list[int | None]:
    found = sorted(numbers, key=lambda number: -1 if number is None else number)
    if found not in ([None], list(range(len(found)))):
        raise DataError(f"expected {what}0, 1, ... and nothing beside them, got {', '.join(map(str, found))}")
    return found


def read_cell(variables: Variables, added: float, draft: Draft) -> Cell:
    peepholes = [name for name in ("w_i_diag", "w_f_diag", "w_o_diag") if name in variables]
    needed = ["kernel", "bias", *(["w_i_diag", "w_f_diag", "w_o_diag"] if peepholes else [])]
    if missing := [name for name in needed if name not in variables]:
        some = next(iter(variables.values()))
        raise DataError(f"expected {missing[0]} beside {shown(some.name)}, got none")
    if extra := variables.get("projection/bias"):
        raise DataError(f"{extra}: a projection with a bias, which no LSTMCell of TensorFlow has")
    kernel, bias = variables["kernel"].array(rank=2), variables["bias"].array(rank=1)
    units = len(bias) // 4
    projection = variables["projection"].array(rank=2) if "projection" in variables else None
    width = units if projection is None else projection.shape[1]
    if kernel.shape[0] <= width:
        raise DataError(f"{variables['kernel']}: expected more rows than the {width} of h")
    split = len(kernel) - width
    origins = [
        Origin(variables["kernel"], "input_kernel", f"rows 0 to {split - 1}, gates i, j, f, o"),
        Origin(variables["kernel"], "recurrent_kernel", f"rows {split} to {len(kernel) - 1}, gates i, j, f, o"),
        Origin(variables["bias"], "bias", "gates i, j, f, o"),
        *(Origin(variables[name], "peephole", f"row {name[2]}") for name in peepholes),
    ]
    if projection is not None:
        origins.append(Origin(variables["projection"], "projection", "as it is"))
    kernel = reorder(kernel, GATES)
    peephole = np.stack([variables[name].array(rank=1) for name in peepholes]) if peepholes else None
    return draft.cell(
        origins, kernel[:split], kernel[split:], bias=reorder(bias, GATES), peephole=peephole, projection=projection,
        forget_bias=added,
    )  # fmt: skip
