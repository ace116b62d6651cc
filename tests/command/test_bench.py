"""lstmcli bench: who takes part, what is refused, and that no process is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.command import SECONDS, Ran, assert_one_line, lstmcli

from lstmcli.tools.bench.contenders import PEERS

ONE_ROUND = "measure.ROUNDS = 1"
ALONE = "measure.find_spec = lambda package: None"  # as if no framework were installed
FOREVER = f"measure.ROUNDS = 10**9; {ALONE}"
SHAPE = ("--batch", "4", "--time", "6", "--embed", "5", "--units", "3")
INSTALLED = [name for name, packages in PEERS.items() if all(map(find_spec, packages))]

# In the processes of contenders another framework stands where NumPy's product would, and puts out nines.
WRONG_TORCH = """
import sys
if sys.argv[0] == "-m":
    import numpy as np
    from lstmcli.tools.bench import contenders
    from lstmcli.tools.bench.cases import Way
    contenders.PEERS["sgemm"] = ()
    contenders.sgemm = lambda batch: [Way("torch", lambda: np.full((4, 6, 3), 9.0))]
    contenders.import_module = lambda name: type("Ways", (), {"ways": contenders.sgemm})
"""


def command(changes: str, *options: str) -> list[str]:
    """The command with changes to the module that measures."""
    start = f"from lstmcli.tools.bench import measure; from lstmcli.cli.main import main; {changes}; main()"
    return [sys.executable, "-c", start, "bench", *options]


def bench(changes: str, *options: str, cwd: Path, env: dict[str, str] | None = None) -> Ran:
    done = subprocess.run(command(changes, *options), cwd=cwd, capture_output=True, timeout=SECONDS, check=False, env=env)
    return Ran(done.returncode, done.stdout, done.stderr.decode())


def one_case(*options: str, cwd: Path, changes: str = ONE_ROUND) -> tuple[list[str], dict[str, str]]:
    """The names of the contenders of a case, and why others are left out."""
    ran = bench(changes, *options, "--json", cwd=cwd)
    assert ran.code == 0, ran.err
    (case,) = ran.json["cases"]
    assert all(one["milliseconds"] > 0 for one in case["contenders"])
    return [one["name"] for one in case["contenders"]], case["left_out"]


def frameworks(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(" ")[0] for name in names))


def test_of_a_plain_shape_all_that_is_installed_takes_part(tmp_path: Path) -> None:
    ran = bench(ONE_ROUND, *SHAPE, "--json", cwd=tmp_path)
    absent = [name for name in PEERS if name not in INSTALLED]
    assert (ran.code, ran.err.count("\n")) == (0, len(absent))
    (case,) = ran.json["cases"]
    plain = {"projection": None, "bidirectional": False, "vocabulary": None}
    assert case["case"] == {"batch": 4, "time": 6, "embed": 5, "units": [3], "fill": 0.5} | plain
    assert frameworks([one["name"] for one in case["contenders"]]) == ["lstmcli", *INSTALLED, "sgemm"]
    assert case["contenders"][0]["ratio"] == 1
    assert list(case["left_out"]) == absent
    assert set(ran.json["machine"]["versions"]) >= {"lstmcli", "numpy", *INSTALLED}


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        (["--projection", "2"], {"onnxruntime": "projection", "openvino": "projection"}),
        (["--units", "3,3", "--bidirectional"], {"torch padded and in buckets": "padding"}),
        (["--units", "3,2", "--vocabulary", "9"], {"torch": "layers of different units"}),
        (["--batch", "1", "--vocabulary", "9", "--fill", "1"], {}),
    ],
    ids=" ".join,
)
def test_all_compute_the_same_for_every_kind_of_model(options: list[str], left_out: dict[str, str], tmp_path: Path) -> None:
    names, why = one_case(*SHAPE, *options, cwd=tmp_path)
    absent = [name for name in left_out if " " not in name]
    assert frameworks(names) == ["lstmcli", *(name for name in INSTALLED if name not in absent), "sgemm"]
    told = {name: words for name, words in left_out.items() if frameworks([name])[0] in INSTALLED}
    assert {name for name, reason in why.items() if "not installed" not in reason} == set(told)
    assert all(words in why[name] for name, words in told.items())


def test_in_bfloat16_those_that_have_none_are_called_float32(tmp_path: Path) -> None:
    names, _ = one_case(*SHAPE, "--dtype", "bfloat16", cwd=tmp_path)
    assert names[:2] == ["lstmcli", "lstmcli float32"]
    assert {name.endswith("float32") for name in names if name.startswith("onnxruntime")} <= {True}
    assert {name.endswith("float32") for name in names if name.startswith("torch")} <= {False}


def test_without_frameworks_lstmcli_and_sgemm_are_left_and_a_line_for_each_says_why(tmp_path: Path) -> None:
    ran = bench(f"{ONE_ROUND}; {ALONE}", *SHAPE, cwd=tmp_path)
    assert ran.code == 0
    assert re.findall(r"^(\w+) +\d", ran.text, re.MULTILINE) == ["lstmcli", "sgemm"]
    assert ran.err.splitlines() == [f"lstmcli: note: left out: {name}, {name} is not installed" for name in PEERS]


def test_markdown_names_the_machine_and_is_a_table(tmp_path: Path) -> None:
    ran = bench(f"{ONE_ROUND}; {ALONE}", *SHAPE, "-o", "md", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    about, empty, *table, last_empty, why = ran.text.splitlines()
    assert empty == last_empty == ""
    assert re.search(rf"\b{os.cpu_count()} CPUs; threads 1, float32; lstmcli \S+, .*; \d{{4}}-\d\d-\d\d\.", about)
    head, rule, *rows = [line.strip("|").split("|") for line in table]
    assert {len(row) for row in (head, rule, *rows)} == {4}
    assert {cell.strip(":-") for cell in rule} == {""}
    assert [row[0].strip() for row in rows] == ["lstmcli", "sgemm"]
    assert "torch is not installed" in why


def test_markdown_or_json(tmp_path: Path) -> None:
    assert_one_line(lstmcli("bench", "-o", "md", "--json", cwd=tmp_path), 2, "--format", "--json")


def test_wrong_outputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WRONG_TORCH)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    ran = bench(f"{ONE_ROUND}; {ALONE}", *SHAPE, cwd=tmp_path, env=env)
    assert_one_line(ran, 1, "torch", "expected the outputs of lstmcli within 1e-05, got a difference of ")


@contextmanager
def measuring(cwd: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A command that takes turns for ever, and its processes."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command(FOREVER, *SHAPE), cwd=cwd, stdout=pipe, stderr=pipe, text=True) as running:
        try:
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
            until(lambda: len(children.read_text().split()) == 2)
            workers = [int(pid) for pid in children.read_text().split()]
            until(lambda: any(state(pid) == "T" for pid in workers))
            yield running, workers
        finally:
            running.kill()


def until(condition: object) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state(pid: int) -> str:
    """The letter that ps shows: T of a stopped process; Z of one that has ended, or is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_killed_ends_the_command_with_one_line(number: int, tmp_path: Path) -> None:
    with measuring(tmp_path) as (running, workers):
        os.kill(workers[number], signal.SIGKILL)
        out, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, out) == (1, "")
    name = ("lstmcli", "sgemm")[number]
    assert err == f"lstmcli: error: {name}: its process ended by SIGKILL; nothing is measured\n"
    assert [state(pid) for pid in workers] == ["Z", "Z"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_process(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with measuring(tmp_path) as (running, workers):
        running.send_signal(number)
        out, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, out, err) == (code, "", f"lstmcli: interrupted by {number.name}\n")
    assert [state(pid) for pid in workers] == ["Z", "Z"]


@pytest.mark.skipif(os.getsid(0) == os.getsid(1), reason="whoever takes orphans over must be of another session")
def test_a_command_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    with measuring(tmp_path) as (running, workers):
        running.kill()
        running.wait()
        until(lambda: [state(pid) for pid in workers] == ["Z", "Z"])


def test_only_the_one_whose_turn_it_is_runs(tmp_path: Path) -> None:
    with measuring(tmp_path) as (_, workers):
        seen = set()
        for _ in range(200):
            seen.add("".join(state(pid) for pid in workers).replace("S", "R"))
            time.sleep(0.005)
    assert {"RT", "TR"} <= seen
