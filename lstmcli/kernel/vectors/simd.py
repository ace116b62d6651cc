"""Vectors of floats as LLVM values: arithmetic on them writes instructions into the function under construction.

It uses llvmlite's builder, because a loop that Numba compiles spills registers, uses no fused multiply-add unless it may also
reorder sums, and calls a scalar `exp` of the C library, whose bits differ between machines. Everything here is built from
operations that IEEE 754 rounds exactly (+, -, *, /, fma, comparisons and bits), so a result has the same bits on every CPU and
for every vector width.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import llvmlite.ir as ir
import numpy as np

I32, I64 = ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
ARM = ("aarch64", "arm64")  # how the triples of its 64-bit CPUs begin


@dataclass(frozen=True)
class Simd:
    """Writes vectors of `width` floats of `bits` bits into the function of `builder`."""

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
        """Return the address of float number `index` after `base`."""
        return self.builder.gep(base, [index], source_etype=self.scalar)

    def broadcast(self, pointer: ir.Value) -> "Vector":
        scalar = self.builder.load(pointer, align=self.bits // 8, typ=self.scalar)
        if self.builder.module.triple.startswith(ARM):
            # Then LLVM multiplies by an element of a register, and needs no instruction that fills one: by its models of these
            # CPUs a step of the loop takes 12.1 cycles instead of 15.1 (Neoverse N1), 6.1 instead of 8.1 (V1). On x86 the
            # broadcast, which is part of the load, would be split off.
            scalar = ir.instructions.Instruction(self.builder.block, self.scalar, "freeze", [scalar])
            self.builder._insert(scalar)  # llvmlite's builder has no method for it
        return self.broadcast_value(scalar)

    def broadcast_value(self, scalar: ir.Value) -> "Vector":
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.width), [0] * self.width)
        return Vector(self, self.builder.shuffle_vector(one, ir.Constant(self.vector, ir.Undefined), zeros))

    def load(self, pointer: ir.Value) -> "Vector":
        return Vector(self, self.builder.load(pointer, align=self.bits // 8, typ=self.vector))

    def store(self, value: "Vector", pointer: ir.Value) -> None:
        self.builder.store(value.value, pointer, align=self.bits // 8)

    def first(self, count: ir.Value) -> ir.Value:
        """Return a mask of the first `count` floats; of none where it is negative."""
        numbers = ir.VectorType(I32, self.width)
        one = self.builder.insert_element(
            ir.Constant(numbers, ir.Undefined), self.builder.trunc(count, I32), ir.Constant(I32, 0)
        )
        counts = self.builder.shuffle_vector(one, ir.Constant(numbers, ir.Undefined), ir.Constant(numbers, [0] * self.width))
        return self.builder.icmp_signed("<", ir.Constant(numbers, list(range(self.width))), counts)

    def load_part(self, pointer: ir.Value, part: "Part") -> "Vector":
        """Load a part of a vector, with zeros past its end."""
        builder = self.builder
        with builder.if_else(part.whole) as (then, otherwise):
            with then:
                whole, from_whole = self.load(pointer), builder.block
            with otherwise:
                masked, from_masked = self.load_masked(pointer, part.mask), builder.block
        merged = builder.phi(self.vector)
        merged.add_incoming(whole.value, from_whole)
        merged.add_incoming(masked.value, from_masked)
        return Vector(self, merged)

    def store_part(self, pairs: Iterable[tuple["Vector", ir.Value]], part: "Part") -> None:
        """Store each vector at its pointer, but nothing past the part's end."""
        pairs = list(pairs)
        with self.builder.if_else(part.whole) as (then, otherwise):
            with then:
                for value, pointer in pairs:
                    self.store(value, pointer)
            with otherwise:
                for value, pointer in pairs:
                    self.store_masked(value, pointer, part.mask)

    def part(self, count: ir.Value) -> "Part":
        some, whole = (self.builder.icmp_signed(">=", count, ir.Constant(I64, size)) for size in (1, self.width))
        return Part(some, whole, self.first(count))

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
        """Call an intrinsic that takes and returns vectors."""
        kind = ir.FunctionType(self.vector, [self.vector] * len(args))
        return Vector(self, self.call(intrinsic, kind, [a.value for a in args]))


def fetch_line(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Bring the cache line of an address near, without waiting for it."""
    kind, name = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32]), "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    builder.call(function, [pointer, *(ir.Constant(I32, number) for number in (0, 3, 1))])


@dataclass(frozen=True)
class Part:
    """The first floats of a vector: whether there are any, whether it is whole, and their mask.

    Whole vectors take a path of their own, because a masked store takes many cycles on some CPUs.
    """

    some: ir.Value
    whole: ir.Value
    mask: ir.Value


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
    """Round a constant to `bits` bits: LLVM takes a float32 constant only if it is one exactly."""
    return value if bits == 64 else float(np.float32(value))


def fma(x: Vector, y: Vector, z: Vector) -> Vector:
    """Return x * y + z, rounded once."""
    return x.simd.same("llvm.fma", x, y, z)


def if_less(x: Vector, y: Vector, then: Vector, other: Vector) -> Vector:
    """Return `then` where x < y, else (also where x or y is NaN) `other`."""
    builder = x.simd.builder
    return Vector(x.simd, builder.select(builder.fcmp_ordered("<", x.value, y.value), then.value, other.value))


def one_nan(x: Vector) -> Vector:
    """Return x with the same NaN, that of NumPy, for every NaN: which operand's sign and payload a CPU passes on is chance."""
    builder = x.simd.builder
    return Vector(
        x.simd, builder.select(builder.fcmp_unordered("uno", x.value, x.value), x.simd.constant(math.nan).value, x.value)
    )


def join(vectors: list[Vector]) -> Vector:
    """Return one or two vectors as one that is as wide as both."""
    if len(vectors) == 1:
        return vectors[0]
    first, second = vectors
    simd = Simd(first.simd.builder, first.simd.bits, 2 * first.simd.width)
    places = ir.Constant(ir.VectorType(I32, simd.width), list(range(simd.width)))
    return Vector(simd, simd.builder.shuffle_vector(first.value, second.value, places))


def split(vector: Vector, simd: Simd) -> list[Vector]:
    """Undo join(): return the vectors of `simd`."""
    nothing = ir.Constant(vector.value.type, ir.Undefined)
    parts = []
    for first in range(0, vector.simd.width, simd.width):
        places = ir.Constant(ir.VectorType(I32, simd.width), list(range(first, first + simd.width)))
        parts.append(Vector(simd, simd.builder.shuffle_vector(vector.value, nothing, places)))
    return parts
