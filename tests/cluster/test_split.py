"""Where a plan cuts, what an array is called, and which task this is."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmcli.cluster.job_scripts import array_expression, job_script, task_index
from lstmcli.cluster.plan import split
from lstmcli.errors import UsageError


@given(lengths=st.lists(st.integers(0, 50), max_size=80), shards=st.integers(1, 100), chunk=st.integers(1, 9))
def test_cuts(lengths: list[int], shards: int, chunk: int) -> None:
    cuts = split(np.array(lengths, np.int64), shards, chunk)
    assert cuts[0] == 0
    assert cuts[-1] == len(lengths)
    assert 1 <= len(cuts) - 1 <= shards
    assert all(first < stop for first, stop in itertools.pairwise(cuts)) or not lengths
    assert all(cut % chunk == 0 for cut in cuts[:-1])
    # Each cut lies within half the steps of a chunk of where equal parts would have it.
    total, chunks = sum(lengths), [sum(lengths[k : k + chunk]) for k in range(0, len(lengths), chunk)]
    steps = [sum(lengths[first:stop]) for first, stop in itertools.pairwise(cuts)]
    assert max(steps) <= total / shards + max(chunks, default=0) + 1


@given(shards=st.integers(1, 40), batch=st.integers(1, 60))
def test_padding_alone_is_cut_in_equal_numbers_of_sequences(shards: int, batch: int) -> None:
    cuts = split(np.zeros(batch, np.int64), shards)
    assert len(cuts) - 1 == min(shards, batch)
    assert max(np.diff(cuts)) - min(np.diff(cuts)) <= 1


def test_equal_sequences_are_cut_into_as_many_parts_as_asked_for() -> None:
    assert split(np.full(12, 7, np.int64), 4) == (0, 3, 6, 9, 12)
    assert split(np.full(12, 7, np.int64), 4, chunk=4) == (0, 4, 8, 12)
    assert split(np.full(3, 7, np.int64), 64) == (0, 1, 2, 3)
    assert split(np.zeros(0, np.int64), 3) == (0, 0)


def test_steps_beyond_32_bits() -> None:
    cuts = split(np.full(1000, 10**9, np.int64), 100_000)
    assert cuts == tuple(range(1001))


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([1, 2, 5], "1-2,5"), ([1, 2, 5, 6, 7, 9, 99], "1-2,5-7,9,99")]
)
def test_array_expressions(numbers: list[int], text: str) -> None:
    assert array_expression(numbers) == text


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "2"}, 3),
        ({"PBS_ARRAY_INDEX": "17"}, 17),
        ({"PBS_ARRAYID": "4"}, 4),
        ({"SGE_TASK_ID": "5", "SGE_TASK_LAST": "9"}, 5),
        ({"LSB_JOBINDEX": "6"}, 6),
        ({"SGE_TASK_ID": "undefined", "SLURM_ARRAY_TASK_ID": "8"}, 8),
        ({"SLURM_ARRAY_TASK_ID": "", "LSB_JOBINDEX": "2"}, 2),
    ],
)
def test_the_task_of_an_array(environment: dict[str, str], number: int) -> None:
    assert task_index(environment)[0] == number


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ["SLURM_ARRAY_TASK_ID", "found none"]),
        ({"SLURM_ARRAY_TASK_COUNT": "8"}, ["found none"]),
        ({"LSB_JOBINDEX": "0"}, ["LSF", "no array"]),
        ({"SGE_TASK_ID": "undefined"}, ["SGE", "no array"]),
        ({"SLURM_ARRAY_TASK_ID": "3", "PBS_ARRAYID": "4"}, ["is 3", "is 4"]),
        ({"PBS_ARRAY_INDEX": "-1"}, ["whole number"]),
        ({"PBS_ARRAY_INDEX": "²"}, ["whole number"]),
    ],
)
def test_no_task_of_an_array(environment: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        task_index(environment)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("kind", ["slurm", "pbs", "sge", "lsf"])
def test_a_line_feed_in_the_name_of_a_plan_begins_no_command(kind: str) -> None:
    script = job_script(kind, Path("/work/a\ntouch pwned\n/plan.json"), [1, 2], 1, 10**9)
    before = script[: script.index(" -m lstmcli")].splitlines()[:-1]
    assert [line for line in before if not line.startswith("#")] == []
    done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
