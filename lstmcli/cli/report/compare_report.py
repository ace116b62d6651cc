"""What a comparison found: lines of a name and a text, out of the facts that --json prints."""

from collections.abc import Iterator
from typing import Any

from lstmcli.cli.report.inspect_report import block
from lstmcli.errors import shown

MANY = 1_000_000  # ULP; more are told by their first digits


def compare_rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what the files are, what they are made of, each array, and whether they are the same."""
    for side in ("a", "b"):
        yield side.upper(), f"{shown(facts[side]['path'])}  {facts[side]['kind']}"
    yield from block("made of", facts["made_of"])
    if others := facts["other_weights"]:
        yield from block("weights", [f"other ones: {', '.join(map(shown, others))}"])
    elif others is not None:
        yield "weights", "the same"
    yield from block("sequences", facts["sequences"])
    yield from block("equal", equal_ones([found for found in facts["arrays"] if found["equal"]]))
    unlike = [found for found in facts["arrays"] if not found["equal"]]
    yield from block("differ", [line for found in unlike for line in about_array(found, facts["tolerance"])])
    for side in ("a", "b"):
        if names := facts[f"only_in_{side}"]:
            yield from block(f"only in {side.upper()}", [", ".join(map(shown, names))])
    yield "result", conclusion(facts)


def equal_ones(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the names of equal arrays, those that have steps first."""
    for steps in (True, False):
        if same := [one for one in found if one["steps"] == steps]:
            values = sum(one["compared"] for one in same)
            names = ", ".join(f"{shown(one['name'])} {tuple(one['shape'][0])}" for one in same)
            yield f"{names}: {values:,} values{' in valid steps' * steps}"


def about_array(found: dict[str, Any], tolerance: float | None) -> Iterator[str]:
    """Yields lines about an array that is not equal: how many values differ, by how much, and where first."""
    name = shown(found["name"])
    form = " and ".join(dict.fromkeys(f"{tuple(shape)}" for shape in found["shape"]))
    dtypes = " and ".join(dict.fromkeys(found["dtype"]))
    if not found["compared"]:
        yield f"{name}: cannot be compared, {form} {dtypes}"
        return
    if not found["differing"]:
        yield f"{name}: the same values, but {form} {dtypes}"
        return
    share = f"{found['differing']:,} of {found['compared']:,} values{' in valid steps' * found['steps']}"
    yield f"{name}: {share}, {form} {dtypes}"
    odd = f"; {found['nonfinite']:,} are NaN or Inf on one side" if found["nonfinite"] else ""
    yield f"  at most {found['max_absolute']:.3g} absolute, {found['max_relative']:.3g} relative{ulps(found['max_ulp'])}{odd}"
    if tolerance is not None:
        yield f"  {found['beyond_tolerance']:,} beyond the tolerance of {tolerance:g}"
    first = found["first"]
    called = f" ({shown(first['id'])})" if first["id"] is not None else ""
    step = f"step {first['step']}, " if first["step"] is not None else ""
    yield f"  first in row {first['row']}{called}, {step}unit {first['unit']}: {first['a']!r} and {first['b']!r}"


def ulps(count: int | None) -> str:
    if count is None:
        return ""
    return f", {count:,} ULP" if count < MANY else f", {count:.2g} ULP"


def conclusion(facts: dict[str, Any]) -> str:
    if facts["equal"]:
        steps = any(found["steps"] for found in facts["arrays"])
        padding = "; padding is not compared: lstmcli verify checks that of results" if steps else ""
        return f"equal to the bit{padding}"
    return f"within the tolerance of {facts['tolerance']:g}" if facts["same"] else "not equal"
