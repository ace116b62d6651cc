"""`lstmcli model`: making, importing, exporting and showing model files."""

from typing import TYPE_CHECKING, Any

import click

from lstmcli.cli.command import Group, option, option_group
from lstmcli.cli.options import as_json, cell_options, new_model_options, overwrite, residual, weight_options
from lstmcli.cli.param_types import FILE_NAME, IntegerList
from lstmcli.errors import UsageError

if TYPE_CHECKING:
    from lstmcli.cli.report.terminal import Terminal

output = option("Output", "-o", "--output", type=FILE_NAME, metavar="FILE", required=True, help="The model file to make.")


@click.group(
    cls=Group,
    short_help="Make, import, export and show model files.",
    examples=["lstmcli model import checkpoint.pt -o model.h5", "lstmcli model show model.h5"],
    topics=["models"],
)
def model() -> None:
    """Make model files, of new weights or of another framework's, and look at them."""


@model.command(
    short_help="Make a model with new weights.",
    examples=["lstmcli model init --input-size 20 --units 64,64 --bidirectional -o model.h5"],
    topics=["models"],
)
@option(
    "Model", "--input-size", type=click.IntRange(min=1), metavar="N", required=True, help="The number of features of a step."
)
@option("Model", "-u", "--units", type=IntegerList(), required=True, help="The units of each layer, from bottom to top.")
@option(
    "Model",
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    help="The seed of the weights. The same seed gives the same weights on any machine.",
)
@new_model_options
@option("Model", "--residual", is_flag=True, help="Every layer but the lowest adds its input to its output.")
@cell_options
@output
@overwrite
def init(
    terminal: "Terminal",
    input_size: int,
    units: tuple[int, ...],
    seed: int,
    output: str,
    overwrite: bool,
    bidirectional: bool,
    residual: bool,
    **options: Any,
) -> None:
    """Make a model file with TensorFlow's initial weights: Glorot-uniform kernels, zero bias, forget_bias 1."""
    from pathlib import Path

    from lstmcli.cli.report.model_report import model_facts, model_tree
    from lstmcli.model.model_file import save_model
    from lstmcli.model.new_weights import CellOptions, init_model

    made = init_model(input_size, units, seed, CellOptions.chosen(**options), bidirectional, residual)
    save_model(made, Path(output), overwrite)
    terminal.print_drawing(model_facts(made), lambda: model_tree(made, output))


whole_model = option_group(
    option("Model", "--whole", is_flag=True, help="All layers of the file, as lstmcli predict runs them, not its LSTMs alone."),
    option(
        "Model",
        "--chain",
        metavar="LINE",
        help="All layers of a PyTorch state_dict, which does not say how they go on: 'embedding, lstm, final, fc1, relu, fc2'.",
    ),
)


@model.command(
    "import",
    short_help="Make a model file of weights from elsewhere.",
    examples=[
        "lstmcli model import checkpoint.pt -o model.h5",
        "lstmcli model import model.ckpt.index --select encoder -o model.h5",
        "lstmcli model import model.onnx --check x.npy,y.npy,lens.npy -o model.h5",
        "lstmcli model import model.keras --whole -o model.h5",
    ],
    topics=["weights", "model-file"],
)
@click.argument("file", type=FILE_NAME)
@weight_options
@residual
@whole_model
@option(
    "Model",
    "--check",
    metavar="X,Y[,LENS]",
    help="NPY files: an input, the outputs that the framework gave for it, and lengths. The model is written only if it gives "
    "the same, and `lstmcli verify` repeats that.",
)
@output
@overwrite
def import_(
    terminal: "Terminal",
    file: str,
    output: str,
    overwrite: bool,
    check: str | None,
    whole: bool,
    chain: str | None,
    **choices: Any,
) -> None:
    """Make a model file of what PyTorch (.safetensors, .pt), Keras (.keras, .h5), TensorFlow (X.index) or ONNX wrote.

    Prints which tensor became which field of which layer, what was left out, and what was assumed. Nothing in FILE is run.
    With --whole or --chain the model file has all layers, and lstmcli predict needs no more.
    """
    if whole or chain is not None:
        if check is not None:
            raise UsageError("--check: compares what LSTMs put out, not whole models; leave it out, or --whole and --chain")
        import_whole(terminal, file, output, overwrite, chain, choices)
        return
    from pathlib import Path

    from lstmcli.cli.report.model_report import import_rows
    from lstmcli.model.model_file import save_model
    from lstmcli.weights.load import Choices, load_weights

    found = load_weights(file, Choices(**choices))
    known = agreement = None
    if check is not None:
        from lstmcli.engine.model_check import confirm
        from lstmcli.model.model_check import read_check_files

        known = read_check_files(check)
        agreement = confirm(found.model, known, "; ".join([f"--check {check}", *found.assumed]))
    save_model(found.model, Path(output), overwrite, known)
    terminal.print_rows({}, import_rows(found, file, output, agreement))


def import_whole(
    terminal: "Terminal", file: str, output: str, overwrite: bool, line: str | None, choices: dict[str, Any]
) -> None:
    from pathlib import Path

    from lstmcli.cli.report.model_report import whole_rows
    from lstmcli.model.chain_file import save_chain
    from lstmcli.weights.chains.load import load_chain
    from lstmcli.weights.load import Choices

    found = load_chain(file, Choices(**choices), line)
    save_chain(found.chain, Path(output), overwrite)
    terminal.print_rows({}, whole_rows(found, file, output))


@model.command(
    short_help="Write weights as torch.nn.LSTM takes them.",
    examples=["lstmcli model export model.h5 -o model.safetensors"],
    topics=["weights"],
)
@click.argument("file", type=FILE_NAME)
@option("Output", "-o", "--output", type=FILE_NAME, metavar="FILE", required=True, help="The .safetensors file to make.")
@overwrite
def export(terminal: "Terminal", file: str, output: str, overwrite: bool) -> None:
    """Write the weights of a model as safetensors, under the names of torch.nn.LSTM, where PyTorch can express the model.

    forget_bias goes into bias_ih; bias_hh is what float32 cannot hold of a sum, mostly zeros.
    """
    from pathlib import Path

    from lstmcli.cli.report.model_report import export_rows
    from lstmcli.weights.load import Choices, load_weights
    from lstmcli.weights.pytorch import export as write

    found = load_weights(file, Choices())
    for warning in found.warnings():
        terminal.warn(warning)
    tensors = write(found.model, Path(output), overwrite)
    terminal.print_rows({}, export_rows(tensors, output))


@model.command(
    short_help="Show a model's layers, shapes and parameters.",
    examples=["lstmcli model show model.h5", "lstmcli model show result.lstm.h5 --json"],
    topics=["models"],
)
@click.argument("file", type=FILE_NAME)
@weight_options
@residual
@whole_model
@as_json
def show(terminal: "Terminal", file: str, whole: bool, chain: str | None, **choices: Any) -> None:
    """Show the layers, shapes and parameter counts of a model file, of the model in a result, or of weights from elsewhere.

    Of a file that holds LSTMs and more, --whole or --chain shows all layers.
    """
    from lstmcli.cli.report.model_report import chain_facts, chain_tree, model_facts, model_tree
    from lstmcli.weights.load import Choices, holds_chain, load_weights

    if whole or chain is not None or holds_chain(file):
        from lstmcli.weights.chains.load import load_chain

        all_layers = load_chain(file, Choices(**choices), chain)
        for note in (*all_layers.notes, *all_layers.assumed):
            terminal.note(note)
        terminal.print_drawing(chain_facts(all_layers.chain), lambda: chain_tree(all_layers.chain, file))
        return
    found = load_weights(file, Choices(**choices))
    for note in (*found.notes, *found.warnings()):
        terminal.note(note)
    terminal.print_drawing(model_facts(found.model), lambda: model_tree(found.model, file))
