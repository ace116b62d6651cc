"""What every container holds: named arrays, read when they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown

# What weights can be, by the names of safetensors; bfloat16 is the upper half of float32.
DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file, not read yet. dtype: one of DTYPES, or what the file calls another."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Floats]

    def __str__(self) -> str:
        return f"{shown(self.name)} {self.shape}"

    def array(self, rank: int) -> Floats:
        """The values. DataError for another rank, no values, or anything but floating point numbers."""
        if len(self.shape) != rank or 0 in self.shape or self.dtype not in DTYPES:
            raise DataError(f"{self}: expected rank {rank} of floating point numbers, got {shown(self.dtype)}")
        return self.read()


def decode(data: bytes | memoryview | NDArray[Any], dtype: str) -> Floats:
    """Little-endian values of one of DTYPES, flat and in native byte order; bfloat16 as float32."""
    values = np.frombuffer(data, DTYPES[dtype])
    if dtype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    decoded: Floats = values.astype(values.dtype.newbyteorder("="), copy=False)
    return decoded
