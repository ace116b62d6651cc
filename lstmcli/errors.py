"""The errors that a user can cause or run into. Each kind carries its exit code, from sysexits.h where that has one.

The text of an error says in one line where it is (file, dataset, row), what was expected, what came, and what to do.
"""

import os
import signal
from collections.abc import Sequence
from types import FrameType

FOREIGN = ("importlib", "numba", "llvmlite")  # whose code catches whatever is raised in it


class LstmcliError(Exception):
    """The root of all expected failures. Anything else that is raised is a bug.

    Its text is `text`, then the candidates that there are, and then what to do. A terminal shows candidates under each other.
    """

    exit_code = 1

    def __init__(self, text: str, candidates: Sequence[str] = (), advice: str = "") -> None:
        super().__init__(f"{text}{', '.join(candidates)}{advice}")
        self.candidates, self.advice = candidates, advice


class UsageError(LstmcliError):
    """Options that contradict each other, or that this version cannot do."""

    exit_code = 2


class DataError(LstmcliError, ValueError):
    """Input that is malformed or does not fit the model."""

    exit_code = 65


class ChangedDataError(DataError):
    """Input that is not what it was, or is damaged, after some of a result was made: that stays for --resume."""


class SequenceError(DataError):
    """A sequence of a block that a model cannot take; whoever knows where the block lies says where in the input that is.

    row: its number in the block. step: counted from its first valid one; None: all of it.
    """

    def __init__(self, row: int, step: int | None, text: str) -> None:
        super().__init__(f"sequence {row}{f', step {step}' if step is not None else ''}: {text}")
        self.row, self.step, self.text = row, step, text


class MissingInputError(LstmcliError):
    """An input file that does not exist or cannot be opened."""

    exit_code = 66


class ClusterError(LstmcliError):
    """A Dask scheduler or workers that cannot be reached, are gone, or have another version or other files."""

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
    """A signal or --stop-after ended the run after a whole block. --resume goes on from there."""

    exit_code = 75


class SignalError(LstmcliError):
    """A signal ended the command, of which nothing is kept."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 130 if number == signal.SIGINT else 143


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raises SignalError: a handler of signals where nothing is kept.

    Ends the process at once while modules are loaded or functions compiled, where an exception would be swallowed, or become
    another one. No file is written there.
    """
    error = SignalError(number)
    while frame:
        if frame.f_globals.get("__name__", "").lstrip("_").startswith(FOREIGN):
            try:
                os.write(2, f"lstmcli: {error}\n".encode())
            finally:
                os._exit(error.exit_code)
        frame = frame.f_back
    raise error


def shown(name: str) -> str:
    """Makes a name safe for a terminal: escapes and quotes it if it holds control characters."""
    return name if name.isprintable() else repr(name)
