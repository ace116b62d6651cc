"""What a run says about itself: the arrays it stores, the attributes of its result, and the facts of its summary."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lstmcli.blocks import Valid, dtype_name
from lstmcli.engine.cpus import available_threads
from lstmcli.errors import shown
from lstmcli.files import hdf5
from lstmcli.files.positioned_file import without_folder
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.model.tree import Bidirectional, Cell, Model, as_chain
from lstmcli.results.formats.fields import PADDED, PER_SEQUENCE
from lstmcli.results.formats.paths import Paths
from lstmcli.results.formats.result import Metadata, stored_shape
from lstmcli.results.journal import Fingerprint
from lstmcli.run.job import Compute, Job, Part
from lstmcli.run.opened_job import OpenedJob
from lstmcli.version import __version__

if TYPE_CHECKING:
    from lstmcli.model.chain import Chain

TOLD_OF_INPUT = ("name", "files", "bytes", "shape", "dtype", "axes", "window", "lengths")  # of a fingerprint


def metadata_of(opened: OpenedJob) -> Metadata:
    """Returns what the result of a run says besides its arrays."""
    job = opened.job
    made = metadata(job.compute, opened.model, valid_of_result(opened), opened.about_weights.assumed, job.part)
    ids = opened.ids
    if made.layout == PER_SEQUENCE and ids is None:  # whose datasets need names
        ids = [str(row) for row in range(opened.first, opened.first + len(opened.lengths))]
    return made._replace(table=opened.table_form(), ids=ids, windows=opened.windows())


def with_origins(made: Metadata, job: Job, fingerprint: Fingerprint) -> Metadata:
    """Adds what a result is made of: names without folders, sizes, samples of the content, but no times.

    So a copy of the input gives the same bytes, and results of other inputs or weights can be told apart.
    """
    run = job.part.run if job.part else fingerprint
    origins = {
        "input": origin(
            {"name": without_folder(job.with_absolute_names().inputs.input)} | run["input"] | {"lengths": run["lengths"]}
        ),
        "weights": {"name": without_folder(job.model.origin()), "fingerprint": run["model"]},
    }
    if start := run.get("initial_state"):
        origins["initial_state"] = origin(start)
    return made._replace(attributes=made.attributes | origins)


def origin(told: Fingerprint) -> dict[str, Any]:
    found = {name: told[name] for name in TOLD_OF_INPUT if name in told}
    return found | ({"fingerprint": f"{told['sample']:08x}"} if "sample" in told else {})


def valid_of_result(opened: OpenedJob) -> Valid:
    """Returns which steps of a result's arrays are valid: those of the input, unless the model makes more or fewer of them."""
    chain = as_chain(opened.model)
    return chain.valid_predictions(opened.valid) if chain else opened.valid


def metadata(
    compute: Compute, model: "Model | Chain", valid: Valid, assumed: Sequence[str], part: Part | None = None
) -> Metadata:
    """Returns what a result says besides its arrays. assumed: of the weights, in sentences."""
    layout = compute.layout or PADDED
    options = {"dtype": compute.dtype, "save": sorted(compute.save)} | ({"layout": layout} if layout != PADDED else {})
    options |= {name: value for name, value in (("pool", compute.pool), ("store", compute.store)) if value}
    attributes: dict[str, Any] = {"model_config": model.config(), "options": options, "versions": {"lstmcli": __version__}}
    if assumed:
        attributes["assumed"] = list(assumed)
    if part:
        attributes["part"] = part.mark()
    return Metadata(model, valid, attributes, Nonfinite() if compute.nonfinite != "pass" else None, layout=layout)


def describe(opened: OpenedJob, paths: Paths) -> dict[str, Any]:
    """Returns the facts of a run that are known before it, ready for JSON; the others are there with their first values."""
    job, source, lengths, model = opened.job, opened.source, opened.lengths, opened.model
    batch, time, about = len(opened.lengths), source.shape[1], opened.about_weights
    total = int(lengths.sum())
    return {
        "input": {
            "path": source.name,
            "shape": list(source.stored_shape[:2] if source.token_ids else source.stored_shape),
            "axes": source.axes,
            "time_major": source.axes == "TNE",
            "dtype": dtype_name(source.dtype),
            "ids": source.ids_origin,
        },
        "lengths": {
            "from": opened.valid_steps.origin,
            "padding": opened.valid_steps.padding,
            "min": int(lengths.min(initial=time)) if batch else 0,
            "mean": total / batch if batch else 0.0,
            "max": int(lengths.max(initial=0)),
            "total": total,
        },
        "padding_fraction": 1 - total / (batch * time) if batch * time else 0.0,
        "model": {"from": job.model.origin()} | about_model(model),
        "initial_state": opened.initial.name if opened.initial else None,
        **about_arrays(model, job.compute, batch, time, int(valid_of_result(opened).lengths.sum())),
        "layout": job.compute.layout,
        "output": str(paths.main or "-"),
        "states": str(paths.states) if paths.states else None,
        "model_file": str(paths.model) if paths.model else None,
        "threads": job.resources.threads or available_threads(),
        "valid_steps": total,
        "seconds": 0.0,
        "steps_per_second": 0,
        "resumed_steps": 0,
        "nonfinite": None,
        "dry_run": job.resources.dry_run,
        "estimate": None,
        "part": [job.part.first, job.part.stop] if job.part else None,
        "notes": [
            *dict.fromkeys((*opened.valid_steps.notes, *source.notes)),
            *about.notes,
            *notes_on_mask(about.masked, opened),
            *hdf5.notes_on_locks(),
        ],
        "assumed": list(about.assumed),
        "left_out": {"before": list(about.before), "after": list(about.after), "tensors": list(about.tensors)},
    }


def about_model(model: "Model | Chain") -> dict[str, Any]:
    """Returns the facts of a model, ready for JSON."""
    if chain := as_chain(model):
        layers = [f"{name} ({layer.kind})" for name, layer in zip(chain.names, chain.layers, strict=True)]
        return {"layers": layers, "parameters": chain.parameters(), "masks": chain.masks}
    assert isinstance(model, Model)
    units, bidirectional = zip(*layers_of(model), strict=True)
    return {
        "layers": len(units),
        "units": list(units),
        "bidirectional": list(bidirectional),
        "parameters": model.parameters(),
    }


def layers_of(model: Model) -> list[tuple[int, bool]]:
    """Returns the units of each layer from the bottom to the top, and whether it is bidirectional."""
    if isinstance(model, Cell):
        return [(model.units, False)]
    if isinstance(model, Bidirectional):
        return [(units, True) for units, _ in layers_of(model.forward)]
    return [layer for child in model.children().values() for layer in layers_of(child)]


def about_arrays(model: "Model | Chain", compute: Compute, batch: int, time: int, total: int) -> dict[str, Any]:
    """Returns the facts of what is computed, ready for JSON. total: steps of all sequences in the result."""
    layout, stored = compute.layout or PADDED, compute.store or compute.floats.name
    if chain := as_chain(model):
        shape = stored_shape(chain.prediction_shape(batch, time), layout, total)
        return {"predictions": {"shape": list(shape), "dtype": stored}}
    assert isinstance(model, Model)
    shapes = {f"/state/{name}": [batch, width] for name, width in model.state_widths().items()}
    return {
        "outputs": {
            "shape": list(stored_shape((batch, time, model.output_size), layout, total)),
            "dtype": stored,
            "stored": "outputs" in compute.save,
        },
        "pooled": {"shape": [batch, model.output_size], "dtype": stored} if compute.pool else None,
        "state": [{"path": path, "shape": shape, "dtype": compute.floats.name} for path, shape in shapes.items()],
    }


def notes_on_mask(masked: bool | None, opened: OpenedJob) -> list[str]:
    """Returns what to know where lengths are given and the model's framework had none, or the other way round."""
    padded = bool((opened.lengths < opened.source.shape[1]).any())
    unmasked = None if isinstance(opened.model, Model) else opened.model.unmasked
    reason = "no mask" if masked is False else f"{shown(unmasked)} heeds no mask" if unmasked else None
    if reason and padded and opened.source.lengths is not None:
        return [f"{reason}: in a padded batch the model's framework computes the padding as data; here sequences have none"]
    if reason and padded:
        return [f"{reason}: the model's framework computed the padding as data; --lens none repeats it"]
    if masked and opened.valid_steps.origin is None:
        return [
            "a mask or lengths (Masking, mask_zero, sequence_lens): the model's framework skips the steps that these hide; "
            "without --lens they are computed here"
        ]
    return []


def measured(opened: OpenedJob, resumed: int, nonfinite: Nonfinite | None, seconds: float) -> dict[str, Any]:
    """Returns the facts that are known only after a run.

    resumed: steps that an earlier run had stored. nonfinite: None where that run had stored everything.
    """
    if nonfinite and nonfinite.steps:
        nonfinite = nonfinite._replace(row=opened.first + nonfinite.row)
    looked = opened.job.compute.nonfinite != "pass"
    named = {"id": opened.source.ids[nonfinite.row]} if nonfinite and nonfinite.steps and opened.source.ids else {}
    return {
        "resumed_steps": resumed,
        "nonfinite": nonfinite._asdict() | named if nonfinite and looked else None,
        "seconds": round(seconds, 6),
        "steps_per_second": round((int(opened.lengths.sum()) - resumed) / seconds),
    }
