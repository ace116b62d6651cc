"""Every sample cut and with single bits flipped: refused with one line, or read as what the file says; never anything else."""

from __future__ import annotations

import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import naive, speech
from helpers import weight_files as wf
from helpers.command import assert_one_line, lstmcli
from helpers.onnx_files import call, constant, function, graph, lstm, random_constant, with_graphs

from lstmcli.errors import DataError
from lstmcli.weights.load import Choices, load_weights

FLIPS, CUTS, EDGE = 240, 60, 3000
SECONDS = 5.0
MEMORY = 1 << 30  # more than the process has; every sample is below a megabyte

CHECKED = [
    speech.FOLDER / "torch_bilstm.pt",
    speech.KERAS,
    speech.CHECKPOINT,
    speech.CHECKPOINT.with_suffix(".data-00000-of-00001"),
]


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """What a file claims must not be believed: an allocation of a gigabyte fails, and with it the test."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def weights(path: Path) -> dict[str, np.ndarray] | None:
    """By cell and field; None for a file that is refused as it should be."""
    began = time.monotonic()
    try:
        model = load_weights(str(path), Choices()).model
    except DataError as error:
        text = str(error)
        assert path.name.split(".")[0] in text
        assert text.isprintable()
        return None
    finally:
        assert time.monotonic() - began < SECONDS
    return {f"{place}/{name}": value for place, cell in model.cells() for name, value in cell.weights().items()}


def differing(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> int:
    """How many numbers differ in their bits; all of them for another model."""
    if got.keys() != want.keys() or any(got[key].shape != want[key].shape for key in want):
        return sum(value.size for value in want.values())
    # An exact sum of two biases may need float64.
    return sum(int(np.sum(np.float64(got[key]).view("u8") != np.float64(value).view("u8"))) for key, value in want.items())


def copy(path: Path, folder: Path) -> Path:
    """The sample, where its copy is to be damaged; a checkpoint with both of its files."""
    for other in path.parent.glob(f"{path.name.split('.')[0]}.ckpt*"):
        shutil.copy(other, folder)
    shutil.copy(path, folder)
    return folder / path.name


def damaged(data: bytes, seed: int) -> Iterator[tuple[int, bytes]]:
    """(place of the flipped bit, copy): half of them near the edges of the file, where the headers are."""
    rng = np.random.default_rng(seed)
    near = rng.integers(0, min(EDGE, len(data)), FLIPS // 2)
    places = [*near[::2], *(len(data) - 1 - near[1::2]), *rng.integers(0, len(data), FLIPS - len(near))]
    for place in map(int, places):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        yield place, bytes(changed)


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_flipped_bits_are_found_where_there_are_checksums(path: Path, tmp_path: Path) -> None:
    """All weights are under one: they are right, or the file is refused."""
    target = copy(path, tmp_path)
    data, want = target.read_bytes(), weights(target)
    assert want is not None
    refused = 0
    for place, changed in damaged(data, 0):
        target.write_bytes(changed)
        got = weights(target)
        assert got is None or differing(got, want) == 0, place
        refused += got is None
    assert refused > FLIPS // 10


def test_flipped_bits_of_safetensors(tmp_path: Path) -> None:
    """The header is refused unless it says the same; in a tensor a flipped bit is another number, and no other changes."""
    target = copy(speech.SAFETENSORS, tmp_path)
    data, want = target.read_bytes(), weights(target)
    assert want is not None
    begin = 8 + int.from_bytes(data[:8], "little")
    for place, changed in damaged(data, 1):
        target.write_bytes(changed)
        got = weights(target)
        assert got is None or differing(got, want) <= (place >= begin), place


@pytest.mark.parametrize("name", ["torch_bilstm.onnx", "keras_stack.weights.h5"])
def test_flipped_bits_where_nothing_can_tell(name: str, tmp_path: Path) -> None:
    """Refused, or what the file says now: mostly the same, or one other number."""
    path = speech.FOLDER / name
    target = copy(path, tmp_path) if path.exists() else speech.keras_weights(tmp_path)
    data, want = target.read_bytes(), weights(target)
    assert want is not None
    same = 0
    for _, changed in damaged(data, 2):
        target.write_bytes(changed)
        got = weights(target)
        same += got is not None and differing(got, want) <= 1
    assert same > FLIPS // 4


@pytest.mark.parametrize("path", [*speech.MODELS, CHECKED[-1], None], ids=lambda path: path.name if path else "weights.h5")
def test_cut_files(path: Path | None, tmp_path: Path) -> None:
    target = copy(path, tmp_path) if path else speech.keras_weights(tmp_path)
    data, want = target.read_bytes(), weights(target)
    assert want is not None
    for size in map(int, [*range(20), *np.linspace(20, len(data) - 1, CUTS), len(data) - 1]):
        target.write_bytes(data[:size])
        got = weights(target)
        assert got is None or differing(got, want) == 0, size


def graph_of_all_kinds(path: Path) -> Path:
    """An ONNX model with a branch, a function, weights in pieces, a learned state and two layers."""
    cell, top = wf.random_cell(3, 4, 0), wf.random_cell(4, 4, 1)
    nodes, tensors = random_constant("W0", (1, 16, 3), np.random.default_rng(5))
    _, below = lstm(0, [cell])
    above, others = lstm(1, [top], "Z")
    start = wf.onnx_tensor("h", np.ones((1, 1, 4), "f4"))
    inner = wf.onnx_node("LSTM", ["x", "W0", "R0", "B0", "", "h"], ["y"], "inner", hidden_size=4)
    named = ["x", "W0", "R0", "B0", "h"]
    squeeze = wf.onnx_node("Squeeze", ["Y0"], ["S"], axes=[1])
    branch = graph([call("Layer", ["X", *named[1:]], ["Y0"]), squeeze], [], ["S"])
    taken = with_graphs("If", ["yes"], ["Z"], "If_0", then_branch=branch, else_branch=graph([], [], ["X"]))
    tensors += [*below[1:], start, *others]
    wf.write_onnx(path, [*nodes, constant("yes", np.array(1)), taken, above], tensors)
    path.write_bytes(path.read_bytes() + function("Layer", named, ["y"], [inner]))
    return path


def named_weights(path: Path) -> Path:
    """HDF5 under the names of TensorFlow, in the order of ELMo."""
    cells = [wf.random_cell(4, 6, seed, projection=4) for seed in range(2)]
    with h5py.File(path, "w") as file:
        for k, cell in enumerate(cells):
            for name, value in wf.tensorflow_variables(cell, f"RNN_{k}/RNN/MultiRNNCell/Cell0/LSTMCell", "W_0", "B").items():
                file[name.replace("projection/kernel", "W_P_0")] = value
    return path


@pytest.mark.parametrize("make", [graph_of_all_kinds, named_weights])
def test_flipped_bits_of_graphs_and_names(make: Callable[[Path], Path], tmp_path: Path) -> None:
    target = make(tmp_path / "sample")
    data, want = target.read_bytes(), weights(target)
    assert want is not None
    same = 0
    for _, changed in damaged(data, 3):
        target.write_bytes(changed)
        got = weights(target)
        same += got is not None and differing(got, want) <= 1
    assert same > FLIPS // 10
    for size in map(int, np.linspace(20, len(data) - 1, CUTS)):
        target.write_bytes(data[:size])
        got = weights(target)
        assert got is None or make is graph_of_all_kinds or differing(got, want) == 0, size


def test_a_ring_of_free_blocks(tmp_path: Path) -> None:
    """libhdf5 would follow it forever, and take memory for each step."""
    data = bytearray(named_weights(tmp_path / "sample").read_bytes())
    heap = data.index(b"HEAP")
    free, address = (int.from_bytes(data[heap + at : heap + at + 8], "little") for at in (16, 24))
    data[address + free : address + free + 8] = free.to_bytes(8, "little")
    (tmp_path / "sample").write_bytes(data)
    assert weights(tmp_path / "sample") is None


def test_noise(tmp_path: Path) -> None:
    """After the first bytes of each format."""
    rng = np.random.default_rng(4)
    for begin in (
        b"",
        b"\x89HDF\r\n\x1a\n",
        b"PK\3\4",
        b"\x08\x08",
        b"\x80\x02",
        b"\x20" + bytes(7) + b"{",
        b"PK\5\6" + bytes(18),
    ):
        for size in (0, 10, 100, 10_000):
            (tmp_path / "noise").write_bytes(begin + rng.bytes(size))
            assert weights(tmp_path / "noise") is None


@pytest.mark.parametrize("path", speech.MODELS, ids=lambda path: path.name)
def test_a_damaged_file_and_the_command(path: Path, tmp_path: Path) -> None:
    target = copy(path, tmp_path)
    target.write_bytes(target.read_bytes()[:-100])
    assert_one_line(lstmcli("model", "show", target, cwd=tmp_path), 65, target.name)
    args = ["run", "--input", speech.SAMPLE_DATA / "vowels.h5", "--weights", target, "--output", "out.h5"]
    assert_one_line(lstmcli(*args, cwd=tmp_path), 65, target.name)
    assert not (tmp_path / "out.h5").exists()


# The other files of PyTorch: made here, because PyTorch writes them large.

SMALL = {
    name: np.ascontiguousarray(value)
    for name, value in wf.torch_state_dict(naive.Stack((wf.random_cell(3, 4, 0), wf.random_cell(4, 4, 1))), "rnn.").items()
}
PICKLED = {name: wf.p_array(str(k), value) for k, (name, value) in enumerate(SMALL.items())}
STORED = {str(k): value.tobytes() for k, value in enumerate(SMALL.values())}


def made(kind: str, folder: Path) -> Path:
    path = folder / "m.pt"
    bare = {name.removeprefix("rnn."): value for name, value in PICKLED.items()}
    inside = {"rnn": wf.p_module("torch.nn.modules.rnn.LSTM", bare)}
    match kind:
        case "before 1.6":
            return wf.write_legacy(path, wf.p_dict(PICKLED.items()), {str(k): value for k, value in enumerate(SMALL.values())})
        case "a checkpoint":
            others = [("args", wf.p_object("argparse.Namespace", wf.p_dict([("lr", wf.p_int(1))]))), ("epoch", wf.p_int(3))]
            return wf.write_pt(path, wf.p_dict([*others, ("state_dict", wf.p_dict(PICKLED.items()))]), STORED)
        case "a module":
            return wf.write_pt(path, wf.p_module("mine.Net", {}, inside), STORED)
        case "torch.export":
            return wf.write_export(path, SMALL)
    raise ValueError(kind)


KINDS = ["before 1.6", "a checkpoint", "a module", "torch.export"]


def mutated(data: bytes, dice: random.Random) -> bytes:
    """With some bits flipped, and bytes overwritten, lost, doubled or put in; now and then cut."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        at, count = dice.randrange(len(changed)), dice.randrange(1, 9)
        match dice.randrange(5):
            case 0 | 1:
                changed[at] ^= 1 << dice.randrange(8)
            case 2:
                changed[at : at + count] = dice.choice((b"\xff" * count, b"\0" * count, dice.randbytes(count)))
            case 3:
                del changed[at : at + count]
            case 4:
                changed[at:at] = dice.choice((changed[at : at + count], dice.randbytes(count)))
    return bytes(changed[: dice.randrange(len(changed) + 1)] if dice.random() < 0.05 else changed)


def mutate(kind: str, folder: Path, seed: int, count: int) -> None:
    """Each mutation of the bytes ends in one line, or in a model."""
    dice = random.Random(seed)
    path = made(kind, folder)
    data, want = path.read_bytes(), weights(path)
    assert want is not None
    came = []
    for _ in range(count):
        path.write_bytes(mutated(data, dice))
        came.append(weights(path))
    assert came.count(None) > count // 10


@pytest.mark.parametrize("kind", KINDS)
def test_mutations(kind: str, tmp_path: Path) -> None:
    mutate(kind, tmp_path, 0, 300)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutations(kind: str, tmp_path: Path) -> None:
    mutate(kind, tmp_path, 1, 2500)
