"""`lstmcli convert`: sequences in another layout or format."""

from typing import TYPE_CHECKING, Any

import click

from lstmcli.cli.command import Command, option
from lstmcli.cli.options import as_json, lens_of_file, overwrite, quiet
from lstmcli.cli.param_types import FILE_NAME

if TYPE_CHECKING:
    from lstmcli.cli.report.terminal import Terminal


@click.command(
    cls=Command,
    short_help="Write sequences or a result in another layout or format.",
    examples=[
        "lstmcli convert x.npy x.h5 --lens lens.npy --layout flat",
        "lstmcli convert x.lstm.h5 each.h5 --layout per-sequence",
        "lstmcli convert proteins.h5 proteins.parquet",
    ],
    topics=["inputs", "results"],
)
@click.argument("a", type=FILE_NAME)
@click.argument("b", type=FILE_NAME)
@lens_of_file
@option(
    "Input",
    "--offsets",
    type=FILE_NAME,
    metavar="PATH",
    show_default="what lies beside the sequences",
    help="Where the sequences of a flat A begin, as lstmcli run takes it.",
)
@option(
    "Input",
    "--padding",
    type=click.Choice(["post", "pre"]),
    show_default="post",
    help="Where padding stands in A.",
)
@option(
    "Output",
    "--layout",
    type=click.Choice(["padded", "flat", "per-sequence"]),
    show_default="that of A; flat for a ragged one",
    help="How the steps of the sequences lie in B: padded, one after the other, or an array for each sequence.",
)
@option(
    "Output",
    "--compress",
    type=click.Choice(["gzip"]),
    show_default="not compressed",
    help="Compress the values in an HDF5 file.",
)
@overwrite
@as_json
@quiet
def convert(terminal: "Terminal", a: str, b: str, **options: Any) -> None:
    """Write the sequences of A into B, with the same values and ids. The name of B says its format.

    .h5, .npy, .npz, and a row for each sequence in .parquet or .arrow. A result stays a result in HDF5: its states, its model
    and what it says of its run stay, and its checksums are compared; in another format it gives its outputs.
    """
    from lstmcli.cli.report.run_summary import convert_rows
    from lstmcli.tools.convert import convert as convert_file

    facts = convert_file(a, b, **options)
    for note in facts["notes"]:
        terminal.note(note)
    if not terminal.quiet:
        terminal.print_rows(facts, convert_rows(facts))
