"""What a pipeline computes: named arrays of blocks, and a state that goes from one block of a sequence to the next."""

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Block, State, one_nan
from lstmcli.engine.prepared_model import PreparedModel, kernels_are_cached
from lstmcli.model.tree import Model, as_chain
from lstmcli.results.journal import StateForms
from lstmcli.run.job import Compute

if TYPE_CHECKING:
    from lstmcli.model.chain import Chain


POOLED, POOLED_STEPS = "pooled", "pooled steps"  # in a state: what was pooled of the steps so far, and their number
PART_FOR_PRODUCTS = 4  # of --max-memory one part in so many may be taken by what is computed once for all steps


class Work(NamedTuple):
    """What a computation has to do, and with how much memory."""

    steps: int
    memory: int


class Computation(Protocol):
    """All that a pipeline needs to know of a model. A further kind of model is one more class in this file."""

    dtype: np.dtype[Any]
    threads: int
    causal: bool  # a step depends on no later one, so that sequences may be cut in time
    input_width: int  # of the rows that are read
    input_dtype: np.dtype[Any]  # of these: that of the computation, or int64 for token ids
    step_widths: dict[str, int]  # of the arrays (R, width) with a row for each step
    state_forms: StateForms  # of the arrays (n, width) that are carried from one span of sequences to the next
    scratch_width: int  # of the rows that are needed for a while
    weight_bytes: int
    step_flops: int
    full: int  # sequences that keep all lanes of all threads busy

    def initial_state(self, count: int, given: State | None) -> State:
        """Makes the state in which `count` sequences begin. given: that of the model, where something else says it."""

    def run(self, block: Block, arrays: dict[str, Block], state: State) -> None:
        """Computes a block.

        block   in      rows (R, input_width), packed
        arrays  out     rows (R, width) for each of step_widths
        state   in/out  arrays (n, width): before the first step of the block, after its last one
        """

    def of_sequences(self, state: State) -> dict[str, NDArray[Any]]:
        """Returns the arrays (n, width) of a result that hold a row for each sequence, from the state after its last step."""


class LstmComputation:
    """The LSTMs of a model: outputs, and where wanted cells and the outputs of each layer; final states."""

    def __init__(self, model: Model, compute: Compute, threads: int) -> None:
        self.forward = PreparedModel(model, compute.floats, threads, compute.bfloat16)
        self.dtype, self.threads, self.causal = self.forward.dtype, threads, model.causal
        self.input_width, self.input_dtype = model.input_size, self.dtype
        self.step_widths = compute.step_widths(model) | {"outputs": model.output_size}  # computed in any case
        forms = {name: (self.dtype, width) for name, width in self.forward.widths.items()}
        self.pool = compute.pool
        if self.pool not in (None, "final"):
            kept = self.dtype if self.pool in ("max", "last") else np.dtype(np.float64)
            forms |= {POOLED: (kept, model.output_size), POOLED_STEPS: (np.dtype(np.float64), 1)}
        self.state_forms: StateForms = forms
        self.scratch_width = sum(self.forward.scratch_widths.values())
        self.weight_bytes, self.step_flops = self.forward.weight_bytes, self.forward.flops
        self.full = 2 * self.forward.tile_rows * threads

    def initial_state(self, count: int, given: State | None) -> State:
        state = given or self.forward.initial_state(count)
        if POOLED in self.state_forms:
            from lstmcli.engine.pooling import pool_start

            assert self.pool
            state[POOLED] = pool_start(self.pool, count, self.forward.output_size, self.dtype)
            state[POOLED_STEPS] = np.zeros((count, 1))
        return state

    def run(self, block: Block, arrays: dict[str, Block], state: State) -> None:
        outputs = arrays["outputs"]
        self.forward(block, outputs, state, arrays)
        if POOLED in self.state_forms:
            from lstmcli.engine.pooling import pool_steps

            assert self.pool
            pool_steps(self.pool, outputs.rows, outputs.starts, outputs.lengths, state[POOLED])
            state[POOLED_STEPS] += outputs.lengths[:, None]

    def of_sequences(self, state: State) -> dict[str, NDArray[Any]]:
        rows: dict[str, NDArray[Any]] = {f"state/{name}": state[name] for name in self.forward.widths}
        if self.pool:
            from lstmcli.engine.pooling import final_outputs, pool_end

            if self.pool == "final":
                rows["pooled"] = final_outputs(self.forward.model, state, "")
            else:
                rows["pooled"] = pool_end(self.pool, state[POOLED], state[POOLED_STEPS][:, 0], self.dtype)
            one_nan(rows["pooled"])  # Inf - Inf
        return rows


class ChainComputation:
    """A whole model: predictions, which are final with the block, as its sequences are never cut in time."""

    causal = False
    step_widths: dict[str, int] = {}  # noqa: RUF012 (no one writes into it)
    state_forms: StateForms = {}  # noqa: RUF012

    def __init__(self, chain: "Chain", compute: Compute, threads: int, work: Work) -> None:
        from lstmcli.engine.chains.prepared_chain import PreparedChain

        self.prepared = PreparedChain(chain, compute.floats, threads, compute.bfloat16)
        self.prepared.expect(work.steps, work.memory // PART_FOR_PRODUCTS)
        self.dtype, self.threads = self.prepared.dtype, threads
        self.input_width = chain.input_size
        self.input_dtype = np.dtype(np.int64) if chain.takes_ids else self.dtype
        self.scratch_width = self.prepared.scratch_width
        self.weight_bytes, self.step_flops, self.full = self.prepared.weight_bytes, self.prepared.step_flops, 1

    def initial_state(self, count: int, given: State | None) -> State:
        return {}

    def run(self, block: Block, arrays: dict[str, Block], state: State) -> None:
        predictions, _ = self.prepared(block.rows, block.lengths)
        state["predictions"] = predictions.copy()  # the next block overwrites them while these are stored

    def of_sequences(self, state: State) -> dict[str, NDArray[Any]]:
        return dict(state)


def is_compiled(model: "Model | Chain", compute: Compute) -> bool:
    """Says whether the kernels of a model's LSTMs are in the cache."""
    if chain := as_chain(model):
        return all(is_compiled(layer, compute) for layer in chain.layers if isinstance(layer, Model))
    assert isinstance(model, Model)
    return kernels_are_cached(model, compute.floats, compute.bfloat16)


def computation_of(model: "Model | Chain", compute: Compute, threads: int, work: Work) -> Computation:
    """Makes the computation of a model. Compiles its kernels where they are not in the cache."""
    if chain := as_chain(model):
        return ChainComputation(chain, compute, threads, work)
    assert isinstance(model, Model)
    return LstmComputation(model, compute, threads)
