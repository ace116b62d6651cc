"""A contender of `lstmcli bench`, as a process of its own: it makes itself ready for a case, and then takes turns.

Lines of JSON come in on standard input, and each is answered by one on standard output. The first has the arguments of
`prepare`; the answer is {"ways": [NAME, ...], "left_out": {NAME: WHY, ...}}, or {"error": TEXT}. Each later one is the name of
a way, and the answer is how many seconds a call of that takes.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from statistics import median
from typing import Any

import numpy as np

from lstmcli.errors import LstmcliError
from lstmcli.tools.bench.cases import Batch, Case, LeftOut
from lstmcli.tools.bench.contenders import OURS, PEERS, ways_of

TURN, LONG = 0.05, 0.2  # seconds
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.05}


class WrongOutputsError(LstmcliError):
    """A contender computes something else than lstmcli: its figures would say nothing."""


def prepare(
    contender: str, case: dict[str, Any], threads: int, dtype: str, expected: str
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Return the ways of a contender by their names, and why others are left out.

    expected: the outputs of lstmcli in float32, an NPY file that lstmcli itself writes. Raises WrongOutputsError.
    """
    batch = Batch(Case(**case | {"units": tuple(case["units"])}), threads, dtype)
    ready: dict[str, Callable[[], Any]] = {}
    left_out: dict[str, str] = {}
    try:
        for way in ways_of(contender)(batch):
            if isinstance(way, LeftOut):
                left_out[way.name] = way.why
                continue
            name = way.name if way.dtype == dtype else f"{way.name} {way.dtype}"
            outputs = way.run()
            if contender == OURS and way.dtype == "float32":
                np.save(expected, outputs)
            if contender in (OURS, *PEERS):
                compare(name, outputs, np.load(expected, mmap_mode="r"), batch, TOLERANCES[way.dtype])
            ready[name] = way.run
    except Exception as error:
        if contender not in PEERS or isinstance(error, WrongOutputsError):
            raise
        first, *_ = str(error).splitlines() or [""]
        left_out[contender] = first if isinstance(error, LstmcliError) else f"{type(error).__name__}: {first}"
    return ready, left_out


def compare(name: str, outputs: Any, expected: Any, batch: Batch, tolerance: float) -> None:
    found = np.asarray(outputs if isinstance(outputs, np.ndarray) else outputs.float())  # NumPy knows no bfloat16
    error = np.abs(found - expected)[batch.valid].max()
    if not error <= tolerance:
        raise WrongOutputsError(f"{name}: expected the outputs of lstmcli within {tolerance}, got a difference of {error}")


def turn(call: Callable[[], Any]) -> float:
    """Return the seconds of a call: the median of as many as TURN allows, after one that brings code and data into caches.

    That one is worth at most a percent of a call of LONG or more, and counts.
    """
    first = timed(call)
    if first >= LONG:
        return first
    seconds: list[float] = []
    while sum(seconds) < TURN:
        seconds.append(timed(call))
    return median(seconds)


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a framework prints must not come between the answers
    try:
        ready, left_out = prepare(**json.loads(sys.stdin.readline()))
    except LstmcliError as error:
        print(json.dumps({"error": str(error)}), file=answers)
        return
    print(json.dumps({"ways": list(ready), "left_out": left_out}), file=answers)
    with suppress(BrokenPipeError):  # where whoever asked is gone
        for line in sys.stdin:
            print(turn(ready[json.loads(line)]), file=answers)


if __name__ == "__main__":
    main()
