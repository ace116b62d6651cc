"""What the options of a run say, and what they name, opened and checked."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstmcli.blocks import Lengths
from lstmcli.engine.cpus import available_threads
from lstmcli.errors import DataError, OutputError, UsageError, shown
from lstmcli.files.file_kind import split_spec
from lstmcli.files.partial_file import partial_name
from lstmcli.inputs.initial_state import States, open_states
from lstmcli.inputs.lengths import read_lengths
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.inputs.open_input import open_source
from lstmcli.inputs.source import Source
from lstmcli.model.new_weights import CellOptions, count_parameters, init_model
from lstmcli.model.tree import Model
from lstmcli.results.journal import Fingerprint, differing, journal_name
from lstmcli.results.result import Arrays, Paths
from lstmcli.version import __version__


class Part(NamedTuple):
    """Some of the sequences of a run: first .. stop."""

    first: int
    stop: int
    run: Fingerprint  # of the whole run, when it was planned

    def mark(self) -> Fingerprint:
        """What tells it from all other parts and runs."""
        return self.run | {"rows": [self.first, self.stop]}


class Job(NamedTuple):
    """What the options of `lstmcli run` say."""

    input: str
    time_major: bool = False
    lens: str | None = None
    units: tuple[int, ...] | None = None
    weights: str | None = None
    select: tuple[str, ...] = ()
    forget_bias: tuple[float | None, ...] | None = None
    cell_clip: tuple[float | None, ...] | None = None
    projection_clip: tuple[float | None, ...] | None = None
    activation: str | None = None
    recurrent_activation: str | None = None
    merge: str | None = None
    peepholes: bool = False
    projection: int | None = None
    bidirectional: bool = False
    residual: str | None = None
    seed: int = 0
    initial_state: str | None = None
    output: str | None = None
    states: str | None = None
    save: frozenset[str] = frozenset({"outputs", "states"})
    dtype: str = "float32"
    threads: int | None = None
    max_memory: int = 1_000_000_000
    nonfinite: str = "warn"  # error | warn | pass
    follow_links: bool = False
    part: Part | None = None  # of the input only these sequences
    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False


# Options that change no bit of a result, and those whose files or numbers are in the fingerprint themselves.
UNMARKED = {
    *("threads", "max_memory", "overwrite", "resume", "dry_run", "follow_links", "part"),
    *("input", "lens", "units", "weights", "seed", "initial_state", "output"),
}


class Told(NamedTuple):
    """What the user should know of the weights."""

    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()  # what they do not say themselves, in sentences
    before: tuple[str, ...] = ()  # layers of their whole model that are left out
    after: tuple[str, ...] = ()


class Work(NamedTuple):
    """A job with all that it reads opened and checked."""

    job: Job
    source: Source
    lengths: Lengths  # (N,) of the sequences of this run
    origin: str | None  # of the lengths
    model: Model
    told: Told
    initial: States | None

    def fingerprint(self) -> Fingerprint:
        """What tells this run from all others whose results may differ."""
        if self.job.part:
            return self.job.part.mark()
        marked = {name: value for name, value in self.job._asdict().items() if name not in UNMARKED}
        weights = hashlib.sha256(json.dumps(self.model.config()).encode())
        for _, cell in self.model.cells():
            for weight in cell.weights().values():
                weights.update(weight.tobytes())
        found = {
            "lstmcli": __version__,
            "input": {"shape": list(self.source.shape), "dtype": self.source.dtype.str} | self.source.identity(),
            "lengths": lengths_mark(self.lengths),
            "model": weights.hexdigest()[:16],
            "options": marked | {"save": sorted(self.job.save)},
        }
        if self.told.assumed:
            found["assumed"] = self.told.assumed
        if self.initial:
            found["initial_state"] = self.initial.data.identity()
        normal: Fingerprint = json.loads(json.dumps(found))
        return normal

    def restricted(self) -> "Work":
        """To the sequences of the job's part. DataError: the run is not what was planned."""
        part = self.job.part
        if not part:
            return self
        if differences := differing(part.run, self._replace(job=self.job._replace(part=None)).fingerprint()):
            raise DataError(
                f"{self.source.name}: the run is not the one that was planned: {'; '.join(differences)}; "
                "make it as it was, or plan anew"
            )
        self.source.restrict(part.first, part.stop)
        return self._replace(lengths=self.lengths[part.first : part.stop])


def lengths_mark(lengths: Lengths) -> str:
    return hashlib.sha256(lengths.tobytes()).hexdigest()[:16]


@contextmanager
def open_work(job: Job) -> Iterator[Work]:
    """MissingInputError, DataError, UsageError, StorageError."""
    with ExitStack() as opened:
        source = opened.enter_context(closing(open_source(job.input, job.time_major, job.follow_links)))
        lengths, origin = read_lengths(job.lens, source, job.follow_links)
        model, told = read_model(job, source)
        initial = None
        if job.initial_state is not None:
            states = open_states(job.initial_state, model.state_widths(), source.shape[0], np.dtype(job.dtype))
            initial = opened.enter_context(closing(states))
        yield Work(job, source, lengths, origin, model, told, initial).restricted()


def targets_of(job: Job) -> Paths:
    """The files that a job makes. UsageError for names and options that do not go together."""
    if "" in (job.output, job.states):
        raise UsageError("expected a name after --output and --states, got an empty one")
    output = job.output or f"{'stdin' if job.input == '-' else Path(split_spec(job.input)[0]).stem}.lstm.h5"
    suffix = "-" if output == "-" else Path(output).suffix
    if suffix in (".h5", ".hdf5"):
        if job.states:
            raise UsageError(
                f"--states {job.states}: an HDF5 result holds the states itself; leave it out, or use --output NAME.npy"
            )
        return Paths(Path(output))
    if suffix not in (".npy", "-"):
        raise UsageError(f"--output {output}: expected a name that ends in .h5, .hdf5 or .npy, or -")
    if "outputs" not in job.save or not job.save <= {"outputs", "states"}:
        raise UsageError(f"--save {','.join(sorted(job.save))}: {output} holds the outputs alone; use --output NAME.h5")
    if job.states and "states" not in job.save:
        raise UsageError(f"--states {job.states}: --save leaves the states out")
    if suffix == "-":
        return Paths(None, Path(job.states) if job.states else None)
    path = Path(output)
    states = Path(job.states) if job.states else path.with_suffix(".states.npz")
    targets = Paths(path, states if "states" in job.save else None, path.with_suffix(".model.h5"))
    if len(set(names := temporary_names(targets))) < len(names):
        raise UsageError(f"--states {job.states}: is also the name of another file of this result; choose another one")
    return targets


def temporary_names(targets: Paths) -> list[Path]:
    """Of all files that exist at any time."""
    names = [name for path in targets.all() for name in (path, partial_name(path))]
    return [*names, journal_name(targets.main)] if targets.main else names


def refuse_inputs(targets: Paths, specs: Iterable[str | None]) -> None:
    """OutputError where a file that would be replaced is also read, under whatever name."""
    for target in filter(Path.exists, temporary_names(targets)):
        for path in (Path(split_spec(spec)[0]) for spec in specs if spec):
            if path.exists() and path.samefile(target):
                raise OutputError(f"{shown(str(target))}: is also an input of this run; choose another --output")


def read_model(job: Job, source: Source) -> tuple[Model, Told]:
    """The model, and what there is to say about its weights."""
    features = source.shape[2]
    if job.units is not None:
        options = CellOptions.chosen(**{field.name: getattr(job, field.name) for field in fields(CellOptions)})
        check_memory(job, count_parameters(features, job.units, options, job.bidirectional))
        if job.residual not in (None, "upper"):
            raise UsageError(f"--residual {job.residual}: new weights have it without a value: all layers but the lowest")
        return init_model(features, job.units, job.seed, options, job.bidirectional, job.residual is not None), Told()
    assert job.weights is not None
    from lstmcli.weights.load import Choices, load_weights

    imported = load_weights(job.weights, Choices(**{field.name: getattr(job, field.name) for field in fields(Choices)}))
    model = imported.model
    check_memory(job, model.parameters())
    if model.input_size != features:
        raise DataError(
            f"{job.weights}: the model takes {model.input_size} features, {source.name} {source.stored_shape} has {features}"
        )
    return model, Told(imported.notes, imported.assumed, imported.before, imported.after)


def check_memory(job: Job, parameters: int) -> None:
    size = parameters * np.dtype(job.dtype).itemsize
    if size > job.max_memory:
        raise UsageError(f"--max-memory {job.max_memory:,}: the weights alone take {size:,} bytes; raise it")


def step_widths(model: Model, save: frozenset[str]) -> dict[str, int]:
    """The width of each array (N, T, width) that is to be stored."""
    widths = {"outputs": model.output_size} if "outputs" in save else {}
    if "cells" in save:
        widths["cells"] = model.cells_width
    if "layers" in save:
        widths |= {f"layers/{name}": layer.output_size for name, layer in (model.layers_by_name() or {"0": model}).items()}
    return widths


def stored_arrays(job: Job, model: Model, batch: int, time: int) -> Arrays:
    dtype = np.dtype(job.dtype)
    arrays: Arrays = {name: ((batch, time, width), dtype) for name, width in step_widths(model, job.save).items()}
    if "states" in job.save:
        arrays |= {f"state/{name}": ((batch, width), dtype) for name, width in model.state_widths().items()}
    return arrays


def attributes(job: Job, model: Model, assumed: Iterable[str], found: Nonfinite) -> dict[str, Any]:
    """What a result says of its making besides its lengths. assumed: of the weights, in sentences."""
    known: dict[str, Any] = {
        "model_config": model.config(),
        "options": {"dtype": job.dtype, "save": sorted(job.save)},
        "versions": {"lstmcli": __version__},
    }
    if assumed:
        known["assumed"] = list(assumed)
    if job.part:
        known["part"] = job.part.mark()
    if job.nonfinite != "pass":
        known |= {"nonfinite_steps": np.int64(found.steps), "nonfinite_first": np.array([found.row, found.step], np.int64)}
    return known


def describe(work: Work, targets: Paths) -> dict[str, Any]:
    """The facts of a run that are known before it."""
    job, source, lengths, model = work.job, work.source, work.lengths, work.model
    batch, time, _ = source.shape
    total, cells = int(lengths.sum()), [cell for _, cell in model.cells()]
    return {
        "input": {
            "path": source.name,
            "shape": list(source.stored_shape),
            "time_major": source.time_major,
            "dtype": source.dtype.name,
        },
        "lengths": {
            "from": work.origin,
            "min": int(lengths.min(initial=time)) if batch else 0,
            "mean": total / batch if batch else 0.0,
            "max": int(lengths.max(initial=0)),
            "total": total,
        },
        "padding_fraction": 1 - total / (batch * time) if batch * time else 0.0,
        "model": {
            "from": job.weights or f"seed {job.seed}",
            "layers": len(cells),
            "units": [cell.units for cell in cells],
            "parameters": model.parameters(),
        },
        "initial_state": work.initial.name if work.initial else None,
        "outputs": {"shape": [batch, time, model.output_size], "dtype": job.dtype, "stored": "outputs" in job.save},
        "state": [
            {"path": f"/state/{name}", "shape": [batch, width], "dtype": job.dtype}
            for name, width in model.state_widths().items()
        ],
        "output": str(targets.main or "-"),
        "states": str(targets.states) if targets.states else None,
        "model_file": str(targets.model) if targets.model else None,
        "threads": job.threads or available_threads(),
        "valid_steps": total,
        "seconds": 0.0,
        "steps_per_second": 0,
        "resumed_steps": 0,
        "nonfinite": None,
        "dry_run": job.dry_run,
        "part": [job.part.first, job.part.stop] if job.part else None,
        "notes": list(work.told.notes),
        "assumed": list(work.told.assumed),
        "left_out": {"before": list(work.told.before), "after": list(work.told.after)},
    }
