"""Which LSTMs of a file are meant, and how they and what is said of them make one tree."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from lstmcli.errors import DataError, UsageError, shown
from lstmcli.model.tree import Bidirectional, Cell, Model, Residual, Reverse, Stack, Wrapper

if TYPE_CHECKING:
    from lstmcli.weights.draft import Draft

MANY = 12  # names listed in a message
SIDE = re.compile(r"(fw|bw)=(.*)", re.DOTALL)


class Pair(NamedTuple):
    """The names of what runs forward and of what runs backward, each from the bottom to the top."""

    forward: tuple[str, ...]
    backward: tuple[str, ...]


Part = str | Pair


def parse_select(select: Iterable[str]) -> list[Part]:
    """What --select says: names, prefixes or patterns of LSTMs from the bottom to the top, with commas or one by one.

    fw=A and bw=B are a pair; what follows one of them in commas is on its side, and one that follows another fw= (or bw=) is
    above it. UsageError: a side without its other one, or nothing between commas.
    """
    parts: list[Part] = []
    open_pair: dict[str, list[str]] = {}
    last = ""

    def close() -> None:
        if open_pair:
            if len(open_pair) < 2:
                raise UsageError(f"--select {last}={open_pair[last][0]}: expected fw= and bw=, got only one of them")
            parts.append(Pair(tuple(open_pair["fw"]), tuple(open_pair["bw"])))
            open_pair.clear()

    for given in select:
        side = ""
        for word in given.split(","):
            if match := SIDE.fullmatch(word):
                side, word = match[1], match[2]
                if side in open_pair and last != side:
                    close()
                last = side
            if not word:
                raise UsageError(f"--select {given}: expected names separated by commas, got an empty one")
            if side:
                open_pair.setdefault(side, []).append(word)
            else:
                close()
                parts.append(word)
    close()
    return parts


def resolve(parts: list[Part], found: Mapping[str, str], draft: "Draft") -> list[Part]:
    """The same with the whole names of the LSTMs that were found. DataError lists them. UsageError: one is named twice."""
    if not parts:
        return [fitting_one(None, found, draft)]
    resolved: list[Part] = []
    for part in parts:
        if isinstance(part, Pair):
            resolved.append(Pair(*(tuple(name for word in words for name in fitting(word, found, draft)) for words in part)))
        else:
            resolved += fitting(part, found, draft)
    names = [name for part in resolved for name in ([part] if isinstance(part, str) else [*part.forward, *part.backward])]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--select: {shown(twice[0])} is named twice")
    return resolved


def fitting(word: str, found: Mapping[str, str], draft: "Draft") -> list[str]:
    """The one LSTM that a word means, or all that a pattern does, in the order of the numbers in their names."""
    if word not in found and "*" in word:
        matching = [name for name in found if fnmatch.fnmatchcase(name, word)]
        matching = matching or [name for name in found if fnmatch.fnmatchcase(name, f"*.{word}")]
        if not matching:
            raise DataError(f"{draft.where}: no LSTM's name is like {shown(word)!r}; there is ", listed(found, found))
        return sorted(matching, key=numbered)
    return [fitting_one(word, found, draft)]


def numbered(name: str) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them: x.9 before x.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def fitting_one(word: str | None, found: Mapping[str, str], draft: "Draft") -> str:
    """The only LSTM, or the only one whose name is `word`, or begins with it. DataError lists them."""
    names = list(found)
    if word is not None:
        ways: list[Callable[[str], bool]] = [
            lambda name: name == word,
            lambda name: name.startswith((f"{word}.", f"{word}/")),
            lambda name: name.startswith(word),
            lambda name: name.endswith(f".{word}"),  # in a wrapper, or below a key of a checkpoint
            lambda name: f".{word}." in f".{name}",
        ]
        names = next((fits for way in ways if (fits := [name for name in found if way(name)])), [])
        if not names and word in draft.others:
            raise DataError(f"{draft.where}: {shown(word)} is {draft.others[word]}, which this program does not run")
    if len(names) == 1:
        return names[0]
    if not found:
        more = f" and {len(draft.tensors) - MANY} more" if len(draft.tensors) > MANY else ""
        held = ", ".join(map(str, draft.tensors[:MANY])) + more or "nothing"
        if draft.others:
            listing = "; ".join(f"{shown(name) or repr(name)} is {what}" for name, what in list(draft.others.items())[:MANY])
            raise DataError(f"{draft.where}: expected an LSTM; {listing}, which this program does not run{draft.hint}")
        raise DataError(
            f"{draft.where}: expected the weights of an LSTM as {draft.kind} names them; it holds {held}{draft.hint}"
        )
    if not names:
        raise DataError(f"{draft.where}: no LSTM's name begins with {shown(word or '')!r}; there is ", listed(found, found))
    patterns = {re.sub("[0-9]+", "*", name) for name in names}
    several = f"'{shown(patterns.pop())}'" if len(patterns) == 1 else "A --select B"
    raise DataError(
        f"{draft.where}: holds {len(names)} LSTMs; choose one with --select PREFIX, or several, from the bottom to the top, "
        f"with --select {several}: ",
        listed(names, found),
    )


def listed(names: Iterable[str], found: Mapping[str, str]) -> list[str]:
    return [f"{shown(name) or repr(name)}: {found[name]}" for name in list(names)[:MANY]]


# Trees of what was chosen.


def layers_of(model: Model) -> tuple[Model, ...]:
    return model.layers if isinstance(model, Stack) else (model,)


def without_reverse(layers: list[Model]) -> list[Model]:
    """What runs backward because it is said to, whether or not it does so by itself."""
    return [layer.inner if isinstance(layer, Reverse) else layer for layer in layers]


def paired(forward: Stack, backward: Stack) -> Bidirectional:
    """One tree each way; single layers without a level of their own, as a layer of PyTorch or Keras has them."""
    if len(forward.layers) == len(backward.layers) == 1:
        return Bidirectional(forward.layers[0], backward.layers[0])
    return Bidirectional(forward, backward)


def with_cells(node: Model, cells: Mapping[Cell, Cell]) -> Model:
    """The same tree with other cells in the place of its own."""
    match node:
        case Cell():
            return cells[node]
        case Stack():
            return Stack(tuple(with_cells(layer, cells) for layer in node.layers))
        case Bidirectional():
            return replace(node, forward=with_cells(node.forward, cells), backward=with_cells(node.backward, cells))
    assert isinstance(node, Wrapper)
    return type(node)(with_cells(node.inner, cells))


def with_residual(root: Model, residual: str) -> Model:
    """Layers with their input added to their output: see Choices. UsageError: there is no such layer, or its widths differ."""
    try:
        if residual == "whole":
            return Residual(root)
        if isinstance(root, Bidirectional):
            forward, backward = with_residual(root.forward, residual), with_residual(root.backward, residual)
            return replace(root, forward=forward, backward=backward)
        layers = layers_of(root)
        numbers = {"upper": range(1, len(layers)), "all": range(len(layers))}.get(residual) or numbers_in(residual)
        if not numbers or max(numbers) >= len(layers):
            raise DataError(f"expected layers from 0 to {len(layers) - 1}, whole or all")
        return Stack(tuple(Residual(layer) if k in numbers else layer for k, layer in enumerate(layers)))
    except DataError as error:
        raise UsageError(f"--residual {residual}: {str(error).removeprefix('residual: ')}") from error


def numbers_in(text: str) -> list[int]:
    return [int(number) for number in text.split(",")] if re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", text) else []
