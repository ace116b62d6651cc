"""The command line: parse, call one function, report."""

import os
import re
import sys
from typing import Any, ClassVar

import click

from lstmcli import __version__
from lstmcli.errors import LstmcliError, StorageError

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
BROKEN_PIPE = StorageError.exit_code


class IntegerList(click.ParamType[Any]):
    name = "N[,N...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if not re.fullmatch(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*", value):
            self.fail(f"expected integers above 0, separated by commas, such as 64,32; got {value!r}", param, ctx)
        return tuple(int(number) for number in value.split(","))


class Size(click.ParamType[Any]):
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
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?I?)B?", value.upper())
        if not match or match[2] not in self.units or not (size := int(float(match[1]) * self.units[match[2]])):
            self.fail(f"expected a size such as 500MB, 1.5GB or 2GiB; got {value!r}", param, ctx)
        return size


class Names(click.ParamType[Any]):
    name = "list"

    def __init__(self, *known: str) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[str]:
        names = value.split(",")
        if unknown := [name for name in names if name not in self.known]:
            self.fail(f"expected names of {', '.join(self.known)}, separated by commas; got {unknown[0]!r}", param, ctx)
        return frozenset(names)


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            if sys.stdout:
                sys.stdout.flush()
            return result
        except BrokenPipeError:
            # Whoever read our output has seen enough. Quiet; and nothing more may be flushed when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(BROKEN_PIPE)
        except OSError as error:
            if sys.stdout is None or not _is_stdout_full(error):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise StorageError(f"standard output: writing failed: {error.strerror}") from error


def _is_stdout_full(error: OSError) -> bool:
    import errno

    return error.errno in (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT) and error.filename is None


def main() -> None:
    """Entry point. Ends the process with the exit code of what happened."""
    stdout = sys.stdout
    try:
        sys.exit(lstmcli.main(standalone_mode=False))
    except SystemExit:
        if sys.stdout is not stdout:  # click met a broken pipe while it printed help, and wrapped it
            sys.exit(BROKEN_PIPE)
        raise
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx:
            hint = f" (see {error.ctx.command_path} --help)"
        fail(error.format_message() + hint, error.exit_code)
    except LstmcliError as error:
        fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted", 130)


def fail(message: str, code: int) -> None:
    print(f"lstmcli: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


@click.group(cls=Commands, context_settings=HELP)
@click.version_option(__version__, message="%(prog)s %(version)s")
def lstmcli() -> None:
    """Run LSTMs over padded sequence files. Padding is never read, computed or written."""


@lstmcli.command(short_help="Run a model over a file of sequences.")
@click.option(
    "-i",
    "--input",
    required=True,
    metavar="PATH",
    help="Input (sequences, steps, features): .npy, HDF5, or - for an NPY stream. file.h5::/name names a dataset.",
)
@click.option(
    "-l",
    "--lens",
    metavar="PATH",
    help="Lengths: .npy, file.h5::/name, or text with one integer a line; none: all full. "
    "[default: lengths, lens or sequence_length beside an HDF5 input]",
)
@click.option("-u", "--units", type=IntegerList(), help="Units of each layer, bottom to top, with new weights from --seed.")
@click.option("-w", "--weights", metavar="FILE", help="Model file, or the result of an earlier run, instead of --units.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same weights, on any machine."
)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help=".h5 or .hdf5 for all, .npy for the outputs alone, - for them as an NPY stream. "
    "[default: INPUT.lstm.h5 in this folder]",
)
@click.option(
    "--states",
    metavar="PATH",
    help="NPZ for the final states, when the output is not HDF5. [default: NAME.states.npz; none with -]",
)
@click.option(
    "--save",
    type=Names("outputs", "states"),
    default="outputs,states",
    show_default=True,
    help="What the result holds.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    default="float32",
    show_default=True,
    help="What to compute in.",
)
@click.option("--threads", type=click.IntRange(min=1), help="At most so many.  [default: the CPUs that this process may use]")
@click.option(
    "--max-memory",
    type=Size(),
    default="1GB",
    show_default=True,
    help="Of the whole program, whatever the file's size.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output, once the new one is complete.")
@click.option("--dry-run", is_flag=True, help="Check everything and print the summary; compute and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("-q", "--quiet", is_flag=True, help="Print neither summary nor progress.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "log", "none"]),
    default="auto",
    show_default=True,
    help="On stderr; auto: a bar on a terminal, else a line now and then.",
)
def run(as_json: bool, quiet: bool, progress: str, **options: Any) -> None:
    """Run a model over a file of padded sequences and store its outputs and final states.

    \b
    lstmcli run --input x.h5 --lens lens.npy --units 7
    lstmcli run -i speech.h5::/embeddings -w model.h5 -o out.npy
    make-embeddings | lstmcli run -i - -l lens.npy -w model.h5 -o - | use-outputs
    """
    from lstmcli import report
    from lstmcli.run import Job
    from lstmcli.run import run as run_job

    if (options["units"] is None) == (options["weights"] is None):
        raise click.UsageError("expected either --units, for new weights, or --weights FILE")
    job = Job(**options)
    with report.progress("none" if quiet else progress) as on_progress:
        facts = run_job(job, on_progress)
    if not quiet:
        report.summary(facts, as_json, sys.stderr if job.output == "-" else sys.stdout)


@lstmcli.group()
def model() -> None:
    """Make and look at model files."""


@model.command(short_help="Make a model with new weights.")
@click.option("--input-size", type=click.IntRange(min=1), required=True, help="Features of a step.")
@click.option("-u", "--units", type=IntegerList(), required=True, help="Units of each layer, bottom to top.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same weights, on any machine."
)
@click.option("-o", "--output", metavar="FILE", required=True, help="The model file to make.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def init(input_size: int, units: tuple[int, ...], seed: int, output: str, overwrite: bool) -> None:
    """Make a model file with TensorFlow's initial weights: Glorot-uniform kernels, zero bias, forget_bias 1."""
    from pathlib import Path

    from lstmcli import report
    from lstmcli.model import init_model
    from lstmcli.model_file import save_model

    made = init_model(input_size, units, seed)
    save_model(made, Path(output), overwrite)
    report.model(made, output, as_json=False)


@model.command(short_help="Show a model's layers, shapes and parameters.")
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tree.")
def show(file: str, as_json: bool) -> None:
    """Show the layers, shapes and parameter counts of a model file, or of the model in a result."""
    from lstmcli import report
    from lstmcli.model_file import load_model

    report.model(load_model(file), file, as_json)
