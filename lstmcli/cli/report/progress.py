"""The progress of a run, on standard error: a bar, or a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

LOG_SECONDS = 10.0


class Pace:
    """Counts steps and their speed. The first number is what an earlier run had done: it is no work of this one."""

    def __init__(self) -> None:
        self.before: int | None = None
        self.done, self.began = 0, time.monotonic()

    def add(self, steps: int) -> None:
        if self.before is None:
            self.before, self.began = steps, time.monotonic()
        self.done += steps

    def is_first(self) -> bool:
        """Says whether this run has done nothing yet."""
        return self.done == self.before

    def speed(self) -> float:
        """Returns the steps per second of this run."""
        return (self.done - (self.before or 0)) / max(time.monotonic() - self.began, 1e-9)


@contextmanager
def bar(console: Any) -> Iterator[Callable[[int, int], None]]:
    """Draws a bar on a rich console, and takes it away at the end."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.percentage:.0f} %  {task.completed:,} of {task.total:,} steps  {task.fields[speed]}")
    with Progress(BarColumn(20), text, TimeRemainingColumn(), console=console, transient=True) as drawn:
        task = drawn.add_task("", total=1, speed="", visible=False)
        pace = Pace()

        def advance(steps: int, total: int) -> None:
            pace.add(steps)
            if pace.is_first():  # rich measures the time that is left from here on
                drawn.reset(task, total=total, completed=pace.done, visible=True)
            else:
                drawn.update(task, completed=pace.done, speed=f"{pace.speed():,.0f} steps/s")

        yield advance


class Log:
    """Prints a line every LOG_SECONDS, and none for short runs."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self.print_line = print_line
        self.pace = Pace()
        self.next = time.monotonic() + LOG_SECONDS

    def __call__(self, steps: int, total: int) -> None:
        self.pace.add(steps)
        now, done = time.monotonic(), self.pace.done
        if now < self.next or self.pace.is_first():
            return
        self.next = now + LOG_SECONDS
        speed = self.pace.speed()
        left = timedelta(seconds=round((total - done) / speed))
        self.print_line(f"{done / total:.1%}  {done:,} of {total:,} steps  {speed:,.0f} steps/s  {left} left")
