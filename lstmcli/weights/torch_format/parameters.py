"""What stands in the place of a parameter of an LSTM in PyTorch, or beside it, and what the parameter then is.

W_raw                           weight dropout: the trained weight; a W beside it is a copy with some of it dropped
W_g, W_v                        weight_norm: g v / |v|, by rows; parametrizations.W.original0 and .original1 likewise
W_orig, W_mask                  pruning: their product; W beside a W_mask of zeros and ones likewise
W_h_init, W_c_init, h0, c0 ...  a learned state that every sequence starts from
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown
from lstmcli.weights.containers.tensor import DTYPES, Tensor

if TYPE_CHECKING:
    from lstmcli.weights.draft import Draft

NAME = re.compile(
    r"(?:(?P<prefix>.*)\.)?(?P<name>(?P<field>weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)"
    r"(?P<suffix>(?:_l(?:0|[1-9]\d{0,3})(?:_reverse)?)?))(?P<rest>(?:[._].*)?)",
    re.DOTALL,
)
PARAMETRIZED = re.compile(r"(?:(.*)\.)?parametrizations", re.DOTALL)
WAYS_OUT = {
    "_scale": "multiply it into the weight (icefall: by its exp), and save that",
    "parametrizations": "torch.nn.utils.parametrize.remove_parametrizations makes a plain weight of it",
}
FIRST, HIDDEN, CELL = {"init", "initial", "start", "learned", "state", "0"}, {"h", "hx", "hidden"}, {"c", "cx", "cell"}

Parameters = dict[str, Tensor]  # by field, of one layer and direction
Layers = dict[str, Parameters]  # by suffix: "_l0", "_l0_reverse", ...; "" of an LSTMCell


@dataclass(frozen=True)
class Computed(Tensor):
    """A parameter that is computed of others. parts: these, and what becomes of them; none: nobody knows how it is computed."""

    parts: tuple[tuple[Tensor, str], ...] = ()


def used_parameters(draft: "Draft") -> dict[str, Layers]:
    """The parameters as modules use them, by the modules' names. DataError: two tensors for one of them."""
    forms: dict[tuple[str, str], dict[str, Tensor]] = {}
    fields: dict[str, tuple[str, str]] = {}
    for tensor in draft.tensors:
        if match := NAME.fullmatch(tensor.name):
            prefix, name, rest = match["prefix"] or "", match["name"], match["rest"]
            if parametrized := PARAMETRIZED.fullmatch(prefix):
                prefix, rest = parametrized[1] or "", f".parametrizations{rest}"
            fields[name] = match["field"], match["suffix"]
            draft.place(forms.setdefault((prefix, name), {}), f"{name}{rest}", tensor)
    for prefix, name in list(forms):
        raw, within = f"{name}_raw", f"{prefix}.module".removeprefix(".")
        if list(forms[prefix, name]) == [raw] and any(other == within for other, _ in forms):
            # The wrapper around the LSTM holds the weights of which it drops some.
            draft.place(forms.setdefault((within, name), {}), raw, forms.pop((prefix, name))[raw])
    modules: dict[str, Layers] = {}
    for (prefix, name), found in forms.items():
        field, suffix = fields[name]
        tensor = as_used(prefix, {key.removeprefix(name): tensor for key, tensor in found.items()}, draft)
        modules.setdefault(prefix, {}).setdefault(suffix, {})[field] = tensor
    return {prefix: layers for prefix, layers in modules.items() if any(map(is_known, layers.values()))}


def is_known(parameters: Parameters) -> bool:
    return any(not isinstance(tensor, Computed) or tensor.parts for tensor in parameters.values())


def as_used(prefix: str, forms: dict[str, Tensor], draft: "Draft") -> Tensor:
    """The parameter of which there are these forms, by what their names have after its own."""
    match sorted(forms):
        case [""]:
            return forms[""]
        case ["_raw"] | ["", "_raw"]:
            raw = forms["_raw"]
            draft.explained |= {tensor.name for tensor in forms.values()}
            return computed(raw, lambda: raw.array(len(raw.shape)), (raw, "as it is before weight dropout"))
        case ["_g", "_v"] | ["", "_g", "_v"] | [".parametrizations.original0", ".parametrizations.original1"]:
            *plain, length, direction = (forms[rest] for rest in sorted(forms))
            draft.explained |= {tensor.name for tensor in plain}
            parts = (length, "weight_norm, the lengths"), (direction, "weight_norm, the directions")
            return computed(direction, lambda: weight_norm(length, direction), *parts)
        case ["_mask", "_orig"]:
            mask, weight = forms["_mask"], forms["_orig"]
            return computed(weight, lambda: masked(weight, mask), (weight, "times its mask"), (mask, "the mask"))
        case ["", "_mask"]:
            mask, weight = forms["_mask"], forms[""]

            def multiply() -> Floats:
                draft.assume(f"the weights of {shown(prefix) or 'the LSTM'} are multiplied with the _mask beside them")
                return masked(weight, mask)

            return computed(weight, multiply, (weight, "times its mask"), (mask, "the mask"))
    some = max(forms.values(), key=lambda tensor: len(tensor.shape))

    def refuse() -> Floats:
        rest = max(forms, key=len)
        way = next((text for sign, text in WAYS_OUT.items() if sign in rest), "save the weight as the module computes it")
        held = ", ".join(map(str, forms.values()))
        raise DataError(f"expected a plain weight, weight_norm, pruning or weight dropout, got {held}: {way}")

    return computed(some, refuse)


def computed(like: Tensor, read: Callable[[], Floats], *parts: tuple[Tensor, str]) -> Computed:
    return Computed(like.name, like.shape, like.dtype, read, parts)


def masked(weight: Tensor, mask: Tensor) -> Floats:
    """Their product. DataError: the mask is not of zeros and ones, or leaves nothing of a weight that is not zeros."""
    rank = len(weight.shape)
    kept, values = mask.array(rank), weight.array(rank)
    if kept.shape != values.shape or not ((kept == 0) | (kept == 1)).all():
        raise DataError(f"{mask}: expected a mask of zeros and ones with the shape of {weight}")
    found: Floats = np.where(kept == 1, values, values.dtype.type(0))
    if values.any() and not found.any():
        raise DataError(f"{mask}: leaves nothing of {weight}; are its zeros what is kept?")
    return found


def weight_norm(length: Tensor, direction: Tensor) -> Floats:
    """g v / |v| in float64, the norm over the axes that g does not have."""
    g = length.array(len(length.shape)).astype(np.float64)
    v = direction.array(len(direction.shape)).astype(np.float64)
    if g.ndim not in (0, v.ndim) or any(size not in (1, full) for size, full in zip(g.shape, v.shape, strict=False)):
        raise DataError(f"{length}: expected a length for each row of {direction}")
    g = g.reshape(g.shape or (1,) * v.ndim)
    over = tuple(axis for axis in range(v.ndim) if g.shape[axis] == 1)
    rows = np.moveaxis(v * v, over, range(-len(over), 0)).reshape(g.size, -1)
    # Not np.sum(): the order in which that adds depends on the CPU.
    norms = np.array([math.sqrt(math.fsum(row)) for row in rows.tolist()]).reshape(g.shape)
    found: Floats = v * (g / norms)
    return found


# Learned states.


def part_of_state(name: str) -> str:
    """h or c, where a name says that it is that part of a first state; else ""."""
    words = set(re.findall(r"[a-z]+|\d+", name.lower()))
    if not words & FIRST:
        return ""
    return "h" if words & HIDDEN else "c" if words & CELL else ""


def first_states(prefix: str, layers: Layers, draft: "Draft") -> list[dict[str, Floats]]:
    """The learned states of the cells, by their names in a Cell, in the order of the layers, forward first; [] for none.

    They are used where h and c bear the name of the LSTM, and only told of where they stand beside it.
    """
    own: dict[str, list[Tensor]] = {"h": [], "c": []}
    beside: list[Tensor] = []
    around = prefix.rpartition(".")[0]
    for tensor in draft.tensors:
        module, _, name = tensor.name.rpartition(".")
        bears = module == prefix or (module == around and tensor.name.startswith(f"{prefix}_"))
        if bears and module != prefix:
            name = tensor.name.removeprefix(prefix)
        if (bears or module == around) and tensor.dtype in DTYPES and (part := part_of_state(name)):
            (own[part] if bears else beside).append(tensor)
    widths: dict[str, list[int]] = {"c": [], "h": []}  # of the cells
    for parameters in in_order(layers):
        units = parameters["weight_hh"].shape[0] // 4 if "weight_hh" in parameters else 0
        widths["c"].append(units)
        widths["h"].append(parameters["weight_hr"].shape[0] if "weight_hr" in parameters else units)
    if len(own["h"]) == len(own["c"]) == 1 and all(fits(own[part][0], widths[part]) for part in own):
        names = " and ".join(shown(own[part][0].name) for part in "hc")
        draft.assume(f"every sequence starts from {names}, which bear the LSTM's name; --initial-state says another start")
        draft.explained |= {own[part][0].name for part in own}
        h, c = (own[part][0].array(len(own[part][0].shape)).reshape(len(widths[part]), -1) for part in "hc")
        return [{"initial_h": one, "initial_c": other} for one, other in zip(h, c, strict=True)]
    if left := [*own["h"], *own["c"], *beside]:
        draft.explained |= {tensor.name for tensor in left}
        draft.assume(
            f"the LSTM starts from zeros, not from {', '.join(map(str, left))}, which may be a learned first state; "
            "--initial-state gives it one"
        )
    return []


def in_order(layers: Layers) -> list[Parameters]:
    """Of each cell, in the order of the layers, forward first."""
    return [layers[suffix] for suffix in sorted(layers, key=lambda suffix: (len(suffix.removesuffix("_reverse")), suffix))]


def fits(tensor: Tensor, widths: list[int]) -> bool:
    """Whether it is a row for each cell: (cells, width), (cells, 1, width), or for one cell (width,)."""
    shape = tuple(size for k, size in enumerate(tensor.shape) if not (k == 1 and len(tensor.shape) == 3 and size == 1))
    return (
        tensor.dtype in DTYPES
        and len(set(widths)) == 1
        and shape in ((len(widths), widths[0]), (widths[0],) * (len(widths) == 1))
    )
