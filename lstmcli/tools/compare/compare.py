"""Two files compared: results, sequences, arrays, models and weights, value by value, in whatever layout they lie."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lstmcli.blocks import Valid
from lstmcli.errors import DataError, shown
from lstmcli.tools.compare.differences import Array, compare_values
from lstmcli.tools.compare.sides import FlatSteps, Rows, Side, Steps, open_side

MADE_OF = ("input", "weights", "model_config", "options", "assumed", "nonfinite_steps", "versions")  # attributes of a result


def compare(a: str, b: str, tolerance: float | None = None) -> dict[str, Any]:
    """Compares two files. Returns the facts, ready for JSON; `same` says whether they are equal, or within the tolerance.

    Equal are files whose arrays have the same names, dtypes, lengths, ids and bits; layout and padding do not count, nor does
    the order in which arrays lie. tolerance: a value may differ by so much, or by so much of itself.
    Raises MissingInputError, DataError, StorageError; also DataError where the files have no array in common.
    """
    with open_side(a) as one, open_side(b) as other:
        one, other = as_models(one, other)
        pairs = paired(one, other)
        facts: dict[str, Any] = {
            "a": {"path": a, "kind": one.kind},
            "b": {"path": b, "kind": other.kind},
            "tolerance": tolerance,
            "made_of": list(made_of(one, other)),
            "other_weights": other_weights(one.weights, other.weights) if one.weights and other.weights else None,
            "sequences": list(other_sequences(one, other, pairs)),
            "only_in_a": sorted(one.arrays.keys() - {x.name for x, _ in pairs}),
            "only_in_b": sorted(other.arrays.keys() - {y.name for _, y in pairs}),
            "arrays": [compare_pair(x, y, tolerance, one.is_model) for x, y in pairs],
        }
        for found in facts["arrays"]:
            if (first := found["first"]) is not None:
                ids = one.ids or other.ids
                first["id"] = ids[first["row"]] if ids else None
    # Beside a whole result an NPY or NPZ holds some of its arrays, and those are what is compared.
    if one.is_model and facts["made_of"]:  # the same weights used in another way
        facts["equal"] = facts["same"] = False
        return facts
    whole = not facts["sequences"] and (one.result != other.result or not (facts["only_in_a"] or facts["only_in_b"]))
    facts["equal"] = whole and not facts["other_weights"] and all(found["equal"] for found in facts["arrays"])
    facts["same"] = facts["equal"] or (tolerance is not None and whole and all(found["within"] for found in facts["arrays"]))
    return facts


def as_models(one: Side, other: Side) -> tuple[Side, Side]:
    """Takes the model of a result where the other file is a model."""
    if one.is_model != other.is_model:
        one, other = (of_its_model(side) for side in (one, other))
    return one, other


def of_its_model(side: Side) -> Side:
    if not side.weights or not side.attributes:
        return side
    return side._replace(arrays=side.weights, attributes={"model_config": side.attributes["model_config"]}, is_model=True)


def paired(one: Side, other: Side) -> list[tuple[Array, Array]]:
    """Returns the arrays to compare: those of the same name; the only one of each file; the states of an NPZ and a result."""
    a, b = one.arrays, other.arrays
    pairs = [(a[name], b[name]) for name in a if name in b]
    if not pairs:
        pairs = [(a[x], b[y]) for x in a for y in b if x.removeprefix("state/") == y.removeprefix("state/")]
    if not pairs:
        found = [[array for array in side.values() if array.lengths is not None] or list(side.values()) for side in (a, b)]
        x, y = found[0][0], found[1][0]
        if len(a) == len(b) == 1 or all(array.lengths is not None for array in with_the_steps_of(x, y)):
            pairs = [(x, y)]
    if not pairs:
        raise DataError(f"{shown(one.spec)} and {shown(other.spec)} have no array in common: {', '.join(a)}; {', '.join(b)}")
    return [with_the_steps_of(x, y) for x, y in pairs]


def with_the_steps_of(a: Array, b: Array) -> tuple[Array, Array]:
    """Gives a padded or flat array that has no lengths those of the other one."""
    if isinstance(a, Rows) and isinstance(b, Steps) and a.shape == (b.valid.lengths.sum(), b.width):
        return FlatSteps(a, b.valid.lengths), b
    if isinstance(b, Rows) and isinstance(a, Steps) and b.shape == (a.valid.lengths.sum(), a.width):
        return a, FlatSteps(b, a.valid.lengths)
    x, y = (known_valid(array) for array in (a, b))
    if isinstance(a, Steps) and isinstance(b, Steps) and (x is None) != (y is None):
        bare, told = (a, b) if x is None else (b, a)
        if bare.count == told.count and (told.valid.starts + told.valid.lengths).max(initial=0) <= bare.shape[1]:
            bare.set_valid(told.valid)
    return a, b


def known_valid(array: Array) -> Valid | None:
    """Returns the valid steps of an array, or None where all its sequences are full, as if nothing had told lengths."""
    if not isinstance(array, Steps) or (array.source.lengths is None and (array.valid.lengths == array.shape[1]).all()):
        return None
    return array.valid


def made_of(one: Side, other: Side) -> Iterator[str]:
    """Yields in which attributes two results say that they were made of something else."""
    if one.attributes is not None and other.attributes is not None:
        for name in MADE_OF:
            yield from unlike(name, one.attributes.get(name), other.attributes.get(name))


def unlike(name: str, a: Any, b: Any) -> Iterator[str]:
    """Yields each leaf in which two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        other_kind = a.get("kind") != b.get("kind")  # of layers, which then have nothing in common to be told
        for key in ["kind"] if other_kind else dict.fromkeys([*a, *b]):
            yield from unlike(f"{name} {key}", a.get(key), b.get(key))
    elif a != b:
        yield f"{name}: {'nothing' if a is None else a} in A, {'nothing' if b is None else b} in B"


def other_sequences(one: Side, other: Side, pairs: list[tuple[Array, Array]]) -> Iterator[str]:
    """Yields how the sequences themselves differ: their number, their lengths, their ids."""
    if one.is_model:
        return
    for ours, theirs in sorted({(x.count, y.count) for x, y in pairs if x.count != y.count}):
        yield f"{ours:,} and {theirs:,} rows or sequences; the first {min(ours, theirs):,} are compared"
    for x, y in pairs:
        if x.lengths is None or y.lengths is None:
            continue
        count = min(x.count, y.count)
        if len(bad := np.flatnonzero(x.lengths[:count] != y.lengths[:count])):
            row = int(bad[0])
            yield (
                f"{len(bad):,} of {count:,} lengths differ, first that of sequence {row}: {x.lengths[row]} and "
                f"{y.lengths[row]}; the steps that both have are compared"
            )
            break
    if one.ids and other.ids:
        others = [k for k, (name, its) in enumerate(zip(one.ids, other.ids, strict=False)) if name != its]
        if others:
            names = f"{shown(one.ids[others[0]])} and {shown(other.ids[others[0]])}"
            yield f"{len(others):,} ids differ, first that of sequence {others[0]}: {names}"


def other_weights(a: dict[str, Array], b: dict[str, Array]) -> list[str]:
    """Returns the names of weights that are not the same in two models."""
    common = [name for name in a if name in b]
    changed = [name for name in common if not compare_pair(a[name], b[name], None, same_shape=True)["equal"]]
    return [*changed, *sorted(a.keys() ^ b.keys())]


def compare_pair(a: Array, b: Array, tolerance: float | None, same_shape: bool) -> dict[str, Any]:
    """Compares two arrays. Returns the facts. same_shape: others are not compared as far as both go."""
    shapes = {"name": a.name, "shape": [list(a.shape), list(b.shape)], "dtype": [a.dtype.name, b.dtype.name]}
    steps = a.lengths is not None, b.lengths is not None
    other_form = a.width != b.width or steps[0] != steps[1] or (same_shape and a.shape != b.shape)
    if other_form or a.dtype.kind not in "biuf" or b.dtype.kind not in "biuf":
        return shapes | {"equal": False, "within": False, "first": None, "compared": 0, "steps": all(steps)}
    found = compare_values(a, b, tolerance)
    same_form = a.dtype == b.dtype and (all(steps) or a.shape == b.shape)
    equal = same_form and not found.differing
    within = tolerance is not None and not found.beyond and (all(steps) or a.shape == b.shape)
    return shapes | found.facts() | {"equal": equal, "within": within, "steps": all(steps)}
