"""What a notebook shows of a model: a line, or a table of its layers. And what an argument is called that it does not know."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstmcli.model.chain import Chain
    from lstmcli.model.layers import Layer
    from lstmcli.model.tree import Model

MEANT = {"sequence_length": "lengths", "lens": "lengths", "inputs": "x", "hx": "initial_state", "state": "initial_state"}
KNOWN = "x, lengths, initial_state, threads, padding or mask"
MOST_ROWS = 50


def in_short(model: Model | Chain) -> str:
    """Returns a line: the kind of a model, its widths, and the number of its parameters."""
    layers = len(getattr(model, "layers", ()))
    what = f"{type(model).__name__}{f' of {layers} layer{chr(115) * (layers > 1)}' if layers else ''}"
    return f"<lstmcli {what}: {model.input_size} -> {model.output_size}, {parameters(model):,} parameters>"


def as_html(model: Model | Chain) -> str:
    """Returns a table with a row for each layer: its name, kind, widths and number of parameters."""
    found = list(model.children().items()) if hasattr(model, "children") else list(zip(model.names, model.layers, strict=True))
    head = "<tr><th>layer</th><th>kind</th><th>in</th><th>out</th><th>parameters</th></tr>"
    lines = [row(name, layer) for name, layer in found[:MOST_ROWS]]
    more = f"<tr><td colspan=5>and {len(found) - MOST_ROWS} more</td></tr>" if len(found) > MOST_ROWS else ""
    return f"{escape(in_short(model))}<table>{head}{''.join(lines)}{more}</table>" if found else escape(in_short(model))


def row(name: str, layer: Model | Layer) -> str:
    widths = getattr(layer, "input_size", ""), getattr(layer, "output_size", "")
    cells = escape(name), layer.kind, *widths, f"{parameters(layer):,}"
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def parameters(layer: Model | Chain | Layer) -> int:
    if hasattr(layer, "parameters"):
        return int(layer.parameters())
    return sum(weight.size for weight in layer.weights().values())


def unknown_argument(name: str, *others: str) -> str:
    """Returns the message for an argument that calling a model does not take."""
    hint = f"it is called {MEANT[name]} here" if name in MEANT else f"expected {KNOWN}"
    return f"unexpected argument {name}: {hint}"
