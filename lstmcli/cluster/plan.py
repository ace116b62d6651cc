"""plan.json: a run cut into parts that any machine can do, in any order.

Parts count from 1, as the tasks of all schedulers may. Part K is PLAN.parts/part-000K.h5 beside the plan, a result of its
sequences that also says which run it belongs to (attribute `part`). Inputs are named by absolute paths: a plan works from any
folder, and on any machine where these lead to the same files.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lstmcli.blocks import Lengths
from lstmcli.errors import DataError, MissingInputError, OutputError, UsageError, shown
from lstmcli.files.file_kind import split_spec
from lstmcli.files.partial_file import write_whole
from lstmcli.results.journal import Fingerprint
from lstmcli.results.result import Paths
from lstmcli.run.job import Job, Part, describe, open_work, stored_arrays

FORMAT, FORMAT_VERSION = "lstmcli-plan", 1
INPUTS = ("input", "lens", "weights", "initial_state")
OF_A_PART = {"output", "states", "part", "overwrite", "resume", "dry_run"}  # what a plan does not say of its job


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
        """(N, T) of the whole."""
        batch, time, _ = self.run["input"]["shape"]
        return batch, time

    def part(self, number: int) -> Part:
        return Part(self.cuts[number - 1], self.cuts[number], self.run)

    def folder(self) -> Path:
        return self.path.with_suffix(".parts")

    def part_path(self, number: int) -> Path:
        return self.folder() / f"part-{number:04}.h5"

    def checked(self, number: int) -> int:
        """UsageError: no such part."""
        if number not in self.numbers:
            raise UsageError(f"--shard {number}: {shown(str(self.path))} has the parts 1 to {len(self)}")
        return number

    def part_job(self, number: int, **settings: Any) -> Job:
        """settings: fields of Job that change no bit of the result, such as threads."""
        return self.job._replace(part=self.part(number), output=str(self.part_path(number)), **settings)

    def content(self) -> dict[str, Any]:
        job = {name: value for name, value in self.job._asdict().items() if name not in OF_A_PART}
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "job": job | {"save": sorted(self.job.save)},
            "run": self.run,
            "cuts": list(self.cuts),
        }

    @property
    def checksum(self) -> str:
        return checksum(self.content())


def make_plan(job: Job, shards: int, path: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan, not yet written, and its facts, ready for JSON. Reads all inputs as a run does, and raises the same errors."""
    if path.suffix != ".json":
        raise UsageError(f"--output {path}: expected a name that ends in .json")
    inputs: dict[str, Any] = {name: absolute(getattr(job, name)) for name in INPUTS}
    job = job._replace(**inputs)
    with open_work(job) as work:
        if work.source.sequential:
            raise UsageError(f"{work.source.name}: every part opens the input, so it cannot be a pipe; give a file")
        cuts = split(work.lengths, shards, work.source.chunk[0])
        plan = Plan(path.absolute(), job, work.fingerprint(), cuts)
        step_bytes = work.source.shape[2] * work.source.dtype.itemsize
        parts = []
        for number in plan.numbers:
            part = plan.part(number)
            steps = int(work.lengths[part.first : part.stop].sum())
            arrays = stored_arrays(job, work.model, part.stop - part.first, work.source.shape[1])
            stored = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in arrays.values())
            parts.append(
                {
                    "part": number,
                    "rows": [part.first, part.stop],
                    "steps": steps,
                    "bytes_read": steps * step_bytes,
                    "bytes_stored": stored,
                }
            )
        facts = describe(work, Paths(path))
    known = {
        name: facts[name]
        for name in ("input", "lengths", "padding_fraction", "model", "valid_steps", "notes", "assumed", "left_out")
    }
    return plan, known | {"plan": str(path), "shards": shards, "max_memory": job.max_memory, "parts": parts}


def absolute(spec: str | None) -> str | None:
    if spec in (None, "-", "none"):
        return spec
    path, name = split_spec(spec)
    # Not Path.resolve(): where links lead may differ between machines.
    return str(Path(path).absolute()) + (f"::{name}" if name else "")


def split(lengths: Lengths, shards: int, chunk: int = 1) -> tuple[int, ...]:
    """Where to cut, for at most `shards` parts with as equal numbers of steps as whole sequences allow; 0, ..., N.

    Cuts lie between chunks of `chunk` sequences, each no further from where equal parts would have it than half the steps of
    the chunk there. Where a single chunk has the steps of several parts, or there are fewer chunks, there are fewer parts.
    """
    edges = np.r_[np.arange(0, len(lengths), chunk), len(lengths)]
    before = np.r_[0, np.cumsum(lengths)][edges]
    if not before[-1]:
        before = edges  # nothing but padding: as equal numbers of sequences
    ideal = before[-1] * np.arange(1, shards) // shards
    above = np.searchsorted(before, ideal)
    below = np.maximum(above - 1, 0)
    nearest = np.where(ideal - before[below] < before[above] - ideal, below, above)
    inner = np.unique(edges[nearest])
    return (0, *inner[(inner > 0) & (inner < len(lengths))].tolist(), len(lengths))


def write_plan(plan: Plan, overwrite: bool) -> None:
    """The plan and the folder for its parts. OutputError, StorageError."""
    content = plan.content()
    text = json.dumps(content | {"checksum": checksum(content)}, indent=2) + "\n"
    write_whole(plan.path, text.encode(), overwrite)
    try:
        plan.folder().mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{shown(str(plan.folder()))}: cannot be created: {error.strerror}") from error


def read_plan(path: str) -> Plan:
    """MissingInputError: no such file. DataError: not a plan, or not as it was written."""
    where = shown(path)
    try:
        text = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise MissingInputError(f"{where}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
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
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in content["job"].items()}
        job = Job(**values | {"save": frozenset(values["save"])})
        return Plan(Path(path).absolute(), job, content["run"], tuple(content["cuts"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: is not a plan of this version of lstmcli; plan anew") from error


def checksum(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"
