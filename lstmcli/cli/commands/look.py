"""Commands that look at what files hold: compare."""

from typing import TYPE_CHECKING

import click

from lstmcli.cli.command import Command, option
from lstmcli.cli.options import as_json, quiet
from lstmcli.cli.param_types import FILE_NAME

if TYPE_CHECKING:
    from lstmcli.cli.report.terminal import Terminal


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
        terminal.print_rows(facts, compare_rows(facts))
    return 0 if facts["same"] else 1
