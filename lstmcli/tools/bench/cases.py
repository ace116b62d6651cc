"""What `lstmcli bench` computes: the shapes, and the padded batch and the model that every contender is given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.api import Bidirectional, Cell, CellOptions, Chain, Model, Stack, init_model
from lstmcli.blocks import Floats, Lengths
from lstmcli.model.layers import Embedding
from lstmcli.model.new_weights import layer_sizes

BUCKETS = (2, 4, 8)  # into how many buckets a sorted batch is cut for a peer that computes the padding


@dataclass(frozen=True)
class Case:
    """A batch of `batch` sequences of at most `time` steps. `fill` is the share of its steps that are not padding.

    vocabulary: the steps are token ids, of a table with so many rows of `embed` features. units: of each layer.
    """

    batch: int = 64
    time: int = 100
    embed: int = 128
    units: tuple[int, ...] = (128,)
    fill: float = 0.5
    projection: int | None = None
    bidirectional: bool = False
    vocabulary: int | None = None

    def lengths(self) -> Lengths:
        """Return lengths (batch,) spread from 1 to `time`, in a mixed order: the same for the same case."""
        quantiles = (np.random.default_rng(0).permutation(self.batch) + 0.5) / self.batch
        lengths = np.ceil(self.time * quantiles ** (1 / self.fill - 1)).astype(np.int64)
        lengths[lengths.argmax()] = self.time
        return lengths

    def flops(self) -> int:
        """Count the floating-point operations in the matrix products of the valid steps: two for each weight."""
        options = CellOptions(projection=self.projection)
        weights = sum(
            4 * units * (inputs + options.outputs(units)) + units * (self.projection or 0)
            for inputs, units in layer_sizes(self.embed, self.units, options, self.bidirectional)
        )
        return 2 * weights * (2 if self.bidirectional else 1) * int(self.lengths().sum())


CASES = (
    Case(5, 10, 20, (7,), 0.76),
    Case(32, 50, 64, (64,), 0.5),
    Case(64, 100, 128, (128,), 0.5),
    Case(64, 100, 256, (256,), 0.5),
    Case(128, 200, 300, (512,), 0.5),
    Case(32, 100, 1024, (1024,), 0.5),
    Case(1, 200, 128, (128,), 1.0),
    Case(256, 128, 64, (32,), 0.3),
    Case(16, 60, 512, (4096,), 0.5, projection=512),  # a layer of ELMo
    Case(64, 100, 128, (128, 128), 0.5, bidirectional=True),
    Case(64, 100, 128, (128,), 0.5, vocabulary=10_000),
)


class Way(NamedTuple):
    """One way in which a contender computes a case. run: returns the outputs (B, T, width), an array or a tensor."""

    name: str
    run: Callable[[], Any]
    dtype: str = "float32"


class LeftOut(NamedTuple):
    """A contender, or one way of it, that cannot take part."""

    name: str
    why: str


class Batch:
    """What a contender gets of a case: the same numbers in every process.

    x (B, T, E) float32 with zeros in the padding, or token ids (B, T) int64, which `table` (V, E) is for; lengths (B,).
    """

    def __init__(self, case: Case, threads: int, dtype: str) -> None:
        self.case, self.threads, self.dtype = case, threads, dtype
        self.lengths = case.lengths()
        self.valid: NDArray[np.bool_] = np.arange(case.time) < self.lengths[:, None]
        random = np.random.default_rng(1)
        self.table: Floats | None = None
        if case.vocabulary:
            self.table = random.standard_normal((case.vocabulary, case.embed), dtype=np.float32)
            self.x: Any = random.integers(0, case.vocabulary, (case.batch, case.time))
        else:
            self.x = random.standard_normal((case.batch, case.time, case.embed), dtype=np.float32)
        self.x[~self.valid] = 0

    @cached_property
    def model(self) -> Model:
        case = self.case
        return init_model(case.embed, case.units, bidirectional=case.bidirectional, projection=case.projection)

    @cached_property
    def chain(self) -> Chain:
        """The whole model, which takes token ids."""
        assert self.table is not None
        return Chain((Embedding(self.table), self.model), ("embedding", "lstm"))

    @property
    def layers(self) -> list[tuple[Cell, ...]]:
        """The cells of each layer, forward first."""
        assert isinstance(self.model, Stack)
        both = [[layer.forward, layer.backward] if isinstance(layer, Bidirectional) else [layer] for layer in self.model.layers]
        return [tuple(cell for cell in cells if isinstance(cell, Cell)) for cells in both]

    def in_buckets(
        self, count: int, x: Any, zeros: Callable[[tuple[int, ...]], Any], run: Callable[[Any, Lengths], Any]
    ) -> Any:
        """Return a function that sorts the batch by length, cuts it evenly, trims each bucket, runs it, and puts all in place.

        x: the batch as the peer has it. zeros: makes an array for outputs. run: computes all of (b, t, E), with lengths (b,).
        """
        parts = np.array_split(np.argsort(self.lengths, kind="stable"), min(count, len(self.lengths)))
        buckets = [(rows, int(self.lengths[rows].max())) for rows in parts]
        shape = (*self.x.shape[:2], self.model.output_size)

        def call() -> Any:
            outputs = zeros(shape)
            for rows, longest in buckets:
                outputs[rows, :longest] = run(x[rows, :longest], self.lengths[rows])
            return outputs

        return call


def gates(cells: tuple[Cell, ...], order: str) -> tuple[Floats, Floats, Floats]:
    """Return W (D, 4U, E), R (D, 4U, U) and the bias (D, 4U) of D directions, gates in `order`, a permutation of "ifgo"."""
    found = []
    for cell in cells:
        assert cell.bias is not None
        bias, units = cell.bias.copy(), cell.units
        bias[units : 2 * units] += np.float32(cell.forget_bias)
        columns = np.concatenate([np.arange(units) + units * "ifgo".index(gate) for gate in order])
        found.append((cell.input_kernel.T[columns], cell.recurrent_kernel.T[columns], bias[columns]))
    w, r, bias = (np.stack(weights) for weights in zip(*found, strict=True))
    return w, r, bias
