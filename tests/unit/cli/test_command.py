"""The commands' common part: what is typed means what click's own parser makes of it."""

from __future__ import annotations

from itertools import product

import click

from lstmcli.cli.command import Command, Option

WORDS = ("-i", "--input", "-q", "-n", "x", "--", "-qi", "-i=x", "--many", "--inptu")


def command() -> Command:
    names: dict[tuple[str, ...], dict[str, object]] = {
        ("-i", "--input"): {},
        ("-q", "--quiet"): {"is_flag": True},
        ("-n", "--number"): {"count": True},
        ("--many",): {"is_flag": False, "flag_value": "all"},
    }
    return Command("run", params=[Option(name, heading="Input", **settings) for name, settings in names.items()])


def parsed(ours: bool, words: tuple[str, ...]) -> tuple[object, ...]:
    """The values of the options and what is left, or the message of an error."""
    made = command()
    context = click.Context(made, info_name="run", allow_extra_args=True)
    try:
        rest = (made if ours else super(Command, made)).parse_args(context, list(words))
    except click.UsageError as error:
        return (error.format_message(),)
    return context.params, rest


def test_short_names_are_what_click_takes_them_for() -> None:
    for words in (words for count in range(5) for words in product(WORDS, repeat=count)):
        ours, theirs = parsed(True, words), parsed(False, words)
        if "No such option: --inptu" in str(ours):  # whose error says more here
            assert "No such option" in str(theirs)
        else:
            assert ours == theirs, words
