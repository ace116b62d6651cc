"""Which layer feeds which in a file of weights alone, as far as that is certain enough to be assumed and said."""

import itertools

from lstmcli.weights.containers.tensor import DTYPES
from lstmcli.weights.keras_format.configuration import PASSING, Path, snake_case
from lstmcli.weights.keras_format.stored_layers import Found, Member, kind_and_count

IDLE = {"input", *map(snake_case, PASSING)}  # layers that change nothing, as files call them
LAST = {"flatten", "global_average_pooling1d", "global_max_pooling1d"}  # after which there are no steps for an LSTM
MERGING = {"add", "average", "concatenate", "dot", "maximum", "merge", "minimum", "multiply", "subtract", "unknown"}


def guess_below(found: Found, merge: str | None) -> dict[Path, Path | None]:
    """Of each layer the one whose outputs it takes: one right below it of its width, with nothing that may be between.

    merge: how the directions of a bidirectional layer are, if not side by side.
    """
    order = Order(found, merge)
    below: dict[Path, Path | None] = dict.fromkeys(found.by_path)
    for members in found.models:
        below |= order.in_a_row(members)
    for members in found.by_kind:
        below |= order.by_kind(members)
    return below


class Order:
    def __init__(self, found: Found, merge: str | None) -> None:
        self.layers, self.merge = found.by_path, merge

    def fits(self, lower: Path, upper: Path) -> bool:
        return self.layers[lower].output_size(self.merge) == self.layers[upper].input_size

    def in_a_row(self, members: list[Member]) -> dict[Path, Path]:
        # Layers whose outputs are put together later may stand side by side, if they take the same.
        merging = any(member.kind in MERGING and not member.weights for member in members[1:])
        below: dict[Path, Path] = {}
        lower: Path | None = None
        for member in members:
            if member.path is not None:
                side_by_side = merging and lower and self.layers[lower].input_size == self.layers[member.path].input_size
                if lower and self.fits(lower, member.path) and not side_by_side:
                    below[member.path] = lower
                lower = member.path
            elif lower and may_stand_between(member, self.layers[lower].output_size(self.merge)):
                lower = None
        return below

    def by_kind(self, members: list[Member]) -> dict[Path, Path]:
        others = [member for member in members if member.path is None]
        return {
            upper: lower
            for lower, upper in itertools.pairwise(self.only_order(members))
            if not any(may_stand_between(other, self.layers[upper].input_size) for other in others)
        }

    def only_order(self, members: list[Member]) -> list[Path]:
        """The LSTMs in the only order that keeps each class in its own and in which all fit; []: there is none, or several."""
        kinds: dict[str, list[tuple[int, Path]]] = {}
        for member in members:
            if member.path is not None:
                kinds.setdefault(member.kind, []).append((kind_and_count(member.name)[1], member.path))
        ordered = [[path for _, path in sorted(each)] for each in kinds.values()]
        orders = [order for each in ordered if (order := self.order_from(each[0], ordered))]
        return orders[0] if len(orders) == 1 else []

    def order_from(self, first: Path, kinds: list[list[Path]]) -> list[Path]:
        order, left = [first], [[path for path in each if path != first] for each in kinds]
        while any(left):
            fitting = [each for each in left if each and self.fits(order[-1], each[0])]
            if len(fitting) != 1:
                return []
            order.append(fitting[0].pop(0))
        return order


def may_stand_between(member: Member, width: int) -> bool:
    """Whether a layer without LSTM cells may take `width` features from one LSTM and give as many to the next one."""
    if member.kind in IDLE | LAST:
        return False
    shapes = [tensor.shape for tensor in member.weights if tensor.dtype in DTYPES and tensor.shape]
    matrices = [shape for shape in shapes if len(shape) > 1]
    if not matrices:
        return not shapes or any(shape[0] == width for shape in shapes)
    units = [shape[-2] for shape in matrices if shape[-1] in (shape[-2], 3 * shape[-2])]  # of a simple RNN or a GRU
    gives = {shape[-1] for shape in matrices} | {*units} | {2 * count for count in units}
    return any(shape[-2] == width for shape in matrices) and width in gives
