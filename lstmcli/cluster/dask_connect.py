"""Connects to a Dask scheduler."""

import asyncio
import json
import logging
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lstmcli.errors import ClusterError, LstmcliError, UsageError, shown

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

SECONDS = 10.0  # to wait for a scheduler, which may just be starting
LOCAL_SECONDS, SECONDS_EACH = 60.0, 2.0  # to wait for processes of this machine, and longer for each of them
CLOSING_SECONDS = 10.0  # to wait until they have ended
NOTHING_ELSE = {  # switches off what else Dask's processes would do
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.multiprocessing-method": "spawn",
}


@contextmanager
def connect(scheduler: str) -> Iterator["Client"]:
    """Connects to tcp://HOST:PORT, tls://HOST:PORT, the scheduler of a scheduler file, or local:N. UsageError, ClusterError."""
    try:
        import cryptography  # noqa: F401  # local:N makes keys with it
        import distributed
    except ModuleNotFoundError as error:
        raise UsageError(f"--scheduler: needs Dask, which is not installed ({error}); pip install 'lstmcli[dask]'") from error
    except Exception as error:  # while it is loaded Dask reads its settings, and raises what it likes
        raise ClusterError(
            f"--scheduler: Dask cannot be loaded: {reason(error)}; are its settings right (DASK_...)?"
        ) from error
    logging.disable()  # one line of this program says what went wrong
    warnings.simplefilter("ignore")  # such as that versions of Dask differ; each task compares versions of lstmcli
    if scheduler.startswith("local:"):
        with local_cluster(scheduler) as client:
            yield client
        return
    address = scheduler if "://" in scheduler else address_in(Path(scheduler))
    try:
        client = distributed.Client(address, timeout=SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ClusterError(
            f"--scheduler {shown(scheduler)}: no Dask scheduler answers at {shown(address)}: {error}; does it run, can this "
            "machine reach it, and do both use TLS (tls://) or neither?"
        ) from error
    try:
        yield client
    finally:
        if client.status == "running":  # otherwise it would wait for the scheduler once more
            client.close()


def address_in(file: Path) -> str:
    """Returns the address in a scheduler file, and waits for the file if need be. Raises ClusterError."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            if file.exists() and not file.is_file():
                raise ValueError("a folder, a pipe or a device")
            return str(json.loads(file.read_text())["address"])
        except FileNotFoundError:
            what = "does not exist"
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"is not what `dask scheduler --scheduler-file` writes: {error}"
        if time.monotonic() > until:
            raise ClusterError(
                f"--scheduler {shown(str(file))}: {what}; expected tcp://HOST:PORT, tls://HOST:PORT, local:N, or the file of a "
                "scheduler that runs"
            )
        time.sleep(0.1)


@contextmanager
def local_cluster(scheduler: str) -> Iterator["Client"]:
    """Starts N processes of one thread on this machine, which nobody else can reach: they want keys that only this run has.

    Raises UsageError for another N, and ClusterError where they do not start.
    """
    import dask
    from distributed import Client, LocalCluster, Security

    count = scheduler.removeprefix("local:")
    if not re.fullmatch("[1-9][0-9]{0,2}", count):  # not a port, for which thousands of processes would start
        raise UsageError(
            f"--scheduler {shown(scheduler)}: expected local:N for N processes, at most 999, such as local:{os.cpu_count()}"
        )
    options = {
        "n_workers": 0,  # scale() adds them: where one does not start, the constructor waits for ever in Dask 2025.12
        "threads_per_worker": 1,
        "host": "127.0.0.1",
        "memory_limit": 0,  # --max-memory says it
        "dashboard_address": "127.0.0.1:0",
        "worker_dashboard_address": "127.0.0.1:0",
        "scheduler_kwargs": {"dashboard": False},
        "silence_logs": logging.CRITICAL,
        "preload": ["lstmcli.cluster.dask_worker"],
    }
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # Python's own processes warn of what is left when they are ended
    with ExitStack() as opened:
        try:
            Path.cwd()  # where there is none, the processes end, and one of Python 3.13.0's says so in a traceback
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="lstmcli-", ignore_cleanup_errors=True))
            opened.enter_context(dask.config.set(NOTHING_ELSE))
            security = Security.temporary()
            cluster = LocalCluster(local_directory=folder, security=security, **options)
            opened.callback(close, cluster)
            cluster.scale(int(count))
            cluster.sync(started, cluster, callback_timeout=LOCAL_SECONDS + SECONDS_EACH * int(count))
            client = opened.enter_context(Client(cluster, set_as_default=False))
            client.wait_for_workers(int(count), timeout=LOCAL_SECONDS)
            # A process that can have no more threads is there, and takes tasks that it never begins.
            for began in [client.submit(os.getpid, workers=[one], pure=False) for one in client.nthreads()]:
                began.result(timeout=LOCAL_SECONDS)
        except LstmcliError:
            raise
        except Exception as error:  # Dask raises whatever it met
            raise ClusterError(
                f"--scheduler {scheduler}: its processes do not start: {reason(error)}; are Dask's settings right (DASK_...), "
                "and the limits high enough (ulimit -a)?"
            ) from error
        yield client


async def started(cluster: "LocalCluster") -> None:
    """Waits for the processes of a cluster. Raises what one of them met that does not start."""
    while len(cluster.workers) < len(cluster.worker_spec):
        await asyncio.sleep(0.01)
    for process in cluster.workers.values():
        await process


def close(cluster: "LocalCluster") -> None:
    """Ends the processes of a cluster, which may hang where one of them did not start."""
    with suppress(TimeoutError):
        cluster.close(timeout=CLOSING_SECONDS)
        return
    cluster.shutdown_on_close = False  # Dask would wait once more when Python ends


def reason(error: BaseException) -> str:
    """Returns in words what an error came from."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
