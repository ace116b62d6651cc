"""Commands that look at what files hold: inspect and compare."""

import shutil
from typing import TYPE_CHECKING, Any

import click

from lstmcli.cli.command import Command, option
from lstmcli.cli.options import as_json, lens_of_file, overwrite, quiet
from lstmcli.cli.param_types import FILE_NAME

if TYPE_CHECKING:
    from lstmcli.cli.report.inspect_report import Rows
    from lstmcli.cli.report.terminal import Terminal


@click.command(
    cls=Command,
    short_help="Say what a file is and what it holds.",
    examples=[
        "lstmcli inspect x.h5",
        "lstmcli inspect x.npy --lens lens.npy",
        "lstmcli inspect x.lstm.h5 --plot x.png --rows 0,5",
    ],
    topics=["look", "inputs", "results"],
)
@click.argument("file", type=FILE_NAME)
@lens_of_file
@option(
    "Output",
    "--plot",
    type=FILE_NAME,
    metavar="FILE",
    show_default="no picture",
    help="Draw a picture as well, .png or .svg: a histogram of the lengths, sequences as heat maps, norms of final states. "
    "It needs matplotlib: pip install 'lstmcli[plot]'.",
)
@option(
    "Output",
    "--rows",
    metavar="LIST",
    show_default="the first three",
    help="The sequences to draw, by their numbers or ids, separated by commas.",
)
@overwrite
@as_json
def inspect(terminal: "Terminal", file: str, lens: str | None, plot: str | None, rows: str | None, overwrite: bool) -> None:
    """Say what a file is and what it holds: an input, lengths, a mask, a result, a part, a plan, a model, or weights.

    Shapes and how they are stored, lengths and padding, ids, values, NaN and Inf; what a result was made of; what a run costs.
    """
    from lstmcli.cli.report.inspect_report import BLOCK, inspect_rows
    from lstmcli.tools.inspect.inspect import inspect as inspect_file

    if plot is None and (rows is not None or overwrite):
        raise click.UsageError(f"{'--overwrite' if rows is None else '--rows'} is for a picture; give --plot FILE")
    facts = inspect_file(file, lens)
    if plot is not None:
        from pathlib import Path

        from lstmcli.tools.inspect.plot import plot as draw

        draw(file, facts["kind"], lens, rows.split(",") if rows else (), Path(plot), overwrite)
    print_found(terminal, facts, inspect_rows(facts, BLOCK if terminal.is_interactive() else "#"))


@click.command(
    cls=Command,
    short_help="Compare two results, arrays, models or weights.",
    examples=["lstmcli compare old.lstm.h5 new.lstm.h5", "lstmcli compare model.pt model.keras --tolerance 1e-6"],
    topics=["look", "results"],
)
@click.argument("a", type=FILE_NAME)
@click.argument("b", type=FILE_NAME)
@option(
    "Computing",
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="X",
    show_default="equal to the bit",
    help="Take values as the same that differ by at most X, or by at most X of the larger one.",
)
@as_json
@quiet
def compare(terminal: "Terminal", a: str, b: str, tolerance: float | None) -> int:
    """Say whether two files hold the same values, in whatever layout; or where and by how much they do not.

    Exit code 0: equal to the bit, or within the tolerance; 1: not. Padding is not compared. FILE::/NAME compares one array.
    """
    from lstmcli.cli.report.compare_report import compare_rows
    from lstmcli.tools.compare.compare import compare as compare_files

    facts = compare_files(a, b, tolerance)
    if not terminal.quiet:
        print_found(terminal, facts, compare_rows(facts))
    return 0 if facts["same"] else 1


def print_found(terminal: "Terminal", facts: dict[str, Any], rows: "Rows") -> None:
    """Prints the facts as JSON, or the rows: in colour and as wide as a terminal, else plain within 100 columns."""
    from lstmcli.cli.report.inspect_report import drawing, wrapped

    if terminal.is_interactive():
        terminal.print_drawing(facts, lambda: drawing(rows, shutil.get_terminal_size().columns))
    else:
        terminal.print_rows(facts, wrapped(rows))
