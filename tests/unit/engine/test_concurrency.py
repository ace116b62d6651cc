"""The Python call from several threads at once, and in a forked process."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from llvmlite import ir

import lstmcli
from lstmcli.engine import packed_cell, worker_threads
from lstmcli.engine.call import prepare as prepare_model
from lstmcli.engine.chains.call import prepare
from lstmcli.engine.chains.prepared_chain import PreparedChain
from lstmcli.engine.lanes_and_threads import WorkSplit
from lstmcli.engine.worker_threads import WorkerThreads
from lstmcli.kernel import lanes, lstm, waiting
from lstmcli.kernel.layout import ARGUMENTS, Sync
from lstmcli.kernel.native.compiled import loaded, settings_of_numba
from lstmcli.kernel.native.target import target
from lstmcli.kernel.vectors.simd import I64
from lstmcli.model.chain import Chain
from lstmcli.model.layers import Dense


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 40, 48)).astype(np.float32)
    return lstmcli.init_model(48, [64, 48], seed=1), x, rng.integers(0, 41, 64)


def same(first, second):
    return first[0].tobytes() == second[0].tobytes() and all(first[1][k].tobytes() == second[1][k].tobytes() for k in first[1])


def test_calls_from_several_threads(batch):
    model, x, lengths = batch
    want = model(x, lengths, threads=2)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: model(x, lengths, threads=2), range(40)))
    assert all(same(want, one) for one in got)


def test_threads_that_are_about_to_sleep_miss_no_call(batch):
    model, x, lengths = batch
    want = model(x, lengths, threads=2)
    for pause in np.random.default_rng(0).uniform(0, 6e-4, 500):  # seconds: about as long as a thread takes to fall asleep
        time.sleep(pause)
        assert same(want, model(x, lengths, threads=2))


def test_a_forked_process_goes_on(batch):
    model, x, lengths = batch
    want = model(x, lengths, threads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking a process that has threads: just what is tested
        child = os.fork()
    if not child:
        os._exit(0 if same(want, model(x, lengths, threads=2)) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_process_predicts(batch):
    model, x, lengths = batch
    chain = Chain((model, Dense(np.ones((48, 600)))), ("lstm", "dense"))
    want = chain.predict(x, lengths, threads=2).tobytes()
    barrier = threading.Barrier(2)
    pool = prepare(chain, x.dtype, 2, None).chain.pool
    list(pool.map(lambda _: barrier.wait(), range(2)))  # now it has both threads, whoever was late before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        signal.alarm(60)  # ends it where it waits for a thread that it has not
        os._exit(0 if chain.predict(x, lengths, threads=2).tobytes() == want else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_interrupt_leaves_no_thread_that_writes(batch):
    prepared, ended = PreparedChain(Chain((batch[0],), ("lstm",)), np.dtype(np.float32), 2), []

    def work(part):
        if not part.start:
            raise KeyboardInterrupt
        time.sleep(0.2)
        ended.append(part)

    with pytest.raises(KeyboardInterrupt):
        prepared.shared(work, 2, 1e9)
    assert ended == [slice(1, 2)]


@pytest.fixture
def few():
    """A few long sequences, which threads compute together, step by step."""
    x = np.random.default_rng(2).normal(size=(3, 700, 40)).astype(np.float32)
    return lstmcli.init_model(40, [70], 1, lstmcli.CellOptions(projection=80)), x, np.array([700, 30, 500])


@pytest.fixture
def busy():
    """Two programs that never rest."""
    with ExitStack() as stack:
        for _ in range(2):
            program = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(program.kill)
        yield


def test_two_threads_beside_busy_neighbours_are_not_much_slower_than_one(busy):
    """Where they meet at each step, all may wait for one whose CPU is taken: that took 30 to 900 times as long as one."""
    model = lstmcli.init_model(128, [128])
    x = np.random.default_rng(0).normal(size=(1, 200, 128)).astype(np.float32)
    want, seconds = model(x, threads=1), {1: [], 2: []}
    for _ in range(15):
        for threads, taken in seconds.items():
            begin = time.perf_counter()
            assert same(want, model(x, threads=threads))
            taken.append(time.perf_counter() - begin)
    assert np.median(seconds[2]) < 5 * np.median(seconds[1])


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("ahead", [0, 24])
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_that_come_and_go(few, share, ahead, threads, busy, monkeypatch):
    model, x, lengths = few
    want = model(x, lengths, threads=1)
    monkeypatch.setattr(packed_cell, "split_work", lambda *_: WorkSplit(threads, share, 2, ahead))
    for _ in range(3):
        assert same(want, model(x, lengths, threads=threads))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("delay", [None, 0.0, 0.001, 0.003])
def test_a_thread_that_comes_late_or_never(few, share, delay, monkeypatch):
    model, x, lengths = few
    want = model(x, lengths, threads=1)
    late = []

    def post(self, number, item):
        def run():
            time.sleep(delay)
            kernel, table, _, _ = item
            kernel(table, number)

        if delay is not None:
            late.append(threading.Thread(target=run))
            late[-1].start()

    monkeypatch.setattr(packed_cell, "split_work", lambda *_: WorkSplit(2, share, 2, 0))
    monkeypatch.setattr(WorkerThreads, "post", post)
    for _ in range(20):
        assert same(want, model(x, lengths, threads=2))
    for thread in late:
        thread.join()


@pytest.mark.slow
def test_threads_meet_anew_before_their_counter_overflows(few, monkeypatch):
    """In a kernel whose counter ends early, and for which time stands still: none is sent away for coming late."""
    model, x, lengths = few
    want = model(x, lengths, threads=1)
    cell = prepare_model(model, x.dtype, 2, None).cells["0"]
    monkeypatch.setattr(lanes, "MOST_ARRIVALS", 50)
    monkeypatch.setattr(waiting, "emit_now", lambda _: ir.Constant(I64, 0))
    with settings_of_numba(target()):
        made = loaded(lstm.recipe(32, packed_cell.kernel_options(cell.cell)).compile(target()))
    found = {}

    def run(self, kernel, table, threads, memory):
        shared = memory[ARGUMENTS:]
        second = threading.Thread(target=kernel, args=(table, 1))
        second.start()
        while not shared[Sync.WAITING // 8]:
            time.sleep(0.001)
        kernel(table, 0)
        second.join()
        found.update(joins=shared[Sync.WAITING // 8], arrivals=shared[Sync.ARRIVED // 8] & waiting.LOW)

    monkeypatch.setattr(cell, "kernel", cell.kernel._replace(call=made.call))
    monkeypatch.setattr(packed_cell, "split_work", lambda *_: WorkSplit(2, True, 2, 0))
    monkeypatch.setattr(WorkerThreads, "run", run)
    assert same(want, model(x, lengths, threads=2))
    assert found["joins"] > 1
    assert found["arrivals"] < 60


def test_threads_that_cannot_start_are_not_waited_for(few, monkeypatch):
    model, x, lengths = few
    want = model(x, lengths, threads=1)
    monkeypatch.setattr(worker_threads, "_workers", [WorkerThreads()])

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as system:
        system.setattr(worker_threads, "start_new_thread", refuse)
        assert same(want, model(x, lengths, threads=3))
    assert same(want, model(x, lengths, threads=3))
    assert len(worker_threads.worker_threads().queues) > 0  # they started when they could
