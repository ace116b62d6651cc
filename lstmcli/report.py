"""What people and programs see: summary, progress, model tree; as rich text or as JSON."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from lstmcli.hdf5 import shown
from lstmcli.model import Cell
from lstmcli.model import Model as ModelTree

LOG_SECONDS = 10.0


def console(stream: TextIO) -> Any:
    from rich.console import Console

    # In a pipe lines are as long as they are: nothing is wrapped or cut for programs that read them.
    return Console(file=stream, width=None if stream.isatty() else 10_000, highlight=False, markup=False)


def summary(facts: dict[str, Any], as_json: bool, stream: TextIO | None) -> None:
    """The facts of a run as lines, or as one JSON object. stream: None when it was closed before the program began."""
    if stream is None:
        return
    if as_json:
        print(json.dumps(facts), file=stream)
        return
    from rich.text import Text

    show(stream, *(Text(f"{name:9}", "bold") + Text(text) for name, text in lines(facts)))


def show(stream: TextIO, *renderables: Any) -> None:
    out = console(stream)
    with out.capture() as captured:
        for renderable in renderables:
            out.print(renderable, soft_wrap=True)
    # Not by rich, which ends the program with code 1 when the reader of a pipe is gone.
    stream.write(captured.get())


def lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    given, lengths, model = facts["input"], facts["lengths"], facts["model"]
    yield "input", f"{shape(given['shape'])} {given['dtype']}  {shown(given['path'])}"
    origin = f"  {shown(lengths['from'])}" if lengths["from"] else "  all full: no lengths given"
    yield (
        "lengths",
        f"min {lengths['min']}, mean {lengths['mean']:.1f}, max {lengths['max']}; "
        f"{facts['padding_fraction']:.1%} padding, skipped{origin}",
    )
    units = ", ".join(str(n) for n in model["units"])
    yield "model", f"LSTM of {units} units, {model['parameters']:,} parameters  {shown(model['from'])}"
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
    if facts["states"]:
        yield "", shown(facts["states"])
    elif facts["output"] == "-":
        yield "", "the final states are not kept: --states FILE keeps them"


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
        with Progress(BarColumn(), text, TimeRemainingColumn(), console=console(sys.stderr), transient=True) as bar:
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
        left = time.strftime("%H:%M:%S", time.gmtime((total - self.done) / speed))
        print(
            f"{self.done / total:.1%}  {self.done:,} of {total:,} steps  {speed:,.0f} steps/s  {left} left",
            file=sys.stderr,
            flush=True,
        )


def model(tree: ModelTree, name: str, as_json: bool) -> None:
    """A model's tree with shapes and parameter counts."""
    if as_json and sys.stdout:
        facts = {"input_size": tree.input_size, "output_size": tree.output_size, "parameters": tree.parameters()}
        print(json.dumps(facts | {"model": tree.config()}))
        return
    from rich.tree import Tree

    if sys.stdout:
        root = Tree(label(shown(name), tree))
        grow(root, tree)
        show(sys.stdout, root)


def label(name: str, tree: ModelTree) -> str:
    config = tree.config()
    options = ("merge", "activation", "recurrent_activation", "forget_bias", "cell_clip", "projection_clip")
    chosen = "".join(f", {option} {config[option]}" for option in options if option in config)
    return f"{name}: {tree.kind}, {tree.input_size} to {tree.output_size}, {tree.parameters():,} parameters{chosen}"


def grow(branch: Any, tree: ModelTree) -> None:
    if isinstance(tree, Cell):
        for name, weight in tree.weights().items():
            branch.add(f"{name} {weight.shape} {weight.dtype}")
    for name, child in tree.children().items():
        grow(branch.add(label(name, child)), child)
