"""Functions of single numbers, over arrays: the activation layers of a model, and the exp and log of its softmax.

All of them are one kernel, which costs one compilation, and is asked for a function by its number.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from lstmcli.kernel.heads.tables import FUNCTIONS, Place
from lstmcli.kernel.layout import Shape
from lstmcli.kernel.vectors import activations
from lstmcli.kernel.vectors.activations import CONSTANTS, clipped, expm1_parts
from lstmcli.kernel.vectors.simd import I64, POINTER, Simd, Vector, fma, if_less, one_nan

ADDRESSES = types.CPointer(types.int64)
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017
ERF_ONE = {32: 4.0, 64: 6.0}  # from here on erf rounds to 1
ERF_TERMS = 100  # of its series, up to there in float64
# Chebyshev fits: log(1 - erf(x)) for 0.9 <= x <= 4.05, and erf(x) / x in x^2 for x < 0.97; both to 2e-8.
ERFC_LOG = (
    0.0002943480620912886, -1.130129397164438, -0.6320031430940167, -0.10991379341560302, 0.026326780844693577,
    -0.004726405689756491, 0.0005897227541419606, -4.5217911348235664e-05, 1.5946559715388049e-06,
)  # fmt: skip
ERF_NEAR = (
    1.1283791662306486, -0.376126299086117, 0.11283638525969947, -0.026856349203006485, 0.005193750885444245,
    -0.0008063365476425054, 8.048519785645077e-05,
)  # fmt: skip
LOG_TERMS = {32: 5, 64: 11}  # of atanh's series, for arguments up to 0.172

Function = Callable[[Vector, Vector], Vector]  # of x and alpha


def exponential(x: Vector, alpha: Vector | None = None) -> Vector:
    """exp(x) as exp(x/2)^2, so that it becomes infinite, or 0, where it should, and not where exp(x)'s parts do."""
    limit = x.simd.constant(CONSTANTS[x.simd.bits].sigmoid_zero)
    p, s = expm1_parts(clipped(x * x.simd.constant(0.5), -limit, limit))
    root = fma(s, p, s)
    return root * root


def logarithm(x: Vector, alpha: Vector) -> Vector:
    """log(x) of normal numbers above 0, as n log(2) + 2 atanh((m - 1) / (m + 1)) with x = 2^n m and m around 1."""
    simd, builder, constants = x.simd, x.simd.builder, CONSTANTS[x.simd.bits]

    def integers(value: int) -> ir.Constant:
        return ir.Constant(simd.integers, [value] * simd.width)

    bits = builder.bitcast(x.value, simd.integers)
    root_half = integers(0x3F3504F3 if simd.bits == 32 else 0x3FE6A09E667F3BCD)
    n = builder.ashr(builder.sub(bits, root_half), integers(constants.mantissa))
    m = Vector(simd, builder.bitcast(builder.sub(bits, builder.shl(n, integers(constants.mantissa))), simd.vector))
    power = Vector(simd, builder.sitofp(n, simd.vector))
    one = simd.constant(1.0)
    t = (m - one) / (m + one)
    series = polynomial([2 / (2 * k + 1) for k in range(LOG_TERMS[simd.bits])], t * t)
    small = fma(power, simd.constant(constants.ln2[1]), t * series)
    return fma(power, simd.constant(constants.ln2[0]), small)


def erf(x: Vector) -> Vector:
    """The error function, to 3 ULP (float32) and to 1e-14 (float64)."""
    size = x.simd.same("llvm.fabs", x)
    limit, one = x.simd.constant(ERF_ONE[x.simd.bits]), x.simd.constant(1.0)
    value = (erf_by_fits if x.simd.bits == 32 else erf_by_series)(if_less(limit, size, limit, size))
    value = if_less(one, value, one, value)
    return x.simd.same("llvm.copysign", if_less(size, limit, value, if_less(limit, size, one, size)), x)


def erf_by_fits(x: Vector) -> Vector:
    """x * polynomial in x^2, or 1 - exp(polynomial in x), for 0 <= x <= 4."""
    simd = x.simd
    p, s = expm1_parts(polynomial(ERFC_LOG, x))
    far = simd.constant(1.0) - fma(s, p, s)
    return if_less(x, simd.constant(0.94), x * polynomial(ERF_NEAR, x * x), far)


def erf_by_series(x: Vector) -> Vector:
    """2 / sqrt(pi) exp(-x^2) sum of 2^n x^(2n+1) / (2n+1)!!, whose terms all have one sign (Abramowitz and Stegun 7.1.6)."""
    square = x * x
    left = fma(x, x, -square)  # what rounding took from the square
    coefficients = [1.0]
    for n in range(1, ERF_TERMS):
        coefficients.append(coefficients[-1] * 2 / (2 * n + 1))
    p, s = expm1_parts(square, -1.0)
    gauss = fma(s, p, s)
    return polynomial(coefficients, square) * x * (gauss - gauss * left) * x.simd.constant(2 / math.sqrt(math.pi))


def polynomial(coefficients: Sequence[float], x: Vector) -> Vector:
    """coefficients[0] + coefficients[1] x + ... by Horner's rule."""
    value = x.simd.constant(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = fma(value, x, x.simd.constant(coefficient))
    return value


def leaky_relu(x: Vector, alpha: Vector) -> Vector:
    return if_less(x, x.simd.constant(0.0), x * alpha, x)


def elu(x: Vector, alpha: Vector) -> Vector:
    return if_less(x, x.simd.constant(0.0), activations.elu(x) * alpha, x)


def relu6(x: Vector, alpha: Vector) -> Vector:
    return clipped(x, x.simd.constant(0.0), x.simd.constant(6.0))


def selu(x: Vector, alpha: Vector) -> Vector:
    return elu(x, x.simd.constant(SELU_ALPHA)) * x.simd.constant(SELU_SCALE)


def gelu(x: Vector, alpha: Vector) -> Vector:
    """x (1 + erf(x / sqrt(2))) / 2"""
    half = x.simd.constant(0.5) * x
    return fma(half, erf(x * x.simd.constant(math.sqrt(0.5))), half)


def gelu_tanh(x: Vector, alpha: Vector) -> Vector:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2"""
    half = x.simd.constant(0.5) * x
    inner = fma(x * x * x, x.simd.constant(0.044715), x) * x.simd.constant(math.sqrt(2 / math.pi))
    return fma(half, activations.tanh(inner), half)


def silu(x: Vector, alpha: Vector) -> Vector:
    return x * activations.sigmoid(x)


OWN: dict[str, Function] = {
    function.__name__: function for function in (exponential, logarithm, leaky_relu, elu, relu6, selu, gelu, gelu_tanh, silu)
}


def function_of(name: str) -> Function:
    if name in OWN:
        return OWN[name]
    plain = activations.ACTIVATIONS[name]
    return lambda x, alpha: plain(x)


@functools.cache
def apply_to(shape: Shape) -> Callable[..., None]:
    @intrinsic
    def apply(context, function, x, y, count, alpha):  # type: ignore[no-untyped-def]
        """y[k] = function(x[k]) for k in range(count); x and y may be the same. alpha: the bits of a float64."""

        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            number, x, y, count, alpha = args
            simd = Simd(builder, shape.bits, shape.width)
            x, y = (builder.inttoptr(address, POINTER) for address in (x, y))
            value = builder.bitcast(alpha, ir.DoubleType())
            alpha = simd.broadcast_value(value if shape.bits == 64 else builder.fptrunc(value, ir.FloatType()))
            after = builder.append_basic_block()
            switch = builder.switch(number, after)
            for place, name in enumerate(FUNCTIONS):
                block = builder.append_basic_block()
                switch.add_case(ir.Constant(I64, place), block)
                builder.position_at_end(block)
                emit_loop(simd, function_of(name), x, y, count, alpha)
                builder.branch(after)
            builder.position_at_end(after)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 5), emit

    found: Callable[..., None] = apply
    return found


def emit_loop(simd: Simd, function: Function, x: ir.Value, y: ir.Value, count: ir.Value, alpha: Vector) -> None:
    """Write the loop over whole vectors, and the rest of one."""
    builder, width = simd.builder, simd.width
    before = builder.block
    loop, body, after = (builder.append_basic_block() for _ in range(3))
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(I64)
    k.add_incoming(ir.Constant(I64, 0), before)
    builder.cbranch(builder.icmp_signed("<", k, count), body, after)
    builder.position_at_end(body)
    part = simd.part(builder.sub(count, k))
    value = function(simd.load_part(simd.at(x, k), part), alpha)
    simd.store_part([(one_nan(value), simd.at(y, k))], part)
    k.add_incoming(builder.add(k, ir.Constant(I64, width)), builder.block)
    builder.branch(loop)
    builder.position_at_end(after)


def define(shape: Shape) -> Callable[..., None]:
    """Return the kernel for one shape of vectors, to be compiled with compiled.SIGNATURE."""
    apply = apply_to(shape)
    FUNCTION, X_AT, Y_AT, COUNT, ALPHA = (int(place) for place in Place)  # noqa: N806 (Numba takes them for constants)

    def pointwise(table, thread):  # type: ignore[no-untyped-def]
        apply(table[FUNCTION], table[X_AT], table[Y_AT], table[COUNT], table[ALPHA])

    return pointwise
