"""The terminal, or the files and pipes in its place, that a command prints to."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from lstmcli.errors import StorageError, shown

WIDE = 10_000  # columns of a pipe: nothing is wrapped or cut for programs that read lines


class Terminal:
    """Prints what was asked for to standard output, and notes and progress to standard error.

    A stream that was closed before the program began is None, and what is printed to it is lost.
    """

    def __init__(self, json: bool = False, quiet: bool = False, progress: str = "auto") -> None:
        """json: one JSON object instead of text. quiet: no summary, notes or progress. progress: auto, bar, log or none."""
        self.out: TextIO | None = sys.stdout
        self.err: TextIO | None = sys.stderr
        self.json = json
        self.quiet = quiet
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
            self._write(stream, "".join(f"{name:10}{text}\n" for name, text in rows))
        else:
            from rich.text import Text

            self._draw(stream, *(Text.assemble((f"{name:10}", "bold"), text) for name, text in rows))

    def print_drawing(self, facts: Any, draw: Callable[[], Any]) -> None:
        """Prints the facts as JSON, or else what `draw` makes for rich: a table, a tree."""
        if self.json:
            self.print_json(facts)
        elif self.out:
            self._draw(self.out, draw())

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
            self.warn(text)

    def warn(self, text: str) -> None:
        """Prints a line to standard error, whatever was asked for."""
        self.print_error(f"lstmcli: {shown(text)}")

    def print_error(self, line: str) -> None:
        """Prints to standard error. That nobody can read it any more is no reason to lose a run."""
        try:
            print(line, file=self.err, flush=True)
        except OSError:
            self._silence(self.err)

    @contextmanager
    def progress(self) -> Iterator[Callable[[int, int], None]]:
        """Gives a function to call with (valid steps done since the last call, valid steps in all), from any thread."""
        from lstmcli.cli.report import progress

        kind = self.kind_of_progress
        if kind == "auto":
            kind = "bar" if self.err and self.err.isatty() else "log"
        if kind == "bar":
            with progress.bar(console(self.err)) as advance:
                yield advance
        elif kind == "log":
            yield progress.Log(self.print_error)
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


def console(stream: TextIO | None) -> Any:
    """Makes rich's console for a stream."""
    from rich.console import Console
    from rich.theme import Theme

    width = None if stream and stream.isatty() else WIDE
    theme = Theme({"markdown.code": "bold"})
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, theme=theme)
