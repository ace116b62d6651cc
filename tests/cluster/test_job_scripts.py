"""Job scripts for schedulers that are not here: their bodies, with the variables that these set."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from helpers.case import Case
from helpers.command import SECONDS, Ran, succeed

from lstmcli.cluster.job_scripts import INDEX

OF_A_TASK = {
    "pbs": ("PBS_ARRAY_INDEX", {"NCPUS": "1"}),
    "sge": ("SGE_TASK_ID", {"NSLOTS": "1", "SGE_TASK_FIRST": "1"}),
    "lsf": ("LSB_JOBINDEX", {"LSB_JOBINDEX_STEP": "1"}),
}
OPTIONS = {"pbs": "#PBS", "sge": "#$", "lsf": "#BSUB"}


@pytest.fixture(params=OF_A_TASK)
def scheduler(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def task(scheduler: str, script: str, index: int | None) -> Ran:
    """A task as the scheduler would start it, in a folder that has nothing to do with the plan."""
    variable, others = OF_A_TASK[scheduler]
    env = {name: value for name, value in os.environ.items() if name not in INDEX} | others
    if index is not None:
        env[variable] = str(index)
    subprocess.run(["bash", "-n"], input=script, text=True, timeout=SECONDS, check=True)
    assert all(line.startswith(("#!/bin/sh", "# ", OPTIONS[scheduler])) for line in script.splitlines() if line[0] == "#")
    done = subprocess.run(
        ["sh", "-s"], cwd="/", env=env, input=script.encode(), capture_output=True, timeout=SECONDS, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr.decode())


def test_tasks(scheduler: str, case: Case, tmp_path: Path) -> None:
    def script(*args: object) -> str:
        return succeed("plan", *args, "--format", scheduler, "-q", cwd=tmp_path).text

    options = [*case.inputs, "--shards", 5, "-o", "it's a plan.json"]
    whole = script(*options)
    for index in (2, 4):
        ran = task(scheduler, whole, index)
        assert ran.code == 0, ran.err
    assert succeed("plan", "--missing", "it's a plan.json", cwd=tmp_path).text == "1,3,5\n"
    rest = script("--missing", "it's a plan.json")
    for index in (1, 3, 5) if scheduler == "lsf" else (1, 2):
        assert task(scheduler, rest, index).code == 0
    if scheduler != "lsf":  # an array of one
        assert succeed("plan", "--missing", "it's a plan.json", cwd=tmp_path).text == "5\n"
        last = script("--missing", "it's a plan.json")
        assert task(scheduler, last, None if scheduler == "pbs" else 5).code == 0
    succeed("merge", "it's a plan.json", "-o", "out.h5", cwd=tmp_path)
    assert (tmp_path / "out.h5").read_bytes() == (case.folder / "result.h5").read_bytes()


@pytest.mark.parametrize(("scheduler", "code"), [("pbs", 75), ("sge", 99)], indirect=["scheduler"])
def test_a_time_limit(scheduler: str, code: int, case: Case, tmp_path: Path) -> None:
    """SGE takes 99 for a wish to run again."""
    options = [*case.inputs, "--shards", 5, "-o", "plan.json", "-q"]
    script = succeed("plan", *options, "--format", scheduler, cwd=tmp_path).text
    assert script.count("57m") == 1
    ran = task(scheduler, script.replace("57m", "0.001s"), 1)
    assert ran.code == code
    assert "stopped by --stop-after" in ran.err
    assert task(scheduler, script, 1).code == 0
