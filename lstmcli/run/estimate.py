"""What a run would read, store and take, told before it begins."""

import csv
import io
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from lstmcli.blocks import Block, packed_starts
from lstmcli.errors import SequenceError
from lstmcli.files import hdf5
from lstmcli.model.tree import as_chain
from lstmcli.results.formats.paths import TABLES, Paths
from lstmcli.results.formats.result import TableForm
from lstmcli.run.computation import Work, computation_of, is_compiled
from lstmcli.run.opened_job import OpenedJob
from lstmcli.run.summary import metadata_of

FLOPS = 2e9  # of the sample that is computed, for each thread: some hundredths of a second
ROWS = 100_000  # of the sample, at most
CHARACTERS = {2: 8, 4: 12, 8: 20}  # of a number in a text, with what separates it, by the bytes of its dtype


def estimate(opened: OpenedJob, paths: Paths, threads: int) -> dict[str, Any]:
    """Returns the bytes to read and to store, those that are free where the result goes, and the seconds of computing.

    The seconds are measured: the model computes a sample, as many of the first sequences as take some hundredths of a second.
    They leave out reading and storing, which go on at the same time, but not the text of a table, which is written at the end.
    None: the kernel is not compiled yet, or no sample of numbers that are made up can be computed.
    """
    made = metadata_of(opened)
    arrays = opened.job.compute.arrays(opened.model, len(opened.lengths), opened.source.shape[1])
    shapes = {name: (made.stored_shape(shape), dtype) for name, (shape, dtype) in arrays.items()}
    free = None
    if paths.main is not None:
        status = os.statvfs(Path(paths.main).parent)
        free = status.f_bavail * status.f_frsize
    writing = 0.0
    stored = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
    if paths.main is not None and paths.main.suffix in TABLES:  # which is written from the values, while they are still there
        size = CHARACTERS if TABLES[paths.main.suffix] else {}
        for name, (shape, dtype) in shapes.items():
            columns = 2 * made.table.top if made.table.top and name == "predictions" else shape[-1]
            stored += (numbers := math.prod(shape[:-1]) * columns) * size.get(dtype.itemsize, dtype.itemsize)
            writing += numbers * seconds_of_number(dtype) if size else 0.0
    computing = seconds_of(opened, threads) if opened.lengths.any() else 0.0
    return {
        "bytes_read": bytes_read(opened),
        "bytes_stored": stored,
        "bytes_free": free,
        "seconds": None if computing is None else computing + writing,
    }


def seconds_of_number(dtype: np.dtype[Any]) -> float:
    """Returns how long a number in the text of a table takes, from a sample of them."""
    from lstmcli.results.formats.table_result import cells

    rows = np.linspace(0, 1, 1 << 14, dtype=dtype).reshape(-1, 16)
    began = time.perf_counter()
    csv.writer(io.StringIO()).writerows(cells(TableForm(), row) for row in rows)
    return (time.perf_counter() - began) / rows.size


def bytes_read(opened: OpenedJob) -> int:
    """Returns the bytes of the steps that are read; of HDF5 chunks, those that lie in the file for them."""
    source, lengths = opened.source, opened.lengths
    steps = int(lengths.sum())
    if opened.job.inputs.window is not None:
        from lstmcli.inputs.ragged.windows import Windows

        assert isinstance(source, Windows)
        steps = source.steps_read(opened.first, len(lengths))
    dataset = source.dataset
    if not steps or dataset is None or hdf5.raw_offset(dataset) is not None or not dataset.chunks:
        return steps * source.shape[2] * source.dtype.itemsize
    if source.lengths is not None:
        return hdf5.storage_size(dataset) * steps // int(source.lengths.sum())
    sequences, width = source.chunk
    ends = np.maximum.reduceat(opened.valid.starts + lengths, np.arange(0, len(lengths), sequences))
    chunks = -(-source.shape[0] // sequences) * -(-source.shape[1] // width)
    return hdf5.storage_size(dataset) * int((-(-ends // width)).sum()) // chunks


def seconds_of(opened: OpenedJob, threads: int) -> float | None:
    """Returns how long all steps take to compute, from a sample of them."""
    if not is_compiled(opened.model, opened.job.compute):
        return None
    work = Work(int(opened.lengths.sum()), opened.job.resources.max_memory)
    computation = computation_of(opened.model, opened.job.compute, threads, work)
    rows = max(1, min(ROWS, int(FLOPS * threads / max(1, computation.step_flops))))
    ends = np.cumsum(opened.lengths)
    count = max(1, int(np.searchsorted(ends, rows, side="right")))
    lengths = np.ascontiguousarray(opened.lengths[:count])
    if not lengths.any():
        lengths = opened.lengths[opened.lengths > 0][:1].copy()
    if as_chain(opened.model) is None:  # which may need whole sequences
        lengths = np.minimum(lengths, rows)
    total = int(lengths.sum())
    values = np.ones if opened.source.token_ids else np.zeros
    block = Block(values((total, computation.input_width), computation.input_dtype), packed_starts(lengths), lengths)
    arrays = {name: block.like(np.empty((total, width), computation.dtype)) for name, width in computation.step_widths.items()}
    try:
        for _ in range(2):  # the first time memory is touched
            state = computation.initial_state(len(lengths), None)
            began = time.perf_counter()
            computation.run(block, arrays, state)
    except SequenceError:
        return None
    return (time.perf_counter() - began) / total * int(opened.lengths.sum())
