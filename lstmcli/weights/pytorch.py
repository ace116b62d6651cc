"""torch.nn.LSTM and LSTMCell: the parameters' names and shapes, from a state_dict to a tree and back.

weight_ih_l{k}{_reverse} (4U, E), weight_hh (4U, P), bias_ih and bias_hh (4U,) or neither, weight_hr (P, U) with proj_size;
gates i, f, g, o. https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, UsageError
from lstmcli.model.tree import Bidirectional, Cell, Model, Stack, as_root
from lstmcli.weights.containers import safetensors
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.draft import ABOUT_USE, Choices, Draft, Imported, Origin, summed

NAME = re.compile(
    r"(?:(?P<prefix>.*)\.)?(?P<field>weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)"
    r"(?:_l(?P<layer>0|[1-9]\d{0,3})(?P<reverse>_reverse)?)?",
    re.DOTALL,
)

Parameters = dict[str, Tensor]  # by field, of one layer and direction
Layers = dict[str, Parameters]  # by suffix: "_l0", "_l0_reverse", ...; "" of an LSTMCell


def import_tensors(kind: str, where: str, tensors: list[Tensor], choices: Choices) -> Imported:
    """The LSTM whose parameters are among `tensors`, under any prefix. DataError: none, several, or incomplete."""
    choices.allow(f"{where}: a PyTorch LSTM", *ABOUT_USE)
    draft = Draft(kind, where, tensors, choices)
    found: dict[str, Layers] = {}
    for tensor in tensors:
        if match := NAME.fullmatch(tensor.name):
            suffix = tensor.name[match.end("field") :]
            found.setdefault(match["prefix"] or "", {}).setdefault(suffix, {})[match["field"]] = tensor
    lstms = {prefix: layers for prefix, layers in found.items() if is_lstm(layers)}
    found_lstms = {name: described(layers) for name, layers in lstms.items()}
    return draft.assemble(found_lstms, lambda name: draft.stack(read_layers(lstms[name], draft)))


def is_lstm(layers: Layers) -> bool:
    """A GRU and an RNN have the same names, but three gates or one."""
    shapes = [(len(p), p["weight_hh"].shape) for p in layers.values() if "weight_hh" in p]
    projected = any("weight_hr" in parameters for parameters in layers.values())
    return projected or not shapes or any(len(shape) == 2 and shape[0] == 4 * shape[1] for _, shape in shapes)


def described(layers: Layers) -> str:
    return ", ".join(str(tensor) for parameters in layers.values() for tensor in parameters.values())[:200]


def read_layers(layers: Layers, draft: Draft) -> Iterator[Model]:
    if "" in layers:
        if len(layers) > 1:
            raise DataError("expected one LSTMCell or one LSTM, got parameters of both")
        yield read_cell(layers[""], "", draft)
        return
    both = any(suffix.endswith("_reverse") for suffix in layers)
    count = len(layers) // (2 if both else 1)
    for k in range(max(1, count)):
        forward = read_cell(layers.get(f"_l{k}", {}), f"_l{k}", draft)
        if both:
            suffix = f"_l{k}_reverse"
            yield Bidirectional(forward, read_cell(layers.get(suffix, {}), suffix, draft))
        else:
            yield forward
    if extra := set(layers) - {f"_l{k}{end}" for k in range(count) for end in ("", "_reverse")}:
        raise DataError(f"expected layers 0 to {count - 1}, got {', '.join(sorted(extra))} as well")


def read_cell(parameters: Parameters, suffix: str, draft: Draft) -> Cell:
    needed = {"weight_ih", "weight_hh"} | ({"bias_ih", "bias_hh"} if {"bias_ih", "bias_hh"} & set(parameters) else set())
    if missing := sorted(needed - set(parameters)):
        raise DataError(f"expected {missing[0]}{suffix}, got none; was the file cut or edited?")
    origins = [
        Origin(parameters["weight_ih"], "input_kernel", "transposed"),
        Origin(parameters["weight_hh"], "recurrent_kernel", "transposed"),
    ]
    bias = projection = None
    if "bias_ih" in parameters:
        bias = summed(*(parameters[name].array(rank=1) for name in ("bias_ih", "bias_hh")))
        origins += [Origin(parameters[name], "bias", "the two summed") for name in ("bias_ih", "bias_hh")]
    if "weight_hr" in parameters:
        projection = parameters["weight_hr"].array(rank=2).T
        origins.append(Origin(parameters["weight_hr"], "projection", "transposed"))
    kernels = [parameters[name].array(rank=2).T for name in ("weight_ih", "weight_hh")]
    return draft.cell(origins, kernels[0], kernels[1], bias=bias, projection=projection)


def export(model: Model, path: Path, overwrite: bool) -> dict[str, Floats]:
    """Writes a safetensors file of what torch.nn.LSTM(...).load_state_dict takes, and returns it.

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
    safetensors.save(tensors, path, overwrite)
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
