"""The commands for many machines: plan, merge, and what `run` does with a plan."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lstmcli.cli.options import (
    about_input,
    about_machine,
    about_result,
    as_json,
    given,
    job_of,
    progress,
    quiet,
    refuse_given,
    stop_after,
)

OF_RUN = {"threads", "max_memory", "overwrite", "resume", "dry_run"}  # fields of Job that are not for the plan to say
TALK = {"as_json", "quiet", "progress", "stop_after"}


def run_shard(ctx: click.Context, plan: str, shard: str, how: dict[str, Callable[..., Any]]) -> dict[str, Any] | None:
    """`lstmcli run --plan PLAN --shard K`: the facts of run(), or None where the part was there already."""
    from lstmcli.cli import report
    from lstmcli.cluster.job_scripts import task_index
    from lstmcli.cluster.parts import run_part
    from lstmcli.cluster.plan import read_plan
    from lstmcli.errors import UsageError

    refuse_given(ctx, OF_RUN | TALK | {"plan", "shard"}, "the plan says what to run; leave it out")
    settings = {name: value for name, value in given(ctx).items() if name in OF_RUN}
    found = read_plan(plan)
    if shard == "auto":
        number, variable = task_index(os.environ)
        if not ctx.params["quiet"]:
            report.note(f"part {number} of {len(found)}, as {variable} says")
    elif shard.isascii() and shard.isdecimal():
        number = int(shard)
    else:
        raise UsageError(f"--shard {shard}: expected a whole number from 1 on, or auto")
    part = found.part(found.checked(number))
    facts = run_part(found, number, settings, **how)
    if facts is None and not ctx.params["quiet"]:
        known = {"output": str(found.part_path(number)), "part": [part.first, part.stop], "already_done": True}
        report.already_done(known, ctx.params["as_json"])
    return facts


@click.command(short_help="Cut a run into parts for many machines.")
@about_input
@about_result
@about_machine
@click.option("--shards", type=click.IntRange(1, 1_000_000), metavar="N", help="How many parts, of about as many steps.")
@click.option("-o", "--output", metavar="PLAN", help="The plan to write, NAME.json; the parts will be in NAME.parts.")
@click.option("--overwrite", is_flag=True, help="Replace an existing plan.")
@click.option("--missing", metavar="PLAN", help="Instead: print which parts of a plan are still to be made, such as 1-2,5.")
@click.option(
    "--format",
    "scheduler",
    type=click.Choice(["slurm", "pbs", "sge", "lsf"]),
    help="Print a job script, an array with a task for each part, or for each that is missing.",
)
@click.option("--dry-run", is_flag=True, help="Print what each part reads, computes and stores; write nothing.")
@as_json
@quiet
@click.pass_context
def plan(
    ctx: click.Context,
    /,
    shards: int | None,
    output: str | None,
    overwrite: bool,
    missing: str | None,
    scheduler: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Cut a run into parts of consecutive sequences that any machine can make, in any order, for `lstmcli merge` to join.

    \b
    lstmcli plan -i x.h5 -w model.h5 --shards 64 -o plan.json --format slurm > job.sh
    sbatch job.sh
    lstmcli plan --missing plan.json
    lstmcli merge plan.json -o result.h5
    """
    from lstmcli.cli import report

    if scheduler and as_json:
        raise click.UsageError("--format and --json both say what to print; choose one")
    if missing is not None:
        refuse_given(ctx, {"missing", "scheduler", "as_json", "quiet"}, "not with --missing, which makes no plan; leave it out")
        print_missing(missing, scheduler, as_json, quiet)
        return
    if shards is None or output is None:
        raise click.UsageError("expected --shards N and --output PLAN, or --missing PLAN")
    from lstmcli.cluster.plan import make_plan, write_plan

    made, facts = make_plan(job_of(options), shards, Path(output))
    if not dry_run:
        write_plan(made, overwrite)
    report.warnings(facts)
    if not quiet:
        for note in facts["notes"]:
            report.note(note)
        if len(made) < shards:
            report.note(f"{len(made)} parts instead of {shards}: sequences and chunks stay whole")
        report.plan(facts | {"dry_run": dry_run}, as_json, sys.stderr if scheduler else sys.stdout)
    if scheduler:
        print_script(made, scheduler, made.numbers)


def print_missing(path: str, scheduler: str | None, as_json: bool, quiet: bool) -> None:
    from lstmcli.cli import report
    from lstmcli.cluster.job_scripts import array_expression
    from lstmcli.cluster.parts import missing
    from lstmcli.cluster.plan import read_plan
    from lstmcli.errors import MissingInputError

    plan = read_plan(path)
    found = missing(plan)
    wrong = {number: str(error) for number, error in found.items() if not isinstance(error, MissingInputError)}
    if not quiet:
        for number, text in wrong.items():
            report.note(f"part {number}: {text}")
    expression = array_expression(list(found))
    if as_json:
        report.facts({"plan": path, "parts": len(plan), "missing": list(found), "wrong": wrong, "array": expression}, as_json)
    elif scheduler and found:
        print_script(plan, scheduler, list(found))
    elif found:
        report.text(expression + "\n")


def print_script(plan: Any, scheduler: str, numbers: Any) -> None:
    from lstmcli.cli import report
    from lstmcli.cluster.job_scripts import job_script

    report.text(job_script(scheduler, plan.path, numbers, plan.job.threads or 1, plan.job.max_memory))


@click.command(short_help="Join the parts of a plan.")
@click.argument("plan")
@click.option("-o", "--output", metavar="PATH", required=True, help=".h5 or .hdf5 for all, .npy for the outputs alone.")
@click.option("--states", metavar="PATH", help="NPZ for the final states, when the output is not HDF5.")
@click.option("--virtual", is_flag=True, help="Make a small HDF5 file that shows the parts as one, and needs them.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, once the new one is complete.")
@click.option("--resume", is_flag=True, help="Go on with a merge that was stopped; if there is none, begin.")
@stop_after
@as_json
@quiet
@progress
def merge(
    plan: str,
    output: str,
    states: str | None,
    virtual: bool,
    overwrite: bool,
    resume: bool,
    stop_after: float | None,
    as_json: bool,
    quiet: bool,
    progress: str,
) -> None:
    """Join the parts of a plan to the result that one run would have made, byte for byte. Every part is checked.

    \b
    lstmcli merge plan.json -o result.h5
    lstmcli merge plan.json -o result.h5 --virtual
    """
    from lstmcli.cli import report
    from lstmcli.cluster import merge as merging
    from lstmcli.cluster.plan import read_plan
    from lstmcli.run.stop import Stop

    if virtual and (resume or stop_after is not None):
        raise click.UsageError("--virtual: is made at once; leave --resume and --stop-after out")
    found, stop = read_plan(plan), Stop(stop_after)
    with stop.heed_signals(), report.progress("none" if quiet else progress) as on_progress:
        if virtual:
            facts = merging.merge_virtual(found, output, states, overwrite)
        else:
            facts = merging.merge(found, output, states, overwrite, resume, on_progress, stop)
    if not quiet:
        report.merged(facts, as_json)
