"""Vectors of floats as LLVM values: arithmetic on them emits instructions into the function under construction.

Written on llvmlite's builder because a plain jitted loop spills, uses no fused multiply-add unless it may also reassociate,
and calls a scalar `exp` from the C library, whose bits differ between machines. Everything here is built from operations
that IEEE 754 rounds exactly (+, -, *, /, fma, comparisons and bits), so a result has the same bits on every CPU and for
every vector width.
"""

from dataclasses import dataclass

import llvmlite.ir as ir
import numpy as np

I32, I64 = ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()

LOG2E = 1.442695040888963407


@dataclass(frozen=True)
class Constants:
    """Of exp, tanh and sigmoid for one type of float."""

    expm1: tuple[float, ...]  # expm1(r) = r + r^2 * (expm1[0] + expm1[1] * r + ...), minimax for |r| <= ln(2) / 2
    ln2: tuple[float, float]  # their sum is ln(2) to twice the precision
    round: float  # added to a number, leaves its nearest integer in the low bits
    mantissa: int  # bits
    tanh_one: float  # from here on tanh rounds to 1
    sigmoid_zero: float  # below -sigmoid_zero sigmoid would not be a normal number, and exp(sigmoid_zero) is still finite


CONSTANTS = {
    32: Constants(
        # relative error of expm1: 1.3e-8
        expm1=(0.49999998152947942, 0.16666543571909439, 0.041667200071244319, 0.0083665272101687149, 0.0013882520285468624),
        ln2=(0.693147182464599609375, -1.904654290582768e-09),
        round=1.5 * 2**23,
        mantissa=23,
        tanh_one=10.0,
        sigmoid_zero=87.0,
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
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Simd:
    """Vectors of `width` floats of `bits` bits in the function that `builder` writes."""

    builder: ir.IRBuilder
    bits: int
    width: int

    @property
    def scalar(self) -> ir.Type:
        return ir.FloatType() if self.bits == 32 else ir.DoubleType()

    @property
    def vector(self) -> ir.VectorType:
        return ir.VectorType(self.scalar, self.width)

    @property
    def integers(self) -> ir.VectorType:
        return ir.VectorType(ir.IntType(self.bits), self.width)

    def constant(self, value: float) -> "Vector":
        return Vector(self, ir.Constant(self.vector, [rounded(value, self.bits)] * self.width))

    def at(self, base: ir.Value, index: ir.Value) -> ir.Value:
        """The address of float number `index` after `base`."""
        return self.builder.gep(base, [index], source_etype=self.scalar)

    def broadcast(self, pointer: ir.Value) -> "Vector":
        scalar = self.builder.load(pointer, align=self.bits // 8, typ=self.scalar)
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.width), [0] * self.width)
        return Vector(self, self.builder.shuffle_vector(one, ir.Constant(self.vector, ir.Undefined), zeros))

    def load(self, pointer: ir.Value) -> "Vector":
        return Vector(self, self.builder.load(pointer, align=self.bits // 8, typ=self.vector))

    def store(self, value: "Vector", pointer: ir.Value) -> None:
        self.builder.store(value.value, pointer, align=self.bits // 8)

    def first(self, count: ir.Value) -> ir.Value:
        """The mask of the first `count` floats."""
        numbers = ir.VectorType(I32, self.width)
        one = self.builder.insert_element(
            ir.Constant(numbers, ir.Undefined), self.builder.trunc(count, I32), ir.Constant(I32, 0)
        )
        counts = self.builder.shuffle_vector(one, ir.Constant(numbers, ir.Undefined), ir.Constant(numbers, [0] * self.width))
        return self.builder.icmp_unsigned("<", ir.Constant(numbers, list(range(self.width))), counts)

    def load_masked(self, pointer: ir.Value, mask: ir.Value) -> "Vector":
        kinds = [self.vector, POINTER, I32, mask.type, self.vector]
        args = [pointer, ir.Constant(I32, self.bits // 8), mask, ir.Constant(self.vector, [0.0] * self.width)]
        return Vector(self, self.call("llvm.masked.load", ir.FunctionType(kinds[0], kinds[1:]), args, ".p0"))

    def store_masked(self, value: "Vector", pointer: ir.Value, mask: ir.Value) -> None:
        kinds = [self.vector, POINTER, I32, mask.type]
        args = [value.value, pointer, ir.Constant(I32, self.bits // 8), mask]
        self.call("llvm.masked.store", ir.FunctionType(ir.VoidType(), kinds), args, ".p0")

    def call(self, intrinsic: str, kind: ir.FunctionType, args: list[ir.Value], suffix: str = "") -> ir.Value:
        name = f"{intrinsic}.v{self.width}f{self.bits}{suffix}"
        function = self.builder.module.globals.get(name) or ir.Function(self.builder.module, kind, name)
        return self.builder.call(function, args)

    def same(self, intrinsic: str, *args: "Vector") -> "Vector":
        """A call of an intrinsic that takes and returns vectors."""
        kind = ir.FunctionType(self.vector, [self.vector] * len(args))
        return Vector(self, self.call(intrinsic, kind, [a.value for a in args]))


@dataclass(frozen=True)
class Vector:
    simd: Simd
    value: ir.Value

    def __add__(self, other: "Vector") -> "Vector":
        return Vector(self.simd, self.simd.builder.fadd(self.value, other.value))

    def __sub__(self, other: "Vector") -> "Vector":
        return Vector(self.simd, self.simd.builder.fsub(self.value, other.value))

    def __mul__(self, other: "Vector") -> "Vector":
        return Vector(self.simd, self.simd.builder.fmul(self.value, other.value))

    def __truediv__(self, other: "Vector") -> "Vector":
        return Vector(self.simd, self.simd.builder.fdiv(self.value, other.value))

    def __neg__(self) -> "Vector":
        return Vector(self.simd, self.simd.builder.fneg(self.value))


def rounded(value: float, bits: int) -> float:
    """LLVM takes a float32 constant only if it is one exactly."""
    return value if bits == 64 else float(np.float32(value))


def fma(x: Vector, y: Vector, z: Vector) -> Vector:
    """x * y + z, rounded once."""
    return x.simd.same("llvm.fma", x, y, z)


def if_less(x: Vector, y: Vector, then: Vector, other: Vector) -> Vector:
    """`then` where x < y, else (also where x or y is NaN) `other`."""
    builder = x.simd.builder
    return Vector(x.simd, builder.select(builder.fcmp_ordered("<", x.value, y.value), then.value, other.value))


def expm1_parts(x: Vector) -> tuple[Vector, Vector]:
    """(p, s) with exp(x) = s * (1 + p), s a power of two and |p| < 0.42, so that neither exp nor expm1 loses digits."""
    simd, builder, constants = x.simd, x.simd.builder, CONSTANTS[x.simd.bits]
    magic = simd.constant(constants.round)
    biased = fma(x, simd.constant(LOG2E), magic)
    n = biased - magic
    r = fma(n, simd.constant(-constants.ln2[0]), x)
    r = fma(n, simd.constant(-constants.ln2[1]), r)
    *rest, last = constants.expm1
    q = simd.constant(last)
    for coefficient in reversed(rest):
        q = fma(q, r, simd.constant(coefficient))
    p = fma(r * r, q, r)

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
    y = if_less(limit, -x, limit, -x)
    p, s = expm1_parts(if_less(y, -limit, -limit, y))
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
