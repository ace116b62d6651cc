"""What models and weights look like: the tree of layers, which tensor became what, which were written."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lstmcli.errors import shown
from lstmcli.model.tree import CELL_OPTIONS, Cell, Model
from lstmcli.weights.draft import is_slot

if TYPE_CHECKING:
    from lstmcli.blocks import Floats
    from lstmcli.engine.model_check import Agreement
    from lstmcli.model.chain import Chain
    from lstmcli.weights.chains.load import WholeModel
    from lstmcli.weights.load import Imported


def model_facts(model: Model) -> dict[str, Any]:
    """Returns the facts of a model for JSON."""
    sizes = {"input_size": model.input_size, "output_size": model.output_size, "parameters": model.parameters()}
    return sizes | {"model": model.config()}


def model_tree(model: Model, name: str) -> Any:
    """Draws a model as rich's tree, with shapes and numbers of parameters."""
    from rich.tree import Tree

    root = Tree(label(shown(name), model))
    grow(root, model)
    return root


def chain_facts(chain: "Chain") -> dict[str, Any]:
    """Returns the facts of a whole model for JSON."""
    takes = {"takes": chain.forms[0].kind, "gives": chain.forms[-1].kind}
    sizes = {"input_size": chain.input_size, "output_size": chain.output_size, "parameters": chain.parameters()}
    return takes | sizes | {"names": list(chain.names), "model": chain.config()}


def chain_tree(chain: "Chain", name: str) -> Any:
    """Draws a whole model as rich's tree: its layers from the bottom to the top, and what goes from each to the next."""
    from rich.tree import Tree

    def form(place: int) -> str:
        kind, width = chain.forms[place]
        return kind if kind == "ids" else f"{kind} of {width}"

    root = Tree(f"{shown(name)}: chain, {form(0)} to {form(-1)}, {chain.parameters():,} parameters")
    for k, (layer, called) in enumerate(zip(chain.layers, chain.names, strict=True)):
        if isinstance(layer, Model):
            grow(root.add(label(shown(called), layer)), layer)
            continue
        options = "".join(f", {option} {value}" for option, value in layer.options().items())
        branch = root.add(f"{shown(called)}: {layer.kind}, {form(k)} to {form(k + 1)}{options}")
        for field, weight in layer.weights().items():
            branch.add(f"{field} {weight.shape} {weight.dtype}")
    return root


def label(name: str, model: Model) -> str:
    config = model.config()
    chosen = "".join(f", {option} {config[option]}" for option in ("merge", *CELL_OPTIONS) if option in config)
    return f"{name}: {model.kind}, {model.input_size} to {model.output_size}, {model.parameters():,} parameters{chosen}"


def grow(branch: Any, model: Model) -> None:
    if isinstance(model, Cell):
        for name, weight in model.weights().items():
            branch.add(f"{name} {weight.shape} {weight.dtype}")
    for name, child in model.children().items():
        grow(branch.add(label(name, child)), child)


def import_rows(found: "Imported", name: str, output: str, agreement: "Agreement | None" = None) -> Iterator[tuple[str, str]]:
    """Yields which tensor became which field, what was left out, what was assumed, and how far a check was off."""
    yield "weights", f"{shown(name)}  {found.kind}"
    for k, mapped in enumerate(found.mapping):
        text = f"{shown(mapped.name)} {mapped.shape} -> {mapped.path} {mapped.field}, {mapped.how}"
        yield "mapping" if k == 0 else "", text
    for k, text in enumerate(left_out(found)):
        yield "left out" if k == 0 else "", text
    for note in found.notes:
        yield "note", note
    for text in found.assumed:
        yield "assumed", text
    if agreement:
        yield "check", f"{agreement}; `lstmcli verify` repeats it"
    yield "output", shown(output)


def whole_rows(found: "WholeModel", name: str, output: str) -> Iterator[tuple[str, str]]:
    """Yields the layers of a whole model, and what was assumed."""
    yield "weights", f"{shown(name)}  {found.kind}"
    for k, (layer, called) in enumerate(zip(found.chain.layers, found.chain.names, strict=True)):
        yield "layers" if k == 0 else "", f"{shown(called)} ({layer.kind})"
    for note in found.notes:
        yield "note", note
    for text in found.assumed:
        yield "assumed", text
    yield "output", shown(output)


def left_out(found: "Imported") -> Iterator[str]:
    """Yields each tensor and layer that is no part of the model; an optimizer's tensors in one line."""
    slots = [tensor for tensor in found.left_out if is_slot(tensor.name)]
    yield from (str(tensor) for tensor in found.left_out if tensor not in slots)
    if slots:
        yield f"{len(slots)} tensor{'s' * (len(slots) > 1)} of an optimizer, such as {slots[0]}"
    for place in ("before", "after"):
        yield from (f"{shown(name)}, {place} the LSTM" for name in getattr(found, place))


def export_rows(tensors: "dict[str, Floats]", output: str) -> Iterator[tuple[str, str]]:
    """Yields the tensors of an exported model."""
    for k, (name, tensor) in enumerate(tensors.items()):
        yield "tensors" if k == 0 else "", f"{name} {tensor.shape} {tensor.dtype}"
    yield "output", shown(output)
