"""torch.nn.LSTM and LSTMCell: the parameters' names and shapes, from a state_dict to a tree and back.

weight_ih_l{k}{_reverse} (4U, E), weight_hh (4U, P), bias_ih and bias_hh (4U,) or neither, weight_hr (P, U) with proj_size;
gates i, f, g, o. https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, UsageError, shown
from lstmcli.model.tree import Bidirectional, Cell, Model, Stack, as_root
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.draft import ABOUT_USE, MANY, Choices, Draft, Imported, Origin, summed
from lstmcli.weights.torch_format.parameters import Computed, Layers, Parameters, first_states, used_parameters
from lstmcli.weights.torch_format.pickle_machine import ADVICE
from lstmcli.weights.torch_format.saved_files import Contents

PLAIN_CLASS = re.compile(r"(__torch__\.)?torch\.nn\.modules\.rnn\.(___torch_mangle_\d+\.)?LSTM(Cell)?")
NORM = re.compile(r"(^|[._])(ln|norm|layer_?norm|batch_?norm|bn|rms)", re.IGNORECASE)


def import_contents(contents: Contents, where: str, choices: Choices) -> Imported:
    """The LSTM of a file that may also name classes: see import_tensors()."""
    hint = ""
    if contents.quantized:
        hint = "; weights in it are quantized (int8 or float16), which is not read: save the state_dict of the float model"
    elif contents.named:
        hint = f"; its pickle names {shown(', '.join(contents.named[:MANY]))[:300]}, of which nothing is run; {ADVICE}"
    elif not contents.tensors:
        hint = f"; {ADVICE}"
    return import_tensors(contents.kind, where, contents.tensors, choices, contents.classes, hint)


def import_tensors(
    kind: str,
    where: str,
    tensors: list[Tensor],
    choices: Choices,
    classes: Mapping[str, str] = MappingProxyType({}),
    hint: str = "",
) -> Imported:
    """The LSTM whose parameters are among `tensors`, under any prefix. DataError: none, several, or incomplete.

    classes: of the modules, by prefix, where the file says them. hint: what to say where there is none.
    """
    choices.allow(f"{where}: a PyTorch LSTM", *ABOUT_USE)
    draft = Draft(kind, where, tensors, choices)
    draft.hint = hint
    found = used_parameters(draft)
    draft.others = {prefix: what for prefix, layers in found.items() if (what := other_kind(layers))}
    lstms = {prefix: layers for prefix, layers in found.items() if prefix not in draft.others}

    def build(prefix: str) -> Model:
        if (made := classes.get(prefix)) and not PLAIN_CLASS.fullmatch(made):
            draft.assume(f"{shown(prefix) or 'the LSTM'} is a {shown(made)}, and is run as torch.nn.LSTM computes")
        return draft.stack(read_layers(lstms[prefix], first_states(prefix, lstms[prefix], draft), draft))

    return draft.assemble({name: described(layers) for name, layers in lstms.items()}, build, lambda name: owned(name, draft))


def other_kind(layers: Layers) -> str:
    """What has the names of an LSTM's parameters but three gates, or one; "" for an LSTM, whole or not."""
    parameters = [(field, tensor.shape) for fields in layers.values() for field, tensor in fields.items()]
    gates = {shape[0] / shape[1] for field, shape in parameters if field == "weight_hh" and len(shape) == 2 and shape[1]}
    whole = not gates and any(shape and shape[0] % 4 == 0 for _, shape in parameters)
    if whole or gates - {1, 3} or any(field == "weight_hr" for field, _ in parameters):
        return ""
    what = "a GRU" if 3 in gates else "an RNN without gates" if gates else "no LSTM by its shapes"
    return f"{what} ({described(layers)})"


def described(layers: Layers) -> str:
    return ", ".join(str(tensor) for parameters in layers.values() for tensor in parameters.values())[:200]


def owned(prefix: str, draft: Draft) -> Iterator[Tensor]:
    """The tensors that bear an LSTM's name. Where it has none: those that bear no module's name, or a norm's."""
    for tensor in draft.tensors:
        inner = tensor.name.removeprefix(f"{prefix}." if prefix else "")
        if (prefix and inner != tensor.name) or (not prefix and ("." not in inner or NORM.search(inner))):
            yield tensor


def read_layers(layers: Layers, starts: list[dict[str, Floats]], draft: Draft) -> Iterator[Model]:
    """starts: options of each cell, in the order of the layers, forward first; [] for none."""
    if "" in layers:
        if len(layers) > 1:
            raise DataError("expected one LSTMCell or one LSTM, got parameters of both")
        yield read_cell(layers[""], "", starts, draft)
        return
    fields = {field for parameters in layers.values() for field in parameters}
    for suffix, parameters in layers.items():
        if missing := sorted(fields - set(parameters)):  # all layers have biases, or none has; likewise projections
            raise DataError(f"expected {missing[0]}{suffix}, as other layers have it, got none; was the file cut or edited?")
    both = any(suffix.endswith("_reverse") for suffix in layers)
    count = len(layers) // (2 if both else 1)
    first = 0
    if not any(suffix in layers for suffix in ("_l0", "_l0_reverse")) and "_l1" in layers:
        first = 1
        draft.assume("layers are counted from 1, as torch in R does: there is no layer 0")
    for k in range(first, first + max(1, count)):
        forward = read_cell(layers.get(f"_l{k}", {}), f"_l{k}", starts, draft)
        if both:
            suffix = f"_l{k}_reverse"
            yield Bidirectional(forward, read_cell(layers.get(suffix, {}), suffix, starts, draft))
        else:
            yield forward
    if extra := set(layers) - {f"_l{k}{end}" for k in range(first, first + count) for end in ("", "_reverse")}:
        raise DataError(f"expected layers {first} to {first + count - 1}, got {', '.join(sorted(extra))} as well")


def read_cell(parameters: Parameters, suffix: str, starts: list[dict[str, Floats]], draft: Draft) -> Cell:
    needed = {"weight_ih", "weight_hh"} | ({"bias_ih", "bias_hh"} if {"bias_ih", "bias_hh"} & set(parameters) else set())
    if missing := sorted(needed - set(parameters)):
        raise DataError(f"expected {missing[0]}{suffix}, got none; was the file cut or edited?")
    origins: list[Origin] = []

    def read(name: str, rank: int, field: str, how: str) -> Floats:
        tensor = parameters[name]
        parts = tensor.parts if isinstance(tensor, Computed) else ((tensor, how),)
        origins.extend(Origin(part, field, what) for part, what in parts)
        return tensor.array(rank)

    input_kernel = read("weight_ih", 2, "input_kernel", "transposed").T
    recurrent_kernel = read("weight_hh", 2, "recurrent_kernel", "transposed").T
    options: dict[str, Floats] = starts.pop(0) if starts else {}
    if "bias_ih" in parameters:
        options["bias"] = summed(*(read(name, 1, "bias", "the two summed") for name in ("bias_ih", "bias_hh")))
    if "weight_hr" in parameters:
        options["projection"] = read("weight_hr", 2, "projection", "transposed").T
    return draft.cell(origins, input_kernel, recurrent_kernel, **options)


def export(model: Model, path: Path, overwrite: bool) -> dict[str, Floats]:
    """Writes a safetensors file of the parameters of a model, and returns them. Raises what parameters() does."""
    from lstmcli.weights.containers import safetensors  # which a .pt needs not

    tensors = parameters(model)
    safetensors.save(tensors, path, overwrite)
    return tensors


def parameters(model: Model) -> dict[str, Floats]:
    """Returns what torch.nn.LSTM(...).load_state_dict takes.

    forget_bias is folded into bias_ih; bias_hh is what bias_ih cannot hold of a sum, mostly zeros. UsageError names what
    torch.nn.LSTM cannot express.
    """
    layers = [directions(layer, k) for k, layer in enumerate(stacked(as_root(model)))]
    cells = [cell for layer in layers for cell in layer]
    if len({len(layer) for layer in layers}) > 1:
        refuse("layers of one direction and of two", "all of one kind")
    for what, sizes in [
        ("units", {c.units for c in cells}),
        ("projection", {c.projection is not None and c.output_size for c in cells}),
    ]:
        if len(sizes) > 1:
            refuse(f"layers of different {what}", "the same for all layers")
    biased = any(cell.bias is not None or cell.forget_bias for cell in cells)
    # Not of the biases: one that is the exact sum of two is put out as two.
    dtype = np.result_type(*(weight for cell in cells for name, weight in cell.weights().items() if name != "bias"))
    tensors: dict[str, Floats] = {}
    for k, layer in enumerate(layers):
        for cell, end in zip(layer, ("", "_reverse"), strict=False):
            tensors |= {f"{name}_l{k}{end}": value for name, value in exported(cell, biased, dtype).items()}
    return tensors


def refuse(got: str, expected: str) -> NoReturn:
    raise UsageError(f"torch.nn.LSTM cannot express {got}; expected {expected}")


def stacked(model: Model) -> tuple[Model, ...]:
    return model.layers if isinstance(model, Stack) else (model,)


def directions(layer: Model, k: int) -> tuple[Cell, ...]:
    """The cells of a layer, forward first; a stack of one is that one."""
    match layer:
        case Stack(layers=(only,)):
            return directions(only, k)
        case Cell():
            return (expressible(layer, k),)
        case Bidirectional(merge="concat"):
            pair = directions(layer.forward, k) + directions(layer.backward, k)
            if len(pair) == 2:
                return pair
        case Bidirectional():
            refuse(f"layer {k}: merge {layer.merge}", "concat")
    return refuse(f"layer {k}: a {layer.kind} in this place", "a stack of cells, or of bidirectional pairs of cells")


def expressible(cell: Cell, k: int) -> Cell:
    got: dict[str, object] = dict.fromkeys({"peephole", "initial_c", "initial_h"} & set(cell.weights()), True)
    plain = {"activation": "tanh", "recurrent_activation": "sigmoid", "forget_bias": cell.forget_bias}
    got |= {name: value for name, value in cell.options().items() if plain.get(name) != value}
    if got:
        refuse(f"layer {k}: {', '.join(f'{name} {value}' for name, value in got.items())}", "none of that")
    return cell


def exported(cell: Cell, biased: bool, dtype: "np.dtype[Any]") -> dict[str, Floats]:
    found = {"weight_ih": cell.input_kernel.T, "weight_hh": cell.recurrent_kernel.T}
    if biased:
        bias = np.zeros(4 * cell.units) if cell.bias is None else cell.bias.astype(np.float64)
        bias[cell.units : 2 * cell.units] += cell.forget_bias
        first = bias.astype(dtype)
        found |= {"bias_ih": first, "bias_hh": np.where(np.isfinite(first), bias - first, 0)}
    if cell.projection is not None:
        found["weight_hr"] = cell.projection.T
    return {name: value.astype(dtype) for name, value in found.items()}
