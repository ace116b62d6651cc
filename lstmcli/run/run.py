"""One run, from its options to a result that has its name."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from lstmcli.blocks import steps_until
from lstmcli.errors import UsageError
from lstmcli.results.formats.paths import Paths, check_paths, refuse_inputs
from lstmcli.results.naming import check_left_overs, publishing
from lstmcli.run.computation import Work, computation_of, is_compiled
from lstmcli.run.job import Job
from lstmcli.run.memory import block_limits, memory_note
from lstmcli.run.opened_job import OpenedJob, open_job
from lstmcli.run.pipeline import Pipeline, Progress
from lstmcli.run.stop import Stop
from lstmcli.run.summary import describe, measured, metadata_of, with_origins


def run(
    job: Job, on_progress: Progress, stop: Stop | None = None, on_compile: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Runs a job. Returns its facts, ready for JSON: input, lengths, model, outputs, state, output, seconds, ...

    on_compile: called before the kernel is compiled, if it must be. The result gets its name only when it is complete and on
    disk. What a run that was stopped or failed has done stays in OUT.partial and OUT.journal for another one with `resume`;
    nothing stays where nothing was done, or the input is bad. Raises LstmcliError.
    """
    stop, resources = stop or Stop(), job.resources
    paths = job.paths()
    refuse_inputs(paths, job.files(), job.inputs.follow_links)
    with open_job(job) as opened:
        # After the inputs: who mistypes a name beside a result of before is not to be told of the result first.
        check_paths(paths, resources.overwrite, resources.resume)
        compute = opened.job.compute
        facts = describe(opened, paths)
        resumable = can_resume(opened, paths, stop)
        if resources.dry_run:
            from lstmcli.run.estimate import estimate

            return facts | {"estimate": estimate(opened, paths, facts["threads"])}
        if not is_compiled(opened.model, compute):
            on_compile()
        work = Work(int(opened.lengths.sum()), resources.max_memory)
        computation = computation_of(opened.model, compute, facts["threads"], work)
        if note := memory_note(computation, opened.source, resources.max_memory):
            facts["notes"].append(note)
        began = time.perf_counter()
        arrays = compute.arrays(opened.model, len(opened.lengths), opened.source.shape[1])
        fingerprint = opened.fingerprint()
        made = with_origins(metadata_of(opened), opened.job, fingerprint)
        journaled = fingerprint if resumable else None
        resumed, nonfinite = int(opened.lengths.sum()), None
        with (
            stop.deferred() if resumable else nullcontext(),
            publishing(paths, arrays, made, journaled, resources.overwrite, resources.resume) as result,
        ):
            if result:
                streams = opened.source.sequential or paths.main is None
                limits = block_limits(computation, opened.source, opened.lengths, resources.max_memory, streams)
                check_input = partial(opened.check_input, limit=limits.rows)
                before = result.restored(computation.state_forms, check_input)
                resumed = steps_until(before.span, opened.lengths) if before else 0
                nonfinite = Pipeline(opened, computation, limits, result, stop, on_progress).run(before)
                opened.finish()
                result.seal(nonfinite if compute.nonfinite != "pass" else None)
        return facts | measured(opened, resumed, nonfinite, time.perf_counter() - began)


def can_resume(opened: OpenedJob, paths: Paths, stop: Stop) -> bool:
    """Returns whether the run, once stopped, can be resumed.

    Raises UsageError where it cannot and an option wants that, and OutputError where an earlier run has left something.
    """
    if paths.main is not None and not opened.source.sequential:
        return True
    resources = opened.job.resources
    if not resources.overwrite:
        check_left_overs(paths)
    if resources.resume or stop.after is not None:
        option = "--resume" if resources.resume else "--stop-after"
        raise UsageError(f"{option}: a run from or to a pipe cannot be resumed; give files as input and output")
    return False
