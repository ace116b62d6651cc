"""Job arrays on a real Slurm: tasks that are cancelled, requeued, or run out of time; and the example of docs/cluster.md."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import files, pages, slurm
from helpers.command import shell, succeed

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
RUN = ["-i", "x.npy", "-l", "lens.npy", "-u", "768,768,16"]  # much work, few bytes


@pytest.fixture(scope="module", autouse=True)
def _slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with slurm.running(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs that take half a minute or so, and serial.h5 of one run."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    files.write_npy(folder / "x.npy", rng.normal(size=(1000, 400, 16)).astype(np.float32))
    files.write_npy(folder / "lens.npy", rng.integers(1, 401, 1000))
    succeed("run", *RUN, "-o", "serial.h5", "-q", cwd=folder)
    return folder


def submit(folder: Path, name: str, *args: object, **edits: str) -> str:
    """Writes a script that `lstmcli plan ARGS --format slurm` prints, and edits its options; the number of the job."""
    text = succeed("plan", *args, "--format", "slurm", cwd=folder).text.replace("--shard auto", "--shard auto --json")
    for option, value in edits.items():
        text, count = re.subn(rf"--{option}=\S+", f"--{option}={value}", text)
        assert count == 1
    (folder / name).write_text(text)
    return slurm.submit(folder / name)


def told(folder: Path, job: str, number: int) -> tuple[str, list[dict[str, Any]]]:
    """What a task has printed, and the facts that are in it, of each time that it made its part."""
    text = (folder / f"slurm-{job}_{number}.out").read_text()
    return text, [json.loads(line) for line in re.findall(r"^\{.*\}$", text, re.MULTILINE)]


def stopped_after(text: str) -> list[int]:
    return [int(steps.replace(",", "")) for steps in re.findall(r"stopped by SIGTERM after ([\d,]+) of", text)]


def test_a_task_that_is_cancelled_and_one_whose_node_fails(folder: Path) -> None:
    job = submit(folder, "job.sh", *RUN, "--shards", 8, "-o", "plan.json")
    parts = folder / "plan.parts"
    for number, command in ((1, ("scancel", f"{job}_1")), (2, ("scontrol", "requeue", f"{job}_2"))):
        journal = parts / f"part-000{number}.h5.journal"
        slurm.until(lambda journal=journal: journal.exists() and len(journal.read_bytes().splitlines()) > 1)
        slurm.ask(*command)
    slurm.wait(job)
    assert succeed("plan", "--missing", "plan.json", cwd=folder).text == "1\n"
    made = {path.name: path.stat() for path in parts.glob("*.h5")}
    assert len(made) == 7

    again = submit(folder, "again.sh", "--missing", "plan.json")
    slurm.wait(again)
    assert succeed("plan", "--missing", "plan.json", cwd=folder).text == ""
    assert len(list(parts.iterdir())) == 8
    assert all((parts / name).stat() == stat for name, stat in made.items())
    assert [path.name for path in folder.glob(f"slurm-{again}_*")] == [f"slurm-{again}_1.out"]
    for of, number in ((again, 1), (job, 2)):
        (facts,) = told(folder, of, number)[1]
        assert [facts["resumed_steps"]] == stopped_after(told(folder, job, number)[0])
        assert 0 < facts["resumed_steps"] < facts["valid_steps"]
    for number in range(3, 9):
        text, (facts,) = told(folder, job, number)
        assert "stopped" not in text
        assert facts["resumed_steps"] == 0
    succeed("merge", "plan.json", "-o", "out.h5", cwd=folder)
    assert (folder / "out.h5").read_bytes() == (folder / "serial.h5").read_bytes()


def test_a_time_limit(folder: Path) -> None:
    """Slurm signals some 10 to 40 s after the start, as it looks at its jobs each half a minute."""
    options = [*RUN[:-1], "1024,1024,16"]
    job = submit(folder, "short.sh", *options, "--shards", 1, "-o", "one.json", time="1", signal="TERM@20")
    slurm.wait(job)
    text, (facts,) = told(folder, job, 1)
    stops = stopped_after(text)
    assert len(stops) >= 1
    assert facts["resumed_steps"] == max(stops)
    assert stops == sorted(set(stops))
    succeed("merge", "one.json", "-o", "limited.h5", cwd=folder)
    succeed("run", *options, "-o", "unlimited.h5", "-q", cwd=folder)
    assert (folder / "limited.h5").read_bytes() == (folder / "unlimited.h5").read_bytes()


def test_a_task_is_not_requeued_for_ever(folder: Path) -> None:
    text = succeed("plan", *RUN, "--shards", 1, "-o", "many.json", "--format", "slurm", cwd=folder).text
    (folder / "many.sh").write_text(text.replace("-lt 100", "-lt 1"))
    job, journal = slurm.submit(folder / "many.sh"), folder / "many.parts" / "part-0001.h5.journal"

    def noted() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    for stops in (1, 2):
        before = max(1, noted())
        slurm.until(lambda before=before: slurm.left(job) and noted() > before)
        slurm.ask("scancel", "--signal=TERM", f"{job}_1")
        slurm.until(lambda stops=stops: len(stopped_after(told(folder, job, 1)[0])) == stops)
    slurm.wait(job)
    assert not told(folder, job, 1)[1]
    assert succeed("plan", "--missing", "many.json", cwd=folder).text == "1\n"


def test_cpus_of_a_task(folder: Path) -> None:
    """All that it was given: an affinity, where Slurm sets one, holds for the step that srun starts."""
    text = succeed("plan", *RUN, "--threads", 2, "--shards", 2, "-o", "two.json", "--format", "slurm", cwd=folder).text
    (folder / "cpus.sh").write_text(re.sub(r"^(srun \S+) .*", r"\1 nproc", text, flags=re.MULTILINE))
    job = slurm.submit(folder / "cpus.sh")
    slurm.wait(job)
    assert [told(folder, job, number)[0] for number in (1, 2)] == ["2\n", "2\n"]


def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sample_data").symlink_to(files.SAMPLE_DATA)
    command = tmp_path / "bin" / "lstmcli"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m lstmcli "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    first, rest = (example.text for example in pages.examples(pages.DOCS / "cluster.md", "sh slurm"))
    assert "sbatch" in first
    ran = shell(f"set -e; {first}", tmp_path)
    assert ran.code == 0, ran.err
    slurm.until(lambda: not slurm.ask("squeue", "--noheader", "--me"))
    options = first.splitlines()[0].split(" --shards")[0].removeprefix("lstmcli plan ").split()
    succeed("run", *options, "-o", "serial.h5", cwd=tmp_path)
    assert (tmp_path / "result.h5").read_bytes() == (tmp_path / "serial.h5").read_bytes()

    (tmp_path / "plan.parts" / "part-0003.h5").unlink()
    ran = shell(f"set -e; {rest}", tmp_path)
    assert ran.code == 0, ran.err
    slurm.until(lambda: not slurm.ask("squeue", "--noheader", "--me"))
    succeed("verify", "plan.parts/part-0003.h5", cwd=tmp_path)
