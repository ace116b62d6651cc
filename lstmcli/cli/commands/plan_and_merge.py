"""`lstmcli plan` and `lstmcli merge`: one run on many machines."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from lstmcli.cli.command import Command, option
from lstmcli.cli.options import (
    as_json,
    chain,
    computing_options,
    input_options,
    job_of,
    model_options,
    overwrite,
    progress,
    quiet,
    refuse_typed,
    result_options,
    stop_options,
)
from lstmcli.cli.param_types import FILE_NAME

if TYPE_CHECKING:
    from lstmcli.cli.report.terminal import Terminal
    from lstmcli.cluster.plan import Plan


@click.command(
    cls=Command,
    short_help="Cut a run into parts for many machines.",
    examples=[
        "lstmcli plan -i x.h5 -w model.h5 --shards 64 -o plan.json --format slurm > job.sh",
        "sbatch job.sh",
        "lstmcli plan --missing plan.json",
        "lstmcli merge plan.json -o result.h5",
    ],
    topics=["cluster", "inputs", "models"],
)
@input_options
@model_options
@option("Model", "--predict", is_flag=True, help="Plan a run of `lstmcli predict`: the whole model of --weights.")
@chain
@option(
    "Output",
    "-o",
    "--output",
    type=FILE_NAME,
    metavar="PLAN",
    help="The plan to write, NAME.json. The folder NAME.parts beside it is for the parts.",
)
@result_options
@overwrite
@option("Output", "--dry-run", is_flag=True, help="Print what each part would read, compute and store, but write nothing.")
@computing_options
@option(
    "Cluster",
    "--shards",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Cut the run into N parts with about as many steps each.",
)
@option(
    "Cluster",
    "--missing",
    type=FILE_NAME,
    metavar="PLAN",
    help="Make no plan, but print which parts of this one are still to be made, such as 1-2,5.",
)
@option(
    "Cluster",
    "--format",
    type=click.Choice(["slurm", "pbs", "sge", "lsf"]),
    help="Print the script of a job array with a task for each part; with --missing, for each part that is missing.",
)
@as_json
@quiet
@click.pass_context
def plan(
    ctx: click.Context,
    /,
    terminal: "Terminal",
    shards: int | None,
    output: str | None,
    overwrite: bool,
    missing: str | None,
    format: str | None,
    dry_run: bool,
    predict: bool,
    **options: Any,
) -> None:
    """Cut a run into parts of consecutive sequences. Any machine can make a part, in any order; `lstmcli merge` joins them."""
    if format and terminal.json:
        raise click.UsageError("--format and --json both say what to print; choose one")
    if missing is not None:
        refuse_typed(ctx, {"missing", "format"}, "not with --missing, which makes no plan; leave it out")
        print_missing(terminal, missing, format)
        return
    if shards is None or output is None:
        raise click.UsageError("expected --shards N and --output PLAN, or --missing PLAN")
    from pathlib import Path

    from lstmcli.cli.report.run_summary import plan_rows, weight_warnings
    from lstmcli.cluster.plan import make_plan, write_plan

    made, facts = make_plan(job_of(options | {"whole": predict}), shards, Path(output))
    if not dry_run:
        write_plan(made, overwrite)
    for warning in weight_warnings(facts):
        terminal.warn(warning)
    for note in facts["notes"]:
        terminal.note(note)
    if len(made) < shards:
        terminal.note(f"{len(made)} parts instead of {shards}: sequences and chunks stay whole")
    if not terminal.quiet:
        facts["dry_run"] = dry_run
        terminal.print_rows(facts, plan_rows(facts), to_stderr=format is not None)
    if format:
        print_script(terminal, made, format, made.numbers)


def print_missing(terminal: "Terminal", path: str, format: str | None) -> None:
    """Prints which parts of a plan are still to be made: as an expression, as JSON, or as a job script."""
    from lstmcli.cluster.job_scripts import array_expression
    from lstmcli.cluster.parts import missing
    from lstmcli.cluster.plan import read_plan
    from lstmcli.errors import MissingInputError

    plan = read_plan(path)
    found = missing(plan)
    wrong = {number: str(error) for number, error in found.items() if not isinstance(error, MissingInputError)}
    for number, text in wrong.items():
        terminal.note(f"part {number}: {text}")
    expression = array_expression(list(found))
    if terminal.json:
        terminal.print_json({"plan": path, "parts": len(plan), "missing": list(found), "wrong": wrong, "array": expression})
    elif format and found:
        print_script(terminal, plan, format, list(found))
    elif found:
        terminal.print(expression + "\n")


def print_script(terminal: "Terminal", plan: "Plan", format: str, numbers: Sequence[int]) -> None:
    from lstmcli.cluster.job_scripts import job_script

    terminal.print(job_script(format, plan.path, numbers, plan.job.resources.threads or 1, plan.job.resources.max_memory))


@click.command(
    cls=Command,
    short_help="Join the parts of a plan.",
    examples=["lstmcli merge plan.json -o result.h5", "lstmcli merge plan.json -o result.h5 --virtual"],
    topics=["cluster", "results"],
)
@click.argument("plan", type=FILE_NAME)
@option(
    "Output",
    "-o",
    "--output",
    type=FILE_NAME,
    metavar="PATH",
    required=True,
    help="The result: .h5 or .hdf5 holds everything, .npy the outputs alone.",
)
@option(
    "Output",
    "--states",
    type=FILE_NAME,
    metavar="PATH",
    show_default="NAME.states.npz beside NAME.npy",
    help="An NPZ file for the final states, where the output is not HDF5.",
)
@option(
    "Output", "--virtual", is_flag=True, help="Make a small HDF5 file that shows the parts as one. It needs them later, too."
)
@overwrite
@stop_options
@as_json
@quiet
@progress
def merge(
    terminal: "Terminal",
    plan: str,
    output: str,
    states: str | None,
    virtual: bool,
    overwrite: bool,
    resume: bool,
    stop_after: float | None,
) -> None:
    """Join the parts of a plan to the result that one run would have made, byte for byte. Every part is checked."""
    from lstmcli.cli.report.run_summary import merge_rows
    from lstmcli.cluster import merge as merging
    from lstmcli.cluster.plan import read_plan
    from lstmcli.run.stop import Stop

    if virtual and (resume or stop_after is not None):
        raise click.UsageError("--virtual: is made at once; leave --resume and --stop-after out")
    found, stop = read_plan(plan), Stop(stop_after)
    with stop.heed_signals(), terminal.progress(plan, None) as on_progress:
        if virtual:
            facts = merging.merge_virtual(found, output, states, overwrite)
        else:
            facts = merging.merge(found, output, states, overwrite, resume, on_progress, stop)
    if not terminal.quiet:
        terminal.print_rows(facts, merge_rows(facts))
