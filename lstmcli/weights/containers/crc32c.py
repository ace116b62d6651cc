"""CRC-32C (Castagnoli; RFC 3720, appendix B.4), which TensorFlow's checkpoints have and zlib has not.

NumPy takes 6 ms a megabyte. A loop compiled by Numba would be shorter, but to load Numba takes 500 ms, and a loop in Python
takes 100 ms a megabyte.
"""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

Registers = NDArray[np.uint32]

POLYNOMIAL = 0x82F63B78  # reflected
MASK_DELTA = 0xA282EAD8
SHORT = 64  # bytes for which cutting does not pay

TABLE: Registers = np.arange(256, dtype=np.uint32)
for _ in range(8):
    TABLE = (TABLE >> 1 ^ np.where(TABLE & 1, POLYNOMIAL, 0)).astype(np.uint32)


def crc32c(data: bytes | memoryview) -> int:
    """Compute the checksum of `data`, which is cut into pieces that go through registers of their own, side by side."""
    octets = np.frombuffer(data, np.uint8)
    crc = 0xFFFFFFFF
    if len(octets) < SHORT:
        for octet in octets.tolist():
            crc = crc >> 8 ^ int(TABLE[(crc ^ octet) & 0xFF])
        return crc ^ 0xFFFFFFFF
    length = isqrt(len(octets) // 2)
    count = -(-len(octets) // length)
    pieces = np.zeros((count, length), np.uint8)
    # A register that begins with zeros passes over zeros in front unchanged. One that begins with ones is one that begins with
    # zeros over data whose first 32 bits are inverted.
    begin = pieces.size - len(octets)
    pieces.reshape(-1)[begin:] = octets
    pieces.reshape(-1)[begin : begin + 4] ^= 0xFF
    crcs = np.zeros(count, np.uint32)
    # What becomes, over the length of a piece, of a register that holds one octet: a register is the sum of its four.
    shift = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    for column in pieces.T:
        crcs = crcs >> 8 ^ TABLE[(crcs ^ column) & 0xFF]
        shift = shift >> 8 ^ TABLE[shift & 0xFF]
    first, second, third, fourth = shift.tolist()
    crc = 0
    for own in crcs.tolist():
        crc = first[crc & 0xFF] ^ second[crc >> 8 & 0xFF] ^ third[crc >> 16 & 0xFF] ^ fourth[crc >> 24] ^ own
    return crc ^ 0xFFFFFFFF


def unmasked(stored: int) -> int:
    """Turn a checksum as TensorFlow stores it (core/lib/hash/crc32c.h: rotated, and a constant added) into the plain one."""
    rotated = (stored - MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
