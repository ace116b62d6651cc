"""Whether a plan file, whose checksum is right, holds what `lstmcli plan` writes: anybody can compute a CRC-32."""

from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from lstmcli.results.formats.fields import LAYOUTS
from lstmcli.run.job import Job, Weights

KNOWN: dict[str, Sequence[Any]] = {
    "axes": ("NTE", "TNE", "ETN", "ENT"),
    "padding": (None, "post", "pre"),
    "dtype": ("float32", "float64", "bfloat16"),
    "nonfinite": ("error", "warn", "pass"),
    "pool": (None, "mean", "max", "sum", "last", "final"),
    "store": (None, "float16", "float32"),
    "layout": (None, *LAYOUTS),
}
SAVED = {"outputs", "states", "cells", "layers", "pooled", "predictions"}


def check_job(job: Job) -> None:
    """Raises ValueError for a value that no option gives."""
    from lstmcli.weights.draft import Choices

    inner = job.model.choices if isinstance(job.model, Weights) else job.model.cells
    for record in (job.inputs, job.model, job.compute, job.resources, inner):
        for name, hint in get_type_hints(type(record), localns={"Choices": Choices}).items():
            value = getattr(record, name)
            if not is_a(value, hint) or (name in KNOWN and value not in KNOWN[name]):
                raise ValueError(f"{name} is {value!r}")
    counts = [job.resources.max_memory, job.resources.threads or 1]
    if not isinstance(job.model, Weights):
        counts += [*job.model.units, job.model.seed + 1]
    if not set(job.compute.save) <= SAVED or min(counts) < 1 or max(counts) >= 1 << 62:
        raise ValueError("a number or a name that no option gives")


def is_a(value: Any, hint: Any) -> bool:
    """Says whether a value has the type of a field."""
    kind = get_origin(hint)
    if kind in (Union, UnionType):
        return any(is_a(value, part) for part in get_args(hint))
    if kind is tuple:
        return isinstance(value, tuple) and all(is_a(one, get_args(hint)[0]) for one in value)
    return type(value) is hint or (hint is float and type(value) is int)


def check_cuts(run: Any, cuts: Sequence[Any]) -> None:
    """Raises ValueError, KeyError or TypeError unless the cuts are those of a run with this fingerprint."""
    sizes, texts = run["input"]["shape"], [run[name] for name in ("lstmcli", "lengths", "model")]
    numbers = [*sizes, *cuts]
    if len(sizes) != 3 or not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers):
        raise ValueError("not the sizes and cuts of a run")
    if list(cuts) != sorted(cuts) or len(cuts) < 2 or (cuts[0], cuts[-1]) != (0, sizes[0]):
        raise ValueError("not the cuts of this run")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not a fingerprint")
