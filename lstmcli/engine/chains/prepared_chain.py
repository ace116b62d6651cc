"""A whole model over blocks of sequences: layer by layer, each over all valid steps of the block."""

import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from lstmcli.blocks import Block, Floats, Lengths, one_nan
from lstmcli.engine.chains.layers import (
    Cast,
    Passing,
    activate,
    attend,
    embed,
    final_state,
    flatten,
    flip,
    known_ids,
    mask,
    normalize,
    pool,
    pool_windows,
    repeat,
    scale,
    unmask,
    windows,
)
from lstmcli.engine.prepared_model import PreparedModel, check_range
from lstmcli.kernel.heads import call as heads
from lstmcli.model.chain import Chain
from lstmcli.model.layers import (
    Activation,
    Affine,
    Attention,
    Conv1D,
    Dense,
    Embedding,
    Flatten,
    Flip,
    LayerNorm,
    Masking,
    Pool,
    Pool1D,
    Repeat,
    Unmask,
)
from lstmcli.model.tree import Model

THREAD_FLOPS = 5e6  # less work than this is not worth another thread
# From so many steps for each row of an embedding's table on, the products of all rows with the LSTM's input weights are
# computed once: below 7 the pages that they need cost more than they save.
PRODUCT_STEPS = 8


class PreparedChain:
    """A chain ready to run: kernels loaded, weights packed. Called from one thread at a time."""

    def __init__(self, chain: Chain, dtype: np.dtype[Any], threads: int, bfloat16: bool = False) -> None:
        check_range(chain, dtype)
        self.bfloat16 = bfloat16  # of the LSTMs; all other layers compute in float32 then
        self.chain, self.dtype, self.threads = chain, dtype, threads
        self.bits = dtype.itemsize * 8
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.steps = [self._prepare(layer, number) for number, layer in enumerate(chain.layers)]
        lstms = [step.forward for step in self.steps if isinstance(step, LstmStep)]
        # Of each row: what every layer puts out, copies of the widest on the way, and what the LSTMs need for a while.
        widths = [form.width for form in chain.forms]
        self.scratch_width = sum(widths) + 3 * max(widths) + sum(sum(lstm.scratch_widths.values()) for lstm in lstms)
        parameters = chain.parameters()
        self.weight_bytes = 2 * parameters * dtype.itemsize  # the model's own and the packed ones
        self.step_flops = 2 * parameters  # or less, where a layer looks at vectors or at ids
        self.buffers: dict[int, Floats] = {}
        self.expected = 0  # steps that expect() was told of

    def __call__(self, rows: Any, lengths: Lengths) -> tuple[Floats, Lengths]:
        """Run sequences through the chain.

        rows     in   (R, input size) of this dtype, or ids (R, 1) int64 or uint64, packed
        lengths  in   (n,), C-contiguous
        Returns the predictions: rows (R', K) packed with their lengths (n,), or (n, K) with lengths of 1.
        They are overwritten by the next call. Raises SequenceError for an id that the table does not have.
        """
        passing = Passing(rows, lengths)
        for step in self.steps:
            step(passing)
        one_nan(passing.rows)
        if not self.chain.has_steps:
            return passing.rows, np.ones(len(lengths), np.int64)
        if passing.valid is None:
            return passing.rows, passing.lengths
        whole = np.zeros((len(passing.valid), passing.rows.shape[1]), self.dtype)
        whole[passing.valid] = passing.rows
        return whole, lengths

    def expect(self, steps: int, memory: int) -> None:
        """Compute the products of an embedding's table with the LSTM's input weights once, where that pays.

        steps   that are to be run, besides those of earlier calls
        memory  bytes that the products may take
        """
        self.expected += steps
        match self.chain.layers[:2], self.steps[:2]:
            case (Embedding() as embedding, Model()), (_, LstmStep() as lstm):
                words = len(embedding.table)
                size = lstm.forward.product_bytes(words)
                if lstm.takes_ids or not 0 < size <= memory or self.expected < PRODUCT_STEPS * words:
                    return
                table = Cast(embedding, self.dtype)
                lstm.forward.take_table(table.table, self.shared)
                lstm.takes_ids = True
                self.steps[0] = lambda passing: known_ids(table, passing)
                self.weight_bytes += size

    def _buffer(self, number: int, rows: int, width: int) -> Floats:
        """Return memory for what layer `number` puts out, reused by the next block: fresh pages cost more than most layers."""
        size = rows * width
        kept = self.buffers.get(number)
        if kept is None or kept.size < size:
            kept = self.buffers[number] = np.empty(size, self.dtype)
        return kept[:size].reshape(rows, width)

    def _prepare(self, layer: Any, number: int) -> Callable[[Passing], None]:
        match layer:
            case Model():
                return LstmStep(self, layer, number)
            case Dense():
                return DenseStep(self, layer.kernel, layer.bias, number)
            case Conv1D():
                return ConvStep(self, layer, number)
            case Pool(function="final"):
                below = self.chain.layers[number - 1]
                return lambda passing: final_state(below, passing, self.dtype)
        simple: dict[type, Callable[[Any, Passing], None]] = {
            Embedding: embed, Masking: mask, Activation: activate, Affine: scale, LayerNorm: normalize,
            Pool1D: pool_windows, Pool: pool, Attention: attend, Flatten: flatten, Repeat: repeat, Flip: flip,
            Unmask: unmask,
        }  # fmt: skip
        function, cast = simple[type(layer)], Cast(layer, self.dtype)
        return lambda passing: function(cast, passing)

    def shared(self, function: Callable[[slice], None], rows: int, flops: float) -> None:
        """Call function with slices that are all rows together, in as many threads as the work is worth."""
        threads = min(self.threads, int(flops * rows / THREAD_FLOPS) + 1)
        if threads == 1 or not self.pool:
            function(slice(0, rows))
            return
        cuts = [rows * k // threads for k in range(threads + 1)]
        tasks: list[Future[None]] = []
        try:
            tasks.extend(self.pool.submit(function, slice(a, b)) for a, b in itertools.pairwise(cuts))
            for task in tasks:
                task.result()
        finally:
            wait(tasks)  # also after an interrupt: they write into memory that the next call uses again


class LstmStep:
    def __init__(self, chain: PreparedChain, model: Model, number: int) -> None:
        self.chain, self.number = chain, number
        self.forward = PreparedModel(model, chain.dtype, chain.threads, chain.bfloat16)
        self.takes_ids = False  # and not rows of the table below

    def __call__(self, passing: Passing) -> None:
        block = Block(passing.rows, passing.starts, passing.lengths)
        outputs = block.like(self.chain._buffer(self.number, len(passing.rows), self.forward.output_size))
        state = self.forward.initial_state(len(passing.lengths))
        self.forward(block, outputs, state)
        passing.rows, passing.state = outputs.rows, state


class DenseStep:
    def __init__(self, chain: PreparedChain, kernel: Floats, bias: Floats | None, number: int) -> None:
        self.chain, self.number, self.dense = chain, number, heads.Dense(kernel, bias, chain.bits)

    def __call__(self, passing: Passing) -> None:
        passing.rows = self.product(passing.rows)

    def product(self, x: Floats) -> Floats:
        y = self.chain._buffer(self.number, len(x), self.dense.outputs)
        flops = 2 * self.dense.inputs * self.dense.outputs
        self.chain.shared(lambda part: self.dense.run(x[part], y[part]), len(x), flops)
        return y


class ConvStep:
    """A convolution is a product of the taps and channels that each output sees, with zeros where padding stands."""

    def __init__(self, chain: PreparedChain, layer: Conv1D, number: int) -> None:
        taps, channels, outputs = layer.kernel.shape
        self.layer, self.product = layer, DenseStep(chain, layer.kernel.reshape(taps * channels, outputs), layer.bias, number)

    def __call__(self, passing: Passing) -> None:
        seen, lengths = windows(self.layer, passing, 0.0)
        passing.rows, passing.lengths = self.product.product(seen.reshape(len(seen), self.product.dense.inputs)), lengths
