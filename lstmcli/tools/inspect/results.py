"""Facts of results, and of the parts of a plan."""

from typing import Any

from lstmcli.results.stored_result import StepArray, StoredResult
from lstmcli.tools.inspect.lengths import about_lengths, about_padding
from lstmcli.tools.inspect.models import about_model, cost_of
from lstmcli.tools.inspect.stored import how_stored, stored
from lstmcli.tools.inspect.values import sample_rows, sample_steps

Facts = dict[str, Any]
IDS = 5  # shown
ORIGINS = ("input", "weights", "options", "versions", "assumed")


def about_result(spec: str) -> Facts:
    """Returns the facts of a result. Raises DataError for a damaged one."""
    with StoredResult(spec) as result:
        attributes, count = result.attributes, len(result)
        kind = "predictions" if result.predictions is not None else "LSTMs"
        part = attributes.get("part")
        what = f"result of {kind} over {count:,} sequences, {result.layout}"
        if isinstance(part, dict) and "rows" in part:
            what = f"part of a plan, sequences {part['rows'][0]:,} to {part['rows'][1] - 1:,}: {what}"
        if result.parts is not None:
            what = f"{what}, in the {len(result.parts):,} parts of a virtual merge"
        arrays, values = [], {}
        for name, array in result.arrays.items():
            layout = how_stored(result.file[name]) if hasattr(result.file[name], "shape") else "a dataset for each sequence"
            steps = isinstance(array, StepArray)
            shape = (int(result.lengths.sum()), array.shape[-1]) if steps and result.layout != "padded" else array.shape
            arrays.append(stored(f"/{name}", shape, array.dtype, layout))
            values[name] = sample_steps(array.source, array.valid) if isinstance(array, StepArray) else sample_rows(array.table)  # type: ignore[attr-defined]
        model_cost, steps_done = cost_of(result.model), int(result.lengths.sum())
        steps_arrays = (array for array in result.arrays.values() if isinstance(array, StepArray))
        padded = next(steps_arrays, None) if result.layout == "padded" else None
        return {
            "what": what,
            "arrays": arrays,
            "arrays_in_file": len(arrays),
            "lengths": about_lengths(result.lengths) | {"from": "/lengths"},
            "padding": about_padding(result.valid, padded.shape[1])
            if padded is not None and result.layout == "padded"
            else None,
            "ids": {"from": "/ids", "first": list(result.ids[:IDS]), "count": count} if result.ids else None,
            "values": values,
            "model": about_model(result.model),
            "made_of": {name: attributes[name] for name in ORIGINS if name in attributes},
            "nonfinite": nonfinite(attributes),
            "cost": model_cost | {"steps": steps_done, "gflop": model_cost["flop_per_step"] * steps_done / 1e9},
            "has_checksums": "checksums" in result.file or result.parts is not None,
            "notes": [],
        }


def nonfinite(attributes: Facts) -> Facts | None:
    """Returns what the run found of NaN and Inf in its input; None: nobody looked."""
    if "nonfinite_steps" not in attributes:
        return None
    steps, (row, step) = attributes["nonfinite_steps"], attributes["nonfinite_first"]
    return {"steps": steps} | ({"row": row, "step": step} if steps else {})
