"""The kernels of layers that have no state, ready to be called: products of rows and weights, and functions of numbers.

Both work on rows (R, D) whose features lie side by side, `step` bytes from row to row, and may be called from several threads
at once, each for rows of its own.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.kernel.heads.tables import FUNCTIONS, DensePlace, Place
from lstmcli.kernel.layout import Shape, in_lines, tile_shape
from lstmcli.kernel.native import compiled
from lstmcli.kernel.native.cache import Compiled
from lstmcli.kernel.native.target import Target

Floats = NDArray[np.floating]


VECTORS = (1, 2, 4)  # in a panel of weights


class DenseWeights(NamedTuple):
    """panels (P, INPUTS, vectors, width) and biases (P, vectors, width), zero past the last output."""

    panels: Floats
    biases: Floats


def pointwise_recipe(bits: int) -> compiled.Recipe:
    """Say how the pointwise kernel is made."""

    def compile_kernel(here: Target) -> Compiled:
        from lstmcli.kernel.heads import pointwise

        shape = tile_shape(here, bits)
        return compiled.compile_function(here, shape, pointwise.define(shape))

    return compiled.Recipe(f"pointwise-f{bits}", None, compile_kernel)


@compiled.once
def load_pointwise(bits: int) -> Any:
    """Load the pointwise kernel for this CPU: call(address of the table, 0)."""
    return compiled.load(pointwise_recipe(bits)).call


def dense_recipe(bits: int, vectors: int) -> compiled.Recipe:
    """Say how the dense kernel for panels of so many vectors is made."""

    def compile_kernel(here: Target) -> Compiled:
        from lstmcli.kernel.heads import dense

        shape = tile_shape(here, bits)
        return compiled.compile_function(here, shape, dense.define(shape, vectors))

    return compiled.Recipe(f"dense-f{bits}", vectors, compile_kernel)


@compiled.once
def load_dense(bits: int, vectors: int) -> tuple[Any, Shape]:
    """Load the dense kernel for panels of so many vectors: call(address of the table, 0), and the shape of its tile."""
    call, shape = compiled.load(dense_recipe(bits, vectors))
    return call, Shape(*shape)


class Dense:
    """y = x kernel + bias, each number one chain: its bias, then a fused multiply-add for each input in order."""

    def __init__(self, kernel: Floats, bias: Floats | None, bits: int) -> None:
        """Take kernel (D, O) and bias (O,) or None."""
        self.inputs, self.outputs = kernel.shape
        self.dtype = np.dtype(f"f{bits // 8}")
        lane = 64 // self.dtype.itemsize  # any CPU's vector is this or a half or a fourth of it
        vectors = 1 if self.outputs <= lane else 2 if self.outputs <= 2 * lane else 4
        self.call, shape = load_dense(bits, vectors)
        columns = vectors * shape.width
        count = -(-self.outputs // columns)
        padded = np.zeros((self.inputs, count * columns), self.dtype)
        padded[:, : self.outputs] = kernel
        biases = np.zeros(count * columns, self.dtype)
        if bias is not None:
            biases[: self.outputs] = bias
        panels = padded.reshape(self.inputs, count, columns).transpose(1, 0, 2)
        self.weights = DenseWeights(in_lines(panels), in_lines(biases.reshape(count, columns)))

    def run(self, x: Floats, y: Floats) -> None:
        """Compute y (R, O) of x (R, D), both of this dtype, the features of a row side by side; rows of x may overlap."""
        if not y.size:
            return
        table = np.zeros(len(DensePlace), np.int64)
        table[DensePlace.X_AT], table[DensePlace.X_STEP] = x.ctypes.data, x.strides[0]
        table[DensePlace.Y_AT], table[DensePlace.Y_STEP] = y.ctypes.data, y.strides[0]
        table[DensePlace.ROWS], table[DensePlace.INPUTS], table[DensePlace.OUTPUTS] = len(x), self.inputs, self.outputs
        table[DensePlace.PANELS_AT] = self.weights.panels.ctypes.data
        table[DensePlace.BIASES_AT] = self.weights.biases.ctypes.data
        self.call(table.ctypes.data, 0)


def apply(function: str, x: Floats, y: Floats, alpha: float = 0.0) -> None:
    """Write function(x) into y, both C-contiguous and of one float dtype; they may be the same."""
    table = np.zeros(len(Place), np.int64)
    table[Place.FUNCTION], table[Place.COUNT] = FUNCTIONS.index(function), x.size
    table[Place.X_AT], table[Place.Y_AT] = x.ctypes.data, y.ctypes.data
    table[Place.ALPHA :].view(np.float64)[0] = alpha
    load_pointwise(x.itemsize * 8)(table.ctypes.data, 0)
