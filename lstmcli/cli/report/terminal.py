"""The terminal, or the files and pipes in its place, that a command prints to."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from lstmcli.errors import StorageError, shown

COLOURS = {"error": 31, "warning": 33, "note": 36}  # red, yellow, cyan
NAME_WIDTH = 10  # of the column of names in a summary
WIDE = 10_000  # columns of a pipe: nothing is wrapped or cut for programs that read lines


class Terminal:
    """Prints what was asked for to standard output, and notes and progress to standard error.

    A stream that was closed before the program began is None, and what is printed to it is lost.
    """

    def __init__(self, json: bool = False, quiet: bool = False, verbose: bool = False, progress: str = "auto") -> None:
        """json: one JSON object instead of text. quiet: no summary, notes or progress. verbose: all states in the summary.

        progress: auto, bar, log or none.
        """
        self.out: TextIO | None = sys.stdout
        self.err: TextIO | None = sys.stderr
        self.json = json
        self.quiet, self.verbose = quiet, verbose
        self.kind_of_progress = "none" if quiet else progress

    def is_interactive(self) -> bool:
        """Says whether standard output is a terminal."""
        return self.out is not None and self.out.isatty()

    def print(self, text: str) -> None:
        """Writes to standard output. Raises BrokenPipeError, StorageError."""
        self._write(self.out, text)

    def print_json(self, facts: Any) -> None:
        """Writes one JSON object to standard output."""
        self._write(self.out, json.dumps(facts) + "\n")

    def print_rows(self, facts: dict[str, Any], rows: Iterable[tuple[str, str]], to_stderr: bool = False) -> None:
        """Prints the facts as one JSON object, or else the rows: a line for each name and text."""
        stream = self.err if to_stderr else self.out
        if self.json:
            self._write(stream, json.dumps(facts) + "\n")
        elif stream is None or not stream.isatty():  # the same without bold, and without loading rich
            self._write(stream, "".join(f"{name:{NAME_WIDTH}}{text}\n" for name, text in rows))
        else:
            from rich.text import Text

            width = console(stream).width - NAME_WIDTH
            lines = ((name if k == 0 else "", line) for name, text in rows for k, line in enumerate(broken(text, width)))
            self._draw(stream, *(Text.assemble((f"{name:{NAME_WIDTH}}", "bold"), line) for name, line in lines))

    def print_drawing(self, facts: Any, draw: Callable[[], Any]) -> None:
        """Prints the facts as JSON, or else what `draw` makes for rich: a table, a tree."""
        if self.json:
            self.print_json(facts)
        elif self.out:
            self._draw(self.out, draw(), wrap=True)

    def print_page(self, page: str) -> None:
        """Writes a page of Markdown, rendered on a terminal and plain elsewhere."""
        if self.out is None or not self.out.isatty():
            self.print(page)
            return
        from lstmcli.cli.report.documentation import rendered

        self._draw(self.out, rendered(page, console(self.out).width), wrap=True)

    def note(self, text: str) -> None:
        """Prints a line to standard error, unless the command is to be quiet."""
        if not self.quiet:
            self.warn(text, "note")

    def warn(self, text: str, kind: str = "warning") -> None:
        """Prints a line to standard error, whatever was asked for."""
        self.print_error(labelled(kind, shown(text), self.err))

    def print_error(self, line: str) -> None:
        """Prints to standard error. That nobody can read it any more is no reason to lose a run."""
        try:
            print(line, file=self.err, flush=True)
        except OSError:
            self._silence(self.err)

    @contextmanager
    def progress(self, name: str, threads: int | None) -> Iterator[Callable[[int, int], None]]:
        """Gives a function to call with (valid steps done since the last call, valid steps in all), from any thread.

        name: of the file that is read. threads: as --threads.
        """
        from lstmcli.cli.report import progress

        kind = self.kind_of_progress
        if kind == "auto":
            kind = "bar" if draws(self.err) else "log"
        if kind == "bar":
            title = shown(name.partition("::")[0].rpartition("/")[2])
            with progress.bar(console(Lossy(self.err)), title) as advance:
                yield advance
        elif kind == "log":
            yield progress.Log(self.print_error, lambda: running(name, threads))
        else:
            yield lambda steps, total: None

    def _draw(self, stream: TextIO, *renderables: Any, wrap: bool = False) -> None:
        screen = console(stream)
        with screen.capture() as captured:
            for renderable in renderables:
                screen.print(renderable, soft_wrap=not wrap)
        self._write(stream, captured.get())

    def _write(self, stream: TextIO | None, text: str) -> None:
        """Writes without rich, which ends the program with code 1 when the reader of a pipe is gone."""
        if stream is None:
            return
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            self._silence(stream)
            name = "standard output" if stream is self.out else "standard error"
            raise StorageError(f"{name}: {error.strerror}") from error

    @staticmethod
    def _silence(stream: TextIO | None) -> None:
        """Sends nowhere what is still buffered, so that it does not fail once more when the program ends."""
        if stream:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def broken(text: str, width: int) -> list[str]:
    """Breaks a text into lines of at most `width` columns: between its facts, then between words, never inside a name."""
    import textwrap

    lines = [""]
    for fact in text.split("  "):
        if len(f"{lines[-1]}  {fact}") <= width:
            lines[-1] = f"{lines[-1]}  {fact}".strip()
        else:
            lines += textwrap.wrap(fact, max(width, 1), break_long_words=False, break_on_hyphens=False)
    return [line for line in lines if line] or [""]


def running(name: str, threads: int | None) -> str:
    """Says what is running and where, for a log."""
    from lstmcli.engine.cpus import available_threads
    from lstmcli.version import __version__

    return f"lstmcli {__version__} on {os.uname().nodename}, {threads or available_threads()} threads: {shown(name)}"


def on_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def draws(stream: TextIO | None) -> bool:
    """Says whether a stream is a terminal that can do more than show lines of text."""
    return on_terminal(stream) and os.environ.get("TERM") != "dumb"


def labelled(kind: str, text: str, stream: TextIO | None) -> str:
    """Returns a message with its kind, in colour on a terminal that wants that: https://no-color.org."""
    label = f"{kind}: " if kind else ""
    if label and draws(stream) and not os.environ.get("NO_COLOR"):
        label = f"\x1b[1;{COLOURS[kind]}m{label}\x1b[0m"
    return f"lstmcli: {label}{text}"


class Lossy:
    """A stream for what may be lost: a terminal that is closed during a run must not fail it."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self.stream.write(text) if self.stream else 0
        return 0

    def flush(self) -> None:
        with suppress(OSError):
            if self.stream:
                self.stream.flush()


def console(stream: Any) -> Any:
    """Makes rich's console for a stream."""
    from rich.console import Console
    from rich.theme import Theme

    width = None if stream and stream.isatty() else WIDE
    theme = Theme({"markdown.code": "bold"})
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, theme=theme)
