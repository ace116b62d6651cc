"""The parts of a plan joined: to the bytes that one run would have stored, or to a file that shows them as one."""

import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Span, Valid, steps_until
from lstmcli.cluster.job_scripts import array_expression
from lstmcli.cluster.parts import open_part
from lstmcli.cluster.plan import Plan
from lstmcli.errors import ChangedDataError, DataError, LstmcliError, MissingInputError, StoppedError, UsageError, shown
from lstmcli.files import hdf5
from lstmcli.files.partial_file import write_whole
from lstmcli.files.positioned_file import FileBytes, open_readable
from lstmcli.inputs.contiguous import ContiguousArray
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.inputs.source import StoredArray
from lstmcli.model.chain import Chain
from lstmcli.model.chain_file import any_model_in
from lstmcli.model.tree import Model
from lstmcli.results.formats.fields import PADDED, PER_SEQUENCE, Arrays, Checksums, Field
from lstmcli.results.formats.hdf5_result import CHECKSUM, allocate, stored_steps, write_metadata
from lstmcli.results.formats.paths import Paths, check_paths, refuse_inputs, result_paths
from lstmcli.results.formats.result import Metadata, WindowRows
from lstmcli.results.journal import StoredSpan
from lstmcli.results.naming import UnpublishedResult, publishing
from lstmcli.results.verify import verify
from lstmcli.results.virtual_merge import MERGED_SUM, PART_NAMES, PART_SUMS, container_sum
from lstmcli.run.memory import Limits, cut_into_spans
from lstmcli.run.opened_job import mark_of_steps
from lstmcli.run.pipeline import Progress
from lstmcli.run.stop import Stop
from lstmcli.run.summary import metadata, with_origins
from lstmcli.version import __version__

BLOCK_BYTES = 32_000_000  # read while as many are written
NAMED = 10  # parts in one message


@dataclass(frozen=True)
class StoredPart:
    """Where the rows of a part lie, and what they must be."""

    number: int
    path: str
    first: int  # of its sequences in the whole
    valid: Valid
    placed: Valid  # as Metadata.placed
    fields: dict[str, Field]  # of a file that has been closed
    sums: dict[str, Checksums]
    nonfinite: Nonfinite  # row: in the whole
    ids: Sequence[str] = ()  # none where the input says none
    windows: WindowRows | None = None

    @property
    def count(self) -> int:
        """The number of its sequences."""
        return len(self.valid.lengths)


@dataclass(frozen=True)
class JoinedParts:
    """All parts of a plan, each complete and of this plan."""

    plan: Plan
    parts: list[StoredPart]
    model: Model | Chain
    valid: Valid

    def arrays(self) -> Arrays:
        return self.plan.job.compute.arrays(self.model, *self.plan.shape)

    def nonfinite(self) -> Nonfinite | None:
        """Returns what the parts' runs have found; None: they did not look."""
        if self.plan.job.compute.nonfinite == "pass":
            return None
        return sum((part.nonfinite for part in self.parts), Nonfinite())

    def metadata(self) -> Metadata:
        run, compute = self.plan.run, self.plan.job.compute
        made = metadata(compute, self.model, self.valid, run.get("assumed", ()))
        has_ids = "ids" in run or made.layout == PER_SEQUENCE
        ids = [name for part in self.parts for name in part.ids] if has_ids else None
        return with_origins(made, self.plan.job, run)._replace(ids=ids, windows=self.windows())

    def windows(self) -> WindowRows | None:
        """Returns which windows the sequences are, where they are some."""
        found = [part.windows for part in self.parts if part.windows]
        if not found:
            return None
        series, first_steps = (np.concatenate(arrays) for arrays in zip(*(one[:2] for one in found), strict=True))
        return WindowRows(series, first_steps, found[0].series_ids)


def merge(
    plan: Plan,
    output: str,
    states: str | None,
    overwrite: bool,
    resume: bool,
    on_progress: Progress = lambda steps, total: None,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Joins the parts by copying them. Returns the facts, ready for JSON. Every row is read once and its checksum compared.

    What was copied when the merge was stopped stays, as for run(). Raises DataError that names parts that are missing or wrong.
    """
    stop = stop or Stop()
    paths = merged_paths(plan, output, states, overwrite, resume)
    whole = check_parts(plan)
    fingerprint = plan.run | {"merged from": plan.checksum}
    with (
        stop.deferred(),
        publishing(paths, whole.arrays(), whole.metadata(), fingerprint, overwrite, resume) as result,
    ):
        if result:
            before = result.restored({})
            copy(whole, result, before.span if before else None, stop, on_progress)
            result.seal(whole.nonfinite())
    return describe(whole, paths)


def merge_virtual(plan: Plan, output: str, states: str | None, overwrite: bool) -> dict[str, Any]:
    """Makes a small HDF5 file whose arrays lie in the parts, after reading and checking these. Returns the facts, for JSON.

    The file names the parts relative to its own folder, and holds their checksums and its own for verify(). If one of the
    parts vanishes later, libhdf5 gives NaN for its rows.
    """
    import h5py

    if plan.job.compute.layout == PER_SEQUENCE:
        raise UsageError("--virtual: not with --layout per-sequence, whose datasets HDF5 cannot show as one; leave it out")
    paths = merged_paths(plan, output, states, overwrite, resume=False)
    if paths.main is None or not paths.is_hdf5:
        raise UsageError(f"--virtual --output {output}: expected a name that ends in .h5 or .hdf5")
    whole = check_parts(plan)
    folder = os.path.realpath(paths.main.parent)
    names = [os.path.relpath(os.path.realpath(part.path), folder) for part in whole.parts]
    if any(name.encode("utf-8", "replace").decode() != name for name in names):
        raise UsageError(f"--virtual: expected UTF-8 in the names of the parts, got {shown(names[0])}; leave it out")
    for part in whole.parts:
        verify(part.path)
    sums = [container_sum(part.path) for part in whole.parts]
    made = whole.metadata()._replace(nonfinite=whole.nonfinite())
    with h5py.File("merged", "w", driver="core", backing_store=False) as file:
        write_metadata(file, made)
        for name, values in stored_steps(made).items():
            file[name] = values
        for name, (shape, dtype) in whole.arrays().items():
            layout, at = h5py.VirtualLayout(made.stored_shape(shape), dtype), 0
            for part, part_name in zip(whole.parts, names, strict=True):
                own = made._replace(valid=part.valid).stored_shape((part.count, *shape[1:]))
                if own[0]:
                    source = part_name.replace("%", "%%")  # to libhdf5 %b is the number of a part
                    layout[at : at + own[0]] = h5py.VirtualSource(source, name, own, dtype)
                at += own[0]
            file.create_virtual_dataset(name, layout, fillvalue=np.nan)
        file[PART_NAMES] = names
        file[PART_SUMS] = np.array(sums, np.uint32)
        own = hdf5.Extent(allocate(file, MERGED_SUM, (1,), CHECKSUM), CHECKSUM.itemsize)
        file.flush()
        image = bytearray(file.id.get_file_image())
    checksum = hdf5.container_checksum(lambda offset, count: bytes(image[offset : offset + count]), len(image), [own])
    image[own.offset : own.offset + own.size] = np.array([checksum], CHECKSUM).tobytes()
    write_whole(paths.main, [memoryview(image)], overwrite)
    return describe(whole, paths)


def merged_paths(plan: Plan, output: str, states: str | None, overwrite: bool, resume: bool) -> Paths:
    """Returns the files to make. Raises UsageError or OutputError if they cannot be made or are among those that are read."""
    paths = result_paths(output, states, plan.job.compute.save, plan.job.inputs.input)
    if paths.main is None:
        raise UsageError(f"--output {output}: expected a file; a merge cannot write to a pipe")
    parts = (str(plan.part_path(number)) for number in plan.numbers)
    read = (*plan.job.files(), str(plan.path), *parts)
    check_paths(paths, overwrite, resume)
    refuse_inputs(paths, read, plan.job.inputs.follow_links)
    return paths


def check_parts(plan: Plan) -> JoinedParts:
    """Finds all parts. Raises DataError that names those that are missing, cut, damaged outside of their rows, or foreign."""
    if plan.run["lstmcli"] != __version__:
        made = shown(str(plan.run["lstmcli"]))
        raise DataError(f"{shown(str(plan.path))}: was made by lstmcli {made}, and this is {__version__}; merge with that one")
    parts: list[StoredPart] = []
    model: Model | Chain | None = None
    absent: list[int] = []
    wrong: list[str] = []
    for number in plan.numbers:
        try:
            part, model = find_part(plan, number, model)
            parts.append(part)
        except MissingInputError:
            absent.append(number)
        except LstmcliError as error:
            wrong.append(f"part {number}: {error}")
    if absent:
        wrong.insert(0, f"missing: {array_expression(absent)} of 1-{len(plan)}")
    if wrong or model is None:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise DataError(
            f"{shown(str(plan.path))}: not all parts can be merged: {'; '.join(wrong[:NAMED])}{more}; "
            "lstmcli plan --missing prints which to make"
        )
    starts, lengths = (np.concatenate(arrays) for arrays in zip(*(part.valid for part in parts), strict=True))
    valid = Valid(starts, lengths)
    keeps_steps = not isinstance(model, Chain) or not model.has_steps
    if keeps_steps and mark_of_steps(valid) != plan.run["lengths"]:
        raise DataError(f"{shown(str(plan.path))}: the lengths in the parts are not those that were planned")
    return JoinedParts(plan, parts, model, valid)


def find_part(plan: Plan, number: int, model: Model | Chain | None) -> tuple[StoredPart, Model | Chain]:
    """Returns a part and the model. model: that of another part, if it is known already: all parts have the same."""
    first, stop = plan.cuts[number - 1 : number + 1]
    with open_part(plan, number) as part:
        model = model or any_model_in(part.file)
        arrays = plan.job.compute.arrays(model, stop - first, plan.shape[1])
        if part.layout != PADDED:  # the number of steps that all sequences would be padded to is the part's own
            longest = int(part.valid.lengths.max(initial=0))
            arrays = {n: (s if len(s) == 2 else (s[0], longest, s[2]), dtype) for n, (s, dtype) in arrays.items()}
        shapes: Arrays = {name: (field.shape, field.dtype) for name, field in part.fields.items()}
        if part.layout != plan.job.compute.layout or shapes != arrays:
            raise DataError(f"{part.data.name}: does not hold the arrays that the plan says")
        found = Nonfinite()
        if plan.job.compute.nonfinite != "pass":
            with hdf5.reading(part.data.name):
                row, step = hdf5.attribute(part.file, "nonfinite_first").tolist()
                steps = int(hdf5.attribute(part.file, "nonfinite_steps"))
            found = Nonfinite(steps, row + first, step) if steps else found
        path = str(plan.part_path(number))
        ids = part.ids or ()
        windows = part.windows if plan.job.inputs.window is not None else None
        return StoredPart(number, path, first, part.valid, part.placed, part.fields, part.sums, found, ids, windows), model


def copy(whole: JoinedParts, unpublished: UnpublishedResult, before: Span | None, stop: Stop, on_progress: Progress) -> None:
    """Copies the spans after `before`; reads span k + 1 while span k is stored.

    Raises StoppedError, or DataError if a row is not what its checksum says.
    """
    lengths, total = whole.valid.lengths, int(whole.valid.lengths.sum())
    ready = steps_until(before, lengths) if before else 0
    on_progress(ready, total)
    with closing(blocks(whole, before)) as reading, ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, reading, None)
        while (block := coming.result()) and not stop.reason():
            span, part, rows = block
            coming = reader.submit(next, reading, None)
            checksum = unpublished.result.put(span, rows)
            if span.last:  # before it is recorded: what is recorded is not compared again
                compare(part, span, unpublished.result.running)
            unpublished.record(StoredSpan(span, checksum, Nonfinite(), None))
            count = int(span.lengths(lengths).sum())
            ready += count
            on_progress(count, total)
    if block:
        unpublished.flush()
        raise StoppedError(f"stopped by {stop.reason()} after {ready:,} of {total:,} steps")


def blocks(whole: JoinedParts, before: Span | None) -> Generator[tuple[Span, StoredPart, dict[str, NDArray[Any]]], None, None]:
    """Yields spans of the whole, each from one part, with their packed steps and their rows, in two buffers in turn."""
    arrays = whole.arrays()
    steps = {name: (shape[2], dtype) for name, (shape, dtype) in arrays.items() if len(shape) == 3}
    others = [(shape[1], dtype) for shape, dtype in arrays.values() if len(shape) == 2]
    sizes = (sum(width * dtype.itemsize for width, dtype in each) for each in (steps.values(), others))
    rows, sequences = (max(1, BLOCK_BYTES // max(1, size)) for size in sizes)
    limits = Limits(rows, sequences, fill=1)
    buffers = [{name: np.empty((rows, width), dtype) for name, (width, dtype) in steps.items()} for _ in range(2)]
    start = before.first + before.count if before else 0
    turn = 0
    for part in whole.parts:
        done = max(0, start - part.first)
        if done >= part.count:
            continue
        after = Span(0, done, 0, 0, last=True) if done else None
        fd = open_readable(part.path)
        try:
            data = FileBytes(fd, shown(part.path))
            fields = {name: field._replace(store=data) for name, field in part.fields.items()}
            padded = {
                name: ContiguousArray(StoredArray(data, f"{data.name}::/{name}", field.shape, field.dtype, field.offset))
                for name, field in fields.items()
                if field.has_steps and field.begins is None
            }
            for span in cut_into_spans(part.valid.lengths, limits, (1, 1), after):
                valid = span.valid(part.placed)
                packed = {name: buffer[: valid.lengths.sum()] for name, buffer in buffers[turn].items()}
                for name, target in packed.items():
                    if name in padded:  # which reads small gaps as well, in fewer calls
                        padded[name].read(span.first, *valid, target)
                    else:
                        fields[name].get_into(target, span.first, valid)
                if span.last:
                    packed |= {name: fields[name].get(span.first, valid) for name in fields.keys() - steps.keys()}
                yield replace(span, first=part.first + span.first), part, packed
                turn = 1 - turn
        except DataError as error:
            raise spoiled(part, str(error)) from error
        finally:
            os.close(fd)


def compare(part: StoredPart, span: Span, sums: dict[str, Checksums]) -> None:
    """Raises DataError if the rows that were read are not those that the part's run has stored."""
    first = span.first - part.first
    for name, found in sums.items():
        wrong = np.flatnonzero(found != part.sums[name][first : first + span.count])
        if len(wrong):
            where = f"{shown(part.path)}::/{name}, row {first + wrong[0]}"
            raise spoiled(part, f"{where}: its bytes are not what was written: their checksum differs")


def spoiled(part: StoredPart, what: str) -> ChangedDataError:
    """Returns the error about a part that is not any more what it was when the merge began: the copies of others stay."""
    return ChangedDataError(f"{what}; make the part again: --shard {part.number} --overwrite; merge --resume then goes on")


def describe(whole: JoinedParts, paths: Paths) -> dict[str, Any]:
    """Returns the facts of a merge, ready for JSON."""
    arrays, made = whole.arrays(), whole.metadata()
    return {
        "plan": str(whole.plan.path),
        "parts": len(whole.parts),
        "arrays": [
            {"path": f"/{name}", "shape": list(made.stored_shape(shape)), "dtype": kind.name}
            for name, (shape, kind) in arrays.items()
        ],
        "valid_steps": int(whole.valid.lengths.sum()),
        "output": str(paths.main),
        "states": str(paths.states) if paths.states else None,
        "model_file": str(paths.model) if paths.model else None,
    }
