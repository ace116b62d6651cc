"""Facts of models: model files, and weights of the frameworks."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lstmcli.errors import DataError, LstmcliError, shown
from lstmcli.model.tree import Cell, Model

if TYPE_CHECKING:
    from lstmcli.model.chain import Chain
    from lstmcli.weights.chains.load import WholeModel

Facts = dict[str, Any]
SHOWN = 20  # tensors that are listed


def about_weights(spec: str) -> Facts:
    """Returns the facts of a model file or of weights. Raises DataError."""
    from lstmcli.weights.chains.load import load_chain
    from lstmcli.weights.load import Choices, holds_chain, load_weights

    if holds_chain(spec):
        return about_whole(load_chain(spec, Choices()))
    try:
        found = load_weights(spec, Choices())
    except DataError as error:  # of LSTMs that are no stack, such as two with a layer between them
        try:
            return about_whole(load_chain(spec, Choices()))
        except LstmcliError:
            raise error from None
    tensors = [{"name": m.name, "shape": list(m.shape), "becomes": f"{m.path} {m.field}", "how": m.how} for m in found.mapping]
    left_out = [*map(str, found.left_out), *(f"{name}, before the LSTM" for name in found.before)]
    left_out += [f"{name}, after the LSTM" for name in found.after]
    return {
        "what": "LSTMs in a model file" if found.kind == "lstmcli" else f"LSTMs, {found.kind}",
        "model": about_model(found.model),
        "tensors": tensors[:SHOWN],
        "tensors_in_file": len(tensors),
        "left_out": left_out[:SHOWN],
        "whole": whole_model(spec) if found.before or found.after else None,
        "assumed": list(found.assumed),
        "notes": list(found.notes),
        "cost": cost_of(found.model),
    }


def about_whole(found: "WholeModel") -> Facts:
    """Returns the facts of a model that predict runs as a whole."""
    facts = {"what": f"a whole model, {found.kind}", "model": about_model(found.chain), "cost": cost_of(found.chain)}
    return facts | {"assumed": list(found.assumed), "notes": list(found.notes)}


def whole_model(spec: str) -> list[str] | None:
    """Returns the layers that predict would run, where the file says how they go together."""
    from lstmcli.weights.chains.load import load_chain
    from lstmcli.weights.load import Choices

    with suppress(LstmcliError):
        return [layer["name"] for layer in about_model(load_chain(spec, Choices()).chain)["layers"]]
    return None


def about_model(model: "Model | Chain") -> Facts:
    """Returns sizes, and for each layer its name, kind, widths and number of parameters."""
    sizes = {"input_size": model.input_size, "output_size": model.output_size, "parameters": model.parameters()}
    if isinstance(model, Model):
        layers = [layer_facts(name, layer) for name, layer in (model.children() or {"0": model}).items()]
    else:
        layers = [layer_facts(shown(name), layer) for name, layer in zip(model.names, model.layers, strict=True)]
    dtypes = sorted({weight.dtype.name for weight in model.arrays()})
    return sizes | {"dtype": dtypes, "layers": layers}


def layer_facts(name: str, layer: Any) -> Facts:
    if not isinstance(layer, Model):
        options = ", ".join(f"{option} {value}" for option, value in layer.options().items())
        count = sum(int(weight.size) for weight in layer.weights().values())
        return {"name": name, "kind": layer.kind, "options": options, "parameters": count}
    cells = [cell for _, cell in layer.cells()]
    units = cells[0].units if len({cell.units for cell in cells}) == 1 else [cell.units for cell in cells]
    widths = {"input_size": layer.input_size, "output_size": layer.output_size, "units": units}
    return {"name": name, "kind": layer.kind, "options": options_of(cells[0])} | widths | {"parameters": layer.parameters()}


def options_of(cell: Cell) -> str:
    """Returns in words what of a cell is not as in most of them."""
    usual = {"activation": "tanh", "recurrent_activation": "sigmoid", "forget_bias": 0.0}
    said = [f"{name} {value}" for name, value in cell.options().items() if usual.get(name) != value]
    return ", ".join([*said, *(name for name in ("peephole", "projection") if getattr(cell, name) is not None)])


def cost_of(model: "Model | Chain") -> Facts:
    """Returns the floating-point operations of the LSTMs for a step, and the bytes of the weights."""
    trees = [model] if isinstance(model, Model) else [layer for layer in model.layers if isinstance(layer, Model)]
    cells = [cell for tree in trees for _, cell in tree.cells()]
    flop = sum(2 * cell.input_kernel.size + 2 * cell.recurrent_kernel.size for cell in cells)
    flop += sum(2 * cell.projection.size for cell in cells if cell.projection is not None)
    return {"flop_per_step": flop, "weight_bytes": sum(weight.nbytes for weight in model.arrays())}
