"""The command line: parse, call one function, report."""

import gc
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from lstmcli.cli import cluster
from lstmcli.cli.options import (
    IntegerList,
    about_cells,
    about_input,
    about_machine,
    about_new_cells,
    about_result,
    about_weights,
    as_json,
    job_of,
    progress,
    quiet,
    residual,
    stop_after,
)
from lstmcli.errors import LstmcliError, StoppedError, StorageError
from lstmcli.version import __version__

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
BROKEN_PIPE = StorageError.exit_code


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read our output has seen enough. Quiet; and nothing more may be flushed when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(BROKEN_PIPE)


def main() -> None:
    """Entry point. Ends the process with the exit code of what happened."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: no file of ours may take its number, and with it what is printed
            os.open(os.devnull, os.O_RDWR)
    # libhdf5 shall not search for filter plugins, which are libraries that it would run; it reads this when it is loaded.
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy starts a thread for every CPU; only `bench` uses its products
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    stdout = sys.stdout
    try:
        code = lstmcli.main(standalone_mode=False) or 0
        if sys.stdout:
            sys.stdout.flush()
        end(code)
    except SystemExit:
        if sys.stdout is not stdout:  # click met a broken pipe while it printed help, and wrapped it
            sys.exit(BROKEN_PIPE)
        raise
    except click.exceptions.NoArgsIsHelpError as error:
        end(error.exit_code, error.format_message())
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx:
            hint = f" (see {error.ctx.command_path} --help)"
        fail(error.format_message() + hint, error.exit_code)
    except StoppedError as error:
        fail(f"{error}; go on with: {resuming(sys.argv)}", error.exit_code)
    except LstmcliError as error:
        fail(str(error), error.exit_code)
    except MemoryError:
        fail("out of memory; a smaller --max-memory or a smaller model takes less", 1)
    except (OSError, ImportError, SystemError) as error:  # of standard output or a library: those of files are LstmcliError
        code = StorageError.exit_code if getattr(error, "errno", None) else 1
        fail(f"{error}; is something full, or a limit too low (ulimit -a)?", code)
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        fail(f"{error}: out of memory, or a limit is too low (ulimit -a); fewer --threads take less", 1)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted", 130)


def resuming(argv: list[str]) -> str:
    """The command, for a shell, that goes on with the run of this one."""
    words = [shell_word(word) for word in argv[1:] if word != "--resume"]
    return " ".join(["lstmcli", *words, "--resume"])


def shell_word(word: str) -> str:
    """Quoted for a shell; what a terminal must not get, or what would break the line, in bash's notation."""
    if word.isprintable():
        return shlex.quote(word)
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in os.fsencode(word))
    return f"$'{''.join(plain)}'"


def fail(message: str, code: int) -> NoReturn:
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message.replace("\n", " "))
    end(code, f"lstmcli: {line}")


def end(code: int, message: str = "") -> NoReturn:
    """Ends the process with this code, even if the message cannot be printed."""
    with suppress(OSError):
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    # Everything is on disk. Taking LLVM and the interpreter apart in order would take longer than a small run.
    os._exit(code)


@click.group(cls=Commands, context_settings=HELP)
@click.version_option(__version__, message="%(prog)s %(version)s")
def lstmcli() -> None:
    """Run LSTMs over padded sequence files. Padding is never read, computed or written."""


@lstmcli.command(short_help="Run a model over a file of sequences.")
@about_input
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
@about_result
@about_machine
@click.option("--overwrite", is_flag=True, help="Replace an existing output, once the new one is complete.")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped; if there is none, begin.")
@stop_after
@click.option("--plan", metavar="PLAN", help="In place of all that says what to run: make a part of what `lstmcli plan` wrote.")
@click.option("--shard", metavar="K", help="Which part, from 1 on; auto: what the scheduler's variables say.")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Let a Dask cluster compute: tcp://HOST:PORT, tls://HOST:PORT, a scheduler file, or local:N for N processes here.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and print the summary; compute and write nothing.")
@as_json
@quiet
@progress
@click.pass_context
def run(
    ctx: click.Context,
    /,
    as_json: bool,
    quiet: bool,
    progress: str,
    stop_after: float | None,
    plan: str | None,
    shard: str | None,
    scheduler: str | None,
    **options: Any,
) -> None:
    """Run a model over a file of padded sequences and store its outputs and final states.

    \b
    lstmcli run --input x.h5 --lens lens.npy --units 7
    lstmcli run -i speech.h5::/embeddings -w model.h5 -o out.npy
    make-embeddings | lstmcli run -i - -l lens.npy -w model.h5 -o - | use-outputs
    lstmcli run --plan plan.json --shard 3
    """
    from lstmcli.cli import report
    from lstmcli.run.stop import Stop

    gc.freeze()
    gc.enable()

    def on_compile() -> None:
        if not quiet:
            report.note("compiling the kernel for this CPU and kind of cell, once")

    if (plan is None) != (shard is None):
        raise click.UsageError("--plan PLAN and --shard K go together")
    if scheduler is not None and options["dry_run"]:
        raise click.UsageError("--dry-run: nothing would be computed; leave --scheduler out")
    stop = Stop(stop_after)
    with stop.heed_signals(), report.progress("none" if quiet else progress) as on_progress:
        how: dict[str, Any] = {"on_progress": on_progress, "stop": stop, "on_compile": on_compile}
        if plan is not None and shard is not None:
            facts = cluster.run_shard(ctx, plan, shard, how)
        elif scheduler is not None:
            from lstmcli.cluster.dask_client import run_on

            facts = run_on(scheduler, job_of(options), on_progress, stop, report.note)
        else:
            from lstmcli.run.run import run as run_job

            if options["output"] == "-" and sys.stdout and sys.stdout.isatty():
                raise click.UsageError("--output -: expected a pipe or a file to write binary data to, got a terminal")
            facts = run_job(job_of(options), **how)
    if facts is None:
        return
    if (found := facts["nonfinite"]) and found["steps"]:
        report.note(
            f"{facts['input']['path']}: NaN or Inf in {found['steps']:,} of {facts['valid_steps']:,} valid steps, "
            f"first in sequence {found['row']}, step {found['step']}"
        )
    report.warnings(facts)
    if not quiet:
        for note in facts["notes"]:
            report.note(note)
        report.summary(facts, as_json, sys.stderr if facts["output"] == "-" else sys.stdout)


lstmcli.add_command(cluster.plan)
lstmcli.add_command(cluster.merge)


@lstmcli.command(short_help="Check that files are whole and hold what was written.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing about files that are right.")
def verify(files: tuple[str, ...], quiet: bool) -> None:
    """Check results, and the model, NPY and NPZ files beside them: is each whole, and are its checksums right?"""
    from lstmcli.cli import report
    from lstmcli.results.verify import verify as verify_file

    failed: LstmcliError | None = None
    for file in files:
        try:
            found = verify_file(file)
        except LstmcliError as error:
            if failed:
                report.note(str(failed))
            failed = error
        else:
            if not quiet:
                report.found(file, found)
    if failed:
        raise failed


@lstmcli.group()
def model() -> None:
    """Make and look at model files."""


@model.command(short_help="Make a model with new weights.")
@click.option("--input-size", type=click.IntRange(min=1), required=True, help="Features of a step.")
@click.option("-u", "--units", type=IntegerList(), required=True, help="Units of each layer, bottom to top.")
@about_new_cells
@click.option("--residual", is_flag=True, help="The input of every new layer but the first is added to its output.")
@about_cells
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same weights, on any machine."
)
@click.option("-o", "--output", metavar="FILE", required=True, help="The model file to make.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def init(
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
    from lstmcli.cli import report
    from lstmcli.model.model_file import save_model
    from lstmcli.model.new_weights import CellOptions, init_model

    made = init_model(input_size, units, seed, CellOptions.chosen(**options), bidirectional, residual)
    save_model(made, Path(output), overwrite)
    report.model(made, output, as_json=False)


@model.command("import", short_help="Make a model file of weights from elsewhere.")
@click.argument("file")
@click.option("-o", "--output", metavar="FILE", required=True, help="The model file to make.")
@about_weights
@residual
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def import_(file: str, output: str, overwrite: bool, **choices: Any) -> None:
    """Make a model file of what PyTorch (.safetensors, .pt), Keras (.keras, .h5), TensorFlow 1 (X.index) or ONNX wrote.

    Prints which tensor became which field of which layer, what was left out, and what was assumed. Nothing in FILE is run.
    """
    from lstmcli.cli import report
    from lstmcli.model.model_file import save_model
    from lstmcli.weights.load import Choices, load_weights

    found = load_weights(file, Choices(**choices))
    save_model(found.model, Path(output), overwrite)
    report.imported(found, file, output)


@model.command(short_help="Write weights as torch.nn.LSTM takes them.")
@click.argument("file")
@click.option("-o", "--output", metavar="FILE", required=True, help="The .safetensors file to make.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def export(file: str, output: str, overwrite: bool) -> None:
    """Write the weights of a model as safetensors, under the names of torch.nn.LSTM, where PyTorch can express the model.

    forget_bias goes into bias_ih; bias_hh is what float32 cannot hold of a sum, mostly zeros.
    """
    from lstmcli.cli import report
    from lstmcli.weights.load import Choices, load_weights
    from lstmcli.weights.pytorch import export as write

    found = load_weights(file, Choices())
    for warning in found.warnings():
        report.note(warning)
    report.exported(write(found.model, Path(output), overwrite), output)


@model.command(short_help="Show a model's layers, shapes and parameters.")
@click.argument("file")
@about_weights
@residual
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tree.")
def show(file: str, as_json: bool, **choices: Any) -> None:
    """Show the layers, shapes and parameter counts of a model file, of the model in a result, or of weights from elsewhere."""
    from lstmcli.cli import report
    from lstmcli.weights.load import Choices, load_weights

    found = load_weights(file, Choices(**choices))
    for note in (*found.notes, *found.warnings()):
        report.note(note)
    report.model(found.model, file, as_json)


@lstmcli.command(short_help="Show versions, CPU, threads and the cache of kernels.")
@click.option("--warmup", is_flag=True, help="Compile the kernels that are not in the cache, for images and cluster nodes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the lines.")
def env(warmup: bool, as_json: bool) -> None:
    """Show what this installation runs on: versions, CPU, threads, and which kernels are in the cache."""
    from lstmcli.cli import report
    from lstmcli.tools.environment import describe, warm_up

    if warmup:
        warm_up()
    report.facts(describe(), as_json)


@lstmcli.command(short_help="Compare with PyTorch, ONNX Runtime and OpenVINO on your shapes.")
@click.option("--batch", type=click.IntRange(min=1), help="Sequences.  [default: 64]")
@click.option("--time", type=click.IntRange(min=1), help="Steps of the longest one.  [default: 100]")
@click.option("--embed", type=click.IntRange(min=1), help="Features of a step.  [default: 128]")
@click.option("--units", type=click.IntRange(min=1), help="Units of the one layer.  [default: 128]")
@click.option("--fill", type=click.FloatRange(0, 1, min_open=True), help="Part that is not padding.  [default: 0.5]")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of every contender.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def bench(threads: int, as_json: bool, **shape: Any) -> None:
    """Compare with whatever of PyTorch, ONNX Runtime and OpenVINO is installed, and with NumPy's matrix product.

    From a padded array in memory to a padded array. Peers run the batch in one call, and sorted and cut into trimmed buckets.
    With no shape given, a table of shapes from small to large.
    """
    # BLAS and OpenMP read these when NumPy is imported.
    os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), str(threads))
    from lstmcli.cli import report
    from lstmcli.tools.bench import CASES, Case, measure

    chosen = {name: value for name, value in shape.items() if value is not None}
    cases = (Case(**chosen),) if chosen else CASES
    report.bench(((case, measure(case, threads)) for case in cases), threads, as_json)
