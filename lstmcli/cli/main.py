"""The command line: the group of all commands, and the entry point."""

import sys
from importlib import import_module
from typing import Any

import click

from lstmcli.cli import process
from lstmcli.cli.command import Group
from lstmcli.errors import SignalError
from lstmcli.version import __version__

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "auto_envvar_prefix": "LSTMCLI"}


# Where each command is: only the one that is called is loaded, as all of them would take a twentieth of a short run.
COMMANDS = {
    "run": "run_and_predict",
    "predict": "run_and_predict",
    "inspect": "look",
    "compare": "look",
    "convert": "convert",
    "verify": "tools",
    "plan": "plan_and_merge",
    "merge": "plan_and_merge",
    "model": "model",
    "bench": "tools",
    "env": "tools",
    "help": "tools",
    "completion": "tools",
}


class Commands(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"lstmcli.cli.commands.{COMMANDS[cmd_name]}")
        return next(item for item in vars(module).values() if isinstance(item, click.Command) and item.name == cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Does what click does, and says what a command of other programs is called here."""
        if args[0] not in COMMANDS:
            from lstmcli.cli.suggestions import COMMANDS as OTHERS

            if known := OTHERS.get(args[0]):
                ctx.fail(f"No such command {args[0]!r}. There is `lstmcli {known}`")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read our output has seen enough. Quiet; and nothing more may be flushed when Python ends.
            process.discard(1)
            ctx.exit(process.IO_ERROR)


def show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f'{{"lstmcli": "{__version__}"}}' if ctx.meta["as_json"] else f"lstmcli {__version__}")
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings=SETTINGS,
    examples=["lstmcli run --input x.h5 --lens lens.npy --units 7", "lstmcli run --help", "lstmcli help inputs"],
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    allow_from_autoenv=False,
    callback=lambda ctx, param, value: ctx.meta.update({param.name: value}),
    help="With --version: print it as one JSON object.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    allow_from_autoenv=False,
    callback=show_version,
    help="Show the version and exit.",
)
def lstmcli() -> None:
    """Run LSTMs over padded sequence files. Padding is never computed; long gaps in files are neither read nor written.

    `lstmcli COMMAND --help` lists the options of a command, `lstmcli help` the topics of the documentation.
    """


def main() -> None:
    """Runs the command and ends the process with the exit code of what happened."""
    try:
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
    except SignalError as error:  # of a signal while the process begins or ends
        process.fail(error)
