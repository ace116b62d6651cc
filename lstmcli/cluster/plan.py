"""plan.json: a run cut into parts that any machine can do, in any order.

Parts count from 1, as the tasks of all schedulers may. Part K is PLAN.parts/part-000K.h5 beside the plan, a result of its
sequences that also says which run it belongs to (attribute `part`). Inputs are named by absolute paths: a plan works from any
folder, and on any machine where these lead to the same files.
"""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lstmcli.blocks import Lengths
from lstmcli.cluster.forged_plan import check_cuts, check_job
from lstmcli.errors import DataError, OutputError, UsageError, shown
from lstmcli.files.file_kind import open_by_kind
from lstmcli.files.partial_file import absolute_path, write_whole
from lstmcli.results.formats.paths import Paths
from lstmcli.results.journal import Fingerprint
from lstmcli.run.job import Job, Output, Part, Resources
from lstmcli.run.opened_job import open_job
from lstmcli.run.summary import describe, metadata_of
from lstmcli.version import __version__

FORMAT, FORMAT_VERSION = "lstmcli-plan", 1
LARGEST = 1 << 28  # bytes of a plan: more than one with a million inputs has


@dataclass(frozen=True)
class Plan:
    """A run and where it is cut."""

    path: Path
    job: Job  # of the whole, its inputs named by absolute paths
    run: Fingerprint
    cuts: tuple[int, ...]  # part K has the sequences cuts[K - 1] .. cuts[K]

    def __len__(self) -> int:
        return len(self.cuts) - 1

    @property
    def numbers(self) -> range:
        return range(1, len(self) + 1)

    @property
    def shape(self) -> tuple[int, int]:
        """The (N, T) of the whole run."""
        batch, time, _ = self.run["input"]["shape"]
        return batch, time

    def part(self, number: int) -> Part:
        return Part(self.cuts[number - 1], self.cuts[number], self.run)

    def folder(self) -> Path:
        return self.path.with_suffix(".parts")

    def part_path(self, number: int) -> Path:
        return self.folder() / f"part-{number:04}.h5"

    def checked(self, number: int) -> int:
        """Returns the number of a part. Raises UsageError if there is no such part."""
        if number not in self.numbers:
            raise UsageError(f"--shard {number}: {shown(str(self.path))} has the parts 1 to {len(self)}")
        return number

    def part_job(self, number: int, resources: Resources) -> Job:
        """Returns the job of a part."""
        return self.job._replace(output=Output(str(self.part_path(number))), resources=resources, part=self.part(number))

    def content(self) -> dict[str, Any]:
        about = {"format": FORMAT, "format_version": FORMAT_VERSION}
        return about | {"job": self.job.content(), "run": self.run, "cuts": list(self.cuts)}

    @property
    def checksum(self) -> str:
        return checksum(self.content())


def make_plan(job: Job, shards: int, path: Path) -> tuple[Plan, dict[str, Any]]:
    """Returns a plan, not yet written, and its facts, ready for JSON. Reads all inputs, and raises errors, as a run does."""
    if path.suffix != ".json":
        raise UsageError(f"--output {path}: expected a name that ends in .json")
    job = job.with_absolute_names()
    with open_job(job) as opened:
        if opened.source.sequential:
            raise UsageError(f"{opened.source.name}: every part opens the input, so it cannot be a pipe; give a file")
        cuts = split(opened.lengths, shards, opened.source.chunk[0])
        job, made = opened.job, metadata_of(opened)
        plan = Plan(absolute_path(path), job, opened.fingerprint(), cuts)
        step_bytes = opened.source.shape[2] * opened.source.dtype.itemsize
        parts = []
        for number in plan.numbers:
            part = plan.part(number)
            steps = int(opened.lengths[part.first : part.stop].sum())
            arrays = job.compute.arrays(opened.model, part.stop - part.first, opened.source.shape[1])
            own = made._replace(valid=made.valid.part(part.first, part.stop))
            stored = sum(math.prod(own.stored_shape(shape)) * dtype.itemsize for shape, dtype in arrays.values())
            parts.append(
                {
                    "part": number,
                    "rows": [part.first, part.stop],
                    "steps": steps,
                    "bytes_read": steps * step_bytes,
                    "bytes_stored": stored,
                }
            )
        facts = describe(opened, Paths(path))
    known = {
        name: facts[name]
        for name in ("input", "lengths", "padding_fraction", "model", "valid_steps", "notes", "assumed", "left_out")
    }
    return plan, known | {"plan": str(path), "shards": shards, "max_memory": job.resources.max_memory, "parts": parts}


def split(lengths: Lengths, shards: int, chunk: int = 1) -> tuple[int, ...]:
    """Returns where to cut: 0, ..., N, for at most `shards` parts with numbers of steps as equal as whole sequences allow.

    Cuts lie between chunks of `chunk` sequences, and no cut is further from its ideal place than half the steps of the chunk
    that is there. Where a single chunk has the steps of several parts, or there are fewer chunks, there are fewer parts.
    """
    edges = np.r_[np.arange(0, len(lengths), chunk), len(lengths)]
    before = np.r_[0, np.cumsum(lengths)][edges]
    if not before[-1]:
        before = edges  # nothing but padding: parts have equal numbers of sequences
    ideal = before[-1] * np.arange(1, shards) // shards
    above = np.searchsorted(before, ideal)
    below = np.maximum(above - 1, 0)
    nearest = np.where(ideal - before[below] < before[above] - ideal, below, above)
    inner = np.unique(edges[nearest])
    return (0, *inner[(inner > 0) & (inner < len(lengths))].tolist(), len(lengths))


def write_plan(plan: Plan, overwrite: bool) -> None:
    """Writes the plan and makes the folder for its parts. Raises OutputError or StorageError."""
    content = plan.content()
    text = json.dumps(content | {"checksum": checksum(content)}, indent=2) + "\n"
    write_whole(plan.path, [text.encode()], overwrite)
    try:
        plan.folder().mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{shown(str(plan.folder()))}: cannot be created: {error.strerror}") from error


def read_plan(path: str) -> Plan:
    """Reads a plan. Raises MissingInputError if there is no such file, DataError if it is no plan, or was changed."""
    where = shown(path)
    with open_by_kind(path) as (file, _):
        text = file.take(0, min(file.opened.st_size, LARGEST))
    try:
        content = json.loads(text)
        kind, version = content["format"], content["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        kind = version = None
    if kind != FORMAT:
        raise DataError(f"{where}: expected a plan that `lstmcli plan` has written, got something else")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{where}: expected format_version {FORMAT_VERSION}, got {shown(str(version))}; a newer lstmcli may read it"
        )
    if content.pop("checksum", None) != checksum(content):
        raise DataError(f"{where}: is not what `lstmcli plan` wrote: it was edited or damaged; plan anew")
    try:
        job, run, cuts = Job.from_content(content["job"]), content["run"], tuple(content["cuts"])
        check_job(job)
        check_cuts(run, cuts)
        return Plan(absolute_path(Path(path)), job, run, cuts)
    except (KeyError, TypeError, AttributeError, ValueError, UsageError) as error:
        made = content["run"].get("lstmcli") if isinstance(content.get("run"), dict) else None
        by = f"was made by lstmcli {shown(str(made))}, and this is {__version__}" if made else "is not a plan of this version"
        raise DataError(f"{where}: {by}; plan anew") from error


def checksum(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"
