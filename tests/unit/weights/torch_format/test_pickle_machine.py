"""Nothing of a pickle is run: what imports, builds or calls is tried with os.system and friends, nested and memoized.

Each file also holds a good LSTM; it is read right, or the file is refused, and nothing else happens.
"""

from __future__ import annotations

import pickle
import random
import struct
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.weight_imports import assert_same, attempt, tree

STACK = naive.Stack((wf.random_cell(3, 4, 0),))
TENSORS = {name: np.ascontiguousarray(value) for name, value in wf.torch_state_dict(STACK).items()}
WEIGHTS = wf.p_dict((name, wf.p_array(str(k), value)) for k, (name, value) in enumerate(TENSORS.items()))
STORED = {str(k): value.tobytes() for k, value in enumerate(TENSORS.values())}


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


TOUCH = wf.p_tuple(wf.p_text("touch pwned"))
CODE = wf.p_tuple(wf.p_text("open('pwned', 'w')"))
TARGETS = {
    "posix system": TOUCH,
    "os system": TOUCH,
    "subprocess getoutput": TOUCH,
    "builtins eval": CODE,
    "__builtin__ eval": CODE,
    "builtins exec": CODE,
    "builtins __import__": wf.p_tuple(wf.p_text("evil")),
    "importlib import_module": wf.p_tuple(wf.p_text("evil")),
    "runpy run_path": wf.p_tuple(wf.p_text("evil.py")),
    "builtins open": wf.p_tuple(wf.p_text("pwned"), wf.p_text("w")),
    "pathlib Path.touch": wf.p_tuple(wf.p_text("pwned")),
    "numpy load": wf.p_tuple(wf.p_text("evil.npy")),
    "torch load": wf.p_tuple(wf.p_text("evil.pt")),
    "torch.hub load": TOUCH,
    "torch.serialization load": TOUCH,
    "torch._utils _import_dotted_name": wf.p_tuple(wf.p_text("evil")),
    "torch.storage _load_from_bytes": TOUCH,
    "collections OrderedDict.fromkeys": TOUCH,
    "__torch__.evil Net": b")",
    "evil Net": b")",
}


def calls(target: str, arguments: bytes) -> Iterator[bytes]:
    """Every way in which a pickle can call, or make an object of, what it names."""
    module, name = target.split(" ")
    names = [f"c{module}\n{name}\n".encode(), short(module) + short(name) + b"\x93"]
    for made in names:
        yield made
        yield made + arguments + b"R"
        yield made + arguments + b"\x81"
        yield made + arguments + b"}\x92"
        yield b"(" + made + arguments + b"o"
        yield b")" + made + arguments + b"R" + b"b"  # a state for what has none
        yield made + b")\x81" + wf.p_dict([("__setstate__", made), ("__dict__", made)]) + b"b"
        yield made + b")\x81" + made + b"b"
        yield made + b")\x81" + wf.p_text("a") + made + b"s"
        yield made + b")\x81" + made + arguments + b"Ra"
        yield made + b"q\x00" + b"0" + b"h\x00" + arguments + b"R"  # out of the memo
        yield made + b"\x940" + b"h\x00" + arguments + b"R"
        yield b"ctorch._utils\n_rebuild_parameter\n" + wf.p_tuple(made + arguments + b"R", b"\x89", b"N") + b"R"
        yield b"ctorch._tensor\n_rebuild_from_type_v2\n" + wf.p_tuple(made, made, arguments, b"N") + b"R"
        yield b"ccollections\nOrderedDict\n" + wf.p_tuple(b"](" + wf.p_tuple(made, made + arguments + b"R") + b"e") + b"R"
        yield wf.p_tuple(wf.p_text("storage"), made, wf.p_text("0"), wf.p_text("cpu"), wf.p_int(1)) + b"Q"
        yield wf.p_tuple(wf.p_text("module"), made, wf.p_text("evil.py"), wf.p_text("import os")) + b"Q" + arguments + b"R"
        yield made + arguments + b"R" + arguments + b"R"  # a call of what came of a call
        yield b"c_codecs\nencode\n" + wf.p_tuple(made, wf.p_text("latin1")) + b"R"
    yield f"(i{module}\n{name}\n".encode()
    yield b"(" + arguments + f"i{module}\n{name}\n".encode()
    yield b"\x82\x01" + arguments + b"R"
    yield b"P0\n" + arguments + b"R"


def nested(call: bytes) -> Iterator[bytes]:
    """A file's root with the call in it, at several places."""
    yield wf.p_dict([("state_dict", WEIGHTS), ("other", call)])
    yield wf.p_dict([("other", call), ("state_dict", WEIGHTS)])
    yield wf.p_dict([("other", wf.p_tuple(b"](" + wf.p_dict([("a", call)]) + b"e")), ("state_dict", WEIGHTS)])
    yield b"}(" + call + wf.p_int(1) + wf.p_text("state_dict") + WEIGHTS + b"u"  # as a key
    yield call + b"0" + WEIGHTS


def containers(folder: Path, pickled: bytes) -> Iterator[Path]:
    yield wf.write_pt(folder / "m.pt", pickled, STORED)
    yield wf.write_legacy(folder / "m.pth", pickled, {str(k): value for k, value in enumerate(TENSORS.values())})
    (folder / "m.pkl").write_bytes(b"\x80\x04" + pickled + b".")
    yield folder / "m.pkl"
    inner = (
        b"ctorch.storage\n_load_from_bytes\n"
        + wf.p_tuple(b"B" + struct.pack("<I", len(pickled) + 3) + b"\x80\x02" + pickled + b".")
        + b"R"
    )
    yield wf.write_pt(folder / "i.pt", wf.p_dict([("state_dict", WEIGHTS), ("other", inner)]), STORED)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which it shows when something is imported, opened or run."""
    for name in ("evil.py", "evil.pt", "evil.npy"):
        (tmp_path / name).write_text("open('pwned', 'w').close()\nclass Net: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def try_files(folder: Path, pickled: bytes) -> int:
    """How many of the containers were read. AssertionError: anything happened, or another model came of it."""
    read = 0
    for path in containers(folder, pickled):
        if not isinstance(got := attempt(path), str):
            assert_same(got, STACK)
            read += 1
    assert "evil" not in sys.modules
    assert not (folder / "pwned").exists()
    return read


def test_the_trap_works(trap: Path) -> None:
    pickle.loads(b"\x80\x02cposix\nsystem\n" + TOUCH + b"R.")
    assert (trap / "pwned").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_no_call_is_made(target: str, trap: Path) -> None:
    read = sum(try_files(trap, root) for call in calls(target, TARGETS[target]) for root in nested(call))
    assert read > 50  # so that what stands beside is seen to be read, too


def test_opcodes_at_random(trap: Path) -> None:
    """Opcodes that name, call and build, in any order, on whatever lies on the stack."""
    dice = random.Random(0)
    pieces = [*(f"c{target.replace(' ', chr(10))}\n".encode() for target in TARGETS), TOUCH, CODE, WEIGHTS, wf.p_int(3)]
    pieces += [wf.p_text(text) for text in ("posix", "system", "touch pwned", "storage")]
    pieces += [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"q\x01",
        b"h\x01",
        b"R",
        b"R",
        b"(",
        b"(",
    ]
    pieces += [bytes([opcode]) for opcode in b"RbotdlaesuQ012}])N\x81\x85\x86\x87\x8f\x90\x91\x92\x93\x94"]
    for _ in range(3000):
        pickled = b"".join(dice.choices(pieces, k=dice.randrange(1, 30)))
        path = wf.write_pt(
            trap / "m.pt", pickled if dice.random() < 0.5 else wf.p_dict([("a", pickled), ("b", WEIGHTS)]), STORED
        )
        if not isinstance(got := attempt(path), str):
            assert_same(got, STACK)
    assert "evil" not in sys.modules
    assert not (trap / "pwned").exists()


# What costs nothing to write and everything to read.

LONG = wf.p_text("k" * 1_000_000) + b"q\x00" + b"0"
KEYS = b"".join(wf.p_text(str(k)) + b"N" for k in range(20_000))
ENCODED = b"c_codecs\nencode\n" + wf.p_tuple(b"h\x00", wf.p_text("latin1")) + b"R"
BOMBS = {
    "a long name, again and again": LONG + b"}" + b"h\x00}" * 60 + b"s" * 60,
    "a number of a hundred thousand digits as a key": b"}\x8b" + struct.pack("<I", 50_000) + b"\x7f" * 50_000 + b"Ns",
    "bytes again and again": wf.p_text("\u00e9" * 300_000) + b"q\x000](" + ENCODED * 5_000 + b"e",
    "a dict in many objects": b"}(" + KEYS + b"uq\x000](" + b"ca\nB\n(h\x00tR" * 20_000 + b"e",
    "objects in objects": b"ca\nB\n)\x81" * 50_000 + b"b" * 49_999,
    "types in types": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00" + b"(h\x00N" * 50_000 + b")" + b"Nt" * 50_000 + b"R",
    "a shape of many axes": wf.p_tensor("0", 1, (1,) * 100_000, (1,) * 100_000),
    "a long number of bytes": b"\x8e" + struct.pack("<Q", 1 << 60),
    "a long text": b"\x8d" + struct.pack("<Q", (1 << 63) - 1),
}


@pytest.mark.parametrize("what", BOMBS)
def test_bombs(what: str, trap: Path) -> None:
    began = time.monotonic()
    try_files(trap, wf.p_dict([("state_dict", WEIGHTS), ("other", BOMBS[what])]))
    assert time.monotonic() - began < 20


def test_a_pickle_in_the_archive_of_another_name_is_not_looked_at(trap: Path) -> None:
    path = wf.write_pt(trap / "m.pt", WEIGHTS, STORED, **{"evil.pkl": b"cposix\nsystem\n" + TOUCH + b"R."})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/deep/data.pkl", b"cposix\nsystem\n" + TOUCH + b"R.")
    assert_same(tree(path), STACK)
    assert not (trap / "pwned").exists()
