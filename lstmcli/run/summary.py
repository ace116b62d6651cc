"""What a run says about itself: the arrays it stores, the attributes of its result, and the facts of its summary."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lstmcli.engine.cpus import available_threads
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.model.tree import Model
from lstmcli.results.paths import Paths
from lstmcli.results.result import Arrays
from lstmcli.run.job import Compute, Part
from lstmcli.run.opened_job import OpenedJob
from lstmcli.version import __version__


def step_widths(model: Model, save: tuple[str, ...]) -> dict[str, int]:
    """Returns the width of each array (N, T, width) that is to be stored."""
    widths = {"outputs": model.output_size} if "outputs" in save else {}
    if "cells" in save:
        widths["cells"] = model.cells_width
    if "layers" in save:
        widths |= {f"layers/{name}": layer.output_size for name, layer in (model.layers_by_name() or {"0": model}).items()}
    return widths


def stored_arrays(compute: Compute, model: Model, batch: int, time: int) -> Arrays:
    """Returns the shape and dtype of each array that a result of `batch` sequences of up to `time` steps holds."""
    dtype = np.dtype(compute.dtype)
    arrays: Arrays = {name: ((batch, time, width), dtype) for name, width in step_widths(model, compute.save).items()}
    if "states" in compute.save:
        arrays |= {f"state/{name}": ((batch, width), dtype) for name, width in model.state_widths().items()}
    return arrays


def attributes(compute: Compute, part: Part | None, model: Model, assumed: Sequence[str], found: Nonfinite) -> dict[str, Any]:
    """Returns what an HDF5 result says of its making besides its arrays. assumed: of the weights, in sentences."""
    known: dict[str, Any] = {
        "model_config": model.config(),
        "options": {"dtype": compute.dtype, "save": sorted(compute.save)},
        "versions": {"lstmcli": __version__},
    }
    if assumed:
        known["assumed"] = list(assumed)
    if part:
        known["part"] = part.mark()
    if compute.nonfinite != "pass":
        known |= {"nonfinite_steps": np.int64(found.steps), "nonfinite_first": np.array([found.row, found.step], np.int64)}
    return known


def describe(work: OpenedJob, targets: Paths) -> dict[str, Any]:
    """Returns the facts of a run that are known before it, ready for JSON; the others are there with their first values."""
    job, source, lengths, model = work.job, work.source, work.lengths, work.model
    (batch, time, _), about = source.shape, work.about_weights
    total, cells, dtype = int(lengths.sum()), [cell for _, cell in model.cells()], job.compute.dtype
    return {
        "input": {
            "path": source.name,
            "shape": list(source.stored_shape),
            "axes": source.axes,
            "time_major": source.axes == "TNE",
            "dtype": source.dtype.name,
        },
        "lengths": {
            "from": work.valid_steps.origin,
            "padding": work.valid_steps.padding,
            "min": int(lengths.min(initial=time)) if batch else 0,
            "mean": total / batch if batch else 0.0,
            "max": int(lengths.max(initial=0)),
            "total": total,
        },
        "padding_fraction": 1 - total / (batch * time) if batch * time else 0.0,
        "model": {
            "from": job.model.origin(),
            "layers": len(cells),
            "units": [cell.units for cell in cells],
            "parameters": model.parameters(),
        },
        "initial_state": work.initial.name if work.initial else None,
        "outputs": {"shape": [batch, time, model.output_size], "dtype": dtype, "stored": "outputs" in job.compute.save},
        "state": [
            {"path": f"/state/{name}", "shape": [batch, width], "dtype": dtype} for name, width in model.state_widths().items()
        ],
        "output": str(targets.main or "-"),
        "states": str(targets.states) if targets.states else None,
        "model_file": str(targets.model) if targets.model else None,
        "threads": job.resources.threads or available_threads(),
        "valid_steps": total,
        "seconds": 0.0,
        "steps_per_second": 0,
        "resumed_steps": 0,
        "nonfinite": None,
        "dry_run": job.resources.dry_run,
        "part": [job.part.first, job.part.stop] if job.part else None,
        "notes": [*work.valid_steps.notes, *about.notes, *notes_on_mask(about.masked, work)],
        "assumed": list(about.assumed),
        "left_out": {"before": list(about.before), "after": list(about.after)},
    }


def notes_on_mask(masked: bool | None, work: OpenedJob) -> list[str]:
    """Returns what to know where lengths are given and the model's framework had none, or the other way round."""
    padded = bool((work.lengths < work.source.shape[1]).any())
    if masked is False and padded:
        return ["no mask: Keras computed the padding as data; --lens none repeats it"]
    if masked and work.valid_steps.origin is None:
        return ["a mask: Keras skips the steps that its Masking or mask_zero hides; without --lens they are computed here"]
    return []
