"""A job whose inputs and model are opened, checked and known by their content."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lstmcli.blocks import Lengths, Span, State, Valid
from lstmcli.errors import ChangedDataError, DataError, UsageError
from lstmcli.inputs.ragged.open_sequences import open_sequences
from lstmcli.inputs.source import Checksum, Source
from lstmcli.inputs.valid_steps import ValidSteps, read_valid_steps
from lstmcli.kernel.native.sha256 import sha256
from lstmcli.model.new_weights import count_parameters, init_model
from lstmcli.model.tree import Model
from lstmcli.results.formats.fields import PER_SEQUENCE
from lstmcli.results.formats.paths import TABLES
from lstmcli.results.formats.result import TableForm, WindowRows
from lstmcli.results.journal import Fingerprint, StoredSpan, differing
from lstmcli.run.job import Job, NewModel, Weights
from lstmcli.version import __version__

if TYPE_CHECKING:
    from lstmcli.inputs.beside.initial_state import States
    from lstmcli.model.chain import Chain
    from lstmcli.weights.draft import Imported


class AboutWeights(NamedTuple):
    """What the user should know of weights that were read."""

    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()  # what the file does not say itself, in sentences
    before: tuple[str, ...] = ()  # layers before the LSTMs, which are left out
    after: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()  # what else is left out of a file that names no layers
    masked: bool | None = None  # whether its framework masks the padding of what comes to the LSTMs; None: not known


class OpenedJob(NamedTuple):
    """A job with all that it reads."""

    job: Job
    source: Source
    valid_steps: ValidSteps  # of the sequences of this run
    model: "Model | Chain"
    about_weights: AboutWeights
    initial: "States | None"

    @property
    def valid(self) -> Valid:
        return self.valid_steps.valid

    @property
    def lengths(self) -> Lengths:
        return self.valid.lengths

    @property
    def ids(self) -> Sequence[str] | None:
        """The ids of the sequences of this run, where the input says them."""
        return self.source.ids[self.first : self.first + len(self.lengths)] if self.source.ids else None

    def windows(self) -> WindowRows | None:
        """Returns which windows the sequences of this run are, where they are some."""
        if self.job.inputs.window is None:
            return None
        from lstmcli.inputs.ragged.windows import Windows, columns

        assert isinstance(self.source, Windows)
        return WindowRows(*columns(self.source, self.first, len(self.lengths)))

    @property
    def first(self) -> int:
        """The number of the first sequence of this run in the input."""
        return self.job.part.first if self.job.part else 0

    def initial_state(self, span: Span) -> State | None:
        """Reads the state in which the sequences of a span begin, if one was given. Raises DataError or StorageError."""
        return self.initial.read(self.first + span.first, span.count) if self.initial else None

    def check_input(self, stored: StoredSpan, limit: int) -> None:
        """Reads a span again, at most `limit` rows at a time. Raises ChangedDataError if it is not what was read for it."""
        from lstmcli.run.memory import Limits, cut_into_spans  # loads the engine, which only a run needs

        span, found = stored.span, Checksum()
        valid = span.valid(self.valid)
        first = self.first + span.first
        rows = np.empty((limit, self.source.shape[2]), np.int64 if self.source.token_ids else self.job.compute.floats)
        for piece in cut_into_spans(valid.lengths, Limits(limit, span.count, fill=1), (1, 1)):
            starts, steps = piece.valid(valid)
            part = rows[: steps.sum()]
            self.source.read(first + piece.first, starts, steps, part)
            found.add(part)
        if span.start == 0:
            for state in (self.initial_state(span) or {}).values():
                found.add(state)
        if found.value() != stored.read:
            sequences = f"sequences {first} to {first + span.count - 1}"
            raise ChangedDataError(
                f"{self.source.name}, {sequences}: something that was read for them has changed since, while the sizes, times "
                "and samples of the files stayed; put it back, or start again with --overwrite"
            )

    def table_form(self) -> TableForm:
        """Returns what a table of predictions shows. Raises DataError and MissingInputError for bad labels."""
        output = self.job.output
        if output.output is None or Path(output.output).suffix not in TABLES:
            if output.top is not None or output.labels is not None:
                raise UsageError("--top and --labels are for a table; give --output NAME.csv, NAME.tsv or NAME.parquet")
            return TableForm()
        from lstmcli.inputs.beside.labels import read_labels

        return TableForm(output.top, read_labels(output.labels) if output.labels else None, self.first)

    def finish(self) -> None:
        """Raises DataError if an input changed while it was read, or if a pipe holds too little or too much."""
        self.source.finish()
        if self.initial:
            self.initial.finish()

    def fingerprint(self) -> Fingerprint:
        """Returns what tells this run from all others whose results may differ, ready for JSON.

        Lengths, masks, offsets and weights count by their values. Other files count by their own names and those of what is
        read in them, its place and form, size, time and a sample: they may move to another folder before the run is resumed.
        """
        if self.job.part:
            return self.job.part.mark()
        weights = sha256(json.dumps(self.model.config()).encode(), more=4 * self.model.parameters())
        for weight in self.model.arrays():
            weights.update(f"{weight.dtype.str}{weight.shape}".encode())
            weights.update(weight.tobytes())
        source = self.source
        shape = {"shape": list(source.shape), "dtype": source.dtype.str, "axes": source.axes}
        found = {
            "lstmcli": __version__,
            "input": source.identity() | shape,
            "lengths": mark_of_steps(self.valid),
            "model": weights.hexdigest()[:16],
            "options": self.job.compute.mark(),
        }
        if source.ids:
            found["ids"] = sha256("\0".join(source.ids).encode()).hexdigest()[:16]
        if self.about_weights.assumed:
            found["assumed"] = self.about_weights.assumed
        if self.initial:
            found["initial_state"] = self.initial.identity()
        normal: Fingerprint = json.loads(json.dumps(found))
        return normal

    def restricted(self) -> "OpenedJob":
        """Returns the part of the run that the job asks for. Raises DataError if the run is not what was planned."""
        part = self.job.part
        if not part:
            return self
        if differences := differing(part.run, self._replace(job=self.job._replace(part=None)).fingerprint()):
            raise DataError(
                f"{self.source.name}: the run is not the one that was planned: {'; '.join(differences)}; "
                "make it as it was, or plan anew"
            )
        valid = self.valid.part(part.first, part.stop)
        return self._replace(valid_steps=self.valid_steps._replace(valid=valid))


def mark_of_steps(valid: Valid) -> str:
    """Returns what tells these valid steps from others."""
    mark = sha256(valid.lengths.tobytes())
    if valid.starts.any():
        mark.update(valid.starts.tobytes())
    return str(mark.hexdigest()[:16])


@contextmanager
def open_job(job: Job) -> Iterator[OpenedJob]:
    """Opens and checks all that a job reads. Raises MissingInputError, DataError, UsageError or StorageError."""
    inputs = job.inputs
    with ExitStack() as opened:
        found = open_sequences(
            inputs.input, inputs.lens, inputs.offsets, inputs.axes, inputs.follow_links, is_whole(job.model), inputs.also
        )
        source = opened.enter_context(closing(found))
        valid_steps = read_valid_steps(inputs.lens, inputs.padding, source, inputs.follow_links)
        if inputs.window is not None:
            from lstmcli.inputs.ragged.windows import Windows

            source = Windows(source, valid_steps, inputs.window, inputs.stride or 1)
            valid_steps = source.valid_steps
        elif inputs.stride is not None:
            raise UsageError(f"--stride {inputs.stride}: is the distance of windows; give --window as well")
        model, about_weights = read_model(job, source)
        job = job._replace(compute=job.compute.decided(source.lengths is not None, model))
        if job.compute.layout == PER_SEQUENCE and source.ids:
            from lstmcli.results.formats.per_sequence import check_names

            check_names(source.ids, source.ids_origin or source.name)
        initial = None
        if inputs.initial_state is not None:
            from lstmcli.inputs.beside.initial_state import open_states

            assert isinstance(model, Model)
            start, widths, follow = inputs.initial_state, model.state_widths(), inputs.follow_links
            states = open_states(start, widths, source.shape[0], job.compute.floats, source.ids, follow)
            initial = opened.enter_context(closing(states))
        yield OpenedJob(job, source, valid_steps, model, about_weights, initial).restricted()


def read_model(job: Job, source: Source) -> "tuple[Model | Chain, AboutWeights]":
    """Returns the model of a job, and what there is to say about its weights."""
    features, said = source.shape[2], job.model
    if not isinstance(said, Weights):
        check_memory(job, count_parameters(features, said.units, said.cells, said.bidirectional))
        return init_model(features, said.units, said.seed, said.cells, said.bidirectional, said.residual), AboutWeights()
    if said.whole:
        return read_chain(job, said, source)
    from lstmcli.weights.load import load_weights

    imported = load_weights(said.weights, said.choices)
    model = imported.model
    check_memory(job, model.parameters())
    if model.input_size != features:
        raise DataError(
            f"{said.weights}: the model takes {model.input_size} features, {source.name} {source.stored_shape} has {features}"
        )
    tensors = () if imported.before or imported.after else tensors_left_out(imported)
    return model, AboutWeights(imported.notes, imported.assumed, imported.before, imported.after, tensors, imported.masked)


def tensors_left_out(imported: "Imported") -> tuple[str, ...]:
    """Returns what stands beside the LSTMs in a file of weights, but for what an optimizer keeps."""
    if not imported.left_out:
        return ()
    from lstmcli.weights.draft import is_slot

    return tuple(str(tensor) for tensor in imported.left_out if not is_slot(tensor.name))


def read_chain(job: Job, said: Weights, source: Source) -> "tuple[Chain, AboutWeights]":
    """Returns a whole model, and what there is to say about its weights."""
    from lstmcli.weights.chains.load import load_chain

    found = load_chain(said.weights, said.choices, said.chain, source.token_ids)
    chain = found.chain
    check_memory(job, chain.parameters())
    if chain.takes_ids != source.token_ids:
        expected = "token ids, integers (sequences, steps)" if chain.takes_ids else f"{chain.input_size} features at each step"
        raise DataError(f"{said.weights}: the model takes {expected}; {source.name} holds {source.dtype} {source.stored_shape}")
    if chain.input_size != source.shape[2]:
        raise DataError(
            f"{said.weights}: the model takes {chain.input_size} features, "
            f"{source.name} {source.stored_shape} has {source.shape[2]}"
        )
    return chain, AboutWeights(found.notes, found.assumed, masked=found.masked)


def is_whole(model: NewModel | Weights) -> bool:
    return isinstance(model, Weights) and model.whole


def check_memory(job: Job, parameters: int) -> None:
    size, limit = parameters * job.compute.floats.itemsize, job.resources.max_memory
    if size > limit:
        raise UsageError(f"--max-memory {limit:,}: the weights alone take {size:,} bytes; raise it")
