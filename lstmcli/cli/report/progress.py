"""The progress of a run, on standard error: a bar, or a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

LOG_SECONDS = 10.0


@contextmanager
def bar(console: Any) -> Iterator[Callable[[int, int], None]]:
    """Draws a bar on a rich console, and takes it away at the end."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.percentage:.0f} %  {task.completed:,} of {task.total:,} steps  {task.fields[speed]}")
    with Progress(BarColumn(20), text, TimeRemainingColumn(), console=console, transient=True) as drawn:
        task = drawn.add_task("", total=1, speed="", visible=False)
        began = time.monotonic()

        def advance(steps: int, total: int) -> None:
            done = drawn.tasks[0].completed + steps
            speed = f"{done / max(time.monotonic() - began, 1e-9):,.0f} steps/s"
            drawn.update(task, total=total, completed=done, speed=speed, visible=True)

        yield advance


class Log:
    """Prints a line every LOG_SECONDS, and none for short runs."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self.print_line = print_line
        self.done, self.began = 0, time.monotonic()
        self.next = self.began + LOG_SECONDS

    def __call__(self, steps: int, total: int) -> None:
        self.done += steps
        now = time.monotonic()
        if now < self.next or not self.done:
            return
        self.next = now + LOG_SECONDS
        speed = self.done / (now - self.began)
        left = timedelta(seconds=round((total - self.done) / speed))
        self.print_line(f"{self.done / total:.1%}  {self.done:,} of {total:,} steps  {speed:,.0f} steps/s  {left} left")
