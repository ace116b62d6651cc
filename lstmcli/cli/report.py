"""What people and programs see: summary, progress, model tree; as rich text or as JSON."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO

from lstmcli.errors import StorageError, shown
from lstmcli.model.tree import CELL_OPTIONS, Cell
from lstmcli.model.tree import Model as ModelTree

if TYPE_CHECKING:
    from lstmcli.blocks import Floats
    from lstmcli.tools.bench import Case, Measured
    from lstmcli.weights.load import Imported

LOG_SECONDS = 10.0
SLOT = re.compile(
    r"(^|[./])(optimizers?(_states?|_weights)?|optim)[./]|(^|[./])(max_)?exp_avg(_sq)?s?([./]|$)|[./]momentum_buffer([./]|$)"
    r"|/(Adam|Adagrad|Adadelta|Momentum|RMSProp|Ftrl|AdamW|LAMB)(Optimizer)?(_\d+)?$|(^|/)beta[12]_power(_\d+)?$"
    r"|/\.OPTIMIZER_SLOT/|(^|/)(training/)?(Adam|AdamW|SGD|RMSprop|Adagrad)/"
)


def console(stream: TextIO) -> Any:
    from rich.console import Console

    # In a pipe lines are as long as they are: nothing is wrapped or cut for programs that read them.
    return Console(file=stream, width=None if stream.isatty() else 10_000, highlight=False, markup=False, emoji=False)


def summary(facts: dict[str, Any], as_json: bool, stream: TextIO | None) -> None:
    """The facts of a run as lines, or as one JSON object. stream: None when it was closed before the program began."""
    if stream is None:
        return
    if as_json:
        write(stream, json.dumps(facts) + "\n")
        return
    named(stream, lines(facts))


def named(stream: TextIO, rows: Iterable[tuple[str, str]]) -> None:
    """A line for each name and text."""
    if not stream.isatty():  # the same without bold, and without loading rich
        write(stream, "".join(f"{name:10}{text}\n" for name, text in rows))
        return
    from rich.text import Text

    show(stream, *(Text.assemble((f"{name:10}", "bold"), text) for name, text in rows))


def show(stream: TextIO, *renderables: Any) -> None:
    out = console(stream)
    with out.capture() as captured:
        for renderable in renderables:
            out.print(renderable, soft_wrap=True)
    write(stream, captured.get())


def write(stream: TextIO, text: str) -> None:
    """Not by rich, which ends the program with code 1 when the reader of a pipe is gone. BrokenPipeError, StorageError."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is still buffered must not fail once more
        raise StorageError(f"{'standard output' if stream is sys.stdout else 'standard error'}: {error.strerror}") from error


def given(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What goes into a run."""
    source, lengths, model = facts["input"], facts["lengths"], facts["model"]
    order = ", time-major" if source["time_major"] else ""
    yield "input", f"{shape(source['shape'])} {source['dtype']}{order}  {shown(source['path'])}"
    origin = f"  {shown(lengths['from'])}" if lengths["from"] else "  all full: no lengths given"
    yield (
        "lengths",
        f"min {lengths['min']}, mean {lengths['mean']:.1f}, max {lengths['max']}; "
        f"{facts['padding_fraction']:.1%} padding, skipped{origin}",
    )
    units = ", ".join(str(n) for n in model["units"])
    yield "model", f"LSTM of {units} units, {model['parameters']:,} parameters  {shown(model['from'])}"


def lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from given(facts)
    if facts["part"]:
        yield "part", f"sequences {facts['part'][0]:,} to {facts['part'][1] - 1:,} of the whole"
    if facts.get("scheduler"):
        yield "scheduler", f"{shown(facts['scheduler'])}, {facts['tasks']:,} tasks"
    if facts["initial_state"]:
        yield "start", f"from {shown(facts['initial_state'])}"
    stored = "" if facts["outputs"]["stored"] else "  not stored"
    yield "outputs", f"{shape(facts['outputs']['shape'])} {facts['outputs']['dtype']}{stored}"
    for k, state in enumerate(facts["state"]):
        yield "states" if k == 0 else "", f"{shape(state['shape'])} {state['dtype']}  {state['path']}"
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
    if facts["dry_run"]:
        yield "steps", f"{facts['valid_steps']:,} valid, {threads}; dry run: nothing computed or written"
    else:
        speed = f"{facts['seconds']:.3g} s, {facts['steps_per_second']:,} steps/s, {threads}"
        yield "steps", f"{facts['valid_steps']:,} valid in {speed}"
    yield (
        "output",
        "standard output; the model is not kept, its seed or file repeats it"
        if facts["output"] == "-"
        else shown(facts["output"]),
    )
    for name in ("states", "model_file"):
        if facts[name]:
            yield "", shown(facts[name])
    if after := facts["left_out"]["after"]:
        yield "left out", f"after the LSTM: {shown(', '.join(after))}"
    if facts["output"] == "-" and not facts["states"]:
        yield "", "the final states are not kept: --states FILE keeps them"


def plan(facts: dict[str, Any], as_json: bool, stream: TextIO | None) -> None:
    """What a run is cut into; for a dry run also each part."""
    if stream is None:
        return
    if as_json:
        write(stream, json.dumps(facts) + "\n")
        return
    parts = facts["parts"]
    steps = [part["steps"] for part in parts]
    rows = [*given(facts), ("parts", f"{len(parts):,} of {min(steps):,} to {max(steps):,} valid steps")]
    if facts["dry_run"]:
        for part in parts:
            first, stop = part["rows"]
            text = f"{part['part']:4}  sequences {first:,} to {stop - 1:,}, {part['steps']:,} steps, "
            rows.append(("", text + f"reads {part['bytes_read']:,} bytes, stores {part['bytes_stored']:,}"))
    rows.append(("memory", f"at most {facts['max_memory']:,} bytes each: --max-memory"))
    rows.append(("plan", f"{shown(facts['plan'])}{'  dry run: not written' * facts['dry_run']}"))
    named(stream, rows)


def already_done(facts: dict[str, Any], as_json: bool) -> None:
    """Of a part that was there."""
    if sys.stdout and as_json:
        write(sys.stdout, json.dumps(facts) + "\n")
    elif sys.stdout:
        named(sys.stdout, [("output", f"{shown(facts['output'])}  was there already, whole: nothing computed")])


def merged(facts: dict[str, Any], as_json: bool) -> None:
    if sys.stdout is None:
        return
    if as_json:
        write(sys.stdout, json.dumps(facts) + "\n")
        return
    rows = [("parts", f"{facts['parts']:,}, all right  {shown(facts['plan'])}")]
    rows += [
        ("" if k else "arrays", f"{shape(array['shape'])} {array['dtype']}  {array['path']}")
        for k, array in enumerate(facts["arrays"])
    ]
    rows += [("output", shown(facts["output"]))]
    named(sys.stdout, rows + [("", shown(facts[name])) for name in ("states", "model_file") if facts[name]])


def text(content: str) -> None:
    """As it is, for other programs."""
    if sys.stdout:
        write(sys.stdout, content)


def shape(sizes: list[int]) -> str:
    return str(tuple(sizes))


@contextmanager
def progress(kind: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (valid steps done since the last call, valid steps in all), from any thread."""
    if kind == "auto":
        kind = "bar" if sys.stderr and sys.stderr.isatty() else "log"
    if kind == "bar":
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        text = TextColumn("{task.percentage:.0f} %  {task.completed:,} of {task.total:,} steps  {task.fields[speed]}")
        with Progress(BarColumn(20), text, TimeRemainingColumn(), console=console(sys.stderr), transient=True) as bar:
            task = bar.add_task("", total=1, speed="", visible=False)
            began = time.monotonic()

            def advance(steps: int, total: int) -> None:
                done = bar.tasks[0].completed + steps
                speed = f"{done / max(time.monotonic() - began, 1e-9):,.0f} steps/s"
                bar.update(task, total=total, completed=done, speed=speed, visible=True)

            yield advance
    elif kind == "log":
        yield Log()
    else:
        yield lambda steps, total: None


class Log:
    """A line every LOG_SECONDS, none for short runs."""

    def __init__(self) -> None:
        self.done, self.began = 0, time.monotonic()
        self.next = self.began + LOG_SECONDS

    def __call__(self, steps: int, total: int) -> None:
        self.done += steps
        now = time.monotonic()
        if now < self.next or not self.done:
            return
        self.next = now + LOG_SECONDS
        speed = self.done / (now - self.began)
        left = timedelta(seconds=round((total - self.done) / speed))
        tell(f"{self.done / total:.1%}  {self.done:,} of {total:,} steps  {speed:,.0f} steps/s  {left} left")


def warnings(facts: dict[str, Any]) -> None:
    """What of the weights nobody should miss, whether or not they want a summary."""
    for sentence in facts["assumed"]:
        note(sentence)
    if before := facts["left_out"]["before"]:
        from lstmcli.weights.draft import left_out_before

        note(left_out_before(before))


def note(text: str) -> None:
    """A line on standard error."""
    tell(f"lstmcli: {shown(text)}")


def tell(line: str) -> None:
    """On standard error. That nobody can read it any more is no reason to lose a run."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def found(file: str, text: str) -> None:
    if sys.stdout:
        write(sys.stdout, f"{shown(file)}  {text}\n")


def facts(found: dict[str, Any], as_json: bool) -> None:
    """Named facts as lines, or as one JSON object."""
    if sys.stdout is None:
        return
    if as_json:
        write(sys.stdout, json.dumps(found) + "\n")
        return

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {text(part)}" for name, part in value.items())
        return {"True": "yes", "False": "no", "None": "none"}.get(str(value), str(value))

    named(sys.stdout, ((name, text(value)) for name, value in found.items()))


def bench(cases: "Iterable[tuple[Case, list[Measured]]]", threads: int, as_json: bool) -> None:
    """A table of all contenders for one case; for more, a row a case with the best peers; or JSON."""
    if sys.stdout is None:
        return
    measured = [(asdict(case), [asdict(one) for one in contenders]) for case, contenders in cases]
    if as_json:
        found = [{"case": case, "contenders": contenders} for case, contenders in measured]
        write(sys.stdout, json.dumps({"threads": threads, "cases": found}) + "\n")
        return
    from rich.table import Table

    if len(measured) == 1:
        ((case, contenders),) = measured
        table = Table(title=f"{', '.join(f'{k} {v}' for k, v in case.items())}; threads {threads}", title_justify="left")
        table.add_column("")
        for column in ("ms", "GFLOP/s", "time / ours"):
            table.add_column(column, justify="right", no_wrap=True)
        for one in contenders:
            table.add_row(one["name"], f"{one['milliseconds']:.3f}", f"{one['gflops']:.1f}", f"{one['ratio']:.2f}")
    else:
        table = Table(title=f"time of the peers / ours, threads {threads}", title_justify="left")
        table.add_column("batch, time, embed, units, fill")
        for column in ("ms", "GFLOP/s", "of sgemm"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("best in one call")
        table.add_column("best in buckets")
        for case, (ours, *peers, sgemm) in measured:
            cells = [", ".join(map(str, case.values())), f"{ours['milliseconds']:.3f}", f"{ours['gflops']:.1f}"]
            cells.append(f"{ours['gflops'] / sgemm['gflops']:.0%}")
            for group in (
                [one for one in peers if "buckets" not in one["name"]],
                [one for one in peers if "buckets" in one["name"]],
            ):
                best = min(group, key=lambda one: one["ratio"], default=None)
                cells.append(f"{best['ratio']:.2f} {best['name']}" if best else "")
            table.add_row(*cells)
    show(sys.stdout, table)


def model(tree: ModelTree, name: str, as_json: bool) -> None:
    """A model's tree with shapes and parameter counts."""
    if as_json and sys.stdout:
        facts = {"input_size": tree.input_size, "output_size": tree.output_size, "parameters": tree.parameters()}
        write(sys.stdout, json.dumps(facts | {"model": tree.config()}) + "\n")
        return
    from rich.tree import Tree

    if sys.stdout:
        root = Tree(label(shown(name), tree))
        grow(root, tree)
        show(sys.stdout, root)


def is_slot(name: str) -> bool:
    """Whether a tensor is what an optimizer of PyTorch, Keras or TensorFlow keeps beside the weights."""
    return bool(SLOT.search(name))


def imported(found: "Imported", name: str, output: str) -> None:
    """Which tensor became which field, what was left out, what was assumed."""
    if sys.stdout is None:
        return
    rows = [("weights", f"{shown(name)}  {found.kind}")]
    for k, mapped in enumerate(found.mapping):
        text = f"{shown(mapped.name)} {mapped.shape} -> {mapped.path} {mapped.field}, {mapped.how}"
        rows.append(("mapping" if k == 0 else "", text))
    slots = [tensor for tensor in found.left_out if is_slot(tensor.name)]
    left = [str(tensor) for tensor in found.left_out if tensor not in slots]
    if slots:
        left.append(f"{len(slots)} tensor{'s' * (len(slots) > 1)} of an optimizer, such as {slots[0]}")
    left += [f"{shown(name)}, {place} the LSTM" for place in ("before", "after") for name in getattr(found, place)]
    rows += [("" if k else "left out", text) for k, text in enumerate(left)]
    rows += [("note", text) for text in found.notes]
    rows += [("assumed", text) for text in found.assumed]
    rows.append(("output", shown(output)))
    named(sys.stdout, iter(rows))


def exported(tensors: "dict[str, Floats]", output: str) -> None:
    """The tensors of an exported model."""
    if sys.stdout:
        rows = [("", f"{name} {tensor.shape} {tensor.dtype}") for name, tensor in tensors.items()]
        named(sys.stdout, iter([("tensors", rows[0][1]), *rows[1:], ("output", shown(output))]))


def label(name: str, tree: ModelTree) -> str:
    config = tree.config()
    chosen = "".join(f", {option} {config[option]}" for option in ("merge", *CELL_OPTIONS) if option in config)
    return f"{name}: {tree.kind}, {tree.input_size} to {tree.output_size}, {tree.parameters():,} parameters{chosen}"


def grow(branch: Any, tree: ModelTree) -> None:
    if isinstance(tree, Cell):
        for name, weight in tree.weights().items():
            branch.add(f"{name} {weight.shape} {weight.dtype}")
    for name, child in tree.children().items():
        grow(branch.add(label(name, child)), child)
