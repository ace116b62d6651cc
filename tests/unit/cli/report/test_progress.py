"""What is said of a run's progress."""

from __future__ import annotations

import io
import re
import time
from contextlib import suppress
from datetime import datetime

import pytest
from rich.console import Console

from lstmcli.cli.report import progress


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def a_log() -> tuple[progress.Log, list[str]]:
    """A log, and its lines without the time of day that they begin with."""
    lines: list[str] = []

    def print_line(line: str) -> None:
        when, _, text = line.partition("  ")
        assert datetime.fromisoformat(when)
        lines.append(text)

    return progress.Log(print_line, lambda: "about"), lines


def test_the_log_has_a_line_every_ten_seconds(clock: Clock) -> None:
    log, lines = a_log()
    log(0, 1_000_000)
    for _ in range(10):
        clock.now += 2.5
        log(50_000, 1_000_000)
    assert lines == [
        "about",
        "20.0%  200,000 of 1,000,000 steps  20,000 steps/s  0:00:40 left",
        "40.0%  400,000 of 1,000,000 steps  20,000 steps/s  0:00:30 left",
    ]


def test_steps_of_an_earlier_run_are_no_work_of_this_one(clock: Clock) -> None:
    log, lines = a_log()
    clock.now += 20  # until the inputs are open
    log(600_000, 1_000_000)
    assert lines == []
    clock.now += 10
    log(100_000, 1_000_000)
    assert lines == ["about; resumed at 60.0%", "70.0%  700,000 of 1,000,000 steps  10,000 steps/s  0:00:30 left"]


def test_the_bar_of_a_resumed_run(clock: Clock) -> None:
    out = io.StringIO()
    with progress.bar(Console(file=out, force_terminal=True, width=100), "x.h5") as advance:
        clock.now += 20
        advance(600_000, 1_000_000)
        clock.now += 10
        advance(100_000, 1_000_000)
    shown = out.getvalue()
    assert "x.h5" in shown
    assert "70 % of 1,000,000 steps" in shown
    assert "0:30 left" in " ".join(shown.split())
    assert "10,000 steps/s" in shown


def test_the_bar_says_that_all_steps_are_done_but_not_stored(clock: Clock) -> None:
    out = io.StringIO()
    with progress.bar(Console(file=out, force_terminal=True, width=100), "x.h5") as advance:
        advance(0, 1_000_000)
        clock.now += 30
        advance(1_000_000, 1_000_000)
        for _ in range(100):  # it is drawn ten times a second
            if "storing" in out.getvalue():
                break
            time.sleep(0.1)
        clock.now += 12
    before, after = [re.sub(r"\x1b\S*?[a-zA-Z]", "", line) for line in out.getvalue().split("\r") if "33,333 steps/s" in line]
    assert before.endswith("100 % of 1,000,000 steps  33,333 steps/s  storing")
    assert after.endswith("100 % of 1,000,000 steps  33,333 steps/s  in 0:00:42\n")


def test_the_bar_of_a_run_that_failed_does_not_say_that_it_is_done(clock: Clock) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with suppress(KeyError), progress.bar(console, "x.h5") as advance:
        advance(0, 1_000_000)
        clock.now += 30
        advance(1_000_000, 1_000_000)
        raise KeyError  # of whoever stores
    assert "storing" in out.getvalue()
    assert " in 0:" not in out.getvalue()


def test_the_log_says_that_all_steps_are_done_but_not_stored(clock: Clock) -> None:
    log, lines = a_log()
    log(0, 1_000_000)
    clock.now += 20
    log(1_000_000, 1_000_000)
    assert lines[-1] == "100.0%  1,000,000 of 1,000,000 steps  50,000 steps/s  storing"
