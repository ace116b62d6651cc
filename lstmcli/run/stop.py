"""Requests to stop a run: signals, and a time that has passed.

The first signal asks the run to stop after the block at hand; the second ends the process at once. A thread of its own waits
for them, because Python's handlers run in the main thread, which may be in the kernel for a second.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lstmcli.errors import SignalError, interrupt

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
]


class Stop:
    """Whether and why a run is to stop. Outside of deferred(), where nothing would be kept, a signal raises SignalError."""

    def __init__(self, after: float | None = None) -> None:
        """Sets a time limit. after: in seconds from now."""
        self.after = after
        self.deadline = None if after is None else time.monotonic() + after
        self.signal: int | None = None
        self.waits = False

    def reason(self) -> str | None:
        """Returns why the run is to stop, or None."""
        if self.signal is not None:
            return signal.Signals(self.signal).name
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "--stop-after"
        return None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets signals only be noted, while the run asks for reason() between two blocks."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False

    @contextmanager
    def heed_signals(self) -> Iterator[None]:
        """Catches signals. To be called in the main thread."""
        receive, send = os.pipe()
        os.set_blocking(send, False)
        threading.Thread(target=self._watch, args=(receive,), daemon=True).start()
        before = signal.set_wakeup_fd(send)
        handlers: dict[int, Any] = {}
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                handlers[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(send)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self.waits:
            interrupt(number, frame)

    def _watch(self, receive: int) -> None:
        asked = False
        while number := os.read(receive, 1):
            if asked:
                os._exit(SignalError(number[0]).exit_code)
            asked = True
            self.signal = number[0]
        os.close(receive)
