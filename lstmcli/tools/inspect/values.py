"""What values an array holds: the first ones, their range, NaN and Inf; of a large array in a sample, which says so."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Valid
from lstmcli.errors import LstmcliError
from lstmcli.inputs.source import Source

SAMPLE = 8 << 20  # bytes that are looked at
PARTS = 64  # places all over an array that a sample comes from
DECODED = 64 << 20  # bytes that may be decoded for it
FIRST = 5  # values shown


def sample_steps(source: Source, valid: Valid) -> dict[str, Any]:
    """Returns the facts of the valid steps of a source: of all of them, or of a sample of SAMPLE bytes."""
    dtype = source.exact_dtype
    row = source.shape[2] * dtype.itemsize
    used = np.flatnonzero(valid.lengths)
    total = int(valid.lengths.sum())
    if not total:
        return about_values([], 0)
    pieces = []
    if total * row <= SAMPLE and (not source.decoded_at_once or source.shape[0] * source.shape[1] * row <= DECODED):
        pieces.append(read(source, 0, valid.starts, valid.lengths, dtype))
    else:
        chunk = source.decoded_at_once * dtype.itemsize
        parts = max(1, min(PARTS, len(used), DECODED // max(1, chunk)))
        steps = max(1, SAMPLE // parts // row)
        for sequence in used[np.linspace(0, len(used) - 1, parts).astype(np.int64)].tolist():
            here = slice(sequence, sequence + 1)
            lengths = np.minimum(valid.lengths[here], steps)
            pieces.append(read(source, sequence, valid.starts[here], lengths, dtype))
    return about_values(pieces, total * source.shape[2]) | {"sequence": int(used[0]), "step": int(valid.starts[used[0]])}


def read(source: Source, first: int, starts: Any, lengths: Any, dtype: Any) -> NDArray[Any]:
    rows = np.empty((int(lengths.sum()), source.shape[2]), dtype)
    source.read(first, starts, lengths, rows)
    return rows


def sample_rows(table: Any) -> dict[str, Any]:
    """Returns the facts of an array that is read by rows, as sample_steps() does."""
    count = table.shape[0] if table.shape else 1
    row = max(1, int(np.prod(table.shape[1:])) * table.dtype.itemsize)
    if count * row <= SAMPLE:
        pieces = [np.asarray(table.rows(0, count))]
    else:
        rows = max(1, SAMPLE // PARTS // row)
        starts = np.linspace(0, max(0, count - rows), PARTS).astype(np.int64).tolist()
        pieces = [np.asarray(table.rows(first, min(rows, count - first))) for first in dict.fromkeys(starts)]
    return about_values(pieces, int(np.prod(table.shape)))


def about_values(pieces: list[NDArray[Any]], total: int) -> dict[str, Any]:
    """Returns the facts of pieces of an array of `total` values, ready for JSON."""
    looked_at = sum(piece.size for piece in pieces)
    facts: dict[str, Any] = {"total": total, "looked_at": looked_at, "first": [], "nan": 0, "inf": 0}
    if not looked_at:
        return facts
    facts["first"] = [shortest(value) for value in pieces[0].reshape(-1)[:FIRST]]
    finite = []
    for piece in pieces:
        if (good := np.isfinite(piece)).all():
            finite.append(piece)
        else:
            finite.append(piece[good])
            facts["nan"] += int(np.count_nonzero(np.isnan(piece)))
            facts["inf"] += int(np.count_nonzero(np.isinf(piece)))
    if finite := [piece for piece in finite if piece.size]:
        facts["min"] = min(float(piece.min()) for piece in finite)
        facts["max"] = max(float(piece.max()) for piece in finite)
        facts["mean"] = sum(float(piece.sum(dtype=np.float64)) for piece in finite) / sum(piece.size for piece in finite)
    return facts


def shortest(value: Any) -> Any:
    """Returns a value as a JSON number with the fewest digits that are the same in its dtype; text where JSON has no number."""
    if isinstance(value, np.floating):
        return float(str(value)) if np.isfinite(value) else str(value)
    return value.item()


def zeros_at_the_ends(source: Source) -> dict[str, int] | None:
    """Returns in how many of some sequences of a padded array the first step, or the last, is zeros alone: like padding."""
    if source.lengths is not None or source.token_ids or not source.shape[0] or source.shape[1] < 2:
        return None
    one, found = np.ones(1, np.int64), {"looked_at": 0, "first": 0, "last": 0}
    row = np.empty((1, source.shape[2]))
    try:
        for sequence in dict.fromkeys(np.linspace(0, source.shape[0] - 1, 16).astype(np.int64).tolist()):
            found["looked_at"] += 1
            for end, step in (("first", 0), ("last", source.shape[1] - 1)):
                source.read(sequence, step * one, one, row)
                found[end] += not row.any()
    except LstmcliError:  # padding may be damaged or not be there
        return None
    return found
