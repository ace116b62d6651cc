"""The manual page, lstmcli.1, out of the same texts as --help. Its language is that of man(7)."""

import re
from collections.abc import Iterator

import click

from lstmcli.cli.report.documentation import read_page
from lstmcli.version import __version__


def man_page(root: click.Group) -> str:
    """Returns the page of a command with all that it has below it."""
    return "\n".join(page_lines(root, click.Context(root, info_name="lstmcli"))) + "\n"


def page_lines(root: click.Group, context: click.Context) -> Iterator[str]:
    yield f'.TH LSTMCLI 1 "" "lstmcli {__version__}" "User Commands"'
    first, *others = (root.help or "").split("\n\n")
    yield from (".SH NAME", f"lstmcli \\- {plain(first)}", ".SH SYNOPSIS", ".B lstmcli", "COMMAND [OPTIONS]", ".SH DESCRIPTION")
    yield from map(plain, others)
    yield ".SH COMMANDS"
    yield from commands_below(root, context)
    yield ".SH EXIT STATUS"
    for code, meaning in re.findall(r"^\| (\d+) \| (.*) \|$", read_page("pipelines"), re.MULTILINE):
        yield from (".TP", f".B {code}", plain(meaning))
    yield from (".SH ENVIRONMENT", "Each option can be set by a variable as well: LSTMCLI_RUN_THREADS is for")
    yield from (".B lstmcli run \\-\\-threads.", ".SH SEE ALSO", ".B lstmcli help", "shows the documentation.")


def commands_below(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command
        inner = click.Context(command, context, name)
        if isinstance(command, click.Group):
            yield from commands_below(command, inner)
            continue
        yield from (f".SS {plain(inner.command_path)} {plain(' '.join(command.collect_usage_pieces(inner)))}",)
        yield plain(" ".join((command.help or "").split()))
        for param in command.get_params(inner):
            if record := param.get_help_record(inner):
                yield from (".TP", f".B {plain(record[0].strip())}", plain(record[1]))


def plain(text: str) -> str:
    """Returns a text in one line, with what man(7) would take for a command escaped."""
    text = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
