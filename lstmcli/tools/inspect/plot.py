"""A picture of a file: the lengths of its sequences, some of them as heat maps, the norms of its final states."""

import io
import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Valid
from lstmcli.errors import DataError, LstmcliError, UsageError, shown
from lstmcli.files.partial_file import write_whole
from lstmcli.inputs.source import Source
from lstmcli.inputs.valid_steps import read_valid_steps
from lstmcli.results.stored_result import RowArray, StepArray, StoredResult
from lstmcli.tools.sequences import open_floats_or_ids
from lstmcli.tools.what_is import What

ENDINGS = (".png", ".svg")
DEFAULT_ROWS = 3  # sequences drawn where none are chosen
MOST_VALUES = 4 << 20  # of a sequence that is drawn; of a longer one its first steps
PIECE = 4096  # rows of states read at a time
INPUT = "input"
BINS = 40
MOST_NAMES = 16  # of arrays beside a drawing
MOST_LETTERS = 60  # of a name in a title
WIDTH, TOP, EACH = 9.0, 2.8, 2.2  # inches: of the picture, of its first row, of each sequence


class Sequences(NamedTuple):
    """What is drawn step by step."""

    name: str
    source: Source
    valid: Valid
    ids: Sequence[str] | None


def plot(spec: str, kind: str, lens: str | None, rows: Sequence[str], path: Path, overwrite: bool) -> None:
    """Draws a file into a new PNG or SVG file. kind: as inspect() says. rows: numbers or ids of sequences; none: the first.

    Raises UsageError for another ending, for a file that has no sequences, or where matplotlib is not installed; DataError for
    no such sequence; OutputError.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(f"--plot {path}: expected a name that ends in {' or '.join(ENDINGS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--plot needs matplotlib, which is not installed: pip install 'lstmcli[plot]'") from error
    with ExitStack() as opened:
        norms: dict[str, NDArray[np.float64]] = {}
        if kind == What.RESULT.value:
            result = opened.enter_context(StoredResult(spec))
            norms = {name: norms_of(array) for name, array in result.arrays.items() if isinstance(array, RowArray)}
            found = next((array for array in result.arrays.values() if isinstance(array, StepArray)), None)
            lengths = result.lengths
            drawn = found and Sequences(found.name, found.source, found.valid, result.ids)
        else:
            drawn = sequences_of(spec, lens, opened)
            lengths = drawn.valid.lengths
        chosen = [row_of(row, drawn) for row in rows] if drawn and rows else list(range(min(DEFAULT_ROWS, len(lengths))))
        count = len(chosen) if drawn else 0
        figure = Figure(figsize=(WIDTH, TOP + EACH * count), layout="constrained")
        figure.suptitle(in_title(spec), fontsize=10, parse_math=False)
        heights = [TOP, *[EACH] * count]
        parts: list[Any] = np.ravel(figure.subfigures(1 + count, 1, height_ratios=heights, squeeze=False)).tolist()
        upper, *below = parts
        first = upper.subplots(1, 2 if norms else 1, squeeze=False)[0]
        draw_lengths(first[0], lengths)
        if norms:
            draw_norms(first[1], norms)
        for part, row in zip(below, chosen[:count], strict=True):
            assert drawn
            draw_sequence(part, drawn, row)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    write_whole(path, [picture.getvalue()], overwrite)


def sequences_of(spec: str, lens: str | None, opened: ExitStack) -> Sequences:
    try:
        source = opened.enter_context(closing(open_floats_or_ids(spec, lens)))
        valid = read_valid_steps(lens, None, source).valid
    except LstmcliError as error:
        raise UsageError(f"--plot: {shown(spec)} has no sequences to draw: {error}") from error
    return Sequences(INPUT, source, valid, source.ids)


def row_of(said: str, drawn: Sequences) -> int:
    """Returns the number of a sequence that is named by its id or its number. Raises DataError."""
    count = len(drawn.valid.lengths)
    if drawn.ids and said in drawn.ids:
        return drawn.ids.index(said)
    if said.isascii() and said.isdecimal() and int(said) < count:
        return int(said)
    raise DataError(f"--rows {shown(said)}: there is no such id, and the sequences have the numbers 0 to {count - 1}")


def norms_of(array: RowArray) -> NDArray[np.float64]:
    """Returns the Euclidean norm of each row, read in pieces."""
    pieces = [array.read(first, min(PIECE, len(array) - first)) for first in range(0, len(array), PIECE)]
    return np.concatenate([np.linalg.norm(piece.astype(np.float64), axis=1) for piece in pieces] or [np.empty(0)])


def draw_lengths(axes: Any, lengths: NDArray[np.int64]) -> None:
    low, high = int(lengths.min(initial=1 << 48)), int(lengths.max(initial=0))
    if len(lengths):  # bins of whole steps: others would hold now one length, now two
        edges = np.arange(low, high + 1 + (width := (high - low) // BINS + 1), width) - 0.5
        axes.hist(lengths, bins=edges, color="tab:blue")
    mean = f", mean {lengths.mean():,.1f}" if len(lengths) else ""
    axes.set(title=f"lengths of {len(lengths):,} sequences{mean}", xlabel="steps", ylabel="sequences")
    whole_numbers(axes)


def draw_norms(axes: Any, norms: dict[str, NDArray[np.float64]]) -> None:
    """Draws a line for each array: how many sequences have a row of which norm."""
    bins = min(BINS, max(5, math.isqrt(max(map(len, norms.values())))))  # of few sequences each would have one or none
    for name, values in norms.items():
        finite = values[np.isfinite(values)]
        counts, edges = np.histogram(finite, bins)
        axes.stairs(counts, edges, label=name.removeprefix("state/"))
    axes.set(title="final states", xlabel="norm of a sequence's row", ylabel="sequences")
    if len(norms) <= MOST_NAMES:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def draw_sequence(part: Any, drawn: Sequences, row: int) -> None:
    """Draws the steps of a sequence from left to right, and its units from the bottom to the top."""
    length, width = int(drawn.valid.lengths[row]), drawn.source.shape[2]
    steps = min(length, max(1, MOST_VALUES // width))
    values = np.empty((steps, width), drawn.source.exact_dtype)
    drawn.source.read(row, drawn.valid.starts[row : row + 1], np.array([steps]), values)
    axes = part.subplots()
    called = f", {in_title(drawn.ids[row])}" if drawn.ids else ""
    cut = f", the first {steps:,} of {length:,} steps" if steps < length else f", {length:,} steps"
    axes.set_title(f"{drawn.name} of sequence {row}{called}{cut}", parse_math=False)
    axes.set(xlabel="step", ylabel="feature" if drawn.name == INPUT else "unit")
    whole_numbers(axes)
    if width == 1:
        axes.set(ylabel="", yticks=[])
    if not steps:
        return
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    limit = float(finite.max(initial=0)) or 1.0
    start = int(drawn.valid.starts[row])
    extent = (start - 0.5, start + steps - 0.5, -0.5, width - 0.5)
    ids = drawn.source.token_ids  # which have no sign
    image = axes.imshow(
        values.T,
        aspect="auto",
        origin="lower",
        cmap="viridis" if ids else "RdBu_r",
        vmin=0 if ids else -limit,
        vmax=limit,
        interpolation="nearest",
        extent=extent,
    )
    axes.set_facecolor("black")  # where there is NaN
    part.colorbar(image, ax=axes, label="token id" if ids else None)


def whole_numbers(axes: Any) -> None:
    """Puts marks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def in_title(name: str) -> str:
    """Returns a name as a title has room for it."""
    name, half = shown(name), MOST_LETTERS // 2
    return name if len(name) <= MOST_LETTERS else f"{name[:half]}...{name[-half:]}"
