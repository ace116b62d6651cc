"""The public names, and the one place where a model (a tree or chain of weights) is joined to the engine that runs it."""

import functools
import os
from collections.abc import Callable, Iterable
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from lstmcli.engine.call import run_padded
from lstmcli.engine.chains.call import predict
from lstmcli.errors import LstmcliError, UsageError
from lstmcli.model import new_weights
from lstmcli.model.chain import Chain
from lstmcli.model.chain_file import save_chain
from lstmcli.model.model_file import save_model
from lstmcli.model.new_weights import CellOptions
from lstmcli.model.tree import Bidirectional, Cell, Model, Residual, Reverse, Stack, set_runner
from lstmcli.weights.chains import load
from lstmcli.weights.draft import Choices

if TYPE_CHECKING:
    from lstmcli.results.stored_result import StoredResult

__all__ = [
    "Bidirectional", "Cell", "CellOptions", "Chain", "LstmcliError", "Model", "Residual", "Reverse", "Stack", "init_model",
    "load_model", "open_result", "run",
]  # fmt: skip

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")
# What the command line looks at before it makes a job; a test compares these with its options.
CHOICES = {
    "dtype": ("float32", "float64", "bfloat16"),
    "nonfinite": ("error", "warn", "pass"),
    "padding": ("post", "pre"),
    "axes": ("NTE", "TNE", "ETN", "ENT"),
    "save": ("outputs", "states", "cells", "layers", "pooled"),
    "pool": ("mean", "max", "sum", "last", "final"),
    "store": ("float16", "float32"),
    "layout": ("padded", "flat", "per-sequence"),
}
LEAST = {"units": 1, "seed": 0, "projection": 1, "window": 1, "stride": 1, "threads": 1, "max_memory": 1}  # whole numbers
NUMBERS = ("forget_bias", "cell_clip", "projection_clip")  # of a layer, or one for each; whoever takes them knows their range

set_runner(run_padded)


def short_errors(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Makes a function raise errors without the calls that they went through: a notebook would show the code of each."""

    @functools.wraps(function)
    def briefly(*args: Arguments.args, **named: Arguments.kwargs) -> Returned:
        try:
            return function(*args, **named)
        except LstmcliError as error:
            raise error.with_traceback(None) from None

    return briefly


def save(model: Model | Chain, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Writes a model file for load_model() and --weights, whole or not at all. Raises OutputError, StorageError."""
    if isinstance(model, Chain):
        save_chain(model, Path(path), overwrite)
    else:
        save_model(model, Path(path), overwrite)


Model.predict = Chain.predict = short_errors(predict)
Model.save = Chain.save = short_errors(save)
init_model = short_errors(new_weights.init_model)
load_model = short_errors(load.load_model)


@short_errors
def open_result(path: str | os.PathLike[str]) -> "StoredResult":
    """Opens an HDF5 result for reading: nothing but lengths and ids is in memory before it is asked for.

        with lstmcli.open_result("x.lstm.h5") as result:
            result.outputs[3]              # (length, D): the steps of a sequence, by number or by id, in any layout
            result.outputs.padded(0, 100)  # (100, T, D)
            result.state["0/h"][3]         # (units,); numpy.asarray(result.state["0/h"]) is (N, units)
            result.lengths, result.ids, result.model, result.attributes["options"]
            result.to_pandas("outputs"), result.to_xarray()

    Raises MissingInputError, or DataError for a file that is no result, or a damaged one.
    """
    from lstmcli.results.stored_result import StoredResult

    return StoredResult(path)


@short_errors
def run(
    input: str | os.PathLike[str],
    *,
    on_progress: Callable[[int, int], None] = lambda steps, total: None,
    stop_after: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Does what `lstmcli run --input INPUT` does: files in, a result file out, in bounded memory, with the same bytes.

    options: those of the command by their names: units=7 or weights="model.h5", lens, output, save, threads, overwrite,
    resume, ... A list is a list or a tuple, a size a number of bytes, a time a number of seconds, a flag True.
    on_progress: called, from any thread, with the valid steps done since the last call and those of the whole run.

    Returns the facts that `lstmcli run --json` prints: ["outputs"]["shape"], ["output"], ["seconds"], ...
    Raises UsageError for options that do not go together, DataError for bad input, MissingInputError, OutputError where the
    output is there already, StoppedError after stop_after seconds (resume=True goes on), StorageError. Nothing that the user
    should know is printed: it is in ["notes"], ["assumed"] and ["left_out"].
    """
    from lstmcli.run import job
    from lstmcli.run.run import run as run_job
    from lstmcli.run.stop import Stop

    records = (job.Inputs, job.NewModel, job.Weights, job.Compute, job.Output, job.Resources, CellOptions, Choices)
    others = {"choices", "cells", "also", "whole", "chain", "top", "labels"}  # fields that are no options of the command
    known = {name for record in records for name in record.__annotations__} - others
    if unknown := sorted(options.keys() - known - {"time_major"}):
        raise TypeError(f"run() takes no option {unknown[0]}; it takes {', '.join(sorted(known))}")
    if stop_after is not None and not (is_number(stop_after) and stop_after >= 0):
        raise UsageError(f"stop_after: expected a number of seconds from 0 on, got {stop_after!r}")
    return run_job(job.job_of_options(as_typed({"input": input, **options})), on_progress, Stop(stop_after))


def as_typed(options: dict[str, Any]) -> dict[str, Any]:
    """Returns options as the command line has them. Raises UsageError for values that it does not take."""
    typed: dict[str, Any] = {}
    for name, value in options.items():
        match name, value:
            case _, None:
                typed[name] = None
            case "units", _:
                typed[name] = tuple(whole_number(name, one) for one in several(value))
            case _, _ if name in LEAST:
                typed[name] = whole_number(name, value)
            case _, _ if name in NUMBERS:
                typed[name] = tuple(None if one is None else number(name, one) for one in several(value))
            case "save", str() | list() | tuple():
                typed[name] = tuple(sorted({*(value.split(",") if isinstance(value, str) else value)}))
            case "residual", bool():
                typed[name] = "upper" if value else None
            case _, os.PathLike():
                typed[name] = os.fspath(value)
            case _:
                typed[name] = tuple(value) if isinstance(value, list) else value
        known = CHOICES.get(name)
        given = typed[name] if name == "save" else (typed[name],)
        if known and value is not None and (wrong := [one for one in given if one not in known]):
            raise UsageError(f"{name}: expected {', '.join(known)}, got {wrong[0]!r}")
    return typed


def several(value: Any) -> Iterable[Any]:
    """Returns what may be one value, or some of them, as some."""
    return value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def is_number(value: Any) -> bool:
    return isinstance(value, Real)


def number(name: str, value: Any) -> float:
    """Returns a number as Python has them: facts are JSON, which takes none of NumPy's. Raises UsageError."""
    if is_number(value):
        return float(value)
    raise UsageError(f"{name}: expected a number, got {value!r}")


def whole_number(name: str, value: Any) -> int:
    """Does likewise for a whole number, such as 8 or 2e9, that is not below LEAST."""
    if is_number(value) and value == value // 1 and value >= LEAST[name]:
        return int(value)
    raise UsageError(f"{name}: expected a whole number from {LEAST[name]} on, got {value!r}")
