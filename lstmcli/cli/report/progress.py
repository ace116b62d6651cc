"""The progress of a run, on standard error: a bar, or a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

LOG_SECONDS = 10.0
BAR_STAYS = 2.0  # seconds that a run takes so that its bar is worth a line afterwards


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

    def to_come(self, total: int) -> str:
        """Returns how much time is left; when all steps are done, that the result is put on disk, which takes its time too."""
        if self.done == total:
            return "storing"
        return f"{timedelta(seconds=round((total - self.done) / self.speed()))} left"

    def taken(self) -> str:
        return f"in {timedelta(seconds=round(time.monotonic() - self.began))}"


@contextmanager
def bar(console: Any, name: str) -> Iterator[Callable[[int, int], None]]:
    """Draws a bar on a rich console, as wide as that. name: of what is read. The bar of a very short run does not stay."""
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    whole = Column(no_wrap=True)
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=console.width // 4)),
        BarColumn(None, complete_style="cyan", finished_style="green", table_column=Column(ratio=1)),
        TextColumn("{task.percentage:.0f} % of {task.total:,} steps", table_column=whole),
        TextColumn(" {task.fields[speed]}", table_column=whole),
        TextColumn(" {task.fields[time]}", table_column=whole),
    )
    with Progress(*columns, console=console, expand=True, transient=True) as drawn:
        task = drawn.add_task(name, total=1, speed="", time="", visible=False)
        pace = Pace()

        def advance(steps: int, total: int) -> None:
            pace.add(steps)
            if pace.is_first():
                drawn.update(task, total=total, completed=pace.done, visible=True)
            else:
                speed = f"{pace.speed():,.0f} steps/s"
                drawn.update(task, completed=pace.done, speed=speed, time=pace.to_come(total))

        try:
            yield advance
            if drawn.finished:
                drawn.update(task, time=pace.taken())
        finally:
            drawn.live.transient = time.monotonic() - pace.began < BAR_STAYS


class Log:
    """Prints a line every LOG_SECONDS, and none for short runs. The first of them is preceded by what is running where."""

    def __init__(self, print_line: Callable[[str], None], about: Callable[[], str]) -> None:
        """about: says what is running, when it is asked."""
        self.print_line = print_line
        self.about: Callable[[], str] | None = about
        self.pace = Pace()
        self.next = time.monotonic() + LOG_SECONDS

    def __call__(self, steps: int, total: int) -> None:
        self.pace.add(steps)
        now, done = time.monotonic(), self.pace.done
        if now < self.next or self.pace.is_first():
            return
        if self.about:
            before = f"; resumed at {self.pace.before / total:.1%}" if self.pace.before else ""
            self.line(f"{self.about()}{before}")
            self.about = None
        self.next = now + LOG_SECONDS
        speed = f"{self.pace.speed():,.0f} steps/s"
        self.line(f"{done / total:.1%}  {done:,} of {total:,} steps  {speed}  {self.pace.to_come(total)}")

    def line(self, text: str) -> None:
        self.print_line(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}")
