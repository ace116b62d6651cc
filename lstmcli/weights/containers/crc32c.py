"""CRC-32C (Castagnoli; RFC 3720, appendix B.4), as TensorFlow's checkpoints have it, with NumPy alone."""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

POLYNOMIAL = 0x82F63B78  # reflected
MAX_LANES = 1 << 13
MASK_DELTA = 0xA282EAD8


def _table(bits: int) -> Words:
    table: Words = np.arange(1 << bits, dtype=np.uint32)
    for _ in range(bits):
        table = (table >> 1 ^ np.where(table & 1, POLYNOMIAL, 0)).astype(np.uint32)
    return table


TABLE8, TABLE16 = _table(8), _table(16)


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of `data`. It is cut into pieces whose sums are computed side by side and then joined."""
    octets = np.frombuffer(data, np.uint8)
    if len(octets) < 4:
        crc = 0xFFFFFFFF
        for octet in octets.tolist():
            crc = crc >> 8 ^ int(TABLE8[(crc ^ octet) & 0xFF])
        return crc ^ 0xFFFFFFFF
    # A register that begins with ones is one that begins with zeros over data whose first 32 bits are inverted, and
    # zeros in front of that change nothing.
    lanes = min(MAX_LANES, 1 << len(octets).bit_length() // 2)
    steps = -(-len(octets) // (2 * lanes))
    padded = np.zeros(2 * lanes * steps, np.uint8)
    begin = len(padded) - len(octets)
    padded[begin:] = octets
    padded[begin : begin + 4] ^= 0xFF
    crcs = np.zeros(lanes, np.uint32)
    for words in padded.view("<u2").reshape(lanes, steps).T:
        crcs = crcs >> 16 ^ TABLE16[(crcs ^ words) & 0xFFFF]
    shift = _power(_shift_by_octet(), 2 * steps)
    while len(crcs) > 1:
        crcs = _apply(shift, crcs[::2]) ^ crcs[1::2]
        shift = _apply(shift, shift)
    return int(crcs[0]) ^ 0xFFFFFFFF


def unmasked(stored: int) -> int:
    """A checksum as TensorFlow stores it (core/lib/hash/crc32c.h: rotated, and a constant added), as it was computed."""
    rotated = (stored - MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


# A register moved past some zeros is a linear map over its bits: what becomes of each of them, (32,).


def _shift_by_octet() -> Words:
    bits = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
    shifted: Words = bits >> 8 ^ TABLE8[bits & 0xFF]
    return shifted


def _apply(shift: Words, registers: Words) -> Words:
    bits = registers[:, None] >> np.arange(32, dtype=np.uint32) & 1
    moved: Words = np.bitwise_xor.reduce(bits * shift, axis=1)
    return moved


def _power(shift: Words, count: int) -> Words:
    result = np.uint32(1) << np.arange(32, dtype=np.uint32)
    while count:
        if count & 1:
            result = _apply(shift, result)
        shift = _apply(shift, shift)
        count >>= 1
    return result
