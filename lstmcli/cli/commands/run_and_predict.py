"""`lstmcli run` and `lstmcli predict`: a model over a file."""

import os
from typing import TYPE_CHECKING, Any

import click

from lstmcli.cli.command import Command, option
from lstmcli.cli.options import (
    as_json,
    computing_options,
    dry_run,
    given,
    input_options,
    job_of,
    layout,
    model_options,
    overwrite,
    progress,
    quiet,
    refuse_typed,
    result_options,
    scheduler_address,
    stop_options,
    store,
    verbose,
    whole_input_options,
    whole_model_options,
)
from lstmcli.cli.param_types import FILE_NAME

if TYPE_CHECKING:
    from lstmcli.cli.report.terminal import Terminal
    from lstmcli.run.job import Job


@click.command(
    cls=Command,
    short_help="Run a model over a file of sequences.",
    examples=[
        "lstmcli run --input x.h5 --lens lens.npy --units 7",
        "lstmcli run -i speech.h5::/embeddings -w model.h5 -o out.npy",
        "make-embeddings | lstmcli run -i - -l lens.npy -w model.h5 -o - | use-outputs",
        "lstmcli run --plan plan.json --shard 3",
    ],
    topics=["inputs", "models", "weights", "results", "reliability", "pipelines"],
)
@input_options
@model_options
@option(
    "Output",
    "-o",
    "--output",
    type=FILE_NAME,
    metavar="PATH",
    show_default="INPUT.lstm.h5 in this folder",
    help="The result: .h5 or .hdf5 holds everything, .npy the outputs alone; - writes them to standard output as NPY.",
)
@option(
    "Output",
    "--states",
    type=FILE_NAME,
    metavar="PATH",
    show_default="NAME.states.npz beside NAME.npy; none with -",
    help="An NPZ file for the final states, where the output is not HDF5.",
)
@result_options
@overwrite
@dry_run
@computing_options
@stop_options
@option("Cluster", "--plan", type=FILE_NAME, metavar="PLAN", help="Make one part of a plan that `lstmcli plan` wrote.")
@option(
    "Cluster",
    "--shard",
    metavar="K",
    help="Which part of the plan to make, from 1 on; auto takes the task's number from the scheduler of the cluster.",
)
@scheduler_address
@as_json
@quiet
@verbose
@progress
@click.pass_context
def run(
    ctx: click.Context,
    /,
    terminal: "Terminal",
    stop_after: float | None,
    plan: str | None,
    shard: str | None,
    scheduler: str | None,
    **options: Any,
) -> None:
    """Run a model over a file of padded sequences and store its outputs and final states."""
    if (plan is None) != (shard is None):
        raise click.UsageError("--plan PLAN and --shard K go together")
    if plan is not None and shard is not None:
        make_part(ctx, terminal, plan, shard, options, stop_after)
    else:
        run_job(terminal, job_of(options), scheduler, stop_after)


@click.command(
    cls=Command,
    short_help="Run a whole model over a file of sequences, to predictions.",
    examples=[
        "lstmcli predict -i tokens.npy -w model.keras -o predictions.csv",
        "lstmcli predict -i x.h5 -l lens.npy -w model.pt --chain 'embedding, lstm, final, fc, softmax' -o predictions.npy",
        "lstmcli predict -i tokens.npy -w model.keras -o top.csv --top 3 --labels names.txt",
    ],
    topics=["whole-models", "inputs", "weights", "results"],
)
@whole_input_options
@whole_model_options
@option(
    "Output",
    "-o",
    "--output",
    type=FILE_NAME,
    metavar="PATH",
    show_default="INPUT.predictions.h5 in this folder",
    help="The predictions: a table .csv or .tsv with a line for each sequence, .npy, or .h5 with the model and checksums; - "
    "writes them to standard output as NPY.",
)
@option(
    "Output",
    "--top",
    type=click.IntRange(min=1),
    metavar="K",
    show_default="all classes in their order",
    help="A table shows the K classes with the largest values, each with its value, the largest first.",
)
@option(
    "Output",
    "--labels",
    type=FILE_NAME,
    metavar="FILE",
    show_default="their numbers",
    help="A text with the name of a class on each line, for a table.",
)
@store
@layout
@overwrite
@dry_run
@computing_options
@stop_options
@scheduler_address
@as_json
@quiet
@verbose
@progress
def predict(terminal: "Terminal", stop_after: float | None, scheduler: str | None, **options: Any) -> None:
    """Run a whole model, with what stands before and after its LSTMs, over a file of sequences or of token ids."""
    run_job(terminal, job_of(options | {"units": None, "whole": True}), scheduler, stop_after)


def run_job(terminal: "Terminal", job: "Job", scheduler: str | None, stop_after: float | None) -> None:
    """Runs a job, here or on a cluster, and prints what came of it."""
    from lstmcli.run.stop import Stop

    resources = job.resources
    if scheduler is not None and resources.dry_run:
        raise click.UsageError("--dry-run: nothing would be computed; leave --scheduler out")
    if job.output.output == "-" and terminal.is_interactive():
        raise click.UsageError("--output -: expected a pipe or a file to write binary data to, got a terminal")
    stop, name = Stop(stop_after), in_short((job.inputs.input, *job.inputs.also))
    with stop.heed_signals(), terminal.progress(name, resources.threads) as on_progress:
        if scheduler is not None:
            from lstmcli.cluster.dask_client import run_on

            facts = run_on(scheduler, job, on_progress, stop, terminal.warn)
        else:
            from lstmcli.run.run import run

            facts = run(job, on_progress, stop, lambda: say_compiling(terminal))
    report(terminal, facts)


def in_short(inputs: tuple[str, ...]) -> str:
    return f"{inputs[0]} and {len(inputs) - 1} more" if len(inputs) > 1 else "".join(inputs)


def say_compiling(terminal: "Terminal") -> None:
    """Says why a run takes seconds to start, and how that can be had once instead of in each run."""
    from lstmcli.kernel.native.cache import ANOTHER_FOLDER, cache_folder, why_not_kept

    folder, why = cache_folder(), why_not_kept()
    if folder is None:
        terminal.warn(f"compiling the kernel, which no run can keep for the next: {why}; {ANOTHER_FOLDER}")
    elif why:
        terminal.note(f"compiling the kernel, once as long as it stays in {folder}: {why}; {ANOTHER_FOLDER}")
    else:
        terminal.note("compiling the kernel for this CPU and kind of cell, once")


def report(terminal: "Terminal", facts: dict[str, Any]) -> None:
    """Prints what a run found, assumed and did."""
    from lstmcli.cli.report.run_summary import run_rows, weight_warnings
    from lstmcli.errors import shown

    if (found := facts["nonfinite"]) and found["steps"]:
        of_id = f" ({shown(found['id'])})" if "id" in found else ""
        terminal.warn(
            f"{facts['input']['path']}: NaN or Inf in {found['steps']:,} of {facts['valid_steps']:,} valid steps, "
            f"first in sequence {found['row']}{of_id}, step {found['step']}"
        )
    for warning in weight_warnings(facts):
        terminal.warn(warning)
    for note in facts["notes"]:
        terminal.note(note)
    if not terminal.quiet:
        terminal.print_rows(facts, run_rows(facts, terminal.verbose), to_stderr=facts["output"] == "-")


def make_part(
    ctx: click.Context, terminal: "Terminal", plan: str, shard: str, options: dict[str, Any], stop_after: float | None
) -> None:
    """Makes a part of a plan, unless it is there already. options: those of the command that a job is made of."""
    from lstmcli.cluster.job_scripts import task_index
    from lstmcli.cluster.parts import run_part
    from lstmcli.cluster.plan import read_plan
    from lstmcli.errors import UsageError, shown
    from lstmcli.run.job import Resources
    from lstmcli.run.stop import Stop

    stop = Stop(stop_after)
    with stop.heed_signals(), terminal.progress(plan, options["threads"]) as on_progress:
        decided = options.keys() - set(Resources._fields)
        refuse_typed(ctx, ctx.params.keys() - decided - {"scheduler"}, "the plan says what to run; leave it out")
        found = read_plan(plan)
        resources = found.job.resources._replace(**given(ctx, set(Resources._fields)))
        if shard == "auto":
            number, variable = task_index(os.environ)
            terminal.note(f"part {number} of {len(found)}, as {variable} says")
        elif shard.isascii() and shard.isdecimal():
            number = int(shard)
        else:
            raise UsageError(f"--shard {shard}: expected a whole number from 1 on, or auto")
        part = found.part(found.checked(number))
        facts = run_part(
            found, number, resources, on_progress=on_progress, stop=stop, on_compile=lambda: say_compiling(terminal)
        )
    if facts is not None:
        report(terminal, facts)
    elif not terminal.quiet:
        path = str(found.part_path(number))
        known = {"output": path, "part": [part.first, part.stop], "already_done": True}
        terminal.print_rows(known, [("output", f"{shown(path)}  was there already, whole: nothing computed")])
