"""What a file is and holds: lines of a name and a text, out of the facts that --json prints; with bars and colours for rich."""

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any

from lstmcli.errors import shown

NAMES, COLUMNS = 10, 88  # of the names, and beside them where a terminal says nothing
BAR = 40  # columns of the longest bar
BLOCK = "\N{FULL BLOCK}"
MARKS = {"bytes", "modified_ns", "sample", "values_at", "order"}  # of an input: for comparing it, --json has them
Rows = Iterator[tuple[str, str]]


def inspect_rows(facts: dict[str, Any], bar: str = "#") -> Rows:
    """Yields all that was found. bar: what bars are made of."""
    size = "" if facts["bytes"] is None else f"  {size_text(facts['bytes'])}"
    yield "file", f"{shown(facts['path'])}{size}"
    yield from block("is", [facts["what"]])
    if found := facts.get("sequences"):
        yield from block("shape", [f"{tuple(found['shape'])} {found['dtype']}, {found['layout']}  {shown(found['name'])}"])
    if found := facts.get("lengths"):
        yield from length_rows(found, bar)
    if found := facts.get("padding"):
        place = "" if found["place"] == "none" else f", {found['place']}"
        yield "padding", f"{found['share']:.1%}{place}"
    if found := facts.get("ids"):
        more = ", ..." if found["count"] > len(found["first"]) else ""
        yield from block("ids", [f"{', '.join(map(shown, found['first']))}{more}  {shown(str(found['from']))}"])
    if "model" not in facts:  # a result has a line for each array
        yield from block("values", about_values(facts.get("values"), True))
    yield from model_rows(facts)
    if found := facts.get("plan"):
        yield from block("parts", [f"{len(found['parts_there'])} of {found['parts']} in {shown(found['folder'])}"])
    if found := facts.get("made_of"):
        yield from block("made of", [*leaves(found), *about_nonfinite(facts.get("nonfinite"))])
    if facts.get("arrays_in_file", 0) > 1 or ("model" in facts and "arrays" in facts):
        yield from array_rows(facts)
    if "columns" in facts:
        yield from block("columns", [", ".join(map(shown, facts["columns"]))])
    if found := facts.get("cost"):
        yield from block("cost", cost_lines(found))
    yield from block("note", facts["notes"])


def block(name: str, texts: Iterable[str]) -> Rows:
    """Yields texts, of which the first has the name."""
    for k, text in enumerate(texts):
        yield "" if k else name, text


def wrapped(rows: Rows, columns: int = COLUMNS) -> Rows:
    """Breaks texts into lines of at most so many columns beside the names, but no bars."""
    for name, text in rows:
        if len(text) <= columns or BLOCK in text or "##" in text:
            yield name, text
            continue
        indent = text[: len(text) - len(text.lstrip())]
        later = f"{indent}  "
        lines = wrap(text, columns, subsequent_indent=later, break_long_words=False, break_on_hyphens=False)
        yield from block(name, lines)


def length_rows(found: dict[str, Any], bar: str) -> Rows:
    """Yields the spread of lengths, and a histogram."""
    if not found["count"]:
        yield "lengths", "none: there are no sequences"
        return
    origin = f"  {shown(found['from'])}" if found["from"] else "  all full: no lengths are known"
    zero = f", {found['zero']:,} of them 0" if found["zero"] else ""
    spread = f"min {found['min']:,}, mean {found['mean']:,.1f}, median {found['median']:,.0f}, max {found['max']:,}"
    yield from block("lengths", [f"{found['count']:,}{zero}: {spread}{origin}"])
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    if len(counts) < 2:
        return
    width, most = len(f"{edges[-1] - 1:,}"), max(counts)
    widest = width if edges[1] == edges[0] + 1 else 2 * width + len(" - ")
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        span = f"{low:{width},}" if high == low + 1 else f"{low:{width},} - {high - 1:{width},}"
        yield "", f"{span:{widest}}  {bar * -(-BAR * count // most)} {count:,}"


def about_values(found: dict[str, Any] | None, begin: bool) -> Iterator[str]:
    """Yields the range of the values of an array, what of it is NaN or Inf, and if so wanted how it begins."""
    if not found:
        return
    if not found["looked_at"]:
        yield "none"
        return
    whole = found["looked_at"] == found["total"]
    where = f"all {found['total']:,}" if whole else f"a sample of {found['looked_at']:,} of {found['total']:,}"
    bad = ", ".join(f"{found[kind]:,} {text}" for kind, text in (("nan", "NaN"), ("inf", "Inf")) if found[kind])
    spread = f"{found['min']:.4g} to {found['max']:.4g}, mean {found['mean']:.3g}; " if "min" in found else ""
    yield f"{spread}{bad or 'no NaN or Inf'} in {where}"
    if begin:
        place = f" (sequence {found['sequence']}, step {found['step']})" if "sequence" in found else ""
        yield f"begins {' '.join(map(str, found['first']))}{place}"


def about_nonfinite(found: dict[str, Any] | None) -> Iterator[str]:
    if found is not None:
        place = f", first in sequence {found['row']}, step {found['step']}" if found["steps"] else ""
        yield f"NaN or Inf in {found['steps'] or 'no':} valid steps of the input{place}"


def model_rows(facts: dict[str, Any]) -> Rows:
    """Yields the layers of a model, and what became of the tensors of a framework."""
    if found := facts.get("model"):
        sizes = (
            f"{found['input_size']} -> {found['output_size']}, {found['parameters']:,} parameters {', '.join(found['dtype'])}"
        )
        yield "model", sizes
        for layer in found["layers"]:
            yield from block("", [layer_line(layer)])
    if found := facts.get("whole"):
        yield from block("predict", [f"runs {', '.join(found)}"])
    for k, tensor in enumerate(facts.get("tensors", ())):
        form = f"{shown(tensor['name'])} {tuple(tensor['shape'])} -> {tensor['becomes']}, {tensor['how']}"
        yield "" if k else "tensors", form
    if (more := facts.get("tensors_in_file", 0) - len(facts.get("tensors", ()))) > 0:
        yield "", f"and {more} more"
    yield from block("left out", facts.get("left_out", ()))
    yield from block("assumed", facts.get("assumed", ()))


def layer_line(layer: dict[str, Any]) -> str:
    options = f", {layer['options']}" if layer["options"] else ""
    if "units" not in layer:
        return f"{layer['name']}  {layer['kind']}{options}, {layer['parameters']:,} parameters"
    units = f"{layer['units']} units" if isinstance(layer["units"], int) else f"{', '.join(map(str, layer['units']))} units"
    widths = f"{layer['input_size']} -> {layer['output_size']}"
    return f"{layer['name']}  {layer['kind']} of {units}, {widths}{options}, {layer['parameters']:,} parameters"


def leaves(value: Any, name: str = "") -> Iterator[str]:
    """Yields `NAME VALUE` for each entry of nested facts; short ones stand in one line."""
    for key, part in value.items():
        if isinstance(part, dict):
            told = {one: other for one, other in part.items() if not (isinstance(other, dict) or one in MARKS)}
            inner = ", ".join(f"{one} {plain(other)}" for one, other in told.items())
            yield f"{key}: {inner}"
        elif part is not None:
            yield f"{key}: {plain(part)}"


def plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else shown(str(value))


def array_rows(facts: dict[str, Any]) -> Rows:
    """Yields the arrays of a file; of a result with their values."""
    lines = []
    for k, array in enumerate(facts["arrays"]):
        shape = "" if array["shape"] is None else f" {tuple(array['shape'])}"
        layout = f", {array['layout']}" if array["layout"] else ""
        lines.append(f"{shown(array['name'])}{shape} {array['dtype']}{layout}".strip())
        if "model" in facts:
            lines += [f"  {line}" for line in about_values(facts["values"][array["name"].lstrip("/")], k == 0)]
    if (more := facts["arrays_in_file"] - len(facts["arrays"])) > 0:
        lines.append(f"and {more:,} more")
    yield from block("arrays", lines)


def cost_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yields what a run over a file, or of a model, takes."""
    if "bytes_read" in found:
        yield f"{found['steps']:,} valid steps, {size_text(found['bytes_read'])} to read"
        if found["example_gflop"] is not None:
            units, output = found["example_units"], size_text(found["example_output_bytes"])
            yield f"an LSTM layer of {units} units, for example: {found['example_gflop']:,.3g} GFLOP, outputs of {output}"
        return
    done = f"{found['gflop']:,.3g} GFLOP for {found['steps']:,} valid steps, " if "gflop" in found else ""
    yield f"{done}{found['flop_per_step']:,} FLOP for a step of the LSTMs, {size_text(found['weight_bytes'])} of weights"


def size_text(count: int) -> str:
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.3g} {unit}"
    return f"{count} bytes"


def drawing(rows: Rows, columns: int) -> Any:
    """Draws the rows with rich for a terminal of so many columns: names bold, bars and what is wrong in colour."""
    from rich.text import Text

    lines = []
    for name, text in wrapped(rows, max(20, columns - NAMES)):
        line = Text.assemble((f"{name:{NAMES}}", "bold"), text)
        line.highlight_regex(f"{BLOCK}+", "cyan")
        line.highlight_regex(r"\b[\d,]+ (NaN|Inf)\b", "red")
        if name == "note":
            line.stylize("yellow", 0, len(name))
        lines.append(line)
    return Text("\n").join(lines)
