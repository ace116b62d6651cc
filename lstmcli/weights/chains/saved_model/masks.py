"""Masks in a graph as Keras writes them for TensorFlow: which steps they hide, and which layers skip these."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lstmcli.errors import DataError, shown
from lstmcli.model.layers import Embedding, Flatten, Layer, Masking, Pool, Repeat, Unmask, Window
from lstmcli.model.tree import Cell, Model, Reverse
from lstmcli.weights.chains.graphs.graph_layers import GraphLayers
from lstmcli.weights.chains.graphs.traced_graph import Layers
from lstmcli.weights.chains.graphs.traced_values import Named, Numbers, Source
from lstmcli.weights.draft import Draft
from lstmcli.weights.onnx_graph.constants import Constants
from lstmcli.weights.onnx_graph.graph import Node, Value
from lstmcli.weights.tf_graph.operators import numbers_of


class Hidden(NamedTuple):
    """Which steps a mask hides: those where all of a source is `value`; of token ids the source is the input."""

    source: Source
    value: float


class Masks(GraphLayers):
    """Follows masks, and says in the layers what they hide.

    masks: sources of kind "mask", one number for each step, and what they hide. heeds: layers that skip what a mask hides;
    zeroed: those of them that put out zeros there.
    """

    def __init__(self, draft: Draft, constants: Constants) -> None:
        super().__init__(draft, constants)
        self.masks: dict[Source, Hidden] = {}
        self.heeds: dict[Any, Source] = {}
        self.zeroed: set[Model] = set()

    def make_NotEqual(self, node: Node) -> None:  # noqa: N802
        """A mask of token ids, or the beginning of one of features."""
        numbers, other = self.flowing(node, 0), self.required(node, 1)
        if other.size != 1:
            raise DataError("compares with several numbers, which is not known to this program")
        value = float(other.reshape(-1)[0])
        numbers, source = self.sources.layered(self.sources.settled(numbers)[0])
        if source.kind == "ids" and not value:
            return self.give(node.outputs[0], numbers - source.first + self.mask(source, value).first)
        if source.kind != "sequences":
            raise DataError("masks other than the token id 0, which is not known to this program")
        compared = self.sources.upon.setdefault(
            (source, f"not {value}"), self.sources.add("compared", source.shape, source.made)
        )
        self.masks[compared] = Hidden(source, value)
        return self.give(node.outputs[0], numbers - source.first + compared.first)

    def make_Any(self, node: Node) -> None:  # noqa: N802
        numbers = self.flowing(node, 0)
        source = self.sources.of(numbers)
        axes = numbers_of(self.required(node, 1))
        if source.kind != "compared" or axes not in ([-1], [numbers.ndim - 1]) or not np.array_equal(numbers, source.numbers):
            raise DataError("is not computed of the features of all steps; not known to this program")
        mask = self.mask(*self.masks[source])
        self.give(node.outputs[0], mask.numbers if node.integer("keep_dims") else mask.numbers[..., 0])

    def mask(self, source: Source, value: float) -> Source:
        key = (source, f"mask {value}")
        if key not in self.sources.upon:
            made = self.sources.upon[key] = self.sources.add("mask", (*source.shape[:2], 1), source.made)
            self.masks[made] = Hidden(source, value)
        return self.sources.upon[key]

    def mask_of(self, numbers: Numbers, source: Source) -> Source:
        """Return the mask of which all numbers (N, T, 1) are there, for the steps of a source. Raises DataError."""
        mask = self.sources.of(numbers)
        if mask not in self.masks or not np.array_equal(numbers, mask.numbers) or mask.shape[:2] != source.shape[:2]:
            raise DataError("skips steps by what is no mask that is known to this program")
        return mask

    def make_SelectV2(self, node: Node) -> None:  # noqa: N802
        """Of the steps that a mask hides, zeros."""
        condition, kept, other = (self.numbers(value) for value in node.inputs)
        if condition is None or self.sources.of(condition) not in self.masks:
            operands = [self.operand(node, k) for k in range(3)]
            return self.give(node.outputs[0], self.computed(node, np.where, operands))
        if kept is None or other is not None or self.required(node, 2).any():
            raise DataError("takes a mask in a way that is not known to this program")
        return self.shown(node, condition, kept)

    def make_Mul(self, node: Node) -> None:  # noqa: N802
        sides = [self.numbers(value) for value in node.inputs]
        masks = [side is not None and self.sources.of(side) in self.masks for side in sides]
        one, other = sides
        if not any(masks) or one is None or other is None:
            operands = [self.operand(node, k) for k in range(2)]
            return self.give(node.outputs[0], self.computed(node, np.multiply, operands))
        return self.shown(node, one, other) if masks[0] else self.shown(node, other, one)

    def shown(self, node: Node, condition: Numbers, numbers: Numbers) -> None:
        """What a mask shows: of the features that it is made of, a layer; of what comes later, what may be summed."""
        numbers, source = self.sources.layered(self.sources.settled(numbers)[0])
        if not np.array_equal(numbers, source.numbers) or condition.ndim != 3:
            raise DataError("takes a mask in a way that is not known to this program")
        mask = self.mask_of(condition, source)
        hidden = self.masks[mask]
        if (made := self.sources.upon.get((source, f"shown {mask.first}"))) is None:
            if hidden.source is source:
                layer = Masking(hidden.value)
                made = self.layer(node, "sequences", source.shape, source, layer)
            else:
                made = self.sources.add("shown", source.shape, source.made)
                self.heeds[made] = mask
            self.sources.upon[source, f"shown {mask.first}"] = made
        self.give(node.outputs[0], made.numbers)

    def make_Sum(self, node: Node) -> None:  # noqa: N802
        source = self.sources.of(self.flowing(node, 0))
        axes = numbers_of(self.required(node, 1))
        if source not in self.masks and source not in self.heeds:
            return self.reduce(node, "sum", np.sum)
        numbers = self.flowing(node, 0)
        if axes not in ([1], [1 - numbers.ndim]) or not np.array_equal(numbers.reshape(source.shape), source.numbers):
            raise DataError("is computed of a mask, or of what it leaves, over other than all steps; not known")
        if source in self.masks:  # how many steps it shows
            made = self.sources.upon.setdefault((source, "count"), self.sources.add("count", (source.shape[0], 1), source.made))
        else:
            pool = Pool("sum")
            self.heeds[pool] = self.heeds[source]
            made = self.layer(node, "vectors", source.shape[::2], source, pool)
        found = made.numbers.reshape(numbers.shape[:1] + numbers.shape[2:])
        self.give(node.outputs[0], np.expand_dims(found, 1) if node.integer("keep_dims") else found)
        return None

    def reduce(self, node: Node, name: str, function: Callable[..., Any]) -> None:
        axes = numbers_of(self.required(node, 1))
        self.give(node.outputs[0], self.reduced(node, name, function, axes, bool(node.integer("keep_dims"))))

    def make_RealDiv(self, node: Node) -> None:  # noqa: N802
        """A sum over the steps that a mask shows, by their number, is a mean."""
        sums, counts = self.numbers(node.input(0)), self.numbers(node.input(1))
        counted = None if counts is None else self.sources.of(counts)
        if sums is None or counts is None or counted is None or counted.kind != "count":
            operands = [self.operand(node, k) for k in range(2)]
            return self.give(node.outputs[0], self.computed(node, np.divide, operands))
        source = self.sources.of(sums)
        pool, name = source.made[-1] if source.made else (None, "")
        mask = self.heeds.get(pool)
        rows, features = source.places(sums)
        same_rows = np.array_equal(np.broadcast_to(counts - counted.first, sums.shape), rows)
        if (
            not isinstance(pool, Pool)
            or source.rows
            or mask is None
            or (mask, "count") not in self.sources.upon
            or not same_rows
        ):
            raise DataError("divides by the steps of a mask what is no sum over these; not known to this program")
        if self.sources.upon[mask, "count"] is not counted:
            raise DataError("divides a sum by the steps of another mask; not known to this program")
        mean = Pool("mean")
        self.heeds[mean] = mask
        made = self.sources.add("vectors", source.shape, (*source.made[:-1], Named(mean, name)))
        return self.give(node.outputs[0], made.first + rows * made.width + features)

    def layers(self, given: Value, axes: str, outputs: Sequence[Value]) -> Layers:
        made = super().layers(given, axes, outputs)
        heeded = {self.heeds[layer] for layer, _ in made if layer in self.heeds}
        if len(heeded) > 1:
            raise DataError("has several masks, which is not known to this program")
        return tuple(self.unheeded(made) if not heeded else self.heeded(made, self.masks[heeded.pop()].source.made))

    def unheeded(self, made: Layers) -> Iterator[Named]:
        """Yield the layers of a model of which none skips what a mask hides; a Masking puts zeros there."""
        for layer, name in made:
            if not isinstance(layer, Masking) or layer.value:
                yield Named(layer, name)
            if isinstance(layer, Masking) and layer.value:
                yield Named(Unmask("zeros"), name)

    def heeded(self, made: Layers, before: Layers) -> Iterator[Named]:
        """Yield the layers, with the one that hides steps first of those that may skip them; before: what stands before it."""
        born, *after = made[len(before) :]
        if isinstance(born.layer, Embedding) and not before:
            born = Named(Embedding(born.layer.table, mask_zero=True), born.name)
        elif not isinstance(born.layer, Masking):
            raise DataError(f"node {shown(born.name)!r} is not what the steps that are skipped are told from; not known")
        heeding = [k for k, (layer, _) in enumerate(after) if layer in self.heeds]
        blind = next((k for k, (layer, _) in enumerate(after) if self.sees_all(layer, after[:k])), len(after))
        if any(isinstance(layer, Masking) for layer, _ in after) or any(k > blind for k in heeding):
            raise DataError("masks begin or end in places that are not known to this program")
        yield from (*before, born)
        last = max((k for k in heeding if isinstance(after[k].layer, Model)), default=None)
        for k, named in enumerate(after):
            yield named
            if k == last and blind < len(after):
                yield Named(self.fill(named), named.name)

    def sees_all(self, layer: Layer | Model, below: Sequence[Named]) -> bool:
        """Whether a layer looks at steps that the mask hides: it looks at several, and heeds no mask."""
        if layer in self.heeds or any(isinstance(each, Pool | Repeat) for each, _ in below):
            return False
        lstm = next((each for each, _ in reversed(below) if isinstance(each, Model)), None)
        pool = layer.function if isinstance(layer, Pool) else ""
        if lstm and lstm not in self.zeroed and (pool == "final" or (pool == "last" and isinstance(lstm, Cell))):
            return False
        return isinstance(layer, Model | Window | Pool | Flatten)

    def fill(self, named: Named) -> Unmask:
        """Return what puts the steps back that an LSTM skips, with what it has there."""
        if named.layer in self.zeroed:
            return Unmask("zeros")
        if isinstance(named.layer, Cell | Reverse):
            return Unmask("previous" if isinstance(named.layer, Cell) else "next")
        raise DataError(
            f"node {shown(named.name)!r} leaves other values in both directions where a mask hides steps; not known"
        )
