"""Threads that run a kernel together.

A kernel's thread 0 ends when all is computed, and does what the others do not come for, so nothing has to be passed back. A
thread that has just done its part of a call looks out for the next one for a tenth of a millisecond, in native code: that takes
its caller 2 us. Then it sleeps, and a call is one item put into a queue: 14 us, and 13 more until the thread is there. Where a
thread came too late, or its CPU was wanted meanwhile, it does not look out. (Two cores; a batch of 0.3 ms.)
"""

import os
import threading
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from lstmcli.kernel.threads.box import Box

KernelCall = Callable[[int, int], None]  # (address of its table, number of the thread), without the GIL
Item = tuple[KernelCall, int, int, Any]


class WorkerThreads:
    """The threads of this process, started when they are first needed."""

    def __init__(self) -> None:
        # The threads of a call work together, so two calls must not each hold half of them.
        self.one_call = threading.Lock()
        self.queues: list[SimpleQueue[Item]] = []
        self.boxes: list[Box] = []

    def run(self, kernel: KernelCall, table: int, threads: int, memory: Any) -> None:
        """Run kernel(table, 0) here and kernel(table, 1), ..., kernel(table, threads - 1) elsewhere, until the first has ended.

        memory  owns the table, and what the kernel shares among its threads: a thread that comes too late still looks there
        """
        with self.one_call:
            self.start(threads - 1)
            # An interrupt must not come in between: the others would wait for thread 0, or write into memory that is gone.
            try:
                self.post(1, (kernel, table, threads, memory))
            finally:
                kernel(table, 0)
            for box in self.boxes:
                box.let_go()

    def start(self, count: int) -> None:
        """Start threads until there are `count`, or as many as the system lets start: a call does without the others.

        Not by threading.Thread, which waits until the thread has begun: for ever, where that finds no memory to begin with.
        """
        with suppress(RuntimeError):
            while len(self.queues) < count:
                queue: SimpleQueue[Item] = SimpleQueue()
                box = Box()
                start_new_thread(self.serve, (len(self.queues) + 1, queue, box))
                self.queues.append(queue)
                self.boxes.append(box)

    def post(self, number: int, item: Item) -> None:
        """Hand a call to thread `number` and to those after it: to the first one that does not look out by its queue."""
        kernel, table, threads, memory = item
        while number < threads and number <= len(self.boxes) and self.boxes[number - 1].hand_over(kernel, table, memory):
            number += 1
        if number < threads:
            self.put(number, item)

    def put(self, number: int, item: Item) -> None:
        """Put a call into a thread's queue, unless that has not even begun with the one before: then it would come too late."""
        if number <= len(self.queues) and (queue := self.queues[number - 1]).empty():
            queue.put(item)

    def serve(self, number: int, queue: SimpleQueue[Item], box: Box) -> None:
        """Take calls as thread `number`, and pass each on to the next thread, which signals do not interrupt."""
        while True:
            kernel, table, threads, _ = item = queue.get()
            if number < threads - 1:
                self.put(number + 1, item)
            box.serve(number, kernel, table)
            del item, _  # or they would keep the memory until the next call


_workers: list[WorkerThreads] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.clear)  # a forked child has none of the threads


def worker_threads() -> WorkerThreads:
    """Return those of this process."""
    if not _workers:
        _workers.append(WorkerThreads())
    return _workers[0]
