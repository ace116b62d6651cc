"""What `lstmcli bench` measured, as a table of rich."""

from typing import Any

Measurement = tuple[dict[str, Any], list[dict[str, Any]]]  # a case, and its contenders: lstmcli, peers, sgemm


def bench_table(measured: list[Measurement], threads: int) -> Any:
    """Draws all contenders for one case; for more, a row for each case with the best peers."""
    return one_case(*measured[0], threads) if len(measured) == 1 else many_cases(measured, threads)


def one_case(case: dict[str, Any], contenders: list[dict[str, Any]], threads: int) -> Any:
    title = f"{', '.join(f'{name} {value}' for name, value in case.items())}; threads {threads}"
    table = new_table("", ("ms", "GFLOP/s", "time / ours"))
    for one in contenders:
        ratio = "" if one["name"] == "sgemm" else f"{one['ratio']:.2f}"  # that computes something else
        table.add_row(one["name"], f"{one['milliseconds']:.3f}", f"{one['gflops']:.1f}", ratio)
    return titled(title, table)


def many_cases(measured: list[Measurement], threads: int) -> Any:
    title = f"time of the peers / ours, threads {threads}"
    table = new_table("batch, time, embed, units, fill", ("ms", "GFLOP/s", "of sgemm"))
    table.add_column("best in one call")
    table.add_column("best in buckets")
    for case, (ours, *peers, sgemm) in measured:
        table.add_row(
            ", ".join(map(str, case.values())),
            f"{ours['milliseconds']:.3f}",
            f"{ours['gflops']:.1f}",
            f"{ours['gflops'] / sgemm['gflops']:.0%}",
            best([one for one in peers if "buckets" not in one["name"]]),
            best([one for one in peers if "buckets" in one["name"]]),
        )
    return titled(title, table)


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
