"""The kernels of layers without a state: products and functions against twice the precision, and the same bits on every CPU."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from helpers.arm64 import run_on_arm64
from helpers.naive_chain import activation

from lstmcli.kernel.heads import call as heads
from lstmcli.kernel.heads.tables import FUNCTIONS

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
DTYPES = pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])

# One hash for all CPUs. A change of it changes what users get: it needs a reason and a line in the changelog.
HASH = "d82cd6d7aa0f1282f177f9cc2b29d73057888a0568b4288025eb2655ec69fde4"

PROGRAM = """
import hashlib, sys
import numpy as np
from lstmcli.blocks import packed_starts
from lstmcli.engine.chains.prepared_chain import PreparedChain
from lstmcli.model import layers as c
from lstmcli.model.chain import Chain
from lstmcli.model.new_weights import init_model
bits = np.random.PCG64(5)
def draw(*shape):
    return (bits.random_raw(int(np.prod(shape))) >> np.uint64(11)).reshape(shape) * 2.0**-52 - 1
lengths = (bits.random_raw(40) % np.uint64(24)).astype(np.int64)
ids = (bits.random_raw(int(lengths.sum())) % np.uint64(50)).astype(np.int64)[:, None]
layers = [c.Embedding(draw(50, 21)), c.Dense(draw(21, 70) / 4, draw(70))]
for name in (*c.POINTWISE, "log_softmax"):
    slopes = draw(70) if name == "prelu" else None
    layers += [c.Affine(draw(70), draw(70)), c.Activation(name, slopes=slopes), c.LayerNorm(70, draw(70), draw(70))]
layers += [init_model(70, [19, 12], seed=3, bidirectional=True)]
ends = [
    [c.Pool(name), c.Dense(draw(24, 5), draw(5)), c.Activation("softmax"), c.Repeat(3)] for name in c.POOLS
] + [
    [c.Conv1D(size=3, stride=2, padding="same", kernel=draw(3, 24, 9), bias=draw(9)), c.Pool1D(2, 2, function="mean")],
    [c.Attention(draw(24), 0.5, "tanh"), c.Dense(draw(24, 40))],
]
digest = hashlib.sha256()
for end in ends:
    chain = Chain((*layers, *end), tuple(map(str, range(len(layers) + len(end)))))
    for dtype in ("float32", "float64"):
        predictions, counts = PreparedChain(chain, np.dtype(dtype), 2)(ids, lengths)
        digest.update(predictions.tobytes() + counts.tobytes())
# The products of the table with the input weights, computed once, change no bit.
layers = [c.Embedding(draw(50, 21), mask_zero=True), init_model(21, [19, 20], seed=3, bidirectional=True), c.Pool("mean")]
for dtype in ("float32", "float64"):
    plain, ahead = (PreparedChain(Chain(tuple(layers), ("a", "b", "c")), np.dtype(dtype), 2) for _ in range(2))
    ahead.expect(400, 1 << 20)
    assert ahead.steps[1].takes_ids
    assert ahead(ids, lengths)[0].tobytes() == plain(ids, lengths)[0].tobytes()
print(digest.hexdigest())
"""

AVX2 = "+sse4.2,+avx,+avx2,+fma"
AVX512 = f"{AVX2},+avx512f,+avx512dq,+avx512bw,+avx512vl"
TARGETS = {"generic": "", "haswell": AVX2, "skylake-avx512": AVX512, "znver4": AVX512}


def run(environment: dict[str, str], cache: Path) -> str:
    env = os.environ | environment | {"LSTMCLI_CACHE_DIR": str(cache)}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True).stdout.strip()


def test_this_cpu_gives_the_stored_bits(tmp_path: Path) -> None:
    assert run({}, tmp_path) == HASH
    assert run({}, tmp_path) == HASH  # from the cache


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_other_cpus_give_the_same_bits(name: str, tmp_path: Path) -> None:
    needed = {feature[1:] for feature in TARGETS[name].split(",") if feature}
    if missing := {feature for feature in needed if not llvm.get_host_cpu_features().get(feature)}:
        pytest.skip(f"this CPU cannot run code for {name}: it lacks {', '.join(sorted(missing))}")
    assert run({"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": TARGETS[name]}, tmp_path) == HASH


@pytest.mark.slow
def test_arm64_gives_the_same_bits(tmp_path: Path) -> None:
    assert run_on_arm64("-c", PROGRAM, cwd=tmp_path).strip() == HASH


@DTYPES
@pytest.mark.parametrize("outputs", [1, 7, 16, 17, 33, 64, 65, 130])
def test_products(outputs: int, dtype: np.dtype) -> None:
    rng = np.random.default_rng(outputs)
    for rows, inputs in ((1, 5), (13, 70), (100, 1), (3, 0)):
        kernel, bias = rng.normal(size=(inputs, outputs)).astype(dtype), rng.normal(size=outputs).astype(dtype)
        x, y = rng.normal(size=(rows, inputs)).astype(dtype), np.full((rows + 1, outputs), np.nan, dtype)
        heads.Dense(kernel, bias, dtype.itemsize * 8).run(x, y[:rows])
        want = x.astype(np.longdouble) @ kernel + bias
        assert np.abs(y[:rows] - want).max() <= 200 * np.finfo(dtype).eps
        assert np.isnan(y[rows]).all()  # nothing is written past the last row


@DTYPES
def test_a_product_is_one_chain_of_fused_multiply_adds(dtype: np.dtype) -> None:
    one, small = dtype.type(1), np.finfo(dtype).eps
    x = np.array([[1 + small, 1]], dtype)
    kernel, y = np.array([[1 + small], [one]], dtype), np.empty((1, 1), dtype)
    heads.Dense(kernel, np.array([-1 - 2 * small], dtype), dtype.itemsize * 8).run(x, y)
    # (1 + e)^2 = 1 + 2e + e^2 keeps its last term until 1 + 2e is gone; rounded after the product it would be lost.
    heads.Dense(kernel[:1], np.array([-1 - 2 * small], dtype), dtype.itemsize * 8).run(x[:, :1], y)
    assert y[0, 0] == small**2


@DTYPES
def test_rows_of_a_product_may_overlap(dtype: np.dtype) -> None:
    line, kernel = np.arange(12, dtype=dtype), np.ones((3, 2), dtype)
    rows = np.lib.stride_tricks.as_strided(line, (5, 3), (2 * dtype.itemsize, dtype.itemsize))
    y = np.empty((5, 2), dtype)
    heads.Dense(kernel, None, dtype.itemsize * 8).run(rows, y)
    assert y[:, 0].tolist() == [3, 9, 15, 21, 27]


# Errors in units in the last place of the larger of the value and 1.
@DTYPES
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "logarithm"])
def test_functions(name: str, dtype: np.dtype) -> None:
    x = np.concatenate([np.linspace(-12, 12, 2001), [0.0, -0.0, 1e-30, -1e-30, 60, -60]]).astype(dtype)
    y = np.empty_like(x)
    heads.apply(name, x, y, 0.3)
    want = activation(x.astype(np.longdouble), name, alpha=0.3)
    assert np.abs((y - want) / np.maximum(1, np.abs(want))).max() <= (160 if name == "gelu" and dtype == DOUBLE else 6) * (
        np.finfo(dtype).eps / 2
    )


@DTYPES
def test_logarithm(dtype: np.dtype) -> None:
    x = np.concatenate([np.geomspace(1e-30, 1e30, 2001), np.linspace(0.5, 2, 1001)]).astype(dtype)
    y = np.empty_like(x)
    heads.apply("logarithm", x, y)
    want = np.log(x.astype(np.longdouble))
    assert np.abs((y - want) / np.maximum(1, np.abs(want))).max() <= 3 * np.finfo(dtype).eps


LIMITS: dict[str, tuple[float, float]] = {
    "tanh": (-1, 1), "sigmoid": (0, 1), "relu": (0, math.inf), "softplus": (0, math.inf), "elu": (-0.3, math.inf),
    "exponential": (0, math.inf), "leaky_relu": (-math.inf, math.inf), "relu6": (0, 6), "softsign": (-1, 1),
}  # fmt: skip


@DTYPES
def test_functions_of_infinity_and_nan(dtype: np.dtype) -> None:
    x = np.array([-np.inf, np.inf, np.nan], dtype)
    for name, (low, high) in LIMITS.items():
        y = np.empty_like(x)
        heads.apply(name, x, y, 0.3)
        assert y[:2].tolist() == [dtype.type(low), high], name
        assert np.isnan(y[2]), name


def test_a_function_in_place() -> None:
    x = np.linspace(-1, 1, 7, dtype=np.float32)
    y = np.empty_like(x)
    heads.apply("tanh", x, y)
    heads.apply("tanh", x, x)
    assert x.tobytes() == y.tobytes()
