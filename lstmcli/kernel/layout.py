"""Weights packed for the tile: one forward stream of memory for each panel of units."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GATES = 4  # input, forget, candidate, output
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Shape:
    """The tile: `rows` sequences times `width` units times GATES accumulators of `bits`-bit floats."""

    bits: int
    width: int
    rows: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(f"f{self.bits // 8}")


def pack(
    input_kernel: Floats, recurrent_kernel: Floats, bias: Floats | None, forget_bias: float, shape: Shape
) -> tuple[Floats, Floats]:
    """Packs a cell's weights, with `forget_bias` added to the forget gate's bias.

    input_kernel (E, 4*units), recurrent_kernel (units, 4*units), bias (4*units,) or None: gate blocks in the order i, f, g, o.
    Returns panels (ceil(units/width), E + units, 4, width) and biases (ceil(units/width), 4, width), zero past the last unit.
    """
    units, width, dtype = len(recurrent_kernel), shape.width, shape.dtype
    count = -(-units // width)
    joint = np.zeros((len(input_kernel) + units, GATES, count * width), dtype)
    joint[: len(input_kernel), :, :units] = input_kernel.reshape(-1, GATES, units)
    joint[len(input_kernel) :, :, :units] = recurrent_kernel.reshape(-1, GATES, units)
    joint_bias = np.zeros((GATES, count * width), np.float64)
    if bias is not None:
        joint_bias[:, :units] = bias.reshape(GATES, units)
    joint_bias[1, :units] += forget_bias
    panels = np.ascontiguousarray(joint.reshape(-1, GATES, count, width).transpose(2, 0, 1, 3))
    biases = np.ascontiguousarray(joint_bias.astype(dtype).reshape(GATES, count, width).transpose(1, 0, 2))
    return panels, biases
