"""Commands that look at files and at the installation (verify, bench, env), and those that help (help, completion)."""

from typing import TYPE_CHECKING, Any

import click

from lstmcli.cli.command import Command, option
from lstmcli.cli.options import as_json
from lstmcli.cli.param_types import FILE_NAME, IntegerList, TopicName

if TYPE_CHECKING:
    from lstmcli.cli.report.terminal import Terminal


@click.command(
    cls=Command,
    short_help="Check that files are whole and hold what was written.",
    examples=["lstmcli verify x.lstm.h5", "lstmcli verify --quiet results/*.h5"],
    topics=["reliability"],
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=FILE_NAME)
@option("Messages", "-q", "--quiet", is_flag=True, help="Print nothing about files that are right.")
def verify(terminal: "Terminal", files: tuple[str, ...]) -> None:
    """Check results, and the model, NPY and NPZ files beside them: is each whole, and are its checksums right?"""
    from lstmcli.errors import LstmcliError, shown
    from lstmcli.results.verify import verify as verify_file

    failed: LstmcliError | None = None
    for file in files:
        try:
            found = verify_file(file)
        except LstmcliError as error:
            if failed:
                terminal.warn(str(failed), "error")
            failed = error
        else:
            if not terminal.quiet:
                terminal.print(f"{shown(file)}  {found}\n")
    if failed:
        raise failed


@click.command(
    cls=Command,
    short_help="Compare with PyTorch, ONNX Runtime and OpenVINO on your shapes.",
    examples=[
        "lstmcli bench",
        "lstmcli bench --batch 32 --time 200 --embed 300 --units 256 --fill 0.6",
        "lstmcli bench --units 128,128 --bidirectional --vocabulary 10000",
    ],
    topics=["performance"],
)
@option("Input", "--batch", type=click.IntRange(min=1), metavar="N", show_default="64", help="The number of sequences.")
@option("Input", "--time", type=click.IntRange(min=1), metavar="N", show_default="100", help="Steps of the longest sequence.")
@option("Input", "--embed", type=click.IntRange(min=1), metavar="N", show_default="128", help="Features of a step.")
@option(
    "Input",
    "--fill",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="X",
    show_default="0.5",
    help="The part of the steps that is not padding, above 0 and at most 1.",
)
@option(
    "Input",
    "--vocabulary",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="no embedding",
    help="Let the steps be token ids, of an embedding with N rows of --embed features.",
)
@option("Model", "-u", "--units", type=IntegerList(), show_default="128", help="Units of each layer from bottom to top.")
@option("Model", "--bidirectional", is_flag=True, help="Every layer runs in both directions, side by side.")
@option("Model", "--projection", type=click.IntRange(min=1), metavar="N", help="Layers project h to width N.")
@option("Computing", "--threads", type=click.IntRange(min=1), metavar="N", default=1, help="Threads of every contender.")
@option(
    "Computing",
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="The number format to compute in. Whoever has no bfloat16 stays in float32, and is called so.",
)
@option(
    "Messages",
    "-o",
    "--format",
    type=click.Choice(["text", "md"]),
    default="text",
    help="Print text, or a table in Markdown with the CPU, the versions and the date.",
)
@as_json
def bench(terminal: "Terminal", threads: int, dtype: str, format: str, **shape: Any) -> None:
    """Compare with whatever of PyTorch, ONNX Runtime and OpenVINO is installed, and with NumPy's matrix product.

    From a padded array in memory to a padded array. Peers run the batch in one call, and sorted and cut into trimmed buckets.
    Each is a process of its own, and the others are stopped while one runs. With no shape given, a table of shapes from small
    to large.
    """
    from lstmcli.cli.report.bench_table import bench_markdown, bench_table, left_out
    from lstmcli.run.stop import Stop
    from lstmcli.tools.bench.cases import CASES, Case
    from lstmcli.tools.bench.machine import machine
    from lstmcli.tools.bench.measure import measure

    if format != "text" and terminal.json:
        raise click.UsageError("--format and --json both say what to print; choose one")
    chosen = {name: value for name, value in shape.items() if value}
    with Stop().heed_signals():
        cases = [measure(case, threads, dtype) for case in ((Case(**chosen),) if chosen else CASES)]
    facts = {"machine": machine(), "threads": threads, "dtype": dtype, "cases": cases}
    if format == "md":
        terminal.print(bench_markdown(facts))
        return
    for line in left_out(facts):
        terminal.note(f"left out: {line}")
    terminal.print_drawing(facts, lambda: bench_table(facts))


@click.command(
    cls=Command,
    short_help="Show versions, CPU, threads and the cache of kernels.",
    examples=["lstmcli env", "lstmcli env --warmup", "LSTMCLI_CACHE_DIR=/opt/kernels lstmcli env --warmup --cpu avx2,avx512"],
    topics=["memory"],
)
@option(
    "Computing", "--warmup", is_flag=True, help="Compile the kernels that are not in the cache, for images and cluster nodes."
)
@option(
    "Computing",
    "--cpu",
    metavar="NAME[,NAME...]",
    default="native",
    help="What --warmup compiles for: native, this CPU, or kinds of CPUs that other machines may have: avx512, avx2, baseline; "
    "amx is bfloat16 on CPUs with AMX.",
)
@as_json
def env(terminal: "Terminal", warmup: bool, cpu: str) -> None:
    """Show what this installation runs on: versions, CPU, threads, and which kernels are in the cache."""
    from lstmcli.cli.report.run_summary import fact_rows
    from lstmcli.tools.environment import describe, warm_up

    if warmup:
        warm_up(cpu.split(","))
    facts = describe()
    terminal.print_rows(facts, fact_rows(facts))


@click.command(
    "help",
    cls=Command,
    short_help="Show the documentation, a page for each topic.",
    examples=["lstmcli help", "lstmcli help inputs", "lstmcli help reliability | less"],
)
@click.argument("topic", required=False, type=TopicName())
@option("Output", "--man", is_flag=True, help="Print all commands and options as a manual page, for lstmcli.1.")
@click.pass_context
def help_(ctx: click.Context, terminal: "Terminal", topic: str | None, man: bool) -> None:
    """Show the page about TOPIC, or the list of all topics. In a pipe the page is plain Markdown.

    `lstmcli help COMMAND` shows what `lstmcli COMMAND --help` does.
    """
    from lstmcli.cli.report import documentation

    topics, root = documentation.topics(), ctx.find_root()
    assert isinstance(root.command, click.Group)
    if man:
        from lstmcli.cli.report.man_page import man_page

        terminal.print(man_page(root.command))
    elif topic is None:
        width = max(map(len, topics))
        terminal.print("".join(f"{name:{width}}  {answers}\n" for name, answers in topics.items()))
    elif topic in topics:
        terminal.print_page(documentation.read_page(topic))
    elif command := root.command.get_command(root, topic):
        terminal.print(command.get_help(click.Context(command, root, topic)) + "\n")
    else:
        raise click.UsageError(f"help {topic}: expected one of {', '.join(topics)}")


@click.command(
    cls=Command,
    short_help="Print the script for a shell's completion.",
    examples=[
        "echo 'source <(lstmcli completion bash)' >> ~/.bashrc",
        "echo 'autoload -U compinit; compinit; source <(lstmcli completion zsh)' >> ~/.zshrc",
        "lstmcli completion fish > ~/.config/fish/completions/lstmcli.fish",
    ],
    topics=["pipelines"],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, terminal: "Terminal", shell: str) -> None:
    """Print the script with which bash, zsh or fish completes commands, options, choices, files and datasets after ::."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found
    if shell == "bash":  # else a colon ends a word, and what stands behind FILE.h5:: is a word of its own
        terminal.print("COMP_WORDBREAKS=${COMP_WORDBREAKS//:}\n")
    terminal.print(found(ctx.find_root().command, {}, "lstmcli", "_LSTMCLI_COMPLETE").source())
