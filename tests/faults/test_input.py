"""Files that lie, that others left half written, or that have strange names."""

from __future__ import annotations

import errno
import io
import os
import signal
import struct
import zipfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files, weight_files
from helpers.case import Case
from helpers.command import Ran, assert_one_line, lstmcli, succeed
from helpers.system_tools import injected, under

from lstmcli.errors import DataError
from lstmcli.inputs.open_input import open_source

SHAPE = (64, 10, 4)
LITTLE = ["prlimit", "--as=2000000000", "--cpu=20"]  # what a bad file may take at most: bytes, seconds


def refused(folder: Path, spec: str, *words: object, code: int = 65) -> Ran:
    before = files.snapshot(folder)
    ran = under(LITTLE, "run", "-i", spec, "-u", 3, "-o", "out.h5", "-q", cwd=folder)
    assert_one_line(ran, code, *words)
    assert files.snapshot(folder) == before
    return ran


# NPY


X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def accepts(path: Path, content: bytes) -> bool:
    """Whether this is read; then it must be what NumPy reads, or X where NumPy is stricter about blanks in the header."""
    path.write_bytes(content)
    with suppress(DataError), closing(open_source(str(path))) as source:
        batch, steps, width = source.shape
        rows = np.empty((batch * steps, width), np.float64)
        source.read(0, np.zeros(batch, np.int64), np.full(batch, steps), rows)
        want = X
        with suppress(ValueError):
            want = np.load(path)
        np.testing.assert_array_equal(rows.reshape(source.shape), want.astype(np.float64))
        return True
    return False


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    files.write_npy(tmp_path / "x.npy", X)
    return (tmp_path / "x.npy").read_bytes()


def test_every_beginning_of_an_npy_file(whole: bytes, tmp_path: Path) -> None:
    assert [size for size in range(len(whole) + 1) if accepts(tmp_path / "x.npy", whole[:size])] == [len(whole)]


@pytest.mark.slow
def test_every_byte_of_an_npy_header(whole: bytes, tmp_path: Path) -> None:
    count = 0
    for at in range(128):
        for byte in range(256):
            content = bytearray(whole)
            content[at] = byte
            count += accepts(tmp_path / "x.npy", bytes(content))
    assert 128 < count < 20_000


def test_a_copy_that_ended_at_2_gib(tmp_path: Path) -> None:
    """As some tools and file systems make them; nothing of the files is real but their headers."""
    shape = (1 << 20, 64, 10)
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", shape, "f4", fillvalue=None)[:1] = 1
    for name in ("x.npy", "x.h5"):
        os.truncate(tmp_path / name, (1 << 31) - 1)
        ran = under(LITTLE, "run", "-i", name, "-u", 3, "-o", "out.h5", "-q", cwd=tmp_path)
        assert_one_line(ran, 65, name)
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "x.h5"}


# HDF5


def write_killed(path: Path, layout: str, latest: bool, flush: bool) -> None:
    """A file whose writer was killed after 11 of 16 blocks of ones."""
    options = {
        "contiguous": {},
        "chunked": {"chunks": (4, 10, 4)},
        "growing": {"chunks": (4, 10, 4), "maxshape": (None, 10, 4)},
    }
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        return
    file = h5py.File(path, "w", libver="latest" if latest else "earliest")
    x = file.create_dataset("x", (0, *SHAPE[1:]) if layout == "growing" else SHAPE, "f4", **options[layout])
    for first in range(0, 64, 4):
        if layout == "growing":
            x.resize(first + 4, axis=0)
        x[first : first + 4] = 1
        if flush and first == 32:
            file.flush()
        if first == 40:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("layout", ["contiguous", "chunked", "growing"])
@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("flush", [False, True])
def test_files_whose_writer_was_killed(layout: str, latest: bool, flush: bool, tmp_path: Path) -> None:
    """Refused, all but the ones that bear no trace of it; of these the growing ones do not fit their lengths."""
    write_killed(tmp_path / "x.h5", layout, latest, flush)
    files.write_npy(tmp_path / "lens.npy", np.full(64, 10))
    args = ["run", "-i", "x.h5", "-l", "lens.npy", "-u", 3, "-q", "-o", "out.h5"]
    if (layout, latest, flush) == ("contiguous", False, True):
        succeed(*args, cwd=tmp_path)
        with h5py.File(tmp_path / "x.h5") as file:
            assert not file["x"][44:].any()
        return
    told = "lens.npy" if (layout, latest, flush) == ("growing", False, True) else "x.h5"
    assert_one_line(lstmcli(*args, cwd=tmp_path), 65, told)
    assert {path.name for path in tmp_path.iterdir()} == {"x.h5", "lens.npy"}


def test_other_files_are_not_even_opened(tmp_path: Path) -> None:
    files.write_h5(tmp_path / "hidden.h5", x=np.ones(SHAPE, np.float32))
    (tmp_path / "hidden.bin").write_bytes(bytes(4 * 64 * 40))
    (tmp_path / "hidden-plugins").mkdir()
    virtual = h5py.VirtualLayout(SHAPE, "f4")
    virtual[:] = h5py.VirtualSource("hidden.h5", "x", SHAPE)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["far"], file["folder"] = h5py.ExternalLink("hidden.h5", "/x"), h5py.ExternalLink("hidden.h5", "/")
        file.create_dataset("raw", SHAPE, "<f4", external=[("hidden.bin", 0, 4 * 64 * 40)])
        file.create_virtual_dataset("virtual", virtual, fillvalue=7)
        filtered = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        filtered.set_chunk(SHAPE)
        filtered.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"filtered", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(SHAPE), filtered)
    for name in ("far", "folder/x", "raw", "virtual", "filtered", "nothing", None):
        spec = f"bad.h5::/{name}" if name else "bad.h5"
        trace = ["strace", "-f", "-o", "trace", "-e", "trace=%file"]
        env = {"HDF5_PLUGIN_PATH": str(tmp_path / "hidden-plugins")}
        assert_one_line(under(trace, "run", "-i", spec, "-u", 3, "-q", "-o", "out.h5", cwd=tmp_path, env=env), 65, "bad.h5")
        calls = (tmp_path / "trace").read_text()
        assert '"bad.h5"' in calls
        assert "hidden" not in calls


def bomb(shape: tuple[int, ...], chunks: tuple[int, ...], **options: object) -> Callable[[h5py.File], object]:
    return lambda file: file.create_dataset("x", shape, "f4", chunks=chunks, **options)


def cyclic(file: h5py.File) -> None:
    file["a/b/c"] = 1.0
    file["a/b/a"] = file["a"]
    file["a/root"] = file["/"]


def deep(file: h5py.File) -> None:
    group = file
    for _ in range(1000):
        group = group.create_group("g")
    group["x"] = 1


def references(file: h5py.File) -> None:
    file["y"] = np.ones(SHAPE, np.float32)
    x = file.create_dataset("x", (2, 2, 2), h5py.ref_dtype)
    x[...] = file["y"].ref


def regions(file: h5py.File) -> None:
    file["y"] = np.ones(SHAPE, np.float32)
    file.create_dataset("x", (2, 2, 2), h5py.regionref_dtype)


def corrupt(file: h5py.File) -> None:
    x = file.create_dataset("x", data=np.ones(SHAPE, np.float32), chunks=(4, 10, 4), fletcher32=True)
    x.id.write_direct_chunk((8, 0, 0), bytes(644 - 1) + b"!")


def opaque(file: h5py.File) -> None:
    file["x"] = np.zeros((2, 2, 2), "V3")


def many_attributes(file: h5py.File) -> None:
    x = file.create_dataset("x", (2, 2), "f4", track_order=True)
    for k in range(20_000):
        x.attrs.create(f"a{k}", k)


BAD_HDF5 = {
    "a shape of 4 PB": bomb((1 << 34, 1 << 10, 64), (1024, 1024, 64), compression="gzip"),
    "a shape of 10^8 chunks": bomb((100_000, 1000, 1), (1, 1, 1)),
    "chunks of 3 GB": bomb((3 << 20, 10, 64), (1 << 20, 10, 64)),
    "cycles": cyclic,
    "1000 levels": deep,
    "references": references,
    "regions": regions,
    "a chunk that is not what its checksum says": corrupt,
    "opaque": opaque,
    "20,000 attributes": many_attributes,
}


@pytest.mark.parametrize("what", BAD_HDF5)
def test_hdf5_that_asks_for_too_much(what: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        BAD_HDF5[what](file)
    refused(tmp_path, "x.h5::/x" if what in ("references", "regions", "20,000 attributes") else "x.h5", "x.h5")


@pytest.mark.parametrize(
    ("number", "env", "word"),
    [
        (errno.EAGAIN, {}, "another program is writing it"),
        (errno.ENOLCK, {"HDF5_USE_FILE_LOCKING": "TRUE"}, "HDF5_USE_FILE_LOCKING=FALSE"),
        (524, {"HDF5_USE_FILE_LOCKING": "TRUE"}, "errno 524"),
    ],
)
def test_hdf5_files_that_cannot_be_locked(number: int, env: dict[str, str], word: str, sample_x: Path, tmp_path: Path) -> None:
    strace = injected("flock", f"error={number}", sample_x)
    args = ["run", "-i", sample_x, "-u", 3, "-o", "out.h5", "-q"]
    assert_one_line(under(strace, *args, cwd=tmp_path, env=env), 74, sample_x, word)
    assert under(strace, *args, cwd=tmp_path, env={"HDF5_USE_FILE_LOCKING": "FALSE"}).code == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, 524])
def test_file_systems_without_locks(number: int, sample_x: Path, tmp_path: Path) -> None:
    """37 and 524 are what network file systems without locks say."""
    strace = injected("flock", f"error={number}", sample_x)
    ran = under(strace, "run", "-i", sample_x, "-u", 3, "-o", "out.h5", "--progress", "none", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.err.count("the file system gives no lock") == 1


def test_a_file_without_locks_that_is_opened_twice(sample_x: Path, tmp_path: Path) -> None:
    """libhdf5 refuses to open a file with a lock that it has open without one, here as input, lengths and initial state."""
    with h5py.File(sample_x) as file, h5py.File(tmp_path / "x.h5", "w") as own:
        own["x"] = file["x"][:]
        own["many"] = np.full(len(own["x"]), 3)
    (tmp_path / "link.h5").symlink_to("x.h5")
    succeed("run", "-i", "x.h5::/x", "-u", 3, "-o", "out.h5", "-q", cwd=tmp_path)
    for args in (
        ["run", "-i", "x.h5::/x", "-l", "link.h5::/many", "-w", "out.h5", "--initial-state", "out.h5", "-o", "new.h5", "-q"],
        ["compare", "out.h5", "out.h5", "-q"],
        ["convert", "x.h5::/x", "new.npy", "-l", "x.h5::/many"],
        ["inspect", "x.h5"],
    ):
        strace = injected("flock", "error=ENOLCK", tmp_path / "x.h5", tmp_path / "out.h5")
        ran = under(strace, *args, cwd=tmp_path)
        told = f"{ran.text}{ran.err}".count("the file system gives no lock")  # inspect prints notes with what it found
        assert (ran.code, told) == (0, "-q" not in args), args


# NPZ, as the states that a run starts from


def member(value: object, name: str = "0/c.npy") -> tuple[str, bytes]:
    content = io.BytesIO()
    np.save(content, np.asarray(value))
    return name, content.getvalue()


def archive(path: Path, *members: tuple[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in members:
            file.writestr(name, content)


MEMBERS = [member(np.zeros((5, 7), np.float32), f"0/{name}.npy") for name in "ch"]
BAD_NPZ: dict[str, Callable[[Path], object]] = {
    "100,000 members": lambda path: archive(path, *MEMBERS, *((f"{k}.npy", b"") for k in range(100_000))),
    "a member twice": lambda path: archive(path, *MEMBERS, MEMBERS[0]),
    "a way out": lambda path: archive(path, *MEMBERS, ("../x.npy", MEMBERS[0][1])),
    "from the root": lambda path: archive(path, *MEMBERS, ("/tmp/x.npy", MEMBERS[0][1])),
    "256 MB of zeros": lambda path: archive(path, MEMBERS[0], ("0/h.npy", bytes(1 << 28)), how=zipfile.ZIP_DEFLATED),
    "a shape of 256 MB": lambda path: archive(
        path, MEMBERS[0], member(np.zeros((1 << 18, 256), np.float32), "0/h.npy"), how=zipfile.ZIP_DEFLATED
    ),
    "an archive in it": lambda path: archive(path, *MEMBERS, ("x.npz", b"PK\3\4")),
    "objects": lambda path: archive(path, MEMBERS[0], ("0/h.npy", MEMBERS[0][1].replace(b"'<f4'", b"'|O' "))),
    "one of two": lambda path: archive(path, MEMBERS[0]),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", BAD_NPZ)
def test_archives(what: str, sample_x: Path, tmp_path: Path) -> None:
    BAD_NPZ[what](tmp_path / "s.npz")
    args = ["run", "-i", sample_x, "-u", 7, "--initial-state", "s.npz", "-q", "-o", "out.h5"]
    assert_one_line(under(LITTLE, *args, cwd=tmp_path), 65, "s.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


@pytest.mark.parametrize("damage", ["encrypted", "another size", "another start"])
def test_archives_whose_directory_lies(damage: str, sample_x: Path, tmp_path: Path) -> None:
    archive(tmp_path / "s.npz", *MEMBERS)
    content = bytearray((tmp_path / "s.npz").read_bytes())
    entry = content.index(b"PK\1\2")
    at, value = {"encrypted": (8, 1), "another size": (24, 0xFFFFFF), "another start": (42, 0xFFFFFF)}[damage]
    struct.pack_into("<H" if at == 8 else "<L", content, entry + at, value)
    (tmp_path / "s.npz").write_bytes(content)
    args = ["run", "-i", sample_x, "-u", 7, "--initial-state", "s.npz", "-q", "-o", "out.h5"]
    assert_one_line(under(LITTLE, *args, cwd=tmp_path), 65, "s.npz")


# Names


NAMES = ["a\nb", "\x1b[31mred", "[red]", "-o", "\udcff\udcfe", "\u202egpj", " ", "%s{}", "x.h5::", "日本"]


@pytest.mark.parametrize(("name", "style"), [*((name, "lines") for name in NAMES), (NAMES[0], "json"), (NAMES[4], "json")])
def test_strange_names(name: str, style: str, case: Case, tmp_path: Path) -> None:
    """They work, and reach neither the terminal nor the lines of others."""
    files.write_h5(tmp_path / f"{name}.h5", x=case.x)
    args = ["run", "-i", f"./{name}.h5", "-l", case.lens_npy, "-w", case.weights, "--output", f"./{name}.out.h5"]
    ran = lstmcli(*args, *["--json"] * (style == "json"), cwd=tmp_path, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.text
    assert len(ran.text.splitlines()) == (1 if style == "json" else 7)
    files.assert_same_bits(files.read_result(tmp_path / f"{name}.out.h5"), case.result)
    assert_one_line(lstmcli(*args, cwd=tmp_path), 73, "out.h5")


# Pipes

NO_PIPES = [
    "run -i x.npy -w pipe -o out.h5",
    "run -i x.npy -u 3 --initial-state pipe -o out.h5",
    "run -i x.npy -w model.index -o out.h5",
    "run -i flat.npy -u 3 --offsets pipe -o out.h5",
    "run -i storage.h5 -u 3 --follow-links -o out.h5",
    "predict -i x.npy -w model.h5 --labels pipe -o out.csv",
    "verify pipe",
    "model show pipe",
    "model import pipe -o other.h5",
    "model export pipe -o other.safetensors",
    "model import model.index -o other.h5 --check x.npy,pipe",
    "run --plan pipe --shard 1",
    "merge pipe -o out.h5",
]


@pytest.mark.parametrize("line", NO_PIPES)
def test_a_pipe_that_nobody_writes_is_refused_at_once(line: str, tmp_path: Path) -> None:
    """Where a file must be read in any order, opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    files.write_npy(tmp_path / "x.npy", np.zeros((2, 3, 4), np.float32))
    files.write_npy(tmp_path / "flat.npy", np.zeros((6, 4), np.float32))
    files.write_model(tmp_path / "model.h5", files.random_model(4, [5]))
    variables = weight_files.tensorflow_variables(weight_files.random_cell(4, 5, 0), "rnn/lstm_cell")
    weight_files.write_checkpoint(tmp_path / "model", variables)
    data = next(tmp_path.glob("model.data-*"))
    if "--check" not in line:
        data.unlink()
        os.mkfifo(data)
    with h5py.File(tmp_path / "storage.h5", "w") as file:
        file.create_dataset("x", SHAPE, "<f4", external=[("pipe", 0, 4 * int(np.prod(SHAPE)))])
    assert_one_line(under(["timeout", "30"], *line.split(), cwd=tmp_path), 65)
