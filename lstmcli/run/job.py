"""The options of a run: a job, made of five records whose fields have the names of the options.

Inputs, model and compute decide every bit of a result. A run may be stopped and resumed with another output folder and with
other resources, but not with another input, model or computation.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from lstmcli.errors import MissingInputError, UsageError, shown
from lstmcli.files.file_kind import is_several, split_spec
from lstmcli.model.new_weights import PLAIN, CellOptions
from lstmcli.model.tree import Model, as_chain
from lstmcli.results.formats.fields import FLAT, PADDED, PER_SEQUENCE, Arrays
from lstmcli.results.formats.paths import HDF5, Paths, result_paths
from lstmcli.results.journal import Fingerprint

if TYPE_CHECKING:
    from lstmcli.model.chain import Chain
    from lstmcli.weights.draft import Choices

Record = TypeVar("Record")


class Inputs(NamedTuple):
    """The files that sequences come from, and how they are read."""

    input: str
    also: tuple[str, ...] = ()  # further files that --input names
    axes: str = "NTE"  # N sequences, T steps, E features
    lens: str | None = None
    offsets: str | None = None  # of a flat input
    window: int | None = None  # steps of the windows that each sequence is cut into
    stride: int | None = None  # steps from one window to the next; None: 1
    padding: str | None = None  # post | pre; None: post, or what the file says
    initial_state: str | None = None
    follow_links: bool = False


class NewModel(NamedTuple):
    """A model with new weights."""

    units: tuple[int, ...]
    seed: int = 0
    bidirectional: bool = False
    residual: bool = False
    cells: CellOptions = PLAIN

    def origin(self) -> str:
        return f"seed {self.seed}"


class Weights(NamedTuple):
    """A model from a file, and what the user adds to what the file says."""

    weights: str
    choices: "Choices"
    whole: bool = False  # with the layers before and after the LSTMs, to predictions
    chain: str | None = None  # what --chain says

    def origin(self) -> str:
        return self.weights


class Compute(NamedTuple):
    """What is computed, in which precision, and what is kept of it."""

    dtype: str = "float32"
    save: tuple[str, ...] = ("outputs", "states")
    nonfinite: str = "warn"  # error | warn | pass
    pool: str | None = None  # mean | max | sum | last | final
    store: str | None = None  # float16 | float32, of what is stored of steps; None: as `dtype`
    layout: str | None = None  # padded | flat | per-sequence; None: padded for a padded input, flat for a ragged one

    @property
    def floats(self) -> np.dtype[Any]:
        """The dtype of what is read, computed and stored: with bfloat16 float32, which the kernel rounds for its products."""
        return np.dtype("float32" if self.bfloat16 else self.dtype)

    @property
    def bfloat16(self) -> bool:
        return self.dtype == "bfloat16"

    def decided(self, ragged: bool, model: "Model | Chain") -> "Compute":
        """Returns the same with its layout decided. Where no array has steps, all layouts are one."""
        layout = self.layout or (FLAT if ragged else PADDED)
        store = None if self.store == self.floats.name else self.store
        return self._replace(layout=layout if self.step_widths(model) else PADDED, store=store)

    def mark(self) -> dict[str, Any]:
        """Returns what tells this computation from others, ready for JSON; what a plain run leaves out is not in it."""
        return {name: value for name, value in self._asdict().items() if value not in (None, PADDED)}

    def step_widths(self, model: "Model | Chain") -> dict[str, int]:
        """Returns the width of each array that is to be stored with a row for each step."""
        if chain := as_chain(model):
            return {"predictions": chain.output_size} if chain.has_steps else {}
        assert isinstance(model, Model)
        widths = {"outputs": model.output_size} if "outputs" in self.save else {}
        if "cells" in self.save:
            widths["cells"] = model.cells_width
        if "layers" in self.save:
            layers = model.layers_by_name() or {"0": model}
            widths |= {f"layers/{name}": layer.output_size for name, layer in layers.items()}
        return widths

    def arrays(self, model: "Model | Chain", batch: int, time: int) -> Arrays:
        """Returns what a result of `batch` sequences of up to `time` steps holds; shapes are those of the padded layout."""
        dtype, stored = self.floats, np.dtype(self.store or self.floats)
        if chain := as_chain(model):
            return {"predictions": (chain.prediction_shape(batch, time), stored)}
        assert isinstance(model, Model)
        arrays: Arrays = {name: ((batch, time, width), stored) for name, width in self.step_widths(model).items()}
        if "pooled" in self.save:
            arrays["pooled"] = (batch, model.output_size), stored
        if "states" in self.save:
            arrays |= {f"state/{name}": ((batch, width), dtype) for name, width in model.state_widths().items()}
        return arrays


class Output(NamedTuple):
    """The names of the files to make, and what a table shows."""

    output: str | None = None
    states: str | None = None
    top: int | None = None  # classes; None: all
    labels: str | None = None  # a file with their names


class Resources(NamedTuple):
    """What a run may take and touch. Nothing here changes a result, so all of it may differ when a run is resumed."""

    threads: int | None = None
    max_memory: int = 1_000_000_000
    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False


class Part(NamedTuple):
    """The sequences first .. stop of a larger run."""

    first: int
    stop: int
    run: Fingerprint  # of the whole run, when it was planned

    def mark(self) -> Fingerprint:
        """Returns the fingerprint of this part."""
        return self.run | {"rows": [self.first, self.stop]}


class Job(NamedTuple):
    """Everything that the options of `lstmcli run` say."""

    inputs: Inputs
    model: NewModel | Weights
    compute: Compute = Compute()
    output: Output = Output()
    resources: Resources = Resources()
    part: Part | None = None  # None: all sequences of the input

    def paths(self) -> Paths:
        """Returns the files to make. Raises UsageError for names and options that do not go together."""
        paths = result_paths(self.output.output, self.output.states, self.compute.save, self.inputs.input)
        if self.compute.layout == PER_SEQUENCE and not paths.is_hdf5:
            raise UsageError("--layout per-sequence: is made of HDF5 datasets; use --output NAME.h5, or --layout flat")
        return paths

    def files(self) -> tuple[str | None, ...]:
        """Returns the names of the files that are read."""
        inputs, weights = self.inputs, self.model.weights if isinstance(self.model, Weights) else None
        return inputs.lens, inputs.initial_state, weights, inputs.offsets, inputs.input, *inputs.also

    def with_absolute_names(self) -> "Job":
        """Returns the same job with absolute names of the files that are read, so that it can be run from any folder."""
        lens, initial_state, weights, offsets, source, *also = map(absolute, self.files())
        assert source
        inputs = self.inputs._replace(input=source, lens=lens, offsets=offsets, initial_state=initial_state)
        inputs = inputs._replace(also=tuple(filter(None, also)))
        model = self.model._replace(weights=weights) if weights and isinstance(self.model, Weights) else self.model
        return self._replace(inputs=inputs, model=model)

    def content(self) -> dict[str, Any]:
        """Returns what a plan file and the tasks of a cluster carry, ready for JSON: all but the output and the part."""
        model = self.model._asdict()
        if isinstance(self.model, Weights):
            model["choices"] = vars(self.model.choices)
        else:
            model["cells"] = vars(self.model.cells)
        return {
            "inputs": self.inputs._asdict(),
            "model": model,
            "compute": self.compute._asdict(),
            "resources": self.resources._asdict(),
        }

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> "Job":
        """Makes the job of content() again. Raises KeyError, TypeError or AttributeError for anything else."""
        model: NewModel | Weights
        if "weights" in content["model"]:
            from lstmcli.weights.draft import Choices

            model = record(Weights, content["model"])
            model = model._replace(choices=record(Choices, content["model"]["choices"]))
        else:
            model = record(NewModel, content["model"])
            model = model._replace(cells=record(CellOptions, content["model"]["cells"]))
        inputs, compute = record(Inputs, content["inputs"]), record(Compute, content["compute"])
        return cls(inputs, model, compute, resources=record(Resources, content["resources"]))


def job_of_options(options: dict[str, Any]) -> Job:
    """Makes the job that options say by their names, in which None says nothing. An option is the field of its name in one of
    the job's records. Raises UsageError for options that do not go together."""
    if (options.get("units") is None) == (options.get("weights") is None):
        raise UsageError("expected either --units, for new weights, or --weights FILE")
    said = {name: value for name, value in options.items() if value is not None}
    if isinstance(several := said["input"], tuple):
        said |= {"input": several[0], "also": several[1:]}
    if said.pop("time_major", False) and said.setdefault("axes", "TNE") != "TNE":
        raise UsageError(f"--time-major is --axes TNE, not {said['axes']}; leave one of them out")

    if said.get("whole") and "pool" in said:
        raise UsageError(
            "--pool: pools the outputs of LSTMs; a whole model says itself what it pools, and --chain can: mean, max"
        )

    def fields(kind: Any) -> dict[str, Any]:
        """Takes the fields of a record out of what was said."""
        return {name: said.pop(name) for name in kind.__annotations__ if name in said}

    said["save"] = saved(said.get("save"), said.get("pool"), said.get("output"))
    inputs, compute = Inputs(**fields(Inputs)), Compute(**fields(Compute))
    output, resources = Output(**fields(Output)), Resources(**fields(Resources))
    model: NewModel | Weights
    if "units" in said:
        if (residual := said.pop("residual", None)) not in (None, "upper"):
            raise UsageError(f"--residual {residual}: new weights have it without a value: all layers but the lowest")
        said["residual"] = residual is not None
        model = NewModel(**fields(NewModel), cells=CellOptions.chosen(**fields(CellOptions)))
        meant, other = "--weights", "--units"
    else:
        from lstmcli.weights.draft import Choices

        model = Weights(**fields(Weights), choices=Choices(**fields(Choices)))
        meant, other = "the new weights of --units", "--weights"
    for name, value in said.items():
        if value:
            raise UsageError(f"--{name.replace('_', '-')} is for {meant}, not for {other}")
    return Job(inputs, model, compute, output, resources)


def saved(save: tuple[str, ...] | None, pool: str | None, output: str | None) -> tuple[str, ...]:
    """Returns what is stored. --pool adds the pooled array, or is all where nothing is said and the output holds one array."""
    if save is None:
        alone = pool and output and (output == "-" or Path(output).suffix not in HDF5)
        save = ("pooled",) if alone else Compute().save
    if "pooled" in save and not pool:
        raise UsageError("--save pooled: expected --pool as well, which says how: mean, max, sum, last or final")
    return tuple(sorted({*save, "pooled"})) if pool else save


def record(kind: type[Record], values: dict[str, Any]) -> Record:
    """Makes a record of values that were JSON, which has no tuples."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def absolute(spec: str | None) -> str | None:
    """Returns `FILE` or `FILE::/dataset` with an absolute path."""
    if spec in (None, "-", "none"):
        return spec
    path, name = split_spec(spec)
    if path.startswith("@") and is_several(path):
        return f"@{absolute(path[1:])}" + (f"::{name}" if name else "")
    # Not Path.resolve(): where links lead may differ between machines.
    try:
        return str(Path(path).absolute()) + (f"::{name}" if name else "")
    except FileNotFoundError as error:
        raise MissingInputError(f"{shown(path)}: the working folder was deleted; go to another one") from error
