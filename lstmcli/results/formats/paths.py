"""The names of the files that a run makes, known before anything is read."""

from collections.abc import Iterable
from os.path import realpath
from pathlib import Path
from typing import NamedTuple

from lstmcli.errors import OutputError, UsageError, shown
from lstmcli.files.file_kind import is_several, split_spec
from lstmcli.files.partial_file import check_target, partial_name
from lstmcli.files.positioned_file import is_file, mode_of

HDF5 = ".h5", ".hdf5"
TABLES = {".csv": ",", ".tsv": "\t", ".parquet": None}  # what stands between the columns of a text


class Paths(NamedTuple):
    """The files that a run makes; None for those that it does not make. `main` is None for standard output."""

    main: Path | None
    states: Path | None = None
    model: Path | None = None

    def all(self) -> list[Path]:
        return [path for path in (self.main, self.states, self.model) if path]

    @property
    def is_hdf5(self) -> bool:
        return self.main is not None and self.main.suffix in HDF5


def result_paths(output: str | None, states: str | None, save: tuple[str, ...], source: str) -> Paths:
    """Returns the files that --output, --states and --save ask for; the name of the input, `source`, gives the default.

    Raises UsageError for names and options that do not go together.
    """
    if "" in (output, states):
        raise UsageError("expected a name after --output and --states, got an empty one")
    predicts = save == ("predictions",)
    kind = "predictions" if predicts else "lstm"
    output = output or f"{default_stem(source)}.{kind}.h5"
    suffix = "-" if output == "-" else Path(output).suffix
    if suffix in HDF5:
        if states:
            raise UsageError(
                f"--states {states}: an HDF5 result holds the states itself; leave it out, or use --output NAME.npy"
            )
        return Paths(Path(output))
    if suffix not in (".npy", "-", *TABLES):
        raise UsageError(f"--output {output}: expected a name that ends in .h5, .hdf5, .npy, .csv, .tsv or .parquet, or -")
    if suffix in TABLES and states:
        raise UsageError(f"--states {states}: a table holds the states itself with --save states; leave it out")
    if suffix in TABLES and not (predicts or set(save) <= {"pooled", "states"}):
        pooled = "--save pooled" if "pooled" in save else "--pool mean --save pooled"
        raise UsageError(
            f"--output {output}: a table has a row for each sequence, not for each step; say {pooled}, or --save states, in "
            "run or plan, or use --output NAME.h5"
        )
    if predicts or suffix in TABLES:
        return Paths(None if suffix == "-" else Path(output))
    if set(save) - {"states"} not in ({"outputs"}, {"pooled"}):
        alone = "either outputs or pooled; say --save pooled, in run or plan, or" if "pooled" in save else "the outputs alone;"
        raise UsageError(f"--save {','.join(save)}: {output} holds {alone} use --output NAME.h5")
    if states and "states" not in save:
        raise UsageError(f"--states {states}: --save leaves the states out")
    if suffix == "-":
        return Paths(None, Path(states) if states else None)
    path = Path(output)
    beside = Path(states) if states else path.with_suffix(".states.npz")
    paths = Paths(path, beside if "states" in save else None, path.with_suffix(".model.h5"))
    names = temporary_names(paths)
    if len({(realpath(name.parent), name.name) for name in names}) < len(names):
        raise UsageError(f"--states {states}: is also the name of another file of this result; choose another one")
    return paths


def default_stem(source: str) -> str:
    """Returns the name of a result after that of its input."""
    if source == "-":
        return "stdin"
    stem = Path(split_spec(source)[0]).stem.removeprefix("@")
    return "sequences" if any(mark in stem for mark in "*?[") else stem


def check_paths(paths: Paths, overwrite: bool, resume: bool) -> None:
    """Raises OutputError where a file is in the way of a result."""
    if not (resume and paths.main and mode_of(journal_name(paths.main))):  # else some of them may have their names already
        for path in paths.all():
            check_target(path, overwrite)


def each_file(path: str) -> list[str]:
    """Returns the files that one name of an input stands for."""
    if not is_several(path):
        return [path]
    from lstmcli.inputs.ragged.several_files import files_of

    return files_of(path)


def values_of(table: Path) -> Path:
    """Returns the name that stands for the values of a table; they are in its partial file."""
    return table.with_name(f"{table.name}.values")


def temporary_names(paths: Paths) -> list[Path]:
    """Returns the names of all files that exist at any time of the run."""
    names = [name for path in paths.all() for name in (path, partial_name(path))]
    if paths.main and paths.main.suffix in TABLES:
        names.append(partial_name(values_of(paths.main)))
    return [*names, journal_name(paths.main)] if paths.main else names


def refuse_inputs(paths: Paths, inputs: Iterable[str | None], follow_links: bool = False) -> None:
    """Raises OutputError where a file that would be replaced is also read, under whatever name."""
    targets = [path for path in temporary_names(paths) if mode_of(path)]
    if not targets:
        return
    read = {Path(path) for spec in inputs if spec for path in each_file(split_spec(spec)[0])}
    if follow_links:
        from lstmcli.files.hdf5_safety import files_behind

        read = read.union(*(files_behind(str(path)) for path in read if is_file(path)))
    for target in targets:
        if any(mode_of(path) and path.samefile(target) for path in read):
            raise OutputError(f"{shown(str(target))}: is also an input of this run; choose another --output")


def journal_name(path: Path) -> Path:
    return path.with_name(path.name + ".journal")
