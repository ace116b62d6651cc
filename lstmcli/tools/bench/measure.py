"""Measures the contenders of `lstmcli bench`: each in a process of its own, in turns.

Only the one whose turn it is runs: all others are stopped, so that threads that look out for more work (of OpenBLAS, OpenMP,
ONNX Runtime) stand in nobody's way. What a framework can prepare once (packing weights, compiling, turning the batch to its
own order of axes) is not timed.
"""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from lstmcli.errors import LstmcliError
from lstmcli.tools.bench.cases import Case
from lstmcli.tools.bench.contenders import OURS, PEERS, SGEMM, SGEMM_SIZE

ROUNDS = 5
THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")  # variables of BLAS and OpenMP


def measure(case: Case, threads: int, dtype: str = "float32") -> dict[str, Any]:
    """Measure lstmcli, all frameworks that are installed, and NumPy's matrix product, in this order.

    Returns {"case": its fields, "contenders": [{"name", "milliseconds", "gflops", "ratio"}, ...], "left_out": {NAME: WHY}}.
    A ratio is the time of a contender over that of lstmcli, the median of the rounds: above 1 it is slower. Of sgemm, which
    computes something else, it is that of an operation. Raises LstmcliError where outputs differ from those of lstmcli, or a
    process is killed.
    """
    left_out: dict[str, str] = {}
    with TemporaryDirectory(prefix="lstmcli-bench-") as folder, ExitStack() as stack:
        job = {"case": asdict(case), "threads": threads, "dtype": dtype, "expected": str(Path(folder, "expected.npy"))}
        ready: list[tuple[Worker, list[str]]] = []
        for contender in (OURS, *PEERS, SGEMM):
            if missing := [package for package in PEERS.get(contender, ()) if not find_spec(package)]:
                left_out[contender] = f"{missing[0]} is not installed"
                continue
            worker = stack.enter_context(Worker(contender, threads, Path(folder, contender)))
            answer = worker.ask({"contender": contender, **job})
            if "error" in answer:
                raise LstmcliError(answer["error"])
            left_out |= answer["left_out"]
            ready.append((worker, answer["ways"]))
        seconds, ratios = in_rounds(ready)
    flops = dict.fromkeys(seconds, case.flops()) | {SGEMM: 2 * SGEMM_SIZE**3}
    contenders = [
        {
            "name": name,
            "milliseconds": median(own) * 1e3,
            "gflops": flops[name] / median(own) / 1e9,
            "ratio": median(ratios[name]) * flops[OURS] / flops[name],
        }
        for name, own in seconds.items()
    ]
    return {"case": asdict(case), "contenders": contenders, "left_out": left_out}


def in_rounds(workers: list[tuple["Worker", list[str]]]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the seconds of all ways in each of their turns, lstmcli's first, and their ratios to the turn of lstmcli before.

    They take turns, so that a change of the machine's speed meets them all; lstmcli has one before those of each framework.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list, {OURS: [1.0]})
    ours = workers[0][0]
    for _ in range(ROUNDS):
        for worker, ways in workers:
            others = [way for way in ways if way != OURS]
            if others:
                before = ours.ask(OURS)
                seconds[OURS].append(before)
            for way in others:
                seconds[way].append(worker.ask(way))
                ratios[way].append(seconds[way][-1] / before)
    return seconds, ratios


class Worker:
    """The process of a contender, stopped but when it is asked, with those that a framework starts. A `with` ends them all."""

    def __init__(self, contender: str, threads: int, log: Path) -> None:
        """Start the process. log: a file for what it prints, of which an error says the last line."""
        self.contender, self.log = contender, log
        path = os.pathsep.join(place or os.curdir for place in sys.path)
        command = [sys.executable, "-P", "-m", "lstmcli.tools.bench.worker"]
        env = os.environ | dict.fromkeys(THREADS, str(threads)) | {"PYTHONPATH": path}
        pipe = subprocess.PIPE
        with log.open("wb") as printed:
            # In a group of its own no Ctrl-C reaches it, and POSIX has a stopped one woken when we are killed (by SIGCONT).
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=printed, env=env, text=True, bufsize=1, process_group=0
            )

    def ask(self, question: Any) -> Any:
        """Send a line and return the answer. Raises LstmcliError where the process is gone."""
        assert self.process.stdin
        assert self.process.stdout
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self.process.wait()
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            *_, last = self.log.read_text(errors="replace").splitlines() or [""]
            raise LstmcliError(f"{self.contender}: its process ended {how}; nothing is measured{last and f': {last}'}")
        os.killpg(self.process.pid, signal.SIGSTOP)
        return json.loads(answer)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
