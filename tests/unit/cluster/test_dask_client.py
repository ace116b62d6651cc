"""What the client of a cluster makes of a task that has ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lstmcli.cluster.dask_client import Tasks
from lstmcli.errors import ClusterError

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install distributed")


class Future:
    """A task that has ended well, whose value is not there any more."""

    status = "finished"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def result(self) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [distributed.CancelledError(), distributed.comm.CommClosedError(), TimeoutError()])
def test_a_scheduler_that_dies_before_it_gives_a_value(error: Exception) -> None:
    tasks, future = Tasks.__new__(Tasks), Future(error)
    tasks.client = SimpleNamespace(scheduler=SimpleNamespace(address="tcp://there:8786"))  # type: ignore[assignment]
    tasks.running = {future: (0, 3)}  # type: ignore[dict-item]
    with pytest.raises(ClusterError, match=r"scheduler at tcp://there:8786 is gone.*--resume"):
        tasks._finish(future)
