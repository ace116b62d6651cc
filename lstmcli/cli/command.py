"""The commands' common part: `--help` with options under headings, and the Terminal that a command prints to."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from lstmcli.cli.param_types import NOTES
from lstmcli.cli.report.terminal import Terminal

Function = TypeVar("Function", bound=Callable[..., Any])
HEADINGS = ("Input", "Model", "Output", "Computing", "Stop and resume", "Cluster", "Messages")
NAMES_WIDTH = 26  # of the column of options; a longer one has a line of its own
PLAIN_INPUTS = "inputs"  # an argument of commands with --input
ABOUT_TERMINAL = ("json", "quiet", "verbose", "progress")


class Option(click.Option):
    """An option that `--help` shows under a heading."""

    def __init__(self, *names: Any, heading: str, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.heading = heading

    def get_help_extra(self, ctx: click.Context) -> Any:
        """Leaves out the range of a number, and the brackets around a default that is told in words."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        return extra


def option(heading: str, *names: str, **settings: Any) -> Callable[[Function], Function]:
    """Does what click.option does, for an option under one of HEADINGS."""
    return click.option(*names, cls=Option, heading=heading, **{"show_default": True} | settings)


def option_group(*decorators: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Makes one decorator of several, so that commands can share a list of options. They stand in --help in this order."""

    def add(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


def show_help(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


class Helped(click.Command):
    """A command whose help ends with examples and the pages to read on."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), topics: Sequence[str] = (), **settings: Any) -> None:
        """examples: command lines. topics: pages of `lstmcli help`."""
        super().__init__(*args, **settings)
        self.examples, self.topics = examples, topics
        self.help_option: click.Option | None = None

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Returns click's option without an environment variable: LSTMCLI_HELP must not end every command.

        click's own looks for a translation of its text, which makes a short run a millisecond longer.
        """
        self.help_option = self.help_option or click.Option(
            self.get_help_option_names(ctx),
            is_flag=True,
            is_eager=True,
            expose_value=False,
            allow_from_autoenv=False,
            callback=show_help,
            help="Show this message and exit.",
        )
        return self.help_option

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.write_lines(formatter, "Examples", self.examples)
        self.write_lines(formatter, "Read on", [f"lstmcli help {topic}" for topic in self.topics])

    @staticmethod
    def write_lines(formatter: click.HelpFormatter, heading: str, lines: Sequence[str]) -> None:
        """Writes lines as they are: a command must not be wrapped."""
        if lines:
            with formatter.section(heading):
                for line in lines:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Command(Helped):
    """A command that is given a Terminal, made of --json, --quiet, --verbose and --progress, as its argument `terminal`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes plain arguments for inputs, as grep does, and says what options of other programs are called here."""
        try:
            rest = super().parse_args(ctx, self.in_full(ctx, args))
        except click.NoSuchOption as error:
            from lstmcli.cli.suggestions import hint

            ours = [name for param in self.get_params(ctx) for name in param.opts]
            raise click.UsageError(f"No such option: {error.option_name}{hint(error.option_name, ours)}", ctx) from error
        if plain := ctx.params.pop(PLAIN_INPUTS, ()):
            if ctx.get_parameter_source("input") is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{plain[0]}: is an input, and so is what --input names; give all in one way", ctx)
            ctx.params["input"] = plain
            ctx.set_parameter_source("input", ParameterSource.COMMANDLINE)
        return rest

    def in_full(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Spells the options in full that a command line begins with, as long as they have short names as well.

        For a short name click first looks for long ones that are like it, which makes a short run two milliseconds longer.
        """
        known = {name: param for param in self.get_params(ctx) for name in param.opts if min(map(len, param.opts)) == 2}
        full, at = list(args), 0
        while at < len(full) and (param := known.get(full[at])):
            words = 1 if isinstance(param, click.Option) and (param.is_flag or param.count) else 2
            if at + words > len(full):
                break
            full[at] = max(param.opts, key=len)
            at += words
        return full

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options under their headings, all in the same two columns."""
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and isinstance(param, click.Option):
                sections[getattr(param, "heading", HEADINGS[-1])].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl([(f"{names:{NAMES_WIDTH}}", text) for names, text in records], NAMES_WIDTH)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        names = [max(param.opts, key=len) for param in self.params if isinstance(param, click.Option)]
        if names:
            variable = f"{ctx.auto_envvar_prefix}_{names[0][2:].upper().replace('-', '_')}"
            formatter.write_paragraph()
            formatter.write_text(f"Each option can be set by an environment variable as well, {names[0]} by {variable}.")

    def invoke(self, ctx: click.Context) -> Any:
        chosen = {name: ctx.params.pop(name) for name in ABOUT_TERMINAL if name in ctx.params}
        ctx.params["terminal"] = terminal = Terminal(**chosen)
        for note in ctx.meta.get(NOTES, ()):
            terminal.note(note)
        return super().invoke(ctx)


class Group(Helped, click.Group):
    """A group that lists its commands in the order in which they were added."""

    command_class = Command
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)
