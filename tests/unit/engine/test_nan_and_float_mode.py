"""Bits that the CPU would choose: the sign and payload of a NaN, and what becomes of subnormal numbers."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.arm64 import run_on_arm64

import lstmcli
from lstmcli.engine.chains.prepared_chain import PreparedChain
from lstmcli.model.chain import Chain
from lstmcli.model.layers import Activation, Affine, Dense

ENVIRONMENT_BYTES = 64  # more than a fenv_t
MODE_PLACE, FLUSH = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}.get(platform.machine(), (0, 0))


def cell(inputs: int, units: int, seed: int, **options: object) -> lstmcli.Cell:
    (made,) = lstmcli.init_model(inputs, [units], seed, lstmcli.CellOptions(**options)).layers  # type: ignore[arg-type, union-attr]
    assert isinstance(made, lstmcli.Cell)
    return made


MODELS = {
    "tanh": cell(17, 9, 1),
    "softplus": cell(17, 9, 1, activation="softplus", cell_clip=1.0),
    "relu": cell(17, 9, 1, activation="relu", peepholes=True),
    "projection": cell(17, 9, 1, projection=5),
    "residual": lstmcli.Stack((lstmcli.Residual(cell(17, 17, 2, activation="relu")),)),
    "merge": lstmcli.Bidirectional(cell(17, 9, 1, activation="relu"), cell(17, 9, 2, activation="elu"), merge="sum"),
}
NANS = {
    np.float32: [0x7FC00000, 0xFFC00000, 0x7FC00123, 0xFFD00001],
    np.float64: [0x7FF8 << 48, 0xFFF8 << 48, (0x7FF8 << 48) + 5],
}


def assert_one_nan(values: np.ndarray) -> None:
    assert np.isnan(values).any()
    kind = np.dtype(f"u{values.itemsize}")
    assert np.unique(values[np.isnan(values)].view(kind)).tolist() == [np.array(np.nan, values.dtype).view(kind)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_nan_is_the_same(name: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4, 17)).astype(dtype)
    nans = np.array(NANS[dtype], f"u{x.itemsize}").view(dtype)
    for row in range(12):
        x[row, row % 4, row] = nans[row % len(nans)]
    x[3, 0] = np.inf
    x[4, 1, ::2], x[4, 1, 1::2] = np.inf, -np.inf
    outputs, state = MODELS[name](x, threads=1)
    for values in (outputs, *state.values()):
        assert_one_nan(values)


@pytest.mark.parametrize("function", ["tanh", "softmax", "gelu", "linear"])
def test_every_nan_of_a_prediction_is_the_same(function: str) -> None:
    x = np.array([0x7FC00000, 0xFFC00000, 0x7FC00123, 0, 0xFF800000, 0x7F800000], np.uint32).view(np.float32).reshape(-1, 1)
    ones = np.ones((1, 3), np.float32)
    layers = (Affine(scale=np.zeros(1), shift=np.ones(1)), Dense(ones), Activation(function))
    chain = Chain(layers, ("affine", "dense", "activation"))
    with np.errstate(invalid="ignore"):
        rows, _ = PreparedChain(chain, np.dtype(np.float32), 1)(x, np.ones(len(x), np.int64))
    assert_one_nan(rows)


@pytest.fixture
def flushing() -> Iterator[None]:
    """A process in which some library has let subnormal numbers count as zero."""
    if not FLUSH:
        pytest.skip("the place of the floating-point mode is known for x86-64 and Arm alone")
    library, theirs = ctypes.CDLL(None), ctypes.create_string_buffer(ENVIRONMENT_BYTES)
    library.fegetenv(theirs)
    own = ctypes.create_string_buffer(theirs.raw, ENVIRONMENT_BYTES)
    ctypes.c_uint32.from_buffer(own, MODE_PLACE).value |= FLUSH
    library.fesetenv(own)
    yield
    library.fesetenv(theirs)


def test_subnormal_numbers_count_whatever_the_mode_of_the_process(request: pytest.FixtureRequest) -> None:
    model = cell(64, 96, 0, forget_bias=0.0)
    x = np.random.default_rng(0).normal(size=(40, 50, 64)).astype(np.float32) * np.float32(1e-39)
    want = model(x, threads=1)
    assert want[0].any()
    request.getfixturevalue("flushing")
    assert np.float32(1e-39) * np.float32(0.5) == 0
    for threads in (1, 2):
        outputs, state = model(x, threads=threads)
        assert outputs.tobytes() == want[0].tobytes()
        assert all(state[name].tobytes() == want[1][name].tobytes() for name in state)
    assert np.float32(1e-39) * np.float32(0.5) == 0  # the caller's mode is as it was


@pytest.mark.slow
def test_arm64_passes_the_tests_of_this_file(tmp_path: Path) -> None:
    printed = run_on_arm64("-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", __file__, cwd=tmp_path)
    assert re.search(r"^\d+ passed, 1 deselected in ", printed, re.MULTILINE), printed
