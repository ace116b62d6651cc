"""The activations of a cell, on vectors.

tanh and sigmoid are accurate to 4 units in the last place (ULP) for every float; the others are as accurate as their formulas.
NaN stays NaN, and an infinite argument gives the function's limit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.ir as ir

from lstmcli.kernel.vectors.simd import Vector, fma, if_less

LOG2E = 1.442695040888963407
LARGE = 1e30  # a float32 so large that adding 1 does not change it


@dataclass(frozen=True)
class Constants:
    """The constants of exp, tanh and sigmoid for one type of float."""

    expm1: tuple[float, ...]  # expm1(r) = r + r^2 * (expm1[0] + expm1[1] * r + ...), minimax for |r| <= ln(2) / 2
    ln2: tuple[float, float]  # their sum is ln(2) to twice the precision
    round: float  # a number plus this has its nearest integer in the low bits
    mantissa: int  # bits
    tanh_one: float  # from here on tanh rounds to 1
    sigmoid_zero: float  # below -sigmoid_zero sigmoid would not be a normal number, and exp(sigmoid_zero) is still finite
    atanh_terms: int  # how many terms of its series are enough for arguments up to 1/3


CONSTANTS = {
    32: Constants(
        # relative error of expm1: 1.3e-8
        expm1=(0.49999998152947942, 0.16666543571909439, 0.041667200071244319, 0.0083665272101687149, 0.0013882520285468624),
        ln2=(0.693147182464599609375, -1.904654290582768e-09),
        round=1.5 * 2**23,
        mantissa=23,
        tanh_one=10.0,
        sigmoid_zero=87.0,
        atanh_terms=8,
    ),
    64: Constants(
        # relative error of expm1: 1.8e-17
        expm1=(
            0.50000000000000051844, 0.16666666666666589205, 0.041666666666576684765, 0.0083333333333895966515,
            0.001388888893158985372, 0.0001984126971893101181, 2.4801505241692915722e-05, 2.7557407582911947834e-06,
            2.7626051371844902462e-07, 2.5053773017569860395e-08,
        ),
        ln2=(0.693147180559945286226763982995180413, 2.319046813846299615494855e-17),
        round=1.5 * 2**52,
        mantissa=52,
        tanh_one=20.0,
        sigmoid_zero=708.0,
        atanh_terms=17,
    ),
}  # fmt: skip


def expm1_parts(x: Vector, factor: float = 1.0) -> tuple[Vector, Vector]:
    """Return (p, s) with exp(factor * x) = s * (1 + p), s a power of two and |p| < 0.42: so neither exp nor expm1 loses digits.

    factor  1 or -1; it goes into the constants, and so takes no operation
    """
    simd, builder, constants = x.simd, x.simd.builder, CONSTANTS[x.simd.bits]
    magic = simd.constant(constants.round)
    biased = fma(x, simd.constant(factor * LOG2E), magic)
    n = biased - magic
    # r is factor times the remainder of factor * x, so the odd terms of the polynomial carry the factor.
    r = fma(n, simd.constant(-factor * constants.ln2[0]), x)
    r = fma(n, simd.constant(-factor * constants.ln2[1]), r)
    *rest, last = (coefficient * factor**k for k, coefficient in enumerate(constants.expm1))
    q = simd.constant(last)
    for coefficient in reversed(rest):
        q = fma(q, r, simd.constant(coefficient))
    p = fma(r * r, q, r) if factor == 1.0 else fma(r * r, q, -r)

    def integers(value: int) -> ir.Constant:
        return ir.Constant(simd.integers, [value] * simd.width)

    mantissa = constants.mantissa
    exponent = builder.shl(builder.bitcast(biased.value, simd.integers), integers(mantissa))
    one = ((1 << (simd.bits - mantissa - 2)) - 1) << mantissa
    return p, Vector(simd, builder.bitcast(builder.add(exponent, integers(one)), simd.vector))


def sigmoid(x: Vector) -> Vector:
    """1 / (1 + exp(-x)); at most 3 ULP off, 0 below -87 (float32) or -708 (float64)."""
    limit = x.simd.constant(CONSTANTS[x.simd.bits].sigmoid_zero)
    one = x.simd.constant(1.0)
    p, s = expm1_parts(clipped(x, -limit, limit), -1.0)
    return if_less(x, -limit, x.simd.constant(0.0), one / (fma(s, p, s) + one))


def tanh(x: Vector) -> Vector:
    """expm1(2x) / (expm1(2x) + 2) on |x|, with the sign of x; at most 3 ULP off, also near 0."""
    limit = x.simd.constant(CONSTANTS[x.simd.bits].tanh_one)
    two = x.simd.constant(2.0)
    size = x.simd.same("llvm.fabs", x)
    size = if_less(limit, size, limit, size)
    p, s = expm1_parts(size + size)
    expm1 = fma(s, p, s - x.simd.constant(1.0))
    return x.simd.same("llvm.copysign", expm1 / (expm1 + two), x)


def relu(x: Vector) -> Vector:
    """max(x, 0)"""
    zero = x.simd.constant(0.0)
    return if_less(x, zero, zero, x)


def elu(x: Vector) -> Vector:
    """x where it is positive, else exp(x) - 1."""
    zero, one = x.simd.constant(0.0), x.simd.constant(1.0)
    limit = x.simd.constant(-CONSTANTS[x.simd.bits].sigmoid_zero)
    p, s = expm1_parts(if_less(x, limit, limit, x))
    return if_less(x, zero, fma(s, p, s - one), x)


def softsign(x: Vector) -> Vector:
    """x / (1 + |x|)"""
    limit, one = x.simd.constant(LARGE), x.simd.constant(1.0)
    size = x.simd.same("llvm.fabs", x)
    size = if_less(limit, size, limit, size)
    return x.simd.same("llvm.copysign", size / (one + size), x)


def softplus(x: Vector) -> Vector:
    """log(1 + exp(x)), as max(x, 0) + log1p(y) with y = exp(-|x|), log1p(y) = 2 atanh(t) and t = y / (y + 2) <= 1/3."""
    constants, zero = CONSTANTS[x.simd.bits], x.simd.constant(0.0)
    limit = x.simd.constant(constants.sigmoid_zero)
    size = x.simd.same("llvm.fabs", x)
    p, s = expm1_parts(-if_less(limit, size, limit, size))
    y = fma(s, p, s)
    t = y / (y + x.simd.constant(2.0))
    square = t * t
    *rest, last = (2 / (2 * n + 1) for n in range(constants.atanh_terms))
    series = x.simd.constant(last)
    for coefficient in reversed(rest):
        series = fma(series, square, x.simd.constant(coefficient))
    return if_less(x, -limit, zero, fma(t, series, relu(x)))


def linear(x: Vector) -> Vector:
    return x


def hard_sigmoid(x: Vector) -> Vector:
    """relu6(x + 3) / 6, as in Keras 3."""
    return clipped(x + x.simd.constant(3.0), x.simd.constant(0.0), x.simd.constant(6.0)) / x.simd.constant(6.0)


def hard_sigmoid_keras2(x: Vector) -> Vector:
    """clip(x / 5 + 1 / 2, 0, 1), as in Keras 2 and, by default, in ONNX."""
    line = fma(x, x.simd.constant(0.2), x.simd.constant(0.5))
    return clipped(line, x.simd.constant(0.0), x.simd.constant(1.0))


def clipped(x: Vector, low: Vector, high: Vector) -> Vector:
    """min(max(x, low), high); NaN stays NaN."""
    x = if_less(x, low, low, x)
    return if_less(high, x, high, x)


ACTIVATIONS: dict[str, Callable[[Vector], Vector]] = {
    function.__name__: function
    for function in (tanh, sigmoid, relu, softsign, softplus, elu, linear, hard_sigmoid, hard_sigmoid_keras2)
}
