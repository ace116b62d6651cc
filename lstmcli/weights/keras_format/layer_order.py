"""Which layer feeds which in a file of weights alone, as far as that is certain enough to be assumed and said."""

import itertools
from collections.abc import Iterator

from lstmcli.weights.keras_format.configuration import PASSING, Path, snake_case
from lstmcli.weights.keras_format.stored_layers import Found, Member, kind_and_count

IDLE = {"input", *map(snake_case, PASSING)}  # layers that change nothing, as files call them
BEFORE = {"embedding"}  # takes no steps of features
LAST = {"flatten", "global_average_pooling1d", "global_max_pooling1d"}  # after which there are no steps for an LSTM
MERGING = {"add", "average", "concatenate", "dot", "maximum", "merge", "minimum", "multiply", "subtract", "unknown"}

TRIES = 10_000  # of a search for the order of layers


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

    def widths_between(self, lower: Path, upper: Path) -> tuple[int, int]:
        """How many features one layer gives, and another takes."""
        return self.layers[lower].output_size(self.merge), self.layers[upper].input_size

    def in_a_row(self, members: list[Member]) -> dict[Path, Path]:
        # Layers whose outputs are put together later may stand side by side, if they take the same.
        merging = any(member.kind in MERGING and not member.weights for member in members[1:])
        below: dict[Path, Path] = {}
        lower: Path | None = None
        between: list[Member] = []
        for member in members:
            if member.path is None:
                between.append(member)
                continue
            if lower:
                given, taken = self.widths_between(lower, member.path)
                side_by_side = merging and self.layers[lower].input_size == taken
                if given == taken and not side_by_side and not lead(between, given, taken):
                    below[member.path] = lower
            lower, between = member.path, []
        return below

    def by_kind(self, members: list[Member]) -> dict[Path, Path]:
        """Of layers of which only the order within each class is known: where one order alone is possible."""
        kinds: dict[str, list[tuple[int, Path]]] = {}
        for member in members:
            if member.path is not None:
                kinds.setdefault(member.kind, []).append((kind_and_count(member.name)[1], member.path))
        others = [member for member in members if member.path is None]
        search = Search(self, others)
        order = search.only_order([[path for _, path in sorted(each)] for each in kinds.values()])
        return {upper: lower for lower, upper in itertools.pairwise(order) if not search.may_lead(lower, upper)}


class Search:
    """Finds orders of LSTMs, one right upon the other or with other layers between them."""

    def __init__(self, order: Order, others: list[Member]) -> None:
        self.order, self.others = order, others
        self.tries = 0
        self.known: dict[tuple[int, int], bool] = {}

    def may_lead(self, lower: Path, upper: Path) -> bool:
        """Whether one layer may take what another gives through other layers."""
        widths = self.order.widths_between(lower, upper)
        if widths not in self.known:
            self.known[widths] = lead(self.others, *widths)
        return self.known[widths]

    def may_follow(self, lower: Path, upper: Path) -> bool:
        given, taken = self.order.widths_between(lower, upper)
        return given == taken or self.may_lead(lower, upper)

    def only_order(self, kinds: list[list[Path]]) -> list[Path]:
        """The only order that is possible; []: there is none, or several, or it takes too long to know."""
        orders = list(itertools.islice(self.orders([], kinds), 2))
        return orders[0] if len(orders) == 1 and self.tries < TRIES else []

    def orders(self, begun: list[Path], kinds: list[list[Path]]) -> Iterator[list[Path]]:
        """All ways to go on from the layers that are in order already."""
        self.tries += 1
        if not any(kinds):
            yield begun
        for k, each in enumerate(kinds):
            if each and self.tries < TRIES and (not begun or self.may_follow(begun[-1], each[0])):
                yield from self.orders([*begun, each[0]], [*kinds[:k], each[1:], *kinds[k + 1 :]])


def lead(members: list[Member], given: int, taken: int) -> bool:
    """Whether some of these layers, which have no LSTM cells, may make `taken` features of `given`."""
    others = [(member, *widths(member)) for member in members if member.kind not in IDLE | BEFORE | LAST]
    reached, seen = {given}, 0
    while len(reached) > seen:
        seen = len(reached)
        for member, takes, gives in others:
            if not member.weights:
                if taken in reached or member.kind in MERGING:
                    return True
            elif takes & reached:
                if taken in gives:
                    return True
                reached |= gives
    return False


def widths(member: Member) -> tuple[set[int], set[int]]:
    """The numbers of features that a layer may take, and give, by the shapes of its weights."""
    shapes = [tensor.shape for tensor in member.weights if tensor.shape]
    matrices = [shape for shape in shapes if len(shape) > 1]
    if not matrices:
        return {shape[0] for shape in shapes}, {shape[0] for shape in shapes}
    more = {size for shape in matrices if len(shape) > 2 for size in shape}
    units = {shape[-2] for shape in matrices if shape[-1] in (shape[-2], 3 * shape[-2])}  # of a simple RNN or a GRU
    return {shape[-2] for shape in matrices} | more, {shape[-1] for shape in matrices} | more | units | {
        2 * each for each in units
    }
