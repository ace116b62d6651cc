"""Journals and plans that somebody has changed, with the right checksums: refused in a line, or as good as unchanged."""

from __future__ import annotations

import copy
import json
import shutil
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import files

from lstmcli.cluster.merge import check_parts
from lstmcli.cluster.parts import missing, run_part
from lstmcli.cluster.plan import checksum, make_plan, read_plan, write_plan
from lstmcli.errors import DataError, LstmcliError, StoppedError
from lstmcli.run.job import Inputs, Job, NewModel, Output, Resources, Weights
from lstmcli.run.run import run
from lstmcli.run.stop import Stop
from lstmcli.weights.draft import Choices

OTHERS: list[Any] = [None, -1, 0, 3, 2**40, 2**70, 1.5, float("nan"), True, "", "x", "<f4", [], [1], {}, {"a": 1}]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value in a JSON value stands, its own place included."""
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, key))


def mutants(value: Any, rng: np.random.Generator, each: int) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """For each value inside its place, and some copies with another one there, and one without it."""
    for place in places(value):
        for other in [OTHERS[k] for k in rng.permutation(len(OTHERS))[:each]]:
            yield place, replaced(value, place, other)
        if place:
            yield place, replaced(value, place, None, gone=True)


def replaced(value: Any, place: tuple[Any, ...], other: Any, gone: bool = False) -> Any:
    if not place:
        return other
    whole = copy.deepcopy(value)
    inner = whole
    for key in place[:-1]:
        inner = inner[key]
    if gone:
        del inner[place[-1]]
    else:
        inner[place[-1]] = other
    return whole


def line(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return text + b" %08x\n" % zlib.crc32(text)


def nothing(count: int, total: int) -> None:
    pass


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A run in many spans, some of them cut in time."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(9, 40, 8)).astype(np.float32))
    np.save(tmp_path / "lens.npy", [3, 0, 40, 38, 2, 5, 1, 30, 9])
    inputs = Inputs(str(tmp_path / "x.npy"), lens=str(tmp_path / "lens.npy"))
    return Job(inputs, NewModel((3,)), output=Output(str(tmp_path / "out.h5")), resources=Resources(1, 12_000))


def test_forged_journals(job: Job, tmp_path: Path) -> None:
    run(job, nothing)
    want = (tmp_path / "out.h5").read_bytes()
    (tmp_path / "out.h5").unlink()
    stop, done = Stop(), 0

    def on_progress(count: int, total: int) -> None:
        nonlocal done
        done += count
        if done >= 60:
            stop.signal = signal.SIGTERM

    with pytest.raises(StoppedError):
        run(job, on_progress, stop)
    partial, journal = tmp_path / "out.h5.partial", tmp_path / "out.h5.journal"
    content, left = partial.read_bytes(), [json.loads(text.rpartition(b" ")[0]) for text in journal.read_bytes().splitlines()]
    assert len(left) > 4
    rng, resumed, refused = np.random.default_rng(1), 0, 0
    for number, value in enumerate(left):
        for place, mutant in mutants(value, rng, 3):
            journal.write_bytes(b"".join(map(line, [*left[:number], mutant, *left[number + 1 :]])))
            partial.write_bytes(content)
            try:
                run(job._replace(resources=job.resources._replace(resume=True)), nothing)
                resumed += 1
                # What was not finite, and a state, are believed.
                believed = number and place and place[0] in (7, 8)
                assert believed or (tmp_path / "out.h5").read_bytes() == want, (number, mutant)
                (tmp_path / "out.h5").unlink()
            except DataError:
                refused += 1
    assert min(resumed, refused) > 30


def test_a_sealed_journal_of_nothing(job: Job, tmp_path: Path) -> None:
    stop = Stop()
    with pytest.raises(StoppedError):
        run(job, lambda count, total: setattr(stop, "signal", signal.SIGTERM if count else None), stop)
    with (tmp_path / "out.h5.journal").open("ab") as journal:
        journal.write(line("sealed"))
    (tmp_path / "out.h5.partial").unlink()
    before = files.snapshot(tmp_path)
    with pytest.raises(DataError, match="is gone"):
        run(job._replace(resources=job.resources._replace(resume=True)), nothing)
    assert files.snapshot(tmp_path) == before


@pytest.mark.parametrize("weights", [False, True])
def test_forged_plans(weights: bool, job: Job, tmp_path: Path) -> None:
    """Each is read, its parts are looked for, one is made where none is, and what is there is merged."""
    if weights:
        path = files.write_model(tmp_path / "model.h5", files.random_model(8, [3]))
        job = job._replace(model=Weights(str(path), Choices()))
    plan, _ = make_plan(job._replace(output=Output()), 2, tmp_path / "plan.json")
    write_plan(plan, overwrite=False)
    for number in plan.numbers:
        run_part(plan, number, plan.job.resources, on_progress=nothing)
    content = json.loads((tmp_path / "plan.json").read_text())
    del content["checksum"]
    shutil.copytree(tmp_path / "plan.parts", tmp_path / "forged.parts")
    rng, refused, count = np.random.default_rng(2), 0, 0
    for place, mutant in mutants(content, rng, 2):
        count += 1
        text = mutant | {"checksum": checksum(mutant)} if isinstance(mutant, dict) else mutant
        (tmp_path / "forged.json").write_text(json.dumps(text))
        (tmp_path / "forged.parts" / "part-0002.h5").unlink(missing_ok=True)
        try:
            forged = read_plan(str(tmp_path / "forged.json"))
            missing(forged)
            run_part(forged, forged.checked(2), forged.job.resources, on_progress=nothing)
            check_parts(forged)
        except LstmcliError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{place}: {mutant}") from error
    assert 0.5 < refused / count < 1
