"""The wire format of protocol buffers (protobuf.dev, Encoding), as much as TensorFlow's and ONNX's files need."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError

Value = int | memoryview

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_BYTES = (1 << 31) - 1  # of a file; protobuf's own limit
MAX_FIELDS = 1 << 23  # in a file, each as often as it is read: 2 GB of Python's objects, 10 s; two bytes are a field


def varint(data: memoryview, at: int, where: str) -> tuple[int, int]:
    """(value, where it ends) of the variable-length integer at `at`, below 2**64."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise DataError(f"{where}: damaged: ended within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise DataError(f"{where}: damaged: a number of more than 64 bits")


def fields(data: memoryview, where: str) -> Iterator[tuple[int, int, Value]]:
    """(number, wire type, value) of each field; fixed-size and length-delimited ones as their bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at, where)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = varint(data, at, where)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = varint(data, at, where)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise DataError(f"{where}: damaged: field {number} is of unknown wire type {wire}")
        if not number or size > len(data) - at:
            raise DataError(f"{where}: damaged: field {number} of {size} bytes, where {len(data) - at} are left")
        yield number, wire, data[at : at + size]
        at += size


class Message:
    """A message's fields by number. Of a field that is there several times, `integer` and `message` take the last, as protobuf
    does. DataError: damaged, or of another type than is asked for."""

    def __init__(self, data: memoryview | bytes, where: str, left: list[int] | None = None) -> None:
        """left: how many fields may still be read of the file, which the messages in this one share."""
        self.where, self.left = where, [MAX_FIELDS] if left is None else left
        self.values: dict[int, list[tuple[int, Value]]] = {}
        for number, wire, value in fields(memoryview(data), where):
            self.left[0] -= 1
            if self.left[0] < 0:
                raise DataError(f"{where}: has more than {MAX_FIELDS:,} fields, which no model needs; damaged?")
            self.values.setdefault(number, []).append((wire, value))

    def __contains__(self, number: int) -> bool:
        return number in self.values

    def _of(self, number: int, *wires: int) -> list[tuple[int, Any]]:
        found = self.values.get(number, [])
        if any(wire not in wires for wire, _ in found):
            raise DataError(f"{self.where}: damaged, or another format: field {number} is of wire type {found[0][0]}")
        return found

    def integers(self, number: int) -> list[int]:
        """Signed, packed or not."""
        found = []
        for wire, value in self._of(number, VARINT, BYTES):
            at = 0
            if wire == VARINT:
                found.append(value)
            while wire == BYTES and at < len(value):
                one, at = varint(value, at, self.where)
                found.append(one)
        return [value - (value >> 63 << 64) for value in found]

    def integer(self, number: int, default: int = 0) -> int:
        return (self.integers(number) or [default])[-1]

    def fixed32(self, number: int) -> int:
        return int.from_bytes(self._word(number), "little")

    def float32(self, number: int) -> float:
        return float(struct.unpack("<f", self._word(number))[0])

    def _word(self, number: int) -> memoryview:
        found = self._of(number, FIXED32)
        if not found:
            raise DataError(f"{self.where}: damaged: field {number} is missing")
        value: memoryview = found[-1][1]
        return value

    def numbers(self, number: int, dtype: str) -> NDArray[Any]:
        """Fixed-size numbers, packed or not."""
        found = self._of(number, BYTES, FIXED32 if np.dtype(dtype).itemsize == 4 else FIXED64)
        data = b"".join(value for _, value in found)
        if len(data) % np.dtype(dtype).itemsize:
            raise DataError(f"{self.where}: damaged: field {number} has {len(data)} bytes")
        return np.frombuffer(data, dtype)

    def data(self, number: int) -> memoryview:
        found = self._of(number, BYTES)
        return found[-1][1] if found else memoryview(b"")

    def texts(self, number: int) -> list[str]:
        return [bytes(value).decode("utf-8", "backslashreplace") for _, value in self._of(number, BYTES)]

    def text(self, number: int) -> str:
        return (self.texts(number) or [""])[-1]

    def messages(self, number: int) -> "list[Message]":
        return [Message(value, self.where, self.left) for _, value in self._of(number, BYTES)]

    def message(self, number: int) -> "Message":
        return Message(self.data(number), self.where, self.left)

    def plain(self) -> list[tuple[int, list[tuple[int, int | bytes]]]]:
        """All fields as they stand, to compare messages."""
        return [
            (number, [(wire, value if isinstance(value, int) else bytes(value)) for wire, value in values])
            for number, values in sorted(self.values.items())
        ]
