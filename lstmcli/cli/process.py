"""The process around a command: its descriptors, its environment, and how it ends."""

import io
import os
import platform
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

import click

from lstmcli.cli.report.terminal import labelled, on_terminal
from lstmcli.errors import LstmcliError, StoppedError, StorageError, interrupt, shown

IO_ERROR = StorageError.exit_code
NO_ERRORS = (StoppedError.exit_code, 130, 143)  # exit codes of what the user asked for
LIMITS = "is something full, or a limit too low (ulimit -a)?"


class Ending(NamedTuple):
    """What an error means for the user: exit code and message, and what stands under it on a terminal."""

    code: int
    message: str
    candidates: Sequence[str] = ()
    advice: str = ""


# The first kind that fits counts. Errors of files are LstmcliErrors: an OSError here is of standard output or of a library.
ENDINGS: dict[type[BaseException], Ending] = {
    KeyboardInterrupt: Ending(130, "interrupted"),
    click.Abort: Ending(130, "interrupted"),
    MemoryError: Ending(1, "out of memory; a smaller --max-memory or a smaller model takes less"),
    ImportError: Ending(1, "{error}; the installation is incomplete: reinstall lstmcli"),
    OSError: Ending(IO_ERROR, f"{{error}}; {LIMITS}"),
    SystemError: Ending(1, f"{{error}}; {LIMITS}"),
}
NO_MEMORY = "out of memory, or a limit is too low (ulimit -a)"
NO_THREAD = Ending(1, f"{{error}}: {NO_MEMORY}; fewer --threads take less")


def prepare() -> None:
    """Readies signals, standard streams, also those that were closed, and the variables that libraries read when they load."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: no file of ours may take its number, and with it what is printed
            os.open(os.devnull, os.O_RDWR)
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for a shell's background jobs
        signal.signal(signal.SIGINT, interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the encoding has not must not end a command that is done
            stream.reconfigure(errors="backslashreplace")
    # libhdf5 must not search for filter plugins, which are libraries that it would run.
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy starts a thread for every CPU; only `bench` uses its products
    # h5py asks for the whole of uname(), for which Python runs `uname -p`: 6 ms, and that seldom knows more than this.
    with suppress(AttributeError):
        platform.uname().processor = platform.machine()  # type: ignore[misc]


def discard(descriptor: int) -> None:
    """Sends nowhere what is still written to a descriptor, so that buffered text does not fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def fail(error: BaseException) -> NoReturn:
    """Ends the process with the line and the exit code of an expected error; raises any other error, which is a bug.

    With LSTMCLI_TRACEBACK=1 the traceback is printed above the line, with the errors that caused this one.
    """
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        end(error.exit_code, error.format_message())
    ending = ending_of(error)
    if ending is None:
        raise error
    if os.environ.get("LSTMCLI_TRACEBACK"):
        import traceback

        with suppress(OSError):
            traceback.print_exception(error)
    end(ending.code, message(ending))


def message(ending: Ending) -> str:
    """Returns what is printed: one line, or on a terminal one more for each candidate."""
    kind = "error" if ending.code not in NO_ERRORS else ""
    if not (ending.candidates and on_terminal(sys.stderr)):
        return labelled(kind, plain(ending.message), sys.stderr)
    text = ending.message.removesuffix(ending.advice).removesuffix(", ".join(ending.candidates))
    lines = [plain(text).rstrip(), *(f"  {plain(one)}" for one in ending.candidates), plain(ending.advice).removeprefix("; ")]
    return labelled(kind, "\n".join(lines).rstrip(), sys.stderr)


def plain(text: str) -> str:
    """Returns a text in one line that a terminal can be given."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.replace("\n", " "))


def ending_of(error: BaseException) -> Ending | None:
    """Returns the exit code and the message of an expected error, None for a bug."""
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see {context.command_path} --help)" if context else ""
        return Ending(error.exit_code, error.format_message() + hint)
    if isinstance(error, StoppedError):
        return Ending(error.exit_code, f"{error}; go on with: {resuming(sys.argv)}")
    if isinstance(error, LstmcliError):
        return Ending(error.exit_code, str(error), error.candidates, error.advice)
    if isinstance(error, ImportError) and lacks_memory(error):
        return Ending(1, f"{NO_MEMORY}: {shown(str(error).strip().splitlines()[-1])}")
    found = next((ending for kind, ending in ENDINGS.items() if isinstance(error, kind)), None)
    if found is None and starts_a_thread(error):
        found = NO_THREAD
    if found is None:
        return None
    code = 1 if isinstance(error, OSError) and not error.errno else found.code  # a library's own complaint has no number
    return Ending(code, found.message.format(error=error))


def lacks_memory(error: BaseException) -> bool:
    """Says whether a library could not be loaded for want of memory: by the errors that caused this one, or by their words."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    words = ("cannot allocate memory", "failed to map segment")
    return any(isinstance(one, MemoryError) or any(each in str(one).lower() for each in words) for one in causes)


def starts_a_thread(error: BaseException) -> bool:
    """Says whether the error comes from the start of a thread: the system had no memory or no number left for it."""
    place = error.__traceback__
    while place and place.tb_frame.f_code is not threading.Thread.start.__code__:
        place = place.tb_next
    return isinstance(error, RuntimeError) and place is not None


def resuming(argv: list[str]) -> str:
    """Returns the command, quoted for a shell, that goes on with the run of this one."""
    words = [shell_word(word) for word in argv[1:] if word != "--resume"]
    return " ".join(["lstmcli", *words, "--resume"])


def shell_word(word: str) -> str:
    """Quotes a word for a shell, as bash's $'...' where it holds what a terminal must not get or what breaks the line."""
    if word.isprintable():
        return shlex.quote(word)
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in os.fsencode(word))
    return f"$'{''.join(plain)}'"


def end(code: int, message: str = "") -> NoReturn:
    """Ends the process with this code, even if the message cannot be printed."""
    with suppress(OSError):
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    # Everything is on disk. Taking LLVM and the interpreter apart in order would take longer than a small run.
    os._exit(code)
