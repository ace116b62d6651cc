"""What runs in the workers of a Dask cluster: one part of a plan, as `lstmcli run --plan --shard` makes it."""

import os
import signal
import time
from typing import Any

from lstmcli import __version__
from lstmcli.cluster.parts import run_part
from lstmcli.cluster.plan import read_plan
from lstmcli.errors import BusyError, ClusterError, DataError, LstmcliError, StorageError, UsageError, shown
from lstmcli.stop import SIGNALS, Stop

BUSY = 1.0  # seconds until the next try

stopping: set[str] = set()  # the clients that asked for it


class Asked(Stop):
    """The client's wish to stop."""

    def __init__(self, client: str) -> None:
        super().__init__()
        self.client = client

    def reason(self) -> str | None:
        return "the client" if self.client in stopping else None


def ask_to_stop(client: str) -> None:
    stopping.add(client)


def make_part(path: str, checksum: str, number: int, settings: dict[str, Any], version: str, client: str) -> LstmcliError | None:
    """Makes part `number` of the plan at `path`, or goes on with it; an error that another try would only meet again.

    checksum: of the plan. version: of the client's lstmcli. StorageError: another try may do better.
    """
    from distributed import get_worker

    os.environ.setdefault("HDF5_PLUGIN_PRELOAD", "::")  # as the command does
    where = f"worker {get_worker().address}"
    if version != __version__:
        return ClusterError(f"{where}: has lstmcli {__version__}, and this is {version}; install the same one")
    try:
        plan = read_plan(path)
        if plan.checksum != checksum:
            raise ClusterError(f"{shown(path)}: is another file there")
        make(plan, number, settings, Asked(client))
    except StorageError:
        raise
    except (DataError, UsageError) as error:
        return error
    except LstmcliError as error:
        return type(error)(f"{where}: {error}; workers must see the files that the client sees, under the same names")
    return None


def make(plan: Any, number: int, settings: dict[str, Any], stop: Stop) -> None:
    while True:
        try:
            run_part(plan, number, settings, on_progress=lambda steps, total: None, stop=stop)
            return
        except BusyError:  # by a worker that the scheduler has lost sight of, or a client before this one
            if stop.reason():
                raise
        time.sleep(BUSY)


def dask_setup(worker: Any) -> None:
    """Of workers on the client's terminal, where all get the signals that are for the client."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
