"""What people type who know other programs or mistype, and what it is called here."""

from collections.abc import Iterable

OPTIONS = {
    "--model": "--weights FILE (-w) takes the model of a file, --units N (-u) makes a new one",
    "--checkpoint": "--weights FILE (-w) takes the model of a file",
    "--lengths": "--lens PATH (-l) gives the length of each sequence",
    "--sequence-length": "--lens PATH (-l) gives the length of each sequence",
    "--mask": "--lens PATH (-l) takes a mask as well",
    "--force": "--overwrite replaces a result",
    "--out": "--output PATH (-o) names the result",
    "--hidden-size": "--units N (-u) gives the units of each layer",
    "--gpu": "this program computes on CPUs; --threads N says on how many of them",
    "--device": "this program computes on CPUs; --threads N says on how many of them",
    "--batch-size": "how much is computed at a time changes no result; --max-memory SIZE limits it",
    "--dataset": "--input FILE.h5::/NAME names a dataset",
    "--pool": "lstmcli run has it; a whole model says itself what it pools, and --chain can: mean, max",
    "--save": "lstmcli run has it; predict stores predictions alone",
    "--pad": "--padding pre says that padding stands in front",
}
COMMANDS = {
    **dict.fromkeys(("show", "view", "info", "head", "stats", "summary", "hist", "ls"), "inspect FILE"),
    "plot": "inspect FILE --plot PICTURE",
    "diff": "compare A B",
    "check": "verify FILE",
    "resume": "run ... --resume",
    **{name: f"model {name}" for name in ("init", "import")},
    "export": "convert A B` for sequences and results, `lstmcli model export",
}


def hint(typed: str, options: Iterable[str]) -> str:
    """Returns what follows `No such option: TYPED`: the option that is meant, out of these or another program's, or nothing."""
    from difflib import get_close_matches

    options = set(options)
    others = OPTIONS.keys() - options
    meant = typed if typed in others else next(iter(get_close_matches(typed, [*options, *others], 1, 0.75)), None)
    if meant is None:
        return ""
    return f"; {OPTIONS[meant]}" if meant in others else f"; did you mean {meant}?"
