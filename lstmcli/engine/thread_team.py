"""Threads that run the kernel together.

A thread pool takes 0.1 ms to pass on a call and its result, and the system as long to wake a thread, which is all that a small
batch takes. So the threads are plain ones and wait in native code, without Python's lock: one that has done its part looks
out for the next call for a while before it goes to sleep. The kernel's thread 0 ends only when all have done their part:
nothing is passed back.
"""

import ctypes
import functools
import os
import platform
import threading
from collections.abc import Callable

import numpy as np

from lstmcli.kernel.native import compiled

SPINS = 5000  # looks of a thread before it goes to sleep: 0.1 to 0.3 ms
# A thread's box, in bytes: the job (0: none), the kernel's address, the next thread's box; pthread_mutex_t, pthread_cond_t.
KERNEL, NEXT, MUTEX, CONDITION, BOX_SIZE = 8, 16, 64, 128, 256
Native = Callable[..., None]


class Team:
    """Runs one call at a time: the threads of a call wait for each other, so two calls must not each hold half of them."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.boxes = [np.zeros(BOX_SIZE, np.uint8)]  # the first is the calling thread's, and only leads to the others
        self.post, self.serve = natives()

    def run(self, kernel: int, job: int, threads: int) -> None:
        """kernel(job, 0) here and kernel(job, 1) .. kernel(job, threads - 1) in other threads; kernel(job, 0) ends last.

        kernel and job are addresses. No interrupt comes in between.
        """
        with self.turn:
            while len(self.boxes) < threads:
                self._add()
            self.post(self.boxes[0].ctypes.data, threads - 1, kernel, job)

    def _add(self) -> None:
        box, number = np.zeros(BOX_SIZE, np.uint8), len(self.boxes)
        place, system = box.ctypes.data, ctypes.CDLL(None)
        system.pthread_mutex_init(ctypes.c_void_p(place + MUTEX), None)
        system.pthread_cond_init(ctypes.c_void_p(place + CONDITION), None)
        threading.Thread(target=self.serve, args=(place, number), name=f"lstmcli-{number}", daemon=True).start()
        self.boxes[-1].view(np.int64)[NEXT // 8] = place
        self.boxes.append(box)


@functools.cache
def natives() -> tuple[Native, Native]:
    """post(box, others, kernel, job): the job into the `others` boxes after this one, then kernel(job, 0).
    serve(box, number): kernel(job, number) for each job that comes; it does not return."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    text = assembly(x86)
    recipe = compiled.Recipe("team", text, lambda here: compiled.compile_text(here, text, "post", "serve"))
    (post_at, serve_at), _, keep_alive = compiled.load(recipe)
    post = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)(post_at)
    serve = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(serve_at)
    post.keep_alive = keep_alive  # type: ignore[attr-defined]
    return post, serve


def assembly(x86: bool) -> str:
    pause = "call void @llvm.x86.sse2.pause()" if x86 else ""
    return f"""
        {"declare void @llvm.x86.sse2.pause()" if x86 else ""}
        declare i32 @pthread_mutex_lock(ptr)
        declare i32 @pthread_mutex_unlock(ptr)
        declare i32 @pthread_cond_wait(ptr, ptr)
        declare i32 @pthread_cond_signal(ptr)

        define void @post(ptr %own, i64 %others, ptr %kernel, ptr %job) {{
        start:
          br label %test
        test:
          %done = phi i64 [0, %start], [%more, %put]
          %last = phi ptr [%own, %start], [%box, %put]
          %left = icmp slt i64 %done, %others
          br i1 %left, label %put, label %run
        put:
          %next_at = getelementptr i8, ptr %last, i64 {NEXT}
          %box = load ptr, ptr %next_at
          %kernel_at = getelementptr i8, ptr %box, i64 {KERNEL}
          store ptr %kernel, ptr %kernel_at
          store atomic ptr %job, ptr %box release, align 8
          %mutex = getelementptr i8, ptr %box, i64 {MUTEX}
          %condition = getelementptr i8, ptr %box, i64 {CONDITION}
          call i32 @pthread_mutex_lock(ptr %mutex)
          call i32 @pthread_cond_signal(ptr %condition)
          call i32 @pthread_mutex_unlock(ptr %mutex)
          %more = add i64 %done, 1
          br label %test
        run:
          call void %kernel(ptr %job, i64 0)
          ret void
        }}

        define void @serve(ptr %box, i64 %number) {{
        start:
          %kernel_at = getelementptr i8, ptr %box, i64 {KERNEL}
          %mutex = getelementptr i8, ptr %box, i64 {MUTEX}
          %condition = getelementptr i8, ptr %box, i64 {CONDITION}
          br label %look
        look:
          %spins = phi i64 [0, %start], [%more, %spin], [0, %run], [0, %woken]
          %job = load atomic ptr, ptr %box acquire, align 8
          %none = icmp eq ptr %job, null
          br i1 %none, label %spin, label %run
        run:
          %kernel = load ptr, ptr %kernel_at
          store atomic ptr null, ptr %box monotonic, align 8
          call void %kernel(ptr %job, i64 %number)
          br label %look
        spin:
          {pause}
          %more = add i64 %spins, 1
          %again = icmp slt i64 %more, {SPINS}
          br i1 %again, label %look, label %tired
        tired:
          call i32 @pthread_mutex_lock(ptr %mutex)
          br label %check
        check:
          %late = load atomic ptr, ptr %box acquire, align 8
          %still = icmp eq ptr %late, null
          br i1 %still, label %sleep, label %woken
        sleep:
          call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
          br label %check
        woken:
          call i32 @pthread_mutex_unlock(ptr %mutex)
          br label %look
        }}
    """


_teams: list[Team] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_teams.clear)  # a forked child has none of the threads


def team() -> Team:
    """The team of this process."""
    if not _teams:
        _teams.append(Team())
    return _teams[0]
