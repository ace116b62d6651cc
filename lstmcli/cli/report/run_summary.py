"""What a run, a plan and a merge say of themselves: lines of a name and a text, out of the facts that --json prints."""

from collections.abc import Iterator
from typing import Any

from lstmcli.errors import shown

Rows = Iterator[tuple[str, str]]
CELL_STATES = 2  # c and h
LEFT_OUT = 4  # tensors that are named
LAYERS = 4  # of a whole model in a line: in a pipe nothing else breaks it


def run_rows(facts: dict[str, Any], verbose: bool) -> Rows:
    """Yields the summary of a run, or of a dry run."""
    yield from work_rows(facts)
    if facts["part"]:
        yield "part", f"sequences {facts['part'][0]:,} to {facts['part'][1] - 1:,} of the whole"
    if facts.get("scheduler"):
        yield "scheduler", f"{shown(facts['scheduler'])}, {facts['tasks']:,} tasks"
    if facts["initial_state"]:
        yield "start", f"from {shown(facts['initial_state'])}"
    if "predictions" in facts:
        yield "predicts", f"{shape(facts['predictions']['shape'])} {facts['predictions']['dtype']}"
    else:
        stored = "" if facts["outputs"]["stored"] else "  not stored"
        yield "outputs", f"{shape(facts['outputs']['shape'])} {facts['outputs']['dtype']}{stored}"
    if pooled := facts.get("pooled"):
        yield "pooled", f"{shape(pooled['shape'])} {pooled['dtype']}"
    yield from state_rows(facts.get("state", []), verbose)
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
    if facts["dry_run"]:
        yield "steps", f"{facts['valid_steps']:,} valid, {threads}; dry run: nothing computed or written"
        yield from estimate_rows(facts["estimate"])
    else:
        speed = f"{facts['seconds']:.3g} s, {facts['steps_per_second']:,} steps/s, {threads}"
        before = f"; {facts['resumed_steps']:,} of them by an earlier run" if facts["resumed_steps"] else ""
        yield "steps", f"{facts['valid_steps']:,} valid in {speed}{before}"
    if facts["output"] == "-":
        yield "output", "standard output; the model is not kept, its seed or file repeats it"
    else:
        yield "output", shown(facts["output"])
    yield from companion_rows(facts)
    if after := facts["left_out"]["after"]:
        yield "left out", f"after the LSTM: {shown(', '.join(after))}"
    elif tensors := facts["left_out"]["tensors"]:
        more = f" and {len(tensors) - LEFT_OUT} more" if len(tensors) > LEFT_OUT else ""
        yield "left out", f"{shown(', '.join(tensors[:LEFT_OUT]))}{more}; lstmcli predict runs whole models"
    if facts["output"] == "-" and "state" in facts and not facts["states"]:
        yield "", "the final states are not kept: --states FILE keeps them"


def estimate_rows(found: dict[str, Any]) -> Rows:
    """Yields what a run would read, store and take."""
    free = "" if found["bytes_free"] is None else f"; {found['bytes_free']:,} bytes are free"
    yield "reads", f"{found['bytes_read']:,} bytes"
    yield "stores", f"{found['bytes_stored']:,} bytes{free}"
    if found["seconds"] is not None:
        yield "takes", f"about {found['seconds']:.3g} s to compute, from a short sample measured now"
    else:
        yield "takes", "not measured: the kernel is not compiled yet; the first run does that"


def plan_rows(facts: dict[str, Any]) -> Rows:
    """Yields what a run is cut into; for a dry run also each part."""
    yield from work_rows(facts)
    steps = [part["steps"] for part in facts["parts"]]
    yield "parts", f"{len(steps):,} of {min(steps):,} to {max(steps):,} valid steps"
    for part in facts["parts"] if facts["dry_run"] else ():
        first, stop = part["rows"]
        text = f"{part['part']:4}  sequences {first:,} to {stop - 1:,}, {part['steps']:,} steps, "
        yield "", text + f"reads {part['bytes_read']:,} bytes, stores {part['bytes_stored']:,}"
    yield "memory", f"at most {facts['max_memory']:,} bytes each: --max-memory"
    yield "plan", f"{shown(facts['plan'])}{'  dry run: not written' * facts['dry_run']}"


def convert_rows(facts: dict[str, Any]) -> Rows:
    """Yields what a conversion wrote."""
    yield "input", f"{facts['sequences']:,} sequences, {facts['steps']:,} steps  {shown(facts['input'])}"
    for k, (name, sizes) in enumerate(facts["arrays"].items()):
        yield "" if k else "arrays", f"{shape(sizes)}  {shown(name)}"
    yield "output", f"{shown(facts['output'])}  {facts['layout']}"


def merge_rows(facts: dict[str, Any]) -> Rows:
    """Yields what a merge joined."""
    yield "parts", f"{facts['parts']:,}, all right  {shown(facts['plan'])}"
    for k, array in enumerate(facts["arrays"]):
        yield "" if k else "arrays", f"{shape(array['shape'])} {array['dtype']}  {array['path']}"
    yield "output", shown(facts["output"])
    yield from companion_rows(facts)


def work_rows(facts: dict[str, Any]) -> Rows:
    """Yields what goes into a run: its input, lengths and model."""
    source, lengths, model = facts["input"], facts["lengths"], facts["model"]
    order = {"NTE": "", "TNE": ", time-major"}.get(source["axes"], f", axes {source['axes']}")
    yield "input", f"{shape(source['shape'])} {source['dtype']}{order}  {shown(source['path'])}"
    if source["ids"]:
        yield "ids", shown(source["ids"])
    origin = f"  {shown(lengths['from'])}" if lengths["from"] else "  all full: no lengths given"
    if model.get("masks"):
        origin += "; of these the model's mask hides some"
    place = ", in front" if lengths["padding"] == "pre" else ""
    yield (
        "lengths",
        f"min {lengths['min']}, mean {lengths['mean']:.1f}, max {lengths['max']}; "
        f"{facts['padding_fraction']:.1%} padding{place}, skipped{origin}",
    )
    if "units" in model:
        yield "model", f"{layers_in_words(model)}, {model['parameters']:,} parameters  {shown(model['from'])}"
    else:
        yield "model", f"{len(model['layers'])} layers, {model['parameters']:,} parameters  {shown(model['from'])}"
        for k in range(0, len(model["layers"]), LAYERS):
            yield "", shown(", ".join(model["layers"][k : k + LAYERS]))


def layers_in_words(model: dict[str, Any]) -> str:
    layers = list(zip(model["units"], model["bidirectional"], strict=True))
    if len(set(layers)) > 1 and len(set(model["bidirectional"])) == 1:
        each = ", ".join(map(str, model["units"]))
        return f"LSTM, {len(layers)} {'bidirectional ' * model['bidirectional'][0]}layers of {each} units"
    if len(set(layers)) > 1:
        each = ", ".join(f"{units}{' bidirectional' * both}" for units, both in layers)
        return f"LSTM, {len(layers)} layers of {each} units"
    units, both = layers[0]
    if len(layers) == 1:
        return f"{'bidirectional ' * both}LSTM of {units} units"
    return f"LSTM, {len(layers)} {'bidirectional ' * both}layers of {units} units"


def state_rows(states: list[dict[str, Any]], verbose: bool) -> Rows:
    """Yields the final states: those of a lone cell, or all of them, or else only how many."""
    if verbose or len(states) <= CELL_STATES:
        for k, state in enumerate(states):
            yield "" if k else "states", f"{shape(state['shape'])} {state['dtype']}  {state['path']}"
        return
    shapes = ", ".join(dict.fromkeys(shape(state["shape"]) for state in states))
    text = f"{len(states)} of {shapes} {states[0]['dtype']}  {states[0]['path']} to {states[-1]['path']}; --verbose lists them"
    yield "states", text


def companion_rows(facts: dict[str, Any]) -> Rows:
    """Yields the files that are made beside the output."""
    for name in ("states", "model_file"):
        if facts[name]:
            yield "", shown(facts[name])


def weight_warnings(facts: dict[str, Any]) -> Iterator[str]:
    """Yields what of the weights nobody should miss, whether or not they want a summary."""
    yield from facts["assumed"]
    if before := facts["left_out"]["before"]:
        from lstmcli.weights.draft import left_out_before

        yield left_out_before(before)


def fact_rows(facts: dict[str, Any]) -> Rows:
    """Yields named facts as they are."""
    for name, value in facts.items():
        yield name, in_words(value)


def in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(part)}" for name, part in value.items())
    return {"True": "yes", "False": "no", "None": "none"}.get(str(value), str(value))


def shape(sizes: list[int]) -> str:
    return str(tuple(sizes))
