"""TensorFlow's TensorProto: numbers and texts in a graph itself (core/framework/tensor.proto)."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError
from lstmcli.weights.containers.protobuf import Message

TEXT = 7
# By the numbers of core/framework/types.proto: the type, and the field of values that are not raw.
TYPES = {
    1: ("<f4", 5), 2: ("<f8", 6), 3: ("<i4", 7), 4: ("<u1", 7), 5: ("<i2", 7), 6: ("<i1", 7), 9: ("<i8", 10), 10: ("|b1", 11),
    17: ("<u2", 7), 19: ("<f2", 13), 22: ("<u4", 16), 23: ("<u8", 17),
}  # fmt: skip
MAX_ELEMENTS = 1 << 28


def read_array(message: Message) -> NDArray[Any]:
    """Return the values; texts as objects. Raises DataError: damaged, or of another type."""
    kind = message.integer(1)
    shape = tuple(size.integer(1) for size in message.message(2).messages(2))
    if any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise DataError(f"damaged: a constant of shape {shape}")
    if kind == TEXT:
        return np.array([*message.texts(8)], object).reshape(shape)
    if kind not in TYPES:
        raise DataError(f"a constant of type {kind}, which is not known to this program")
    dtype, field = np.dtype(TYPES[kind][0]), TYPES[kind][1]
    if 4 in message:
        data = message.data(4)
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise DataError(f"damaged: a constant of shape {shape} in {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape)
    if field in (5, 6):
        values = message.numbers(field, dtype.str)
    else:  # of float16 the bits, as an integer
        stored = np.dtype("<u2") if dtype.kind == "f" else dtype
        values = np.array(message.integers(field), np.int64).astype(stored).view(dtype)
    missing = math.prod(shape) - len(values)
    if missing < 0:
        raise DataError(f"damaged: a constant of shape {shape} has {len(values)} values")
    last = values[-1:] if len(values) else np.zeros(1, dtype)
    return np.concatenate([values, np.repeat(last, missing)]).reshape(shape)  # the last one stands for all that follow
