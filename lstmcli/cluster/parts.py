"""The parts of a plan: which are there, whole and right, and how one is made."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lstmcli.cluster.plan import Plan
from lstmcli.errors import DataError, LstmcliError, MissingInputError, shown
from lstmcli.files import hdf5
from lstmcli.model.model_file import attribute, has
from lstmcli.results.checked_result import CheckedResult, open_result
from lstmcli.results.formats.paths import journal_name
from lstmcli.results.journal import differing
from lstmcli.run.job import Resources


@contextmanager
def open_part(plan: Plan, number: int) -> Iterator[CheckedResult]:
    """Opens a part of a plan and checks that it is complete and belongs to the plan; its values are not read.

    Raises MissingInputError, DataError or StorageError.
    """
    path = plan.part_path(number)
    if not path.exists():
        raise MissingInputError(f"{shown(str(path))}: is missing")
    with open_result(str(path)) as part:
        if not has(part.file, "part"):
            raise DataError(f"{part.data.name}: expected part {number} of a plan, got the result of a whole run")
        with hdf5.reading(part.data.name):
            mark = json.loads(attribute(part.file, "part", str))
        if differences := differing(mark, plan.part(number).mark()):
            raise DataError(f"{part.data.name}: belongs to another run: {'; '.join(differences)}")
        yield part


def missing(plan: Plan) -> dict[int, LstmcliError]:
    """Returns the numbers of the parts that are not there, or not what the plan says, and for each the reason."""
    found: dict[int, LstmcliError] = {}
    for number in plan.numbers:
        try:
            with open_part(plan, number):
                pass
        except LstmcliError as error:
            found[number] = error
    return found


def run_part(plan: Plan, number: int, resources: Resources, **how: Any) -> dict[str, Any] | None:
    """Makes a part, or goes on with it. Returns the facts of run(), or None if the part was there already, whole and right.

    how: the other arguments of run(). Raises LstmcliError.
    """
    from lstmcli.run.run import run  # loads the kernel's compiler, which a part that is there does not need

    job = plan.part_job(number, resources)
    path = plan.part_path(number)
    if path.exists() and not resources.overwrite:
        try:
            with open_part(plan, number):
                pass
        except DataError as error:
            raise DataError(f"{error}; --overwrite makes it again") from error
        if not journal_name(path).exists():
            return None
        # It was killed when it had its name, but something was left to clear up.
        job = job._replace(resources=resources._replace(resume=True))
    return run(job, **how)
