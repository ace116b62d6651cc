"""The Python call from several threads at once, and in a forked process."""

import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import lstmcli


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
