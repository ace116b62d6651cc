"""Facts of what is not done yet: a result that was stopped, out of its journal, and a plan with its parts."""

import fcntl
import os
from pathlib import Path
from typing import Any

from lstmcli.cluster.plan import read_plan
from lstmcli.errors import DataError, MissingInputError, shown
from lstmcli.files.partial_file import partial_name
from lstmcli.files.positioned_file import is_file
from lstmcli.results.formats.paths import journal_name
from lstmcli.results.journal import check_format, read_journal, sequences_until
from lstmcli.run.job import Weights

Facts = dict[str, Any]
LOCKS = Path("/proc/locks")  # Linux
ORIGINS = ("input", "options", "lstmcli", "assumed", "initial_state", "rows")


def about_stopped(spec: str) -> Facts:
    """Returns what of a result is done. Raises MissingInputError, DataError where the journal tells nothing."""
    path = Path(spec.removesuffix(".partial").removesuffix(".journal"))
    journal, partial = journal_name(path), partial_name(path)
    if not is_file(journal):
        raise DataError(f"{shown(spec)}: is what a run has left, but {journal.name} is missing, which says what of it is done")
    try:
        content = journal.read_bytes()
    except OSError as error:
        raise MissingInputError(f"{shown(str(journal))}: cannot be opened: {error.strerror}") from error
    run: Facts = {}

    def check(first: Any) -> None:
        check_format(first, journal)
        run.update(first["run"])

    done, ahead, sealed, size = read_journal(content, check)
    if not size:
        raise DataError(f"{shown(str(journal))}: is damaged, so nothing tells what is done; --overwrite starts again")
    shape = run.get("input", {}).get("shape") or [0]
    rows = run.get("rows")
    total = rows[1] - rows[0] if rows else shape[0]
    sequences = done[-1].span.first + done[-1].span.count * done[-1].span.last if done else 0
    behind = sum(sequences_until(spans) - first for first, spans in ahead.items())
    writes = is_locked(journal)
    state = "complete, but without its name" if sealed else f"{sequences:,} of {total:,} sequences are on disk"
    state += f", and {behind:,} behind a gap" if behind and not sealed else ""
    advice = "a run is writing it now" if writes else "the same command with --resume goes on, --overwrite starts again"
    return {
        "what": f"result of a run that {'goes on' if writes else 'was stopped'}: {state}",
        "stopped": {
            "output": str(path),
            "sequences": total,
            "sequences_done": total if sealed else sequences,
            "complete": sealed,
            "being_written": writes,
            "partial_bytes": partial.stat().st_size if is_file(partial) else None,
        },
        "made_of": {
            name: run[name] for name in ("input", "options", "lstmcli", "assumed", "initial_state", "rows") if name in run
        },
        "notes": [advice],
    }


def is_locked(path: Path) -> bool:
    """Says whether a process has a lock on a file: where the system lists them, without trying to take one.

    A run that starts just now must get it.
    """
    try:
        locks = LOCKS.read_text()
    except OSError:
        return is_refused(path)
    status = path.stat()
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(place in line.split() for line in locks.splitlines())


def is_refused(path: Path) -> bool:
    """Says whether a lock on a file is refused; one that is got ends at once."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # a file system without locks
    return False


def about_plan(spec: str) -> Facts:
    """Returns the facts of a plan. Raises DataError for a damaged one."""
    plan = read_plan(spec)
    there = [number for number in plan.numbers if plan.part_path(number).exists()]
    job = plan.job
    return {
        "what": f"plan of {len(plan):,} parts over {plan.shape[0]:,} sequences, {len(there):,} of them there",
        "plan": {
            "parts": len(plan),
            "parts_there": there,
            "folder": str(plan.folder()),
            "cuts": list(plan.cuts),
            "command": "predict" if isinstance(job.model, Weights) and job.model.whole else "run",
        },
        "made_of": {
            "input": plan.run["input"] | {"path": job.inputs.input, "lens": job.inputs.lens},
            "weights": job.model.origin(),
            "options": plan.run.get("options"),
            "versions": {"lstmcli": plan.run.get("lstmcli")},
        },
        "notes": ["lstmcli merge checks the parts"],
    }
