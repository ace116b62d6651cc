"""Types and groups of options that several commands have."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from lstmcli.run.job import Job

Function = TypeVar("Function", bound=Callable[..., Any])


class IntegerList(click.ParamType):  # type: ignore[type-arg]
    name = "N[,N...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if not re.fullmatch(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*", value):
            self.fail(f"expected integers above 0, separated by commas, such as 64,32; got {value!r}", param, ctx)
        return tuple(int(number) for number in value.split(","))


class NumberList(click.ParamType):  # type: ignore[type-arg]
    name = "X[,X...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float | None, ...]:
        try:
            return tuple(None if number == "none" else float(number) for number in value.split(","))
        except ValueError:
            self.fail(f"expected numbers or none, separated by commas, such as 10,none; got {value!r}", param, ctx)


class Size(click.ParamType):  # type: ignore[type-arg]
    name = "size"
    units: ClassVar = {
        "": 1,
        "K": 10**3,
        "M": 10**6,
        "G": 10**9,
        "T": 10**12,
        "KI": 2**10,
        "MI": 2**20,
        "GI": 2**30,
        "TI": 2**40,
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([KMGT]?I?)B?", value.upper())
        if not match or match[2] not in self.units or not (size := int(float(match[1]) * self.units[match[2]])):
            self.fail(f"expected a size such as 500MB, 1.5GB or 2GiB; got {value!r}", param, ctx)
        return size


class Duration(click.ParamType):  # type: ignore[type-arg]
    name = "time"
    units: ClassVar = {"D": 86400, "H": 3600, "M": 60, "S": 1, "": 1}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        parts = re.findall(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([DHMS]?)", value.upper())
        if not parts or "".join(number + unit for number, unit in parts) != value.upper():
            self.fail(f"expected a time such as 90s, 55m or 1h30m; got {value!r}", param, ctx)
        return sum(float(number) * self.units[unit] for number, unit in parts)


class Names(click.ParamType):  # type: ignore[type-arg]
    name = "list"

    def __init__(self, *known: str) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[str]:
        names = value.split(",")
        if unknown := [name for name in names if name not in self.known]:
            self.fail(f"expected names of {', '.join(self.known)}, separated by commas; got {unknown[0]!r}", param, ctx)
        return frozenset(names)


def with_options(*options: Any) -> Callable[[Function], Function]:
    """A decorator that adds these options, in this order."""

    def add(command: Function) -> Function:
        for option in reversed(options):
            command = option(command)
        return command

    return add


# What checkpoints of TensorFlow do not hold, and new cells may have.
about_cells = with_options(
    click.option("--forget-bias", type=NumberList(), help="Of new cells, or of a TensorFlow 1 checkpoint.  [default: 1]"),
    click.option("--cell-clip", type=NumberList(), help="Likewise the limit of c.  [default: none]"),
    click.option("--projection-clip", type=NumberList(), help="Likewise the limit of the projected h.  [default: none]"),
    click.option("--activation", metavar="NAME", help="Likewise the activation of candidate and output.  [default: tanh]"),
)
residual = click.option(
    "--residual",
    is_flag=False,
    flag_value="upper",
    metavar="[LAYERS]",
    help="Layers whose input is added to their output: all but the lowest, or of read weights also all, numbers such as 0,2, "
    "or whole: around the whole model.",
)
about_weights = with_options(
    click.option(
        "--select",
        multiple=True,
        metavar="PREFIX",
        help="Of several LSTMs in FILE, the one whose name is or begins with this. Given again, in commas, or as 'rnns.*': "
        "a stack from bottom to top; fw=A with bw=B: a bidirectional pair.",
    ),
    about_cells,
    click.option(
        "--recurrent-activation",
        metavar="NAME",
        help="Of the gates of read weights: sigmoid, hard_sigmoid, or hard_sigmoid_keras2.  [default: sigmoid]",
    ),
    click.option(
        "--merge", metavar="NAME", help="Of the directions of read weights: concat, sum, mean or mul.  [default: concat]"
    ),
)
about_new_cells = with_options(
    click.option("--peepholes", is_flag=True, help="New cells have them."),
    click.option("--projection", type=click.IntRange(min=1), metavar="N", help="Width to which new cells project h."),
    click.option("--bidirectional", is_flag=True, help="Every new layer has a cell for each direction, side by side."),
)
about_input = with_options(
    click.option(
        "-i",
        "--input",
        metavar="PATH",
        help="Input (sequences, steps, features): .npy, HDF5, or - for an NPY stream. file.h5::/name names a dataset.",
    ),
    click.option("--time-major", is_flag=True, help="The input is (steps, sequences, features). The outputs never are."),
    click.option(
        "-l",
        "--lens",
        metavar="PATH",
        help="Lengths: .npy, file.h5::/name, or text with one integer a line; none: all full. "
        "[default: lengths, lens or sequence_length beside an HDF5 input]",
    ),
    click.option("-u", "--units", type=IntegerList(), help="Units of each layer, bottom to top, with new weights from --seed."),
    click.option(
        "-w",
        "--weights",
        metavar="FILE",
        help="Instead of --units: model file, result of an earlier run, or weights of PyTorch, Keras, TensorFlow 1 or ONNX.",
    ),
    about_new_cells,
    residual,
    about_weights,
    click.option("--seed", type=click.IntRange(min=0), help="Of the new weights: the same on any machine.  [default: 0]"),
    click.option(
        "--initial-state",
        metavar="FILE",
        help="Start where an earlier run ended: its result, the NPZ of its --states, or file.h5::/group.  [default: zeros]",
    ),
)
about_result = with_options(
    click.option(
        "--save",
        type=Names("outputs", "states", "cells", "layers"),
        default="outputs,states",
        show_default=True,
        help="What the result holds.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float64"]),
        default="float32",
        show_default=True,
        help="What to compute in.",
    ),
    click.option(
        "--nonfinite",
        type=click.Choice(["error", "warn", "pass"]),
        default="warn",
        show_default=True,
        help="What to do about NaN or Inf in valid steps; pass: do not look.",
    ),
    click.option("--follow-links", is_flag=True, help="Let HDF5 inputs be links, virtual, or in external files."),
)
about_machine = with_options(
    click.option(
        "--threads", type=click.IntRange(min=1), help="At most so many.  [default: the CPUs that this process may use]"
    ),
    click.option(
        "--max-memory",
        type=Size(),
        default="1GB",
        show_default=True,
        help="Of the whole program, whatever the file's size.",
    ),
)


stop_after = click.option(
    "--stop-after",
    type=Duration(),
    metavar="TIME",
    help="Stop in order after so long, such as 55m or 1h30m; --resume goes on.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Print neither summary nor progress.")
progress = click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "log", "none"]),
    default="auto",
    show_default=True,
    help="On stderr; auto: a bar on a terminal, else a line now and then.",
)


def job_of(options: dict[str, Any]) -> "Job":
    """Of the options of about_input, about_result and about_machine, and others that are fields of Job."""
    from lstmcli.run.job import Job

    if options["input"] is None:
        raise click.UsageError("Missing option '-i' / '--input'.")
    if (options["units"] is None) == (options["weights"] is None):
        raise click.UsageError("expected either --units, for new weights, or --weights FILE")
    new = options["units"] is not None
    read, made = ("select", "recurrent_activation", "merge"), ("seed", "peepholes", "projection", "bidirectional")
    for name in read if new else made:
        if options[name]:
            meant, other = ("--weights", "--units") if new else ("the new weights of --units", "--weights")
            raise click.UsageError(f"--{name.replace('_', '-')} is for {meant}, not for {other}")
    return Job(**options | {"seed": options["seed"] or 0})


def given(ctx: click.Context) -> dict[str, Any]:
    """The options of the command line, without those that have their default."""
    return {name: value for name, value in ctx.params.items() if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}


def refuse_given(ctx: click.Context, allowed: set[str], why: str) -> None:
    """UsageError for any other option."""
    for option in ctx.command.params:
        if option.name in given(ctx).keys() - allowed:
            raise click.UsageError(f"{max(option.opts, key=len)}: {why}")
