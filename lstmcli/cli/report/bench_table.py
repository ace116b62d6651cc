"""What `lstmcli bench` measured, as a table: of rich, or in Markdown."""

from collections.abc import Iterator
from typing import Any, NamedTuple

Found = dict[str, Any]  # of a case: itself, its contenders (lstmcli, peers, sgemm), and who is left out and why
SHAPE = "batch, time, embed, units, fill"
ALL_CASES = "time / that of lstmcli"


class Table(NamedTuple):
    """texts, numbers: the heads of the columns, of which the first is one of texts, then come all numbers, then the others."""

    title: str
    texts: list[str]
    numbers: list[str]
    rows: list[list[str]]


def bench_table(facts: dict[str, Any]) -> Any:
    """Draws a table for a terminal."""
    from rich.console import Group
    from rich.table import Table as Drawn
    from rich.text import Text

    found = table_of(facts)
    drawn = Drawn(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.add_column(found.texts[0])
    for head in found.numbers:
        drawn.add_column(head, justify="right", no_wrap=True)
    for head in found.texts[1:]:
        drawn.add_column(head)
    for row in found.rows:
        drawn.add_row(*row)
    return Group(Text(f"{found.title}; {setting(facts)}", style="bold"), drawn)


def bench_markdown(facts: dict[str, Any]) -> str:
    """Returns the table with the machine, the versions and the date above it, and who is left out below."""
    found, machine = table_of(facts), facts["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs; {setting(facts)}; {versions}; {machine['date']}. {found.title}.",
        "",
        *(f"| {' | '.join(row)} |" for row in [[found.texts[0], *found.numbers, *found.texts[1:]], *found.rows]),
    ]
    lines.insert(3, f"|---|{'--:|' * len(found.numbers)}{'---|' * len(found.texts[1:])}")
    why = list(left_out(facts))
    return "\n".join([*lines, *(["", f"Left out: {'; '.join(why)}."] if why else [])]) + "\n"


def left_out(facts: dict[str, Any]) -> Iterator[str]:
    """Yields who does not take part, and why, once."""
    yield from dict.fromkeys(f"{name}, {why}" for one in facts["cases"] for name, why in one["left_out"].items())


def setting(facts: dict[str, Any]) -> str:
    return f"threads {facts['threads']}, {facts['dtype']}"


def table_of(facts: dict[str, Any]) -> Table:
    """Returns all contenders for one case; for more, a row for each case with the best peers."""
    cases = facts["cases"]
    return one_case(cases[0]) if len(cases) == 1 else many_cases(cases)


def one_case(found: Found) -> Table:
    rows = []
    for one in found["contenders"]:
        ratio = "" if one["name"] == "sgemm" else f"{one['ratio']:.2f}"  # that computes something else
        rows.append([one["name"], f"{one['milliseconds']:.3f}", f"{one['gflops']:.1f}", ratio])
    return Table(f"{SHAPE}: {shape(found['case'])}", [""], ["ms", "GFLOP/s", ALL_CASES], rows)


def many_cases(cases: list[Found]) -> Table:
    """A peer's number is its time over that of lstmcli; so is that of lstmcli in float32, where it computes in bfloat16."""
    numbers = ["ms", "GFLOP/s", "of sgemm"]
    rows = []
    for found in cases:
        ours, *others, sgemm = found["contenders"]
        own = [one for one in others if one["name"].startswith(ours["name"])]
        peers = [one for one in others if one not in own]
        rows.append(
            [
                shape(found["case"]),
                f"{ours['milliseconds']:.3g}",
                f"{ours['gflops']:.1f}",
                f"{ours['gflops'] / sgemm['gflops']:.0%}",
                *(f"{one['ratio']:.2f}" for one in own),
                best([one for one in peers if "buckets" not in one["name"]]),
                best([one for one in peers if "buckets" in one["name"]]),
            ]
        )
    return Table(
        f"Peers: {ALL_CASES}", [SHAPE, "best in one call", "best in buckets"], [*numbers, *(one["name"] for one in own)], rows
    )


def shape(case: dict[str, Any]) -> str:
    """Returns a case in words, such as "16, 60, 512, 4096, 0.5, projection 512"."""
    units = " + ".join(map(str, case["units"]))
    more = {name: case[name] for name in ("projection", "vocabulary") if case[name]}
    words = [case["batch"], case["time"], case["embed"], units, case["fill"], *(f"{name} {n}" for name, n in more.items())]
    return ", ".join(map(str, [*words, *["bidirectional"] * case["bidirectional"]]))


def best(peers: list[dict[str, Any]]) -> str:
    found = min(peers, key=lambda one: float(one["ratio"]), default=None)
    return f"{found['ratio']:.2f} {found['name']}" if found else ""
