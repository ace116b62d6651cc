"""Values of a graph, each element with the number of the number that it is: so whatever a graph does to move numbers about
(Transpose, Reshape, Slice, Concat ...), it shows which of them lie where.

A Source is all that a layer puts out: sequences (N, T, E), or vectors (N, E). Its elements are numbered in this order from
`first` on, and no two sources share a number. An array of such numbers is a value of the graph.
"""

import bisect
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError
from lstmcli.model.layers import Flatten, Layer, Pool
from lstmcli.model.tree import Bidirectional, Model, Reverse
from lstmcli.weights.chains.graphs.row_functions import Expression, layers_of

Numbers = NDArray[np.int64]
PADDING = -1  # the number of a zero that a Pad put there


class Named(NamedTuple):
    """A layer of the chain, and the name of the node that it comes from."""

    layer: Layer | Model
    name: str


@dataclass(eq=False)
class Source:
    """What the layers `made` put out; or a `function` of that, not made to layers yet, whose argument is the source `rows`."""

    first: int
    kind: str  # "ids", "sequences", "vectors"; "states": final h (N, E) of an LSTM; "cells": its final c
    shape: tuple[int, ...]
    made: tuple[Named, ...]
    function: Expression = field(default_factory=lambda: Expression("", "", 0))
    rows: "Source | None" = None

    @property
    def width(self) -> int:
        return self.shape[-1]

    @property
    def steps(self) -> int:
        return self.shape[1]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def numbers(self) -> Numbers:
        return np.arange(self.first, self.first + self.size).reshape(self.shape)

    def places(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Return of each element its row, a sequence or a step of one, and its feature."""
        rows, features = np.divmod(numbers - self.first, self.width)
        return rows, features

    def whole(self, numbers: Numbers) -> bool:
        """Whether every element is there, and once."""
        return numbers.size == self.size and each_once(numbers - self.first, self.size)


def each_once(numbers: Numbers, count: int) -> bool:
    """Whether the numbers, as many as there are from 0 to count, are all of these."""
    seen = np.zeros(count, bool)
    seen[numbers] = True
    return bool(seen.all())


class Sources:
    """All sources of a graph."""

    def __init__(self) -> None:
        self.all: list[Source] = []
        self.starts: list[int] = []
        self.upon: dict[tuple[Source, str], Source] = {}  # what was made of a source, so that it is made once

    def add(self, kind: str, shape: tuple[int, ...], made: tuple[Named, ...], **function: Any) -> Source:
        first = self.starts[-1] + self.all[-1].size if self.all else 0
        source = Source(first, kind, shape, made, **function)
        if not function:
            source.function.width = source.width
        self.all.append(source)
        self.starts.append(first)
        return source

    def of(self, numbers: Numbers) -> Source:
        """Return the source of all elements. Raises DataError where they are of several, or of none."""
        low, high = (int(numbers.min()), int(numbers.max())) if numbers.size else (PADDING, PADDING)
        if low == PADDING:
            raise DataError("takes zeros that a Pad put there; only a convolution is known to")
        source = self.all[bisect.bisect_right(self.starts, low) - 1]
        if high >= source.first + source.size:
            names = [self.name(self.all[bisect.bisect_right(self.starts, number) - 1]) for number in (low, high)]
            raise DataError(f"takes numbers of two layers, {names[0]} and {names[1]}; expected a model in one line")
        if source.kind == "cells":
            raise DataError(f"takes the final cell state of {self.name(source)}, which is not known to this program; h is")
        return source

    def name(self, source: Source) -> str:
        return f"{source.made[-1].name!r}" if source.made else "the input"

    def layered(self, numbers: Numbers) -> tuple[Numbers, Source]:
        """Return numbers of a source whose function is made to layers. Raises DataError for a function that is not known."""
        source = self.of(numbers)
        if source.rows is None:
            return numbers, source
        if (plain := self.upon.get((source, "layers"))) is None:
            layers = layers_of(source.function, source.rows.function)
            made = (*source.made, *(Named(layer, name) for name, layer in layers))
            plain = self.upon[source, "layers"] = self.add(source.kind, source.shape, made)
        return numbers - source.first + plain.first, plain

    def settled(self, numbers: Numbers, whole: bool = True) -> tuple[Numbers, Source]:
        """Return numbers of a source that is all there: to take the last step of sequences, or final states, is a layer.

        whole False: of vectors some will do, in any number. Raises DataError for another selection.
        """
        source = self.of(numbers)
        if source.kind == "states":
            numbers, source = self.pooled(numbers, source, "final")
        elif source.kind == "sequences" and source.steps == 1 and numbers.ndim < 3:
            numbers, source = self.pooled(*self.layered(numbers), "last")
        elif source.kind == "sequences" and not source.whole(numbers):
            rows, features = source.places(numbers)
            steps = rows % source.steps
            if (steps == source.steps - 1).all():
                numbers, source = self.pooled(*self.layered(numbers), "last")
            elif (steps == final_steps(source, features)).all():
                numbers, source = self.pooled(numbers, source, "final")
        if source.kind == "sequences" and numbers.shape == (source.shape[0], source.steps * source.width) != source.shape[:2]:
            numbers, source = self.flattened(*self.layered(numbers))
        if source.whole(numbers) or (source.kind == "vectors" and not whole):
            return numbers, source
        raise DataError(
            f"takes a part of what comes out of {self.name(source)}; expected all of it, its last step or its final states"
        )

    def flattened(self, numbers: Numbers, source: Source) -> tuple[Numbers, Source]:
        """Return the numbers of all steps side by side, where these are in their order."""
        if not np.array_equal(numbers, source.numbers.reshape(numbers.shape)):
            return numbers, source
        if (vectors := self.upon.get((source, "flatten"))) is None:
            made = (*source.made, Named(Flatten(source.steps), source.made[-1].name if source.made else "flatten"))
            vectors = self.upon[source, "flatten"] = self.add("vectors", numbers.shape, made)
        return vectors.numbers, vectors

    def pooled(self, numbers: Numbers, source: Source, function: str) -> tuple[Numbers, Source]:
        """Return the numbers of one vector for each sequence, of which the given ones are all or some."""
        rows, features = source.places(numbers)
        sequences = rows if source.kind == "states" else rows // source.steps
        if (vectors := self.upon.get((source, function))) is None:
            name = source.made[-1].name if source.made else function
            made = (*source.made, Named(Pool(function), name))
            vectors = self.upon[source, function] = self.add("vectors", (source.shape[0], source.width), made)
        return vectors.first + sequences * vectors.width + features, vectors


def final_steps(source: Source, features: Numbers) -> Numbers:
    """Return the step of each feature at which an LSTM that puts it out is done; PADDING where no LSTM does."""
    match source.made[-1].layer if source.made and source.rows is None else None:
        case Bidirectional(forward=forward):
            return np.where(features < forward.output_size, source.steps - 1, 0)
        case Reverse():
            return np.zeros_like(features)
        case Model():
            return np.full_like(features, source.steps - 1)
    return np.full_like(features, PADDING)
