from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import files, naive
from helpers.case import Case
from helpers.command import succeed
from helpers.small_run import SmallRun, make_small_run
from hypothesis import settings

import lstmcli.api  # noqa: F401  # a model may be called, however a test came by it

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=100)
settings.load_profile("repeatable")

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, and what they start would inherit that


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid():
        pytest.skip("only root may do this")


@pytest.fixture(scope="session")
def sample_x() -> Path:
    return files.SAMPLE_DATA / "x.h5"


@pytest.fixture(scope="session")
def sample_lens() -> Path:
    return files.SAMPLE_DATA / "lens.npy"


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """13 sequences of 0 to 17 steps of 20 features through layers of 21 and 5 units: no size is a round number."""
    folder = tmp_path_factory.mktemp("case")
    rng = np.random.default_rng(1)
    lengths = np.array([17, 3, 0, 9, 17, 1, 12, 5, 16, 2, 0, 8, 11])
    x = rng.normal(size=(13, 17, 20)).astype(np.float32)
    x[files.padding(x.shape, lengths)] = 0
    model = files.random_model(20, [21, 5])
    files.write_npy(folder / "x.npy", x)
    files.write_npy(folder / "lens.npy", lengths)
    files.write_model(folder / "model.h5", model)
    succeed(
        *("run", "--input", "x.npy", "--lens", "lens.npy", "--weights", "model.h5", "--output", "result.h5"),
        *("--threads", 1, "--quiet"),
        cwd=folder,
    )
    outputs, state = files.read_result(folder / "result.h5")
    assert outputs is not None
    want, want_state = naive.run(model, x, lengths)
    assert np.abs(outputs - want).max() <= 1e-6
    assert all(np.abs(state[path] - value).max() <= 1e-6 for path, value in want_state.items())
    return Case(folder, x, lengths, model, outputs, state)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SmallRun]:
    """Makes inputs in a folder of their own, and a run over them that other runs must repeat: see make_small_run."""
    return lambda *sizes, **options: make_small_run(tmp_path_factory.mktemp("small_run"), *sizes, **options)
