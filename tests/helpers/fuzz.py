"""Runs the command on files that were damaged at random, each time in a new process, a fork of this one.

    python tests/helpers/fuzz.py KIND SEED COUNT

In the current folder lie x.npy, lens.npy, mask.npy, lens.txt, x.h5, model.h5, golden.h5, and for "journal" a run that was
killed. Prints what is neither refused in one line nor run right, and at the end how often which exit code came.
"""

from __future__ import annotations

import collections
import os
import random
import resource
import sys
from pathlib import Path

from faults import command, restore  # this is run as a script: its folder is on the path
from result_bytes import without_origins

BASE = {"-i": "x.npy", "-l": "lens.npy", "-w": "model.h5", "-o": "out.h5"}
KINDS = {  # the option that gets the damaged file, the file, and the bytes in which most of the damage is done
    "npy": ("-i", "x.npy", 128),
    "lengths": ("-l", "lens.npy", 128),
    "mask": ("-l", "mask.npy", 1000),
    "text": ("-l", "lens.txt", 100),
    "hdf5": ("-i", "x.h5", 4000),
    "chunked": ("-i", "chunked.h5", 8000),
    "npz": ("-i", "many.npz", 3000),
    "datasets": ("-i", "many.h5", 12_000),
    "kaldi": ("-i", "many.ark", 10_000),
    "kaldi list": ("-i", "many.scp", 400),
    "safetensors": ("-i", "many.safetensors", 1500),
    "model": ("-w", "model.h5", 8000),
    "convert": (None, "chunked.h5", 8000),  # these for `lstmcli convert`
    "convert npz": (None, "many.npz", 3000),
    "convert result": (None, "golden.h5", 10_000),
    "journal": (None, "out.h5.journal", 10_000),
    "result": (None, "golden.h5", 10_000),  # for `lstmcli verify`
}
SECONDS = 20  # of CPU time, for a hang


def damaged(content: bytes, head: int, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        size = max(1, min(len(changed), head if rng.random() < 0.9 else len(changed)))
        at, count = rng.randrange(size), rng.randrange(1, 9)
        kind = rng.randrange(7)
        if kind < 2 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 2 and changed:
            changed[at % len(changed)] = rng.choice((0, 1, 127, 128, 255, ord("0"), ord("9"), ord("-"), ord("("), ord(",")))
        elif kind == 3:
            del changed[at : at + count]
        elif kind == 4:
            changed[at:at] = rng.randbytes(count)
        elif kind == 5:
            changed[at:at] = changed[at : at + count]
        else:
            changed[at : at + count] = rng.choice((b"\xff" * count, b"\0" * count, b"99999999"[:count]))
    return bytes(changed[: rng.randrange(len(changed) + 1)] if rng.random() < 0.1 else changed)


def right(kind: str) -> bool:
    """Whether the result is as if undamaged, or what NumPy makes of the same files (in a process: libhdf5 may crash).

    Of sequences without padding nobody else knows what a damaged file says.
    """
    if KINDS[kind][1].startswith("many."):
        return True
    if without_origins(Path("out.h5").read_bytes()) == without_origins(
        Path("golden.h5").read_bytes()
    ):  # a chunk of nothing but padding may be damaged
        return True
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    import h5py
    import numpy as np

    import lstmcli

    np.seterr(all="ignore")
    option, name, _ = KINDS[kind]
    given = BASE | {option: name}
    if given["-i"].endswith(".npy"):
        x = np.load(given["-i"])
    else:
        with h5py.File(given["-i"]) as file:
            x = file["x"][:]
    lengths = np.load(given["-l"]) if given["-l"].endswith(".npy") else np.loadtxt(given["-l"], np.int64, ndmin=1)
    told = {"mask": lengths} if lengths.shape == x.shape[:2] else {"lengths": lengths.reshape(-1).astype(np.int64)}
    outputs, _ = lstmcli.load_model(given["-w"])(np.asarray(x, np.float32), **told, threads=1)
    with h5py.File("out.h5") as file:
        got = file["outputs"][:]
    os._exit(0 if np.array_equal(got, outputs, equal_nan=True) else 1)


def main() -> None:
    kind, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
    import h5py  # noqa: F401

    from lstmcli.cli.main import main  # noqa: F401
    from lstmcli.kernel import lstm
    from lstmcli.run.run import run  # noqa: F401

    lstm.load(32)
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    option, name, head = KINDS[kind]
    # In children, each of which begins at 0 seconds.
    os.register_at_fork(after_in_child=lambda: resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5)))
    golden = Path("golden.h5").read_bytes()
    before = {path: path.read_bytes() for path in Path().iterdir()}
    argv = ["run", *(word for pair in (BASE | ({option: name} if option else {})).items() for word in pair)]
    argv += ["--threads", "1", "--max-memory", "60KB", "-q"] + ["--resume"] * (kind == "journal")
    if kind == "result":
        argv = ["verify", "-q", name]
    if kind.startswith("convert"):
        argv = ["convert", "-q", name, "out.h5", "--layout", "per-sequence"]
    codes: collections.Counter[int] = collections.Counter()
    for number in range(seed, seed + count):
        restore(before)
        Path(name).write_bytes(damaged(before[Path(name)], head, random.Random(number)))
        code, stderr, _ = command(argv, None)
        codes[code] += 1
        refused = (65, 66, 2) if kind == "kaldi list" else (65, 2)  # a list may name a file that is not there
        fine = len(stderr.splitlines()) <= 1 if code == 0 else code in refused and len(stderr.splitlines()) == 1
        if fine and code == 0:
            made = {"journal": "out.h5", "result": name}.get(kind)
            fine = Path(made).read_bytes() == golden if made else kind.startswith("convert") or right(kind)
        if not fine or "Traceback" in stderr:
            print(f"{kind} {number}: exit code {code}: {stderr.strip()[-600:]}")
    print(dict(codes))


if __name__ == "__main__":
    main()
