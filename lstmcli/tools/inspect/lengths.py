"""The lengths of sequences as facts: their spread, a histogram, and how much of a padded array is padding."""

from typing import Any

import numpy as np

from lstmcli.blocks import Lengths, Valid

BINS = 16


def about_lengths(lengths: Lengths) -> dict[str, Any]:
    """Returns the facts of lengths (N,), ready for JSON."""
    if not len(lengths):
        return {"count": 0, "min": 0, "mean": 0.0, "median": 0.0, "max": 0, "total": 0, "zero": 0, "histogram": None}
    return {
        "count": len(lengths),
        "min": int(lengths.min()),
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "max": int(lengths.max()),
        "total": int(lengths.sum()),
        "zero": int(np.count_nonzero(lengths == 0)),
        "histogram": histogram(lengths),
    }


def histogram(lengths: Lengths) -> dict[str, list[int]]:
    """Returns the edges of at most BINS bins of one width (the last may be narrower), and how many lengths are in each."""
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // BINS)
    edges = [*range(low, high + 1, width), high + 1]
    return {"edges": edges, "counts": np.bincount((lengths - low) // width, minlength=len(edges) - 1).tolist()}


def about_padding(valid: Valid, steps: int) -> dict[str, Any]:
    """Returns which share of so many steps of each sequence is padding, and where it stands: none, behind, in front, both."""
    total = len(valid.lengths) * steps
    used = valid.lengths > 0
    before = bool((valid.starts > 0)[used].any())
    after = bool((valid.starts + valid.lengths < steps)[used].any())
    place = {(False, False): "none", (False, True): "behind", (True, False): "in front", (True, True): "on both sides"}
    return {"share": 1 - int(valid.lengths.sum()) / total if total else 0.0, "place": place[before, after]}
