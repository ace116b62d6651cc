"""What a user can get wrong or run into. Each kind carries the exit code of the command (sysexits.h where it has one).

The text of an error says where (file, dataset, row), what was expected, what came, and what to do, in one line.
"""

import signal


class LstmcliError(Exception):
    """Root of all expected failures; anything else that is raised is a bug."""

    exit_code = 1


class UsageError(LstmcliError):
    """Options that contradict each other or that this version cannot honour."""

    exit_code = 2


class DataError(LstmcliError, ValueError):
    """Input that is malformed, or that does not fit the model."""

    exit_code = 65


class MissingInputError(LstmcliError):
    """An input file that does not exist or cannot be opened."""

    exit_code = 66


class ClusterError(LstmcliError):
    """A Dask scheduler or its workers that cannot be reached, are gone, or have another version or other files."""

    exit_code = 69


class OutputError(LstmcliError):
    """An output that exists already or cannot be created."""

    exit_code = 73


class BusyError(OutputError):
    """An output that another run is writing."""


class StorageError(LstmcliError):
    """Reading or writing failed on the way: disk full, quota, device error, broken pipe."""

    exit_code = 74


class StoppedError(LstmcliError):
    """A signal or --stop-after ended the run after a whole block: --resume goes on from there."""

    exit_code = 75


class SignalError(LstmcliError):
    """A signal ended the command, and nothing is kept."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 130 if number == signal.SIGINT else 143


def shown(name: str) -> str:
    """`name` as it may reach a terminal: escaped and quoted if it holds control characters."""
    return name if name.isprintable() else repr(name)
