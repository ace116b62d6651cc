"""What the values of options look like: lists, sizes, durations, names of files."""

import re
from typing import TYPE_CHECKING, Any, ClassVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

NOTES = "lstmcli.notes"  # in a context: what to say of the values of options


UNSAFE = " $`;&|<>()'\"\\!#*?[]{}~"  # characters with a meaning for a shell


class FileName(click.ParamType):  # type: ignore[type-arg]
    """A name of a file. Not click's, which looks at files: `file.h5::/dataset` and - are such names as well."""

    name = "path"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
        """Completes names of files, and behind :: those of the datasets of an HDF5 file or the arrays of an NPZ."""
        from click.shell_completion import CompletionItem

        path, colons, _ = incomplete.partition("::")
        if not colons:
            return [CompletionItem(incomplete, type="file")]
        # The shell puts a name into the command line as it is: one with $(...) in it would be run.
        names = [f"{path}::{name}" for name in names_in(path) if name.isprintable() and not set(name) & set(UNSAFE)]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def names_in(path: str) -> list[str]:
    """Returns the names of what an HDF5 file or an NPZ holds; none for another file."""
    from lstmcli.errors import LstmcliError
    from lstmcli.files import hdf5
    from lstmcli.files.file_kind import FileKind, open_by_kind
    from lstmcli.files.zip_reader import npz_names

    try:
        with open_by_kind(path) as (data, kind):
            if kind is FileKind.ZIP:
                return npz_names(data)
            if kind is FileKind.HDF5:
                with hdf5.open_file(path) as file:
                    return [entry.name for entry in hdf5.entries(file)]
    except LstmcliError:
        pass  # a shell that completes a word has no place for a message
    return []


FILE_NAME = FileName()


class InputName(FileName):
    """The name of an input. Several of them in a variable stand on lines of their own: a name may hold a colon."""

    envvar_list_splitter = "\n"


INPUT_NAME = InputName()


class IntegerList(click.ParamType):  # type: ignore[type-arg]
    name = "N[,N...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if not re.fullmatch(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*", value):
            self.fail(f"expected integers above 0, separated by commas, such as 64,32; got {value!r}", param, ctx)
        return tuple(int(number) for number in value.split(","))


class NumberList(click.ParamType):  # type: ignore[type-arg]
    name = "X[,X...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float | None, ...]:
        try:
            return tuple(None if number == "none" else float(number) for number in value.split(","))
        except ValueError:
            self.fail(f"expected numbers or none, separated by commas, such as 10,none; got {value!r}", param, ctx)


class Size(click.ParamType):  # type: ignore[type-arg]
    name = "size"
    units: ClassVar = {
        "": 1,
        "K": 10**3,
        "M": 10**6,
        "G": 10**9,
        "T": 10**12,
        "KI": 2**10,
        "MI": 2**20,
        "GI": 2**30,
        "TI": 2**40,
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([KMGT]?I?)B?", value.upper())
        if not match or match[2] not in self.units or not (size := int(float(match[1]) * self.units[match[2]])):
            self.fail(f"expected a size such as 500MB, 1.5GB or 2GiB; got {value!r}", param, ctx)
        return size


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A time. A number alone is said to be seconds: `--time=55` of a cluster's scheduler is minutes."""

    name = "time"
    units: ClassVar = {"D": 86400, "H": 3600, "M": 60, "S": 1, "": 1}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        parts = re.findall(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([DHMS]?)", value.upper())
        if not parts or "".join(number + unit for number, unit in parts) != value.upper():
            self.fail(f"expected a time such as 90s, 55m or 1h30m; got {value!r}", param, ctx)
        if ctx and param and value.isdecimal():
            ctx.meta[NOTES] = [f"{max(param.opts, key=len)} {value}: these are seconds; {value}m is minutes"]
        return sum(float(number) * self.units[unit] for number, unit in parts)


class Names(click.ParamType):  # type: ignore[type-arg]
    name = "list"

    def __init__(self, *known: str) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = value.split(",")
        if unknown := [name for name in names if name not in self.known]:
            self.fail(f"expected names of {', '.join(self.known)}, separated by commas; got {unknown[0]!r}", param, ctx)
        return tuple(sorted(set(names)))


class TopicName(click.ParamType):  # type: ignore[type-arg]
    """A topic of `lstmcli help`. The shell completes it; the command itself looks whether there is such a page."""

    name = "topic"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
        from click.shell_completion import CompletionItem

        from lstmcli.cli.report.documentation import topics

        return [CompletionItem(name, help=answers) for name, answers in topics().items() if name.startswith(incomplete)]
