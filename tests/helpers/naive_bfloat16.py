"""The LSTM with --dtype bfloat16, bit for bit: float32 operations, one sequence and one step at a time.

It shares nothing with the package under test. Activations are those that IEEE 754 rounds exactly: relu and hard_sigmoid. Every
operation takes a subnormal number as a zero of its sign, and gives one for a result that is subnormal after rounding.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
BLOCK = 32
SMALLEST = 2.0**-126  # normal float32


def daz(x: Array) -> Array:
    """Subnormal float32 numbers as zeros, and the rest as it is."""
    x = np.asarray(x, np.float32)
    return np.where(np.abs(x) < np.float32(SMALLEST), np.copysign(np.float32(0), x), x)


def bfloat16(x: Array) -> Array:
    """The nearest bfloat16, ties to even, as float32: by the distance to both neighbours, not by the bits of a carry."""
    x = daz(x)
    low = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)  # toward zero
    high = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
    to_low, to_high = np.abs(np.float64(x) - low), np.abs(np.float64(high) - x)
    even = (low.view(np.uint32) >> 16) & 1 == 0
    return np.where((to_low < to_high) | ((to_low == to_high) & even), low, high)


def to_float32(exact: Array, rest: Array) -> Array:
    """exact + rest, where |rest| is less than an ULP of the float64 `exact`, rounded once to float32, zero where subnormal.

    First to odd, so that float32 rounds as if it had all digits, and 2^64 times as large, where no digits are lost near zero.
    """
    toward_zero = (rest != 0) & (np.signbit(rest) != np.signbit(exact))
    odd = np.where(rest != 0, (exact.view(np.int64) - toward_zero) | 1, exact.view(np.int64)).view(np.float64)
    large = np.float32(odd * 2.0**64)
    return np.where(np.abs(large) < 2.0**64 * SMALLEST, np.copysign(np.float32(0), large), np.float32(large * 2.0**-64))


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded once: the product is exact in float64, and what its sum with c loses is computed as well."""
    product, c64 = np.float64(daz(a)) * np.float64(daz(b)), np.float64(daz(c))
    total = product + c64
    part = total - product
    return to_float32(total, (product - (total - part)) + (c64 - part))


def add(a: Array, b: Array) -> Array:
    return fma(a, np.ones_like(a), b)


def products(sums: Array, row: Array, weights: Array) -> Array:
    """sums (columns,) float32, row (K,), weights (K, columns): adds row @ weights, block by block of 32."""
    row, weights = bfloat16(row), bfloat16(weights)
    for first in range(0, len(row), BLOCK):
        even, odd = np.zeros((2, len(sums)), np.float32)
        for k in range(first, min(first + BLOCK, len(row)), 2):
            even = fma(np.full_like(even, row[k]), weights[k], even)
            if k + 1 < len(row):
                odd = fma(np.full_like(odd, row[k + 1]), weights[k + 1], odd)
        sums = add(sums, add(even, odd))
    return sums


def hard_sigmoid(z: Array) -> Array:
    return np.clip(add(z, np.full_like(z, 3)), np.float32(0), np.float32(6)) / np.float32(6)


def run(
    x: Array, input_kernel: Array, recurrent_kernel: Array, bias: Array, peephole: Array, projection: Array | None
) -> tuple[Array, Array, Array]:
    """One sequence x (T, E) from zeros -> outputs (T, P), c (H,), h (P,). relu for tanh, hard_sigmoid for the sigmoid."""
    units = input_kernel.shape[1] // 4
    c, h = np.zeros(units, np.float32), np.zeros(len(recurrent_kernel), np.float32)
    outputs = np.zeros((len(x), len(h)), np.float32)
    for t, row in enumerate(x):
        i, f, g, o = np.split(products(products(bias, row, input_kernel), h, recurrent_kernel), 4)
        i, f = hard_sigmoid(fma(peephole[0], c, i)), hard_sigmoid(fma(peephole[1], c, f))
        c = fma(f, c, daz(i * np.maximum(g, np.float32(0))))
        h = daz(hard_sigmoid(fma(peephole[2], c, o)) * np.maximum(c, np.float32(0)))
        if projection is not None:
            h = products(np.zeros(projection.shape[1], np.float32), h, projection)
        outputs[t] = h
    return outputs, c, h
