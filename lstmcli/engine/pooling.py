"""One vector for each sequence: a mean, maximum or sum over its steps, the last of them, or the final h of the top layer.

Steps count in their order, wherever a sequence is cut: means and sums are carried in float64 and rounded once.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Floats, Lengths, State
from lstmcli.model.tree import Bidirectional, Cell, Model, Residual, Reverse, Stack

PIECE = 1 << 15  # numbers that are gone through at a time where there are few sequences


def pool_start(function: str, count: int, width: int, dtype: np.dtype[Any]) -> Floats:
    """Return (count, width): what is pooled of so many sequences before their first step."""
    if function == "max":
        return np.full((count, width), -np.inf, dtype)
    return np.zeros((count, width), dtype if function == "last" else np.float64)


def pool_steps(function: str, rows: Floats, starts: Lengths, lengths: Lengths, pooled: Floats) -> None:
    """Pool the next steps of each sequence, the rows starts[s] .. starts[s] + lengths[s], into `pooled`."""
    if function == "last":
        some = lengths > 0
        pooled[some] = rows[(starts + lengths - 1)[some]]
        return
    combine = np.maximum if function == "max" else np.add
    if len(lengths) >= lengths.max(initial=0):
        order = np.argsort(-lengths, kind="stable")
        sorted_starts, carried = starts[order], pooled[order]
        for step, count in enumerate(counts_of_steps(lengths)):
            combine(carried[:count], rows[sorted_starts[:count] + step], out=carried[:count])
        pooled[order] = carried
        return
    piece = np.empty((max(2, PIECE // max(1, rows.shape[1])), rows.shape[1]), pooled.dtype)
    for carried, start, stop in zip(pooled, starts.tolist(), (starts + lengths).tolist(), strict=True):
        for first in range(start, stop, len(piece) - 1):
            count = min(len(piece) - 1, stop - first)
            piece[0], piece[1 : count + 1] = carried, rows[first : first + count]
            # Not reduce(), whose order is its own.
            carried[:] = combine.accumulate(piece[: count + 1], axis=0, out=piece[: count + 1])[-1]


def pool_end(function: str, pooled: Floats, lengths: NDArray[Any], dtype: np.dtype[Any]) -> Floats:
    """Return (n, width) of this dtype, pooled over all steps, of which there are `lengths`; zeros where there are none."""
    if function == "mean":
        pooled = pooled / np.maximum(lengths, 1)[:, None]
    elif function == "max":  # plus 0: which of -0 and 0 is the larger one differs between CPUs
        pooled = np.where((lengths == 0)[:, None], dtype.type(0), pooled) + dtype.type(0)
    return pooled.astype(dtype)


def counts_of_steps(lengths: Lengths) -> list[int]:
    """Return for each step how many sequences have it."""
    counts: list[int] = np.cumsum(np.bincount(lengths)[:0:-1])[::-1].tolist()
    return counts


def going(starts: Lengths, lengths: Lengths) -> Iterator[tuple[Any, Any]]:
    """Yield, step by step, the sequences that have this step and the rows where it lies."""
    order = np.argsort(-lengths, kind="stable")
    for step, count in enumerate(counts_of_steps(lengths)):
        some = order[:count]
        yield some, starts[some] + step


def final_outputs(model: Model, state: State, path: str) -> Floats:
    """Return the final h of the top layer, both directions merged as their outputs are."""
    below = f"{path}/" if path else ""
    match model:
        case Cell():
            return state[f"{below}h"]
        case Stack():
            top = len(model.layers) - 1
            return final_outputs(model.layers[top], state, f"{below}{top}")
        case Bidirectional():
            both = [final_outputs(tree, state, f"{below}{side}") for side, tree in model.children().items()]
            match model.merge:
                case "concat":
                    return np.concatenate(both, axis=1)
                case "mul":
                    return both[0] * both[1]
                case "sum":
                    return both[0] + both[1]
            return (both[0] + both[1]) * both[0].dtype.type(0.5)
        case Reverse() | Residual():
            return final_outputs(model.inner, state, path)
    raise AssertionError(model)
