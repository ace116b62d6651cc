"""TensorFlow: the variables of TensorFlow 1's LSTMCell and its kin, and of what stacks and pairs them, by their names.

kernel (E + P, 4U) with the rows of x first, bias (4U,), w_i_diag, w_f_diag, w_o_diag (U,), projection/kernel (U, P); gates
i, j, f, o (j is the candidate, our g). A checkpoint holds neither forget_bias nor clips nor the activation. Keras's layers in a
program of TensorFlow 1, and the checkpoints of TensorFlow 2, are for keras.py.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lstmcli.errors import DataError, UsageError, shown
from lstmcli.files.positioned_file import FileBytes
from lstmcli.model.tree import Bidirectional, Cell, Model
from lstmcli.weights import keras
from lstmcli.weights.containers.protobuf import Message
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.containers.tf_checkpoint import read_tensors
from lstmcli.weights.containers.tf_objects import GRAPH, KEY, Objects, read_metadata, read_objects
from lstmcli.weights.draft import ABOUT_USE, Choices, Draft, Imported, Origin, reorder
from lstmcli.weights.keras_format.keras2_weights import named_layers
from lstmcli.weights.keras_lstm import Layer, Reader

GATES = (0, 2, 1, 3)

CELLS = (
    "lstm_cell", "basic_lstm_cell", "lstm_fused_cell", "lstm_block_wrapper", "cudnn_compatible_lstm_cell",
    "LSTMCell", "BasicLSTMCell",
)  # fmt: skip
FIELDS = {  # as they are called since TensorFlow 1.2
    "kernel": "kernel", "weights": "kernel", "W_0": "kernel", "Linear/Matrix": "kernel",
    "bias": "bias", "biases": "bias", "B": "bias", "Linear/Bias": "bias",
    "w_i_diag": "w_i_diag", "w_f_diag": "w_f_diag", "w_o_diag": "w_o_diag",
    "W_I_diag": "w_i_diag", "W_F_diag": "w_f_diag", "W_O_diag": "w_o_diag",
    "projection/kernel": "projection", "projection/weights": "projection", "W_P_0": "projection",
    "projection/bias": "projection/bias",
}  # fmt: skip
ADDRESS = re.compile(
    r"(?P<prefix>(?P<scope>(?:.*?/)??)"
    r"(?:(?:cell_(?P<level>\d{1,4})/bidirectional_rnn/)?(?P<direction>fw|bw|FW|BW|BiRNN_FW|BiRNN_BW)/)?"
    r"(?:(?P<multi>(?:multi_rnn_cell|MultiRNNCell)(?:_\d+)?)/(?:cell_|Cell)(?P<layer>\d{1,4})/)?"
    rf"(?P<cell>(?:{'|'.join(CELLS)})(?:_\d+)?)/)(?P<field>{'|'.join(FIELDS)})",
    re.DOTALL,
)
PAIRED = re.compile(r"(.*/)?(bidirectional_rnn|BiRNN)(_\d+)?", re.DOTALL)  # scopes that have both directions


class Place(NamedTuple):
    """Of a cell in its LSTM: which bidirectional pair, which direction of it, which layer of that; None: no such level."""

    level: int | None
    direction: str | None
    layer: int | None


Variables = dict[str, Tensor]  # by field


LSTM = dict[Place, Variables]


class Group(NamedTuple):
    """What the names of cells have in common that are mostly one LSTM."""

    scope: str
    multi: str
    paired: bool


def import_checkpoint(index: FileBytes, path: str, choices: Choices) -> Imported:
    """The LSTM of a checkpoint. forget_bias (TensorFlow's default is 1), clips and activation come from `choices` alone.

    DataError: damaged, none or several LSTMs, incomplete. MissingInputError: a data file is missing.
    """
    with ExitStack() as files:
        tensors = read_tensors(index, path.removesuffix(".index"), files)
        if objects := of_objects(index, path, tensors):
            return keras.import_objects(*objects, choices, keras.import_layers)
        if strange := next((tensor for tensor in tensors if tensor.name.endswith(KEY)), None):
            raise DataError(
                f"{index.name}: a TensorFlow 2 checkpoint of objects ({strange}) without the graph of them, {GRAPH}"
            )
        choices.allow(index.name, "forget_bias", *ABOUT_USE)
        return import_variables(Draft("a TensorFlow 1 checkpoint", index.name, tensors, choices))


def import_variables(draft: Draft) -> Imported:
    """The LSTM among the tensors of a draft that have the names of TensorFlow 1. DataError: none, several, or incomplete."""
    with draft.building("variables"):
        layers = keras_layers(draft)
        of_keras = {tensor.name for layer in layers.values() for tensor in layer.stored.tensors()}
        lstms = dict(named_lstms([tensor for tensor in draft.tensors if tensor.name not in of_keras], draft))
    reader = Reader(draft, None, None, lambda stored: None)

    def build(name: str) -> Model:
        if name not in layers:
            return read_pairs(lstms[name], draft, forget_bias(lstms[name], draft))
        if draft.choices.forget_bias is not None:
            raise UsageError(f"--forget-bias: {shown(name)!r} in {draft.where} is a layer of Keras, whose bias has it already")
        return draft.stack(reader.read([layers[name]]))

    found = {name: described(cells) for name, cells in lstms.items()}
    found |= {name: f"of Keras, {layer.stored}" for name, layer in layers.items()}
    return draft.assemble(found, build, lambda name: beside(lstms.get(name, {}), draft.tensors))


def of_objects(index: FileBytes, path: str, tensors: list[Tensor]) -> tuple[Objects, str, dict[str, str]] | None:
    """The objects of a TensorFlow 2 checkpoint, its name, and what a SavedModel says of them; None of one without objects."""
    graph = next((tensor for tensor in tensors if tensor.name == GRAPH), None)
    if graph is None:
        return None
    objects = read_objects(Message(graph.read().tobytes(), index.name), tensors)
    return objects, index.name, read_metadata(Path(path).parent.parent, objects) if Path(path).name == "variables.index" else {}


def keras_layers(draft: Draft) -> dict[str, Layer]:
    """Layers of Keras in a program of TensorFlow 1, which have a recurrent_kernel of their own."""
    found = named_layers((tensor.name, tensor) for tensor in draft.tensors)
    stored = {scope: stored for scope, cells in found.items() if (stored := cells.stored()) and not stored.old}
    return {"/".join(scope): Layer(scope, each) for scope, each in stored.items()}


def named_lstms(tensors: list[Tensor], draft: Draft) -> Iterator[tuple[str, LSTM]]:
    """Names that tell the LSTMs apart, and their variables."""
    groups: dict[Group, dict[Place, dict[str, Variables]]] = {}  # by the names of the cells, of which a place may have several
    for tensor in tensors:
        if match := ADDRESS.fullmatch(tensor.name):
            level, layer, side = match["level"], match["layer"], match["direction"]
            place = Place(int(level) if level else None, side[-2:].lower() if side else None, int(layer) if layer else None)
            scope = f"{match['scope']}{'BiRNN' * (side or '').startswith('BiRNN')}".rstrip("/")
            multi = match["multi"] or ""
            if side:  # the other one may have a lone cell
                multi = multi.removeprefix("multi_rnn_cell").removeprefix("MultiRNNCell")
            cells = groups.setdefault(Group(scope, multi, side is not None), {}).setdefault(place, {})
            draft.place(cells.setdefault(match["cell"], {}), FIELDS[match["field"]], tensor)
    scopes = [group.scope for group in groups]
    for group, places in groups.items():
        crowded = scopes.count(group.scope) > 1
        name = f"{group.scope}/{group.multi}".lstrip("/") if crowded and group.multi else group.scope
        if any(len(cells) > 1 for cells in places.values()) or (crowded and not group.multi and not group.paired):
            for cell in dict.fromkeys(cell for cells in places.values() for cell in cells):
                lstm = {place: cells[cell] for place, cells in places.items() if cell in cells}
                yield from sides(f"{name}/{cell}".lstrip("/"), lstm, draft)
        else:
            yield from sides(name, {place: next(iter(cells.values())) for place, cells in places.items()}, draft)


def sides(name: str, lstm: LSTM, draft: Draft) -> Iterator[tuple[str, LSTM]]:
    """A pair of directions, or each of them, where there is but one of them or the user names one."""
    found = sorted({place.direction for place in lstm if place.direction})
    alone = len(found) == 1 and not PAIRED.fullmatch(name)
    meant = {word.removeprefix("fw=").removeprefix("bw=") for given in draft.choices.select for word in given.split(",")}
    chosen = any(word == f"{name}/{side}".lstrip("/") for word in meant for side in found)
    if not found or not (alone or chosen):
        yield name, lstm
        return
    for side in found:
        cells = {place._replace(direction=None): each for place, each in lstm.items() if place.direction == side}
        yield f"{name}/{side}".lstrip("/"), cells


def beside(lstm: LSTM, tensors: list[Tensor]) -> list[Tensor]:
    """What stands in the scopes of an LSTM's cells, but for what optimizers and CudnnLSTM keep beside its variables."""
    names = [tensor.name for variables in lstm.values() for tensor in variables.values()]
    matches = (ADDRESS.fullmatch(name) for name in names)
    prefixes = tuple({match["prefix"] for match in matches if match})
    kept = tuple(f"{name}/" for name in names) + tuple(f"{prefix}bias_cudnn_" for prefix in prefixes)
    return [tensor for tensor in tensors if tensor.name.startswith(prefixes) and not tensor.name.startswith(kept)]


def forget_bias(cells: LSTM, draft: Draft) -> float:
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


def described(cells: LSTM) -> str:
    return ", ".join(str(variables["kernel"]) for variables in cells.values() if "kernel" in variables)[:200] or "no kernel"


def read_pairs(cells: LSTM, draft: Draft, added: float) -> Model:
    """A stack of bidirectional pairs (stack_bidirectional_dynamic_rnn), or what is below one of them."""
    levels = in_order({place.level for place in cells}, "cell_")
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


def read_stack(cells: LSTM, draft: Draft, added: float) -> Model:
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
