"""The options that several commands have. `run` and `plan` hand all of theirs to job_of, which makes a Job of them."""

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lstmcli.cli.command import ABOUT_TERMINAL, PLAIN_INPUTS, option, option_group
from lstmcli.cli.param_types import FILE_NAME, INPUT_NAME, Duration, IntegerList, Names, NumberList, Size

if TYPE_CHECKING:
    from lstmcli.run.job import Job

whole_input_options = option_group(
    click.argument(PLAIN_INPUTS, nargs=-1, type=INPUT_NAME, metavar="[INPUT]..."),
    option(
        "Input",
        "-i",
        "--input",
        type=INPUT_NAME,
        metavar="PATH",
        multiple=True,
        help="The sequences, an array (sequences, steps, features): an .npy or HDF5 file, or - for an NPY stream on standard "
        "input. FILE.h5::/NAME names a dataset of an HDF5 file, FILE.npz::NAME an array of an NPZ. Or an array (steps, "
        "features) for each sequence: in HDF5, NPZ, safetensors or .pt, or in several files: a folder, 'FOLDER/*.npy', @LIST, "
        "or --input again.",
    ),
    option(
        "Input",
        "--time-major",
        is_flag=True,
        help="The input is an array (steps, sequences, features): --axes TNE.",
    ),
    option(
        "Input",
        "--axes",
        type=click.Choice(["NTE", "TNE", "ETN", "ENT"], case_sensitive=False),
        show_default="NTE",
        help="The order of the input's axes, N sequences, T steps and E features; what MATLAB, Julia and R write is read with "
        "ETN. The outputs always have the order NTE.",
    ),
    option(
        "Input",
        "-l",
        "--lens",
        type=FILE_NAME,
        metavar="PATH",
        show_default="the dataset lengths, lens, seq_len, mask, ... beside an HDF5 or NPZ input",
        help="The length of each sequence: an .npy file, FILE.h5::/NAME, FILE.npz::NAME, a text, FILE.csv::COLUMN, or a "
        "mask (sequences, steps) of 0 and 1. none says that every sequence is full.",
    ),
    option(
        "Input",
        "--offsets",
        type=FILE_NAME,
        metavar="PATH",
        show_default="the dataset offsets beside a flat HDF5 input",
        help="Where the sequences of a flat input (rows, features) begin, and where the last one ends: N + 1 integers; or N of "
        "them, with --lens.",
    ),
    option(
        "Input",
        "--window",
        type=click.IntRange(min=1),
        metavar="W",
        help="Cut each sequence into windows of W steps, which overlap. Nothing is copied; the result says the series and the "
        "first step of each.",
    ),
    option(
        "Input",
        "--stride",
        type=click.IntRange(min=1),
        metavar="S",
        show_default="1",
        help="Steps from the begin of one window to that of the next.",
    ),
    option(
        "Input",
        "--padding",
        type=click.Choice(["post", "pre"]),
        show_default="post",
        help="Where padding stands in each row: behind the valid steps (post), or in front of them (pre), as Keras' "
        "pad_sequences puts it.",
    ),
    option(
        "Input",
        "--nonfinite",
        type=click.Choice(["error", "warn", "pass"]),
        default="warn",
        help="What to do about NaN and Inf in valid steps: error refuses them, warn counts them, pass does not look.",
    ),
    option(
        "Input",
        "--follow-links",
        is_flag=True,
        help="Accept HDF5 inputs that are links to other files, virtual, or stored in external files.",
    ),
)
lens_of_file = option(
    "Input",
    "-l",
    "--lens",
    type=FILE_NAME,
    metavar="PATH",
    show_default="what lies beside the sequences",
    help="The lengths or the mask of the sequences, as lstmcli run takes them.",
)
initial_state = option(
    "Input",
    "--initial-state",
    type=FILE_NAME,
    metavar="FILE",
    show_default="zeros",
    help="Start where an earlier run ended: its result, the NPZ file of its --states, or FILE.h5::/GROUP. A "
    "single row is the start of every sequence.",
)
input_options = option_group(whole_input_options, initial_state)
# What checkpoints of TensorFlow do not hold, and new layers may have.
cell_options = option_group(
    option(
        "Model",
        "--forget-bias",
        type=NumberList(),
        show_default="1",
        help="What is added to the forget gate, in new layers or where the file of --weights does not say it (TensorFlow 1).",
    ),
    option(
        "Model",
        "--cell-clip",
        type=NumberList(),
        show_default="none",
        help="The limit of the cell state c, in new layers or where the file of --weights does not say it.",
    ),
    option(
        "Model",
        "--projection-clip",
        type=NumberList(),
        show_default="none",
        help="The limit of the projected h, in new layers or where the file of --weights does not say it.",
    ),
    option(
        "Model",
        "--activation",
        metavar="NAME",
        show_default="tanh",
        help="The activation of candidate and output, in new layers or where the file of --weights does not say it: tanh, "
        "relu, sigmoid, softsign, softplus, elu or linear.",
    ),
)
residual = option(
    "Model",
    "--residual",
    is_flag=False,
    flag_value="upper",
    metavar="[LAYERS]",
    help="Layers add their input to their output. Without LAYERS these are all but the lowest. With --weights LAYERS may be "
    "all, numbers such as 0,2, or whole, which adds the input of the whole model to its output.",
)
recurrent_activation = option(
    "Model",
    "--recurrent-activation",
    metavar="NAME",
    show_default="sigmoid",
    help="The activation of the gates, where the file of --weights does not say it: sigmoid, hard_sigmoid, or "
    "hard_sigmoid_keras2, which is that of Keras before version 3.",
)
weight_options = option_group(
    option(
        "Model",
        "--select",
        multiple=True,
        metavar="PREFIX",
        help="Where a file holds several LSTMs, take the one whose name is PREFIX or begins with it. Several of them, given "
        "again, with commas, or as 'rnns.*', are a stack from bottom to top; fw=A and bw=B are a bidirectional pair.",
    ),
    cell_options,
    recurrent_activation,
    option(
        "Model",
        "--merge",
        metavar="NAME",
        show_default="concat",
        help="How the two directions are merged, where the file of --weights does not say it: concat, sum, mean or mul.",
    ),
)
new_model_options = option_group(
    option("Model", "--bidirectional", is_flag=True, help="Every new layer runs in both directions, side by side."),
    option("Model", "--peepholes", is_flag=True, help="New layers have peephole connections."),
    option("Model", "--projection", type=click.IntRange(min=1), metavar="N", help="New layers project h to width N."),
)
model_options = option_group(
    option(
        "Model",
        "-u",
        "--units",
        type=IntegerList(),
        help="Make a new model: the units of each layer from bottom to top, with weights from --seed.",
    ),
    option(
        "Model",
        "-w",
        "--weights",
        type=FILE_NAME,
        metavar="FILE",
        help="Take the model of a file instead: a model file, a result of an earlier run, or weights of PyTorch, Keras, "
        "TensorFlow or ONNX.",
    ),
    option(
        "Model",
        "--seed",
        type=click.IntRange(min=0),
        metavar="N",
        show_default="0",
        help="The seed of new weights. The same seed gives the same weights on any machine.",
    ),
    new_model_options,
    residual,
    weight_options,
)
chain = option(
    "Model",
    "--chain",
    metavar="LINE",
    help="How the model of a PyTorch state_dict goes on from module to module: 'embedding, lstm, final, fc1, relu, fc2'. "
    "Without it an error proposes a line.",
)
whole_model_options = option_group(
    option(
        "Model",
        "-w",
        "--weights",
        type=FILE_NAME,
        metavar="FILE",
        help="The whole model: a .keras or .h5 file of Keras, a SavedModel folder, ONNX, a model file, or PyTorch weights with "
        "--chain.",
    ),
    chain,
    recurrent_activation,
)
store = option(
    "Output",
    "--store",
    type=click.Choice(["float16", "float32"]),
    show_default="what --dtype says",
    help="The number format in which outputs, cells, layers, pooled and predictions are stored; states keep that of the "
    "computation. A value that is too large for it ends the run, unless --nonfinite is pass.",
)
layout = option(
    "Output",
    "--layout",
    type=click.Choice(["padded", "flat", "per-sequence"]),
    show_default="padded for a padded input, flat for a ragged one",
    help="How the steps of the sequences lie in the result: padded is an array (sequences, steps, units) with zeros past the "
    "length of each; flat has the steps of all sequences one after the other, (steps, units), with offsets; per-sequence "
    "has an HDF5 dataset (length, units) for each sequence, named by its id.",
)
result_options = option_group(
    option(
        "Output",
        "--save",
        type=Names("outputs", "states", "cells", "layers", "pooled"),
        show_default="outputs,states",
        help="What an HDF5 result holds, separated by commas: outputs, states, cells (c of the top layer at every step), "
        "layers (the outputs of every layer), pooled (with --pool). A table holds pooled, or states.",
    ),
    option(
        "Output",
        "--pool",
        type=click.Choice(["mean", "max", "sum", "last", "final"]),
        show_default="none",
        help="Store one vector for each sequence as well, or alone with --save pooled: the mean, maximum or sum of its outputs,"
        " the last of them, or the final h of the top layer, both directions side by side.",
    ),
    store,
    layout,
)
computing_options = option_group(
    option(
        "Computing",
        "--dtype",
        type=click.Choice(["float32", "float64", "bfloat16"]),
        default="float32",
        help="The number format to compute in. The outputs have it as well; with bfloat16 they are float32.",
    ),
    option(
        "Computing",
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        show_default="the CPUs that this process may use",
        help="Compute with at most N threads. Their number changes no bit of the result.",
    ),
    option(
        "Computing",
        "--max-memory",
        type=Size(),
        default="1GB",
        help="Memory for the whole program, whatever the size of the files: 500MB, 1.5GB, 2GiB.",
    ),
)
overwrite = option("Output", "--overwrite", is_flag=True, help="Replace an existing file, once the new one is complete.")
dry_run = option(
    "Output", "--dry-run", is_flag=True, help="Check everything and print the summary, but compute and write nothing."
)
scheduler_address = option(
    "Cluster",
    "--scheduler",
    metavar="ADDRESS",
    help="Let a Dask cluster compute: tcp://HOST:PORT, tls://HOST:PORT, a scheduler file, or local:N for N processes here.",
)
stop_options = option_group(
    option(
        "Stop and resume",
        "--resume",
        is_flag=True,
        help="Go on where an earlier run was stopped or killed. If there is none, begin.",
    ),
    option(
        "Stop and resume",
        "--stop-after",
        type=Duration(),
        help="Stop cleanly after this time: 55m, 1h30m, 90s, or a number of seconds. --resume goes on.",
    ),
)
as_json = option("Messages", "--json", is_flag=True, help="Print one JSON object instead of text.")
quiet = option("Messages", "-q", "--quiet", is_flag=True, help="Print neither the summary nor the progress.")
verbose = option("Messages", "-v", "--verbose", is_flag=True, help="List every final state in the summary.")
progress = option(
    "Messages",
    "--progress",
    type=click.Choice(["auto", "bar", "log", "none"]),
    default="auto",
    help="How to show progress on standard error: a bar, or a line every ten seconds (log). auto takes the bar on a terminal.",
)


def job_of(options: dict[str, Any]) -> "Job":
    """Makes the job that the options of a command say. An option is the field of its name in one of the job's records."""
    from lstmcli.errors import UsageError
    from lstmcli.run.job import job_of_options

    if not options["input"]:
        raise click.UsageError("Missing option '-i' / '--input'.")
    if options.get("whole"):
        if options["weights"] is None:
            raise click.UsageError("Missing option '-w' / '--weights'.")
        options["save"] = ("predictions",)
    try:
        return job_of_options(options)
    except UsageError as error:
        raise click.UsageError(str(error)) from error


def given(ctx: click.Context, names: set[str]) -> dict[str, Any]:
    """Returns those of the named options that the command line or the environment gives."""
    sources = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return {name: ctx.params[name] for name in names if ctx.get_parameter_source(name) in sources}


def refuse_typed(ctx: click.Context, allowed: set[str], why: str) -> None:
    """Raises UsageError for any other option on the command line, but not for variables, which are there for all commands."""
    for param in ctx.command.params:
        typed = ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        if typed and param.name not in allowed | set(ABOUT_TERMINAL):
            raise click.UsageError(f"{max(param.opts, key=len)}: {why}")
