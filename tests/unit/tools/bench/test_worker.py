"""What a contender's process does in its turn."""

from __future__ import annotations

import pytest

from lstmcli.tools.bench import worker


@pytest.mark.parametrize(
    ("seconds", "took"),
    [
        ([0.1, 0.02, 0.01, 0.04], 0.02),  # the first is not counted; then until 0.05 s have passed
        ([0.1, 0.06, 9.0], 0.06),
        ([0.3, 9.0], 0.3),  # long enough to count
    ],
)
def test_a_turn(seconds: list[float], took: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(seconds)
    monkeypatch.setattr(worker, "timed", lambda call: next(calls))
    assert worker.turn(lambda: None) == took
