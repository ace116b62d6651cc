"""Runs on a Dask cluster, of real schedulers and workers, have the bytes of a local run, whoever dies on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import files, pages
from helpers.command import LSTMCLI, SECONDS, assert_one_line, lstmcli, shell, succeed
from helpers.weight_files import write_safetensors

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install distributed")
pytest.importorskip("cryptography", reason="cryptography, which local:N takes, is not installed: pip install cryptography")
pytestmark = pytest.mark.dask

RUN = ["run", "-i", "x.npy", "-l", "lens.npy", "-w", "model.h5", "-o", "out.h5", "-q"]
LONG = ["run", "-i", "long.npy", "-u", "512", "--save", "states", "-o", "out.h5", "-q"]


class Cluster:
    """A scheduler and workers of one thread, each a process of its own on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.prefix: list[str] = []  # of the workers' commands
        self.env: dict[str, str] = {}
        self.scheduler = self._start("scheduler", "--port", "0", "--no-show")
        wait_for(self.file.exists)

    @property
    def address(self) -> str:
        address = json.loads(self.file.read_text())["address"]
        assert isinstance(address, str)
        return address

    def add_worker(self, threads: int = 1) -> None:
        options = ["--nthreads", str(threads), "--no-nanny", "--local-directory", str(self.folder / "space")]
        self.workers.append(self._start("worker", *options))

    def _start(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        code = f"from distributed.cli.dask_{kind} import main; main()"
        command = [sys.executable, "-c", code, "--scheduler-file", str(self.file), "--host", "127.0.0.1", "--no-dashboard"]
        env = os.environ | self.env
        with (self.folder / f"{kind}.log").open("ab") as log:
            return subprocess.Popen([*self.prefix, *command, *options], cwd="/", stdout=log, stderr=log, env=env)

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait(SECONDS)


def wait_for(what: Callable[[], object]) -> None:
    until = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Of two workers that stay alive."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    made.add_worker()
    made.add_worker()
    with distributed.Client(made.address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=SECONDS)
    yield made
    made.close()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Cluster]:
    """Of as many workers as a test starts and kills."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    made = Cluster(folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small input with what a local run makes of it."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(3)
    files.write_npy(folder / "lens.npy", rng.integers(0, 24, 90))
    x = rng.normal(size=(90, 23, 6)).astype(np.float32)
    files.write_npy(folder / "x.npy", x)
    x[70:] = np.nan
    files.write_npy(folder / "nan.npy", x)
    files.write_model(folder / "model.h5", files.random_model(6, [5]))
    succeed(*RUN, cwd=folder)
    (folder / "out.h5").rename(folder / "serial.h5")
    return folder


@pytest.fixture(scope="module")
def long_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input that takes about five seconds, and what a local run makes of it."""
    folder = tmp_path_factory.mktemp("long")
    files.write_npy(folder / "long.npy", np.random.default_rng(0).normal(size=(6000, 60, 32)).astype(np.float32))
    succeed(*LONG, cwd=folder)
    (folder / "out.h5").rename(folder / "serial-long.h5")
    return folder


def linked(inputs: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in inputs.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def here(inputs: Path, tmp_path: Path) -> Path:
    return linked(inputs, tmp_path / "here")


@pytest.fixture
def long(long_inputs: Path, tmp_path: Path) -> Path:
    return linked(long_inputs, tmp_path / "long")


def assert_done(folder: Path, serial: str) -> None:
    """The bytes of the local run, and nothing left beside them."""
    assert (folder / "out.h5").read_bytes() == (folder / serial).read_bytes()
    assert [path.name for path in folder.glob("out.h5*")] == ["out.h5"]


def start(folder: Path, where: str) -> subprocess.Popen[str]:
    """The long run, once something of it is done and noted."""
    command = [*LSTMCLI, *LONG, "--scheduler", where]
    running = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    journal = folder / "out.h5.journal"
    wait_for(lambda: running.poll() is not None or (journal.exists() and journal.read_bytes().count(b"\n") > 1))
    assert running.poll() is None
    return running


def test_two_workers(here: Path, cluster: Cluster) -> None:
    ran = succeed(*RUN[:-1], "--json", "--scheduler", cluster.address, cwd=here)
    assert (ran.json["scheduler"], ran.json["threads"], ran.json["resumed_steps"]) == (cluster.address, 2, 0)
    assert ran.json["tasks"] >= 2
    assert_done(here, "serial.h5")


def test_sequences_that_are_cut_in_time(here: Path, cluster: Cluster) -> None:
    succeed(*RUN, "--scheduler", cluster.file, "--max-memory", "3KB", cwd=here)
    assert_done(here, "serial.h5")


def test_padding_in_front(here: Path, cluster: Cluster) -> None:
    run = [*RUN, "--padding", "pre"]
    succeed(*run, cwd=here)
    (here / "out.h5").rename(here / "front.h5")
    succeed(*run, "--scheduler", cluster.file, "--max-memory", "3KB", cwd=here)
    assert_done(here, "front.h5")


@pytest.mark.parametrize("layout", ["flat", "per-sequence"])
def test_layouts(layout: str, here: Path, cluster: Cluster) -> None:
    run = [*RUN, "--layout", layout]
    succeed(*run, cwd=here)
    (here / "out.h5").rename(here / "own.h5")
    succeed(*run, "--scheduler", cluster.file, "--max-memory", "3KB", cwd=here)
    assert_done(here, "own.h5")


def test_local(here: Path) -> None:
    ran = succeed(*RUN[:-1], "--scheduler", "local:2", cwd=here)
    assert re.search(r"^scheduler tls://127.0.0.1:\d+, \d+ tasks$", ran.text, re.MULTILINE), ran.text
    assert_done(here, "serial.h5")


def test_npy_and_states(here: Path, cluster: Cluster) -> None:
    for name, where in (("one", []), ("out", ["--scheduler", cluster.file])):
        succeed(*RUN[:-3], "-o", f"{name}.npy", "--states", f"{name}.npz", *where, cwd=here)
    for suffix in (".npy", ".npz", ".model.h5"):
        assert (here / f"out{suffix}").read_bytes() == (here / f"one{suffix}").read_bytes()


def test_tables(here: Path, cluster: Cluster) -> None:
    """The journal bears the name of the table, and the values lie in another file."""
    shapes = {"lstm.weight_ih_l0": (20, 6), "lstm.weight_hh_l0": (20, 5), "fc.weight": (3, 5), "fc.bias": (3,)}
    rng = np.random.default_rng(0)
    write_safetensors(here / "whole.st", {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()})
    chain = ["-w", "whole.st", "--chain", "lstm, final, fc"]
    for name, where in (("one", []), ("out", ["--scheduler", cluster.file])):
        succeed(*RUN[:-3], "-o", f"{name}.csv", "--pool", "mean", *where, cwd=here)
        succeed("predict", *RUN[1:5], *chain, "-o", f"{name}.tsv", *where, cwd=here)
    for suffix in (".csv", ".tsv"):
        assert (here / f"out{suffix}").read_bytes() == (here / f"one{suffix}").read_bytes()
    assert sorted(path.name for path in here.glob("out.*")) == ["out.csv", "out.tsv"]


@pytest.mark.slow
def test_workers_of_several_threads(long: Path, mortal: Cluster) -> None:
    mortal.add_worker(threads=3)
    succeed(*LONG, "--scheduler", mortal.file, "--threads", 2, cwd=long)
    assert_done(long, "serial-long.h5")


def test_nan_is_told(here: Path, cluster: Cluster) -> None:
    ran = succeed("run", "-i", "nan.npy", "-w", "model.h5", "-o", "out.h5", "--scheduler", cluster.file, cwd=here)
    assert "NaN or Inf in 460 of 2,070 valid steps, first in sequence 70, step 0" in ran.err


def test_bad_data_is_told_in_one_line(here: Path, cluster: Cluster) -> None:
    command = ["run", "-i", "nan.npy", "-w", "model.h5", "-o", "out.h5", "--nonfinite", "error"]
    ran = lstmcli(*command, "--scheduler", cluster.file, cwd=here)
    assert_one_line(ran, 65, "nan.npy", "sequence 70, step 0: expected finite values")
    assert not list(here.glob("out*"))


def test_a_worker_is_killed(long: Path, mortal: Cluster) -> None:
    mortal.add_worker()
    mortal.add_worker()
    with start(long, str(mortal.file)) as running:
        mortal.workers[0].kill()
        _, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) == (0, "")
    assert_done(long, "serial-long.h5")


@pytest.mark.slow
def test_the_client_is_killed_before_anything_is_noted(long: Path, cluster: Cluster) -> None:
    command = [*LSTMCLI, *LONG, "--scheduler", str(cluster.file)]
    with subprocess.Popen(command, cwd=long, start_new_session=True) as running:
        wait_for((long / "out.h5.partial").exists)
        time.sleep(0.5)  # tasks run, and hold the file until they are done
        running.kill()
    assert (long / "out.h5.journal").read_bytes().count(b"\n") == 1
    assert_one_line(lstmcli(*LONG, "--resume", cwd=long), 73, "another run is writing it")
    succeed(*LONG, "--resume", "--scheduler", cluster.file, cwd=long)
    assert_done(long, "serial-long.h5")


@pytest.mark.slow
def test_no_workers(here: Path, mortal: Cluster) -> None:
    command = [*LSTMCLI, *RUN, "--scheduler", str(mortal.file)]
    with subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        assert "no workers at tcp://127.0.0.1" in running.stderr.readline()
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=30)
    assert (running.returncode, err.count("\n")) == (75, 1), err
    assert not list(here.glob("out*"))


@pytest.mark.slow
def test_the_client_is_killed(long: Path, cluster: Cluster) -> None:
    with start(long, str(cluster.file)) as running:
        running.kill()
    assert not (long / "out.h5").exists()
    assert_one_line(lstmcli(*LONG, "--scheduler", cluster.file, cwd=long), 73, "--resume")
    changed = [*LONG[:3], "--seed", 1, *LONG[3:], "--resume"]
    assert_one_line(lstmcli(*changed, "--scheduler", cluster.file, cwd=long), 65, "another run")
    ran = succeed(*LONG[:-1], "--json", "--resume", "--scheduler", cluster.file, cwd=long)
    assert ran.json["resumed_steps"] > 0
    assert_done(long, "serial-long.h5")


@pytest.mark.parametrize("name", [pytest.param("SIGINT", marks=pytest.mark.slow), "SIGTERM"])
def test_a_signal_stops_it_in_order(name: str, long: Path, cluster: Cluster) -> None:
    with start(long, str(cluster.file)) as running:
        running.send_signal(signal.Signals[name])
        _, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 75, err
    told = re.fullmatch(rf"lstmcli: stopped by {name} after ([\d,]+) of 360,000 steps; go on with: (lstmcli .*)\n", err)
    assert told, err
    done = shell(f"{told[2].replace(' -q', '')} --json", long)
    assert done.code == 0, done.err
    assert done.json["resumed_steps"] == int(told[1].replace(",", "")) > 0
    assert_done(long, "serial-long.h5")


@pytest.mark.parametrize("then", [["--scheduler"], pytest.param([], marks=pytest.mark.slow)], ids=["a cluster", "none"])
def test_what_came_out_of_order_is_kept_after_a_stop(then: list[str], long: Path, mortal: Cluster) -> None:
    """The worker that has the first task is suspended, while the other one does those behind it, and killed after the stop."""
    for _ in range(2):
        mortal.add_worker()
    with distributed.Client(mortal.address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=SECONDS)

        def stored() -> int:
            return client.run_on_scheduler(
                lambda dask_scheduler: sum(task.state == "memory" for task in dask_scheduler.tasks.values())
            )

        def place() -> str:
            return client.run_on_scheduler(
                lambda dask_scheduler: next(
                    (
                        task.processing_on.address
                        for key, task in dask_scheduler.tasks.items()
                        if key.startswith("lstm-") and key.endswith("-0") and task.processing_on
                    ),
                    "",
                )
            )

        pids = client.run(os.getpid)
        command = [*LSTMCLI, *LONG, "--scheduler", str(mortal.file)]
        with subprocess.Popen(command, cwd=long, stderr=subprocess.PIPE, text=True) as running:
            wait_for(place)
            (first,) = (worker for worker in mortal.workers if worker.pid == pids[place()])
            first.send_signal(signal.SIGSTOP)
            wait_for(lambda: stored() >= 3)
            running.send_signal(signal.SIGTERM)
            first.kill()
            _, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 75, err
    told = re.match(r"lstmcli: stopped by SIGTERM after ([\d,]+) of 360,000 steps; go on with: ", err)
    assert told, err
    lines = [json.loads(line.rpartition(b" ")[0]) for line in (long / "out.h5.journal").read_bytes().splitlines()]
    assert [list(line) for line in lines[1:]] == [["ahead"]] * (len(lines) - 1)  # nothing in order, and
    assert len(lines) > 3
    ran = succeed(*LONG[:-1], "--json", "--resume", *([*then, mortal.file] if then else []), cwd=long)
    kept = int(told[1].replace(",", ""))
    assert ran.json["resumed_steps"] == (kept if then else 0)
    assert kept >= 360_000 // 100
    assert_done(long, "serial-long.h5")


@pytest.mark.slow
def test_a_terminal_that_interrupts_all_processes(long: Path) -> None:
    with start(long, "local:2") as running:
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 75, err
    assert len(err.splitlines()) == 1, err
    succeed(*LONG, "--resume", cwd=long)  # without a cluster
    assert_done(long, "serial-long.h5")


@pytest.mark.slow
def test_the_scheduler_is_killed(long: Path, mortal: Cluster) -> None:
    mortal.add_worker()
    with start(long, str(mortal.file)) as running:
        mortal.scheduler.kill()
        _, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 69, err
    assert len(err.splitlines()) == 1, err
    assert "is gone" in err
    assert "--resume" in err
    succeed(*LONG, "--scheduler", "local:2", "--resume", cwd=long)
    assert_done(long, "serial-long.h5")


@pytest.mark.slow
def test_two_clients_with_one_output(long: Path, cluster: Cluster) -> None:
    with start(long, str(cluster.file)) as running:
        ran = lstmcli(*LONG, "--scheduler", cluster.file, "--overwrite", cwd=long)
        assert_one_line(ran, 73, "another run is writing it")
        _, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) == (0, "")
    assert_done(long, "serial-long.h5")


def test_a_worker_that_sees_other_files(here: Path, mortal: Cluster) -> None:
    hidden = here / "hidden"
    hidden.mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount namespace cannot be made here (unshare -rm)")
    mortal.prefix = ["unshare", "-rm", "sh", "-c", f'mount --bind {hidden} {here} && exec "$@"', "sh"]
    mortal.add_worker()
    ran = lstmcli(*RUN, "--scheduler", mortal.file, cwd=here)
    assert_one_line(ran, 69, "worker tcp://127.0.0.1", "out.h5.partial", "must see the files")
    assert not list(here.glob("out*"))


@pytest.mark.slow
def test_a_worker_of_another_version(here: Path, mortal: Cluster, tmp_path: Path) -> None:
    package = Path(__file__).parents[2] / "lstmcli"
    shutil.copytree(package, tmp_path / "old" / "lstmcli")
    init = tmp_path / "old" / "lstmcli" / "version.py"
    init.write_text(re.sub(r'__version__ = ".*"', '__version__ = "0.0.7"', init.read_text()))
    mortal.env = {"PYTHONPATH": str(tmp_path / "old")}
    mortal.add_worker()
    ran = lstmcli(*RUN, "--scheduler", mortal.file, cwd=here)
    assert_one_line(ran, 69, "worker tcp://127.0.0.1", "0.0.7")


def test_an_address_where_nobody_answers(tmp_path: Path, here: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        absent = here / "absent.json"
        calls = [[*LSTMCLI, *RUN, "--scheduler", str(where)] for where in (address, absent)]
        running = [subprocess.Popen(call, cwd=here, stderr=subprocess.PIPE, text=True) for call in calls]
        told = [process.communicate(timeout=30)[1] for process in running]
    assert [process.returncode for process in running] == [69, 69]
    assert [len(err.splitlines()) for err in told] == [1, 1], told
    assert address in told[0]
    assert "does it run" in told[0]
    assert "absent.json" in told[1]
    assert "does not exist" in told[1]
    assert not list(here.glob("out*"))


def test_dask_is_not_installed(here: Path, tmp_path: Path) -> None:
    (tmp_path / "distributed.py").write_text("raise ModuleNotFoundError('No module named distributed')")
    ran = lstmcli(*RUN, "--scheduler", "local:2", cwd=here, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert_one_line(ran, 2, "pip install 'lstmcli[dask]'")


def test_the_example_of_the_page(sample_x: Path, tmp_path: Path) -> None:
    ((_, example),) = pages.examples(pages.DOCS / "dask.md", "sh dask")
    (tmp_path / "sample_data").symlink_to(sample_x.parent)
    dask = 'dask() { exec "$PYTHON" -c "from distributed.cli.dask_$1 import main; main()" "${@:2}"; }'
    ran = shell(f"PYTHON={sys.executable}; {dask}; set -m; {example}wait", tmp_path)
    assert ran.code == 0, ran.err
    assert "scheduler tcp://127.0.0.1" in ran.text
    local = example.splitlines()[2].split(" --scheduler")[0]
    assert shell(local.replace("-o vowels.h5", "-o serial.h5"), tmp_path).code == 0
    assert (tmp_path / "vowels.h5").read_bytes() == (tmp_path / "serial.h5").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scheduler", "local:0"], "local:N"),
        (["--scheduler", "local:x"], "local:N"),
        (["--scheduler", "local:8786"], "at most 999"),
        (["--scheduler", "local:2", "--dry-run"], "--dry-run"),
        (["--scheduler", "local:2", "--plan", "p.json", "--shard", "1"], "the plan says"),
        (["--scheduler", "local:2", "-o", "-"], "files as input and output"),
        (["--scheduler", "local:2", "-i", "-"], "files as input and output"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], words: str, here: Path) -> None:
    given = RUN[:1] + RUN[3:] if "-i" in options else RUN  # one input
    assert_one_line(lstmcli(*given, *options, cwd=here), 2, words)
    assert not list(here.glob("out*"))
