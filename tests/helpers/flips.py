"""Flips one bit of a file after the other and sees what the program says, in a process that is made anew when it dies.

    python tests/helpers/flips.py KIND FIRST STEP

In the current folder lies the file of that kind (see KINDS). Prints a line for each bit whose flip ends in anything but an
error of the program's own, or a right result; and at last how often what came. Bits are tried from FIRST on, STEP apart.
"""

from __future__ import annotations

import collections
import contextlib
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

SECONDS = 5  # for one flip
FILES = {
    "result": "result.h5",
    "npz": "states.npz",
    "model": "model.h5",
    "chunked": "x.h5",
    "keras": "keras.h5",
    "ids": "ids.h5",
}


def verified(path: str) -> bytes:
    """Nothing that verify() passes may be another file than the one that was written."""
    from lstmcli.results.verify import verify

    verify(path)
    return b"as written"


def model(path: str) -> bytes:
    """The model: another one, with other weights, is as good as this one, as the file has no checksums."""
    from lstmcli.weights.load import Choices, load_weights

    load_weights(path, Choices())
    return b"a model"


def values(path: str) -> bytes:
    """All that a run reads of a padded input."""
    import numpy as np

    from lstmcli.inputs.open_input import open_source

    source = open_source(path)
    try:
        batch, steps, features = source.shape
        if batch * steps * features > 10_000:
            return b"other values"
        lengths = np.full(batch, steps)
        rows = np.empty((batch * steps, features), np.float32)
        source.read(0, 0 * lengths, lengths, rows)
        source.finish()
        return repr(source.shape).encode() + rows.tobytes()
    finally:
        source.close()


def ids(path: str) -> bytes:
    """The ids beside padded inputs: others are as good as these, as the file has no checksums."""
    from lstmcli.errors import DataError
    from lstmcli.inputs.ragged.open_sequences import open_sequences

    failed: DataError | None = None
    for name in ("x", "chunks/x"):
        try:
            with contextlib.closing(open_sequences(f"{path}::/{name}")) as source:
                source.array.place()
        except DataError as error:
            failed = error
    if failed:
        raise failed
    return b"ids"


KINDS: dict[str, Callable[[str], bytes]] = {
    "result": verified,
    "npz": verified,
    "model": model,
    "keras": model,
    "chunked": values,
    "ids": ids,
}


def attempt(kind: str) -> str:
    """Says what comes of the file as it is now."""
    from lstmcli.errors import LstmcliError

    try:
        return f"0 {KINDS[kind](FILES[kind]).hex()}"
    except LstmcliError as error:
        return str(error.exit_code)
    except BaseException as error:
        return f"1 {type(error).__name__}: {error}"[:300]


def main() -> None:
    kind, first, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    path = Path(FILES[kind])
    whole = path.read_bytes()
    right = attempt(kind)
    assert right.startswith("0 "), right
    shared = mmap.mmap(-1, 8)  # the bit that is flipped
    codes: collections.Counter[str] = collections.Counter()
    bit = first
    while bit < 8 * len(whole):
        receive, send = os.pipe()
        if not (child := os.fork()):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            with path.open("r+b", buffering=0) as file, os.fdopen(send, "w") as told:
                for at in range(bit, 8 * len(whole), step):
                    shared[:] = struct.pack("<q", at)
                    os.pwrite(file.fileno(), bytes([whole[at // 8] ^ 1 << at % 8]), at // 8)
                    signal.alarm(SECONDS)
                    print(at, attempt(kind), file=told, flush=True)
                    os.pwrite(file.fileno(), whole[at // 8 : at // 8 + 1], at // 8)
            os._exit(0)
        os.close(send)
        with os.fdopen(receive) as told:
            for line in told:
                number, code, *rest = line.split(maxsplit=2)
                codes[code] += 1
                if code == "1" or (code == "0" and line.split(maxsplit=1)[1].strip() != right):
                    print(f"bit {number}: {code} {' '.join(rest)[:300]}", flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        path.write_bytes(whole)
        bit = 8 * len(whole)
        if status:
            (died,) = struct.unpack("<q", shared[:8])
            codes[str(status)] += 1
            print(f"bit {died}: {status}", flush=True)
            bit = died + step
    print(dict(codes))


if __name__ == "__main__":
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
    main()
