"""The command line: the group of all commands, and the entry point."""

import sys
from typing import Any

import click

from lstmcli.cli import process
from lstmcli.cli.cluster_commands import merge, plan
from lstmcli.cli.command import Group
from lstmcli.cli.model_commands import model
from lstmcli.cli.run_command import predict, run
from lstmcli.cli.tools_commands import bench, completion, env, help_, verify
from lstmcli.version import __version__

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "auto_envvar_prefix": "LSTMCLI"}


class Commands(Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read our output has seen enough. Quiet; and nothing more may be flushed when Python ends.
            process.discard(1)
            ctx.exit(process.IO_ERROR)


@click.group(
    cls=Commands,
    context_settings=SETTINGS,
    examples=["lstmcli run --input x.h5 --lens lens.npy --units 7", "lstmcli run --help", "lstmcli help inputs"],
)
@click.version_option(__version__, message="%(prog)s %(version)s", allow_from_autoenv=False)
def lstmcli() -> None:
    """Run LSTMs over padded sequence files. Padding is never read, computed or written.

    `lstmcli COMMAND --help` lists the options of a command, `lstmcli help` the topics of the documentation.
    """


for command in (run, predict, verify, plan, merge, model, bench, env, help_, completion):
    lstmcli.add_command(command)


def main() -> None:
    """Runs the command and ends the process with the exit code of what happened."""
    process.prepare()
    stdout = sys.stdout
    try:
        code = lstmcli.main(standalone_mode=False) or 0
        if sys.stdout:
            sys.stdout.flush()
    except SystemExit:
        if sys.stdout is not stdout:  # click met a broken pipe while it printed help, and wrapped it
            sys.exit(process.IO_ERROR)
        raise
    except BaseException as error:
        process.fail(error)
    process.end(code)
