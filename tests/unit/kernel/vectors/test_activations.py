"""sigmoid and tanh as the kernel computes them, against twice the precision."""

import numba
import numpy as np
import pytest
from numba import types
from numba.extending import intrinsic

from lstmcli.kernel.layout import tile_shape
from lstmcli.kernel.native.target import target
from lstmcli.kernel.vectors import activations, simd
from lstmcli.kernel.vectors.simd import I64, POINTER


def compiled_loop(function, bits):
    """function over an array, as vectors of this CPU's width."""
    shape = tile_shape(target(), bits)

    @intrinsic
    def apply(context, source, target):
        def emit(context, builder, signature, args):
            vectors = simd.Simd(builder, bits, shape.width)
            source, target = (builder.inttoptr(address, POINTER) for address in args)
            every = vectors.first(simd.ir.Constant(I64, shape.width))
            vectors.store_masked(function(vectors.load(source)), target, every)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64), emit

    step = shape.width * bits // 8

    @numba.njit(types.void(types.int64, types.int64, types.int64))
    def loop(source, target, count):
        for k in range(count):
            apply(source + k * step, target + k * step)

    def over(x):
        x = np.append(x, np.zeros(-len(x) % shape.width, x.dtype))
        y = np.empty_like(x)
        loop(x.ctypes.data, y.ctypes.data, len(x) // shape.width)
        return y

    return over


@pytest.fixture(scope="module", params=[32, 64])
def functions(request):
    bits = request.param
    return bits, compiled_loop(activations.sigmoid, bits), compiled_loop(activations.tanh, bits)


def wide(x):
    return x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)


def sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def ulps(got, want):
    """Distance in units of the last place of the correctly rounded value."""
    return np.abs(wide(got) - want) / np.spacing(np.abs(want.astype(got.dtype))).astype(want.dtype)


def samples(bits):
    """All magnitudes, and the ranges where the functions bend."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(f"f{bits // 8}")
    patterns = rng.integers(0, 1 << bits, 1 << 16, dtype=f"u{bits // 8}").view(dtype)
    ranges = [rng.uniform(-size, size, 1 << 15).astype(dtype) for size in (1e-3, 1, 12, 100, 800)]
    values = np.concatenate([patterns[np.isfinite(patterns)], *ranges])
    return values[: len(values) // 64 * 64]


def test_tanh_is_within_4_ulp_and_odd(functions):
    bits, _, tanh = functions
    x = samples(bits)
    got = tanh(x)
    assert ulps(got, np.tanh(wide(x))).max() <= 4
    assert (np.abs(got) <= 1).all()
    assert (tanh(-x) == -got).all()


def test_sigmoid_is_within_4_ulp_or_1e_30(functions):
    bits, sigmoid_of, _ = functions
    x = samples(bits)
    got, want = sigmoid_of(x), sigmoid(wide(x))
    assert ((got >= 0) & (got <= 1)).all()
    large = want > 1e-30
    assert ulps(got[large], want[large]).max() <= 4
    assert np.abs(wide(got) - want)[~large].max() <= 1e-30


def test_limits_and_nan(functions):
    bits, sigmoid_of, tanh = functions
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, *[3e38, -3e38] * 6], f"f{bits // 8}")[:16]
    assert sigmoid_of(x)[:5].tolist()[:2] == [1.0, 0.0]
    assert np.isnan(sigmoid_of(x)[2])
    assert sigmoid_of(x)[3:5].tolist() == [0.5, 0.5]
    assert tanh(x)[:2].tolist() == [1.0, -1.0]
    assert np.isnan(tanh(x)[2])
    assert np.signbit(tanh(x)[3:5]).tolist() == [False, True]
    assert tanh(x)[5:].tolist()[:2] == [1.0, -1.0]


@pytest.mark.slow
def test_every_float32():
    """All 2^32 values but the NaNs: within 4 ULP (sigmoid: or 1e-30), and tanh odd."""
    sigmoid_of, tanh_of = compiled_loop(activations.sigmoid, 32), compiled_loop(activations.tanh, 32)
    step = 1 << 22
    for first in range(0, 0x7F800000, step):
        x = np.arange(first, first + step, dtype=np.uint32).view(np.float32)
        exact = x.astype(np.float64)
        got = tanh_of(x)
        assert ulps(got, np.tanh(exact)).max() <= 4
        assert (tanh_of(-x) == -got).all()
        for sign in (1, -1):
            want, got = sigmoid(sign * exact), sigmoid_of(sign * x)
            large = want > 1e-30
            assert ulps(got[large], want[large]).max(initial=0) <= 4
            assert np.abs(got - want)[~large].max(initial=0) <= 1e-30
