"""What `lstmcli bench` measured, as a table of rich."""

from typing import Any

SHAPE = "batch, time, embed, units, fill"
Found = dict[str, Any]  # of a case: itself, its contenders (lstmcli, peers, sgemm), and who is left out and why


def bench_table(found: list[Found], threads: int) -> Any:
    """Draws all contenders for one case; for more, a row for each case with the best peers."""
    return one_case(found[0], threads) if len(found) == 1 else many_cases(found, threads)


def one_case(found: Found, threads: int) -> Any:
    table = new_table("", ("ms", "GFLOP/s", "time / ours"))
    for one in found["contenders"]:
        ratio = "" if one["name"] == "sgemm" else f"{one['ratio']:.2f}"  # that computes something else
        table.add_row(one["name"], f"{one['milliseconds']:.3f}", f"{one['gflops']:.1f}", ratio)
    return titled(f"{SHAPE}: {shape(found['case'])}; threads {threads}", table)


def many_cases(found: list[Found], threads: int) -> Any:
    table = new_table(SHAPE, ("ms", "GFLOP/s", "of sgemm"))
    table.add_column("best in one call")
    table.add_column("best in buckets")
    for one in found:
        ours, *peers, sgemm = one["contenders"]
        table.add_row(
            shape(one["case"]),
            f"{ours['milliseconds']:.3f}",
            f"{ours['gflops']:.1f}",
            f"{ours['gflops'] / sgemm['gflops']:.0%}",
            best([peer for peer in peers if "buckets" not in peer["name"]]),
            best([peer for peer in peers if "buckets" in peer["name"]]),
        )
    return titled(f"time of the peers / ours, threads {threads}", table)


def shape(case: dict[str, Any]) -> str:
    """Returns a case in words, such as "16, 60, 512, 4096, 0.5, projection 512"."""
    units = " + ".join(map(str, case["units"]))
    more = {name: case[name] for name in ("projection", "vocabulary") if case[name]}
    words = [case["batch"], case["time"], case["embed"], units, case["fill"], *(f"{name} {n}" for name, n in more.items())]
    return ", ".join(map(str, [*words, *["bidirectional"] * case["bidirectional"]]))


def titled(title: str, table: Any) -> Any:
    from rich.console import Group
    from rich.text import Text

    return Group(Text(title, style="bold"), table)


def new_table(first: str, numbers: tuple[str, ...]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def best(peers: list[dict[str, Any]]) -> str:
    found = min(peers, key=lambda one: float(one["ratio"]), default=None)
    return f"{found['ratio']:.2f} {found['name']}" if found else ""
