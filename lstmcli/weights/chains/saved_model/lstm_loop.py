"""LSTMs as Keras writes them for TensorFlow: a loop over the steps, which is known by what it gives.

A loop has variables, which its body takes and gives back: counters; the list of the steps of x, and of a mask; the list of
outputs; h and c, and with a mask the output of the step before; and the weights. The body is run on random numbers, at several
steps and of several sizes, and what it gives must be what an LSTM gives for all of them, with weights, states and activations
in some roles.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lstmcli.errors import DataError
from lstmcli.model.tree import ACTIVATIONS, RECURRENT_ACTIVATIONS
from lstmcli.weights.chains.graphs.row_functions import POINTWISE, elu
from lstmcli.weights.onnx_graph.constants import Array

CLOSE = 1e-6  # of the largest of a value and the size of the numbers that it is made of
# Of x and the states, from the first step to the last: small ones show activations, large ones show limits.
SIZES = (1.0, 30.0, 1.0, 1e4, 1e12, 1.0, 1.0)
FUNCTIONS: dict[str, Callable[[Any], Any]] = {**POINTWISE, "elu": elu, "linear": lambda x: x}
NOT_KNOWN = "a loop that is no LSTM as Keras writes them, which is not known to this program"
MAX_VARIABLES = 16


class LoopRoles(NamedTuple):
    """Which variable of a loop is what, by number. before: the output of the step before, where there is a mask.

    every_step: whether all outputs are kept, or the last alone. zeros: whether the outputs of steps that the mask hides are
    zeros; else they are those of the step before.
    """

    x: int
    mask: int | None
    counters: tuple[int, ...]
    outputs: int
    every_step: bool
    h: int
    c: int
    before: int | None
    zeros: bool
    kernel: int
    recurrent: int
    bias: int | None
    activation: str
    recurrent_activation: str


class Turn(NamedTuple):
    """What went into the body, what came out, the x of its step, which rows the mask shows, what was put out, and the size of
    x and the states. Of the list of x, `given` and `got` have that step alone."""

    given: list[Array]
    got: list[Array]
    x: Array
    shown: Array
    output: Array
    size: float


@dataclass
class Loop:
    """A loop: its variables at the start, and what its condition and its body give for others."""

    inputs: list[Array]
    condition: Callable[[list[Array]], list[Array]]
    body: Callable[[list[Array]], list[Array]]

    def roles(self) -> LoopRoles:
        """Return which variable is what. Raises DataError where the loop is no LSTM over all steps, from zeros on."""
        lists = [k for k, array in enumerate(self.inputs) if array.dtype.names and array.ndim == 3]
        kept = [k for k, array in enumerate(self.inputs) if array.dtype == object]
        others = [k for k, array in enumerate(self.inputs) if array.dtype.names and array.ndim != 3]
        if not 1 <= len(lists) <= 2 or len(kept) != 1 or others or len(self.inputs) > MAX_VARIABLES:
            raise DataError(f"{NOT_KNOWN} (it goes over {len(lists)} lists, and starts from {len(others)} computed states)")
        failed: list[Exception] = []
        for x, *mask in itertools.permutations(lists):
            try:
                return self.tried(x, mask[0] if mask else None, kept[0])
            except (ValueError, TypeError, IndexError, DataError) as error:
                failed.append(error)
        why = failed[0]
        raise why if isinstance(why, DataError) and len(failed) == 1 else DataError(NOT_KNOWN) from why

    def tried(self, x: int, mask: int | None, outputs: int) -> LoopRoles:
        steps = len(self.inputs[x])
        numbers = [k for k, array in enumerate(self.inputs) if array.dtype.kind in "iu" and array.ndim == 0]
        given = self.random(x, mask)
        first = self.body(given)
        counters = tuple(k for k in numbers if first[k] == given[k] + 1)
        if any(first[k] != given[k] for k in numbers if k not in counters) or any(self.inputs[k] for k in counters):
            raise DataError(NOT_KNOWN)
        self.check_turns(given, counters, steps)
        turns = self.turns(given, counters, x, mask, outputs)
        floats = [k for k, array in enumerate(given) if array.dtype.kind == "f" and k not in (x, mask)]
        changed = [k for k in floats if not all(np.array_equal(turn.got[k], turn.given[k]) for turn in turns)]
        weights = [k for k in floats if k not in changed and self.inputs[k].ndim]
        if any(np.any(self.inputs[k]) for k in changed):
            raise DataError("an LSTM that starts from other than zeros, which is not known to this program")
        every_step = len(self.inputs[outputs]) != 1
        zeros = [k for k in floats if k not in changed and not self.inputs[k].ndim and not self.inputs[k]]
        for h, c, before in candidates(changed, mask is not None):
            for kernel, recurrent, bias in itertools.product(weights, weights, [None, *weights]):
                if {kernel, recurrent, *([] if bias is None else [bias])} != set(weights) or kernel == recurrent:
                    continue
                for hidden in (None, *zeros) if mask is not None else (None,):
                    states = (h, c, before, hidden)
                    pairs = list(itertools.product(ACTIVATIONS, RECURRENT_ACTIVATIONS))
                    for turn in turns:
                        pairs = list(activations_of(turn, states, kernel, recurrent, bias, pairs))
                    for functions in pairs:
                        if hidden is not None and not every_step:
                            raise DataError("an LSTM whose last output is zero where a mask hides the last step; not known")
                        return LoopRoles(
                            x, mask, counters, outputs, every_step, h, c, before, hidden is not None, kernel, recurrent, bias,
                            *functions,
                        )  # fmt: skip
        raise DataError(NOT_KNOWN)

    def random(self, x: int, mask: int | None) -> list[Array]:
        """Return variables of random numbers, so large that activations show in what they give; the mask shows all."""
        random = np.random.default_rng(0)
        width = max((array.shape[1] for array in self.inputs if self.state(array, x)), default=1)
        rows = self.inputs[x].shape[1]
        given = list(self.inputs)
        for k, array in enumerate(self.inputs):
            if k == mask:
                given[k] = np.ones(array.shape, bool)
            elif k == x or array.dtype.kind == "f":
                shape = array.shape if array.ndim else (rows, width)
                given[k] = random.normal(size=shape) * (1 if k == x or array.ndim < 2 else 1.5 / np.sqrt(shape[0] / 4 + 1))
        return given

    def state(self, array: Array, x: int) -> bool:
        return array.dtype.kind == "f" and array.ndim == 2 and len(array) == self.inputs[x].shape[1] and not array.any()

    def check_turns(self, given: list[Array], counters: tuple[int, ...], steps: int) -> None:
        for step in range(steps + 1):
            at = [np.asarray(array + step) if k in counters else array for k, array in enumerate(given)]
            if bool(self.condition(at)[0]) != (step < steps):
                raise DataError("a loop over other than all steps, which is not known to this program")

    def turns(self, given: list[Array], counters: tuple[int, ...], x: int, mask: int | None, outputs: int) -> list[Turn]:
        """Run the body at steps from the first to the last, with a mask that shows and hides each row in turn."""
        steps, rows, _ = given[x].shape
        moving = [k for k, array in enumerate(self.inputs) if k == x or self.state(array, x)]
        moving += [k for k, array in enumerate(self.inputs) if array.dtype.kind == "f" and not array.ndim]
        turns = []
        for number, size in enumerate(SIZES):
            step = number * (steps - 1) // (len(SIZES) - 1)
            at = [array * size if k in moving else array for k, array in enumerate(given)]
            for k in counters:
                at[k] = np.asarray(given[k] + step)
            if mask is not None:
                at[mask] = np.broadcast_to(((np.arange(rows) + number) % 2 == 0)[:, None], given[mask].shape)
            turns.append(self.turn(at, step, counters, x, mask, outputs, size))
        return turns

    def turn(
        self, given: list[Array], step: int, counters: tuple[int, ...], x: int, mask: int | None, outputs: int, size: float
    ) -> Turn:  # fmt: skip
        got = self.body(given)
        kept = [k for k, array in enumerate(given) if k not in (*counters, outputs) and (array.dtype.kind != "f" or k == x)]
        if not all(got[k] is given[k] or np.array_equal(got[k], given[k]) for k in kept):
            raise DataError(NOT_KNOWN)
        if any(got[k] != given[k] + 1 for k in counters):
            raise DataError(NOT_KNOWN)
        items = {place: item for place, item in enumerate(got[outputs]) if item is not None}
        if list(items) != [step if len(given[outputs]) != 1 else 0]:
            raise DataError(NOT_KNOWN)
        shown = np.ones((given[x].shape[1], 1), bool) if mask is None else given[mask][step]
        given[x] = got[x] = given[x][step].copy()  # all steps of each turn would be too much to keep
        (output,) = items.values()
        return Turn(given, got, given[x], shown, output, size)


def candidates(changed: list[int], masked: bool) -> Iterator[tuple[int, int, int | None]]:
    """Yield h, c and the output before among the variables that change."""
    if len(changed) == 2 + masked:
        for h, c, *before in itertools.permutations(changed):
            yield h, c, before[0] if before else None


def activations_of(
    turn: Turn,
    states: tuple[int, int, int | None, int | None],
    kernel: int,
    recurrent: int,
    bias: int | None,
    pairs: list[tuple[str, str]],
) -> Iterator[tuple[str, str]]:
    """Yield those pairs of activations with which an LSTM gives what the body gave.

    states: h, c, the output before, and what is put out where the mask hides a step, if that is not the output before.
    """
    h, c, before, hidden = states
    old_h, old_c, w, u = (turn.given[k] for k in (h, c, kernel, recurrent))
    units = old_h.shape[1]
    if w.shape != (turn.x.shape[1], 4 * units) or u.shape != (units, 4 * units) or old_c.shape != old_h.shape:
        return
    gates = turn.x @ w + old_h @ u
    if bias is not None:
        if turn.given[bias].shape != (4 * units,):
            return
        gates = gates + turn.given[bias]
    i, f, g, o = np.split(gates, 4, 1)
    old_output = turn.given[next(k for k in (hidden, before, h) if k is not None)]
    with np.errstate(all="ignore"):
        for activation, recurrent_activation in pairs:
            act, gate = FUNCTIONS[activation], FUNCTIONS[recurrent_activation]
            new_c = gate(f) * old_c + gate(i) * act(g)
            new_h = gate(o) * act(new_c)
            want = [(turn.got[h], new_h, old_h), (turn.got[c], new_c, old_c), (turn.output, new_h, old_output)]
            if before is not None:
                want.append((turn.got[before], new_h, old_output))
            if all(same(got, np.where(turn.shown, new, old), turn.size) for got, new, old in want):
                yield activation, recurrent_activation


def same(one: Array, other: Array, size: float) -> bool:
    return one.shape == other.shape and bool((np.abs(one - other) <= CLOSE * np.maximum(size, np.abs(other))).all())
