"""--initial-state: a run that goes on where another one ended, and every file that is no state of this model."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, refuse, succeed

CUT = 6
WIDTHS = {"0/c": 21, "0/h": 21, "1/c": 5, "1/h": 5}


def run(case: Case, folder: Path, name: str, part: slice, *args: object) -> None:
    """Steps `part` of the case, with full-length sequences cut off where they are."""
    files.write_npy(folder / f"{name}.npy", np.ascontiguousarray(case.x[:, part]))
    inside = np.clip(case.lengths - part.start, 0, part.stop - part.start)
    files.write_npy(folder / f"{name}.lens.npy", inside)
    inputs = ("--input", f"{name}.npy", "--lens", f"{name}.lens.npy", "--weights", case.weights)
    succeed("run", *inputs, "--quiet", *args, cwd=folder)


SOURCES = {
    "result": (["--output", "a.h5"], "a.h5"),
    "its group": (["--output", "a.h5"], "a.h5::/state"),
    "states alone": (["--output", "a.h5", "--save", "states"], "a.h5"),
    "npz": (["--output", "a.out.npy"], "a.out.states.npz"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_two_goes_give_the_bits_of_one(kind: str, case: Case, tmp_path: Path) -> None:
    """Some sequences end before the cut, some have no step at all."""
    options, state = SOURCES[kind]
    run(case, tmp_path, "a", slice(0, CUT), *options)
    run(case, tmp_path, "b", slice(CUT, 17), "--initial-state", state, "--output", "b.h5")
    outputs, last = files.read_result(tmp_path / "b.h5")
    assert outputs is not None
    files.assert_same_bits((outputs, last), (np.ascontiguousarray(case.outputs[:, CUT:]), case.state))


def test_a_state_in_blocks(case: Case, tmp_path: Path) -> None:
    """2000 sequences within 4 MB, some without a step; the state from every kind of file."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 40, 2000)
    files.write_npy(tmp_path / "x.npy", rng.normal(size=(2000, 40, 20)).astype(np.float32))
    files.write_npy(tmp_path / "lens.npy", lengths)
    state = {name: rng.normal(size=(2000, width)).astype(np.float32) for name, width in WIDTHS.items()}
    np.savez(tmp_path / "stored.npz", **state)  # type: ignore[arg-type]
    np.savez_compressed(tmp_path / "deflated.npz", **state)  # type: ignore[arg-type]
    with h5py.File(tmp_path / "s.h5", "w") as file:
        for name, value in state.items():
            file.create_dataset(f"some/where/{name}", data=value, chunks=(100, 2), compression="gzip")
    args = ("run", "--input", "x.npy", "--lens", "lens.npy", "--weights", case.weights, "--overwrite", "--quiet")
    results = []
    for spec, memory in [("stored.npz", "1GB"), ("stored.npz", "4MB"), ("deflated.npz", "4MB"), ("s.h5::/some/where", "4MB")]:
        succeed(*args, "--initial-state", spec, "--max-memory", memory, "--output", "out.h5", cwd=tmp_path)
        results.append(files.read_result(tmp_path / "out.h5"))
        files.assert_same_bits(results[-1], results[0])
    for name, value in results[0][1].items():
        np.testing.assert_array_equal(value[lengths == 0], state[name][lengths == 0])
        assert (value[lengths > 0] != state[name][lengths > 0]).any(axis=1).all()


@pytest.mark.parametrize("stored", ["<f2", ">f4", ">f8"])
def test_states_are_converted(stored: str, case: Case, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    state = {name: rng.normal(size=(13, width)).astype(stored) for name, width in WIDTHS.items()}
    state["0/c"][3, 4] = np.nan
    np.savez(tmp_path / "given.npz", **state)  # type: ignore[arg-type]
    np.savez(tmp_path / "single.npz", **{name: value.astype("<f4") for name, value in state.items()})  # type: ignore[arg-type]
    for dtype, same in [("float32", "single.npz"), ("float64", "given.npz")]:
        args = (*case.inputs, "--dtype", dtype, "--overwrite")
        results = []
        for spec in ("given.npz", same):
            succeed("run", *args, "--initial-state", spec, "--output", "out.h5", cwd=tmp_path)
            results.append(files.read_result(tmp_path / "out.h5"))
        files.assert_same_bits(results[0], results[1])
        for name, value in results[0][1].items():
            np.testing.assert_array_equal(value[2], state[name][2].astype(dtype))  # its length is 0


def test_one_row_is_the_start_of_every_sequence(case: Case, tmp_path: Path) -> None:
    """In one block and in many, from NPZ and HDF5: the bits of the same row written out for each sequence."""
    rng = np.random.default_rng(2)
    row = {name: rng.normal(size=(1, width)).astype(np.float32) for name, width in WIDTHS.items()}
    np.savez(tmp_path / "one.npz", **row)  # type: ignore[arg-type]
    np.savez(tmp_path / "all.npz", **{name: value.repeat(13, 0) for name, value in row.items()})  # type: ignore[arg-type]
    files.write_h5(tmp_path / "one.h5", **{f"state/{name}": value for name, value in row.items()})
    args = ("run", *case.inputs, "--overwrite", "--quiet")
    results = []
    for spec, memory in [("all.npz", "1GB"), ("one.npz", "1GB"), ("one.h5", "1GB"), ("one.npz", "50KB")]:
        succeed(*args, "--initial-state", spec, "--max-memory", memory, "--output", "out.h5", cwd=tmp_path)
        results.append(files.read_result(tmp_path / "out.h5"))
        files.assert_same_bits(results[-1], results[0])
    np.testing.assert_array_equal(results[0][1]["0/c"][2], row["0/c"][0])  # its length is 0


def test_the_summary_says_where_a_run_starts(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path, "a", slice(0, CUT), "--output", "a.h5")
    args = ("run", *case.inputs, "--dry-run")
    assert "start     from a.h5::/state\n" in succeed(*args, "--initial-state", "a.h5", cwd=tmp_path).text
    assert succeed(*args, "--initial-state", "a.h5", "--json", cwd=tmp_path).json["initial_state"] == "a.h5::/state"
    assert succeed(*args, "--json", cwd=tmp_path).json["initial_state"] is None


def test_the_initial_state_is_not_overwritten(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path, "a", slice(0, CUT), "--output", "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    args = (
        "--input",
        case.x_npy,
        "--weights",
        case.weights,
        "--initial-state",
        "a.h5::/state",
        "--output",
        "a.h5",
        "--overwrite",
    )
    assert_one_line(lstmcli("run", *args, cwd=tmp_path), 73, "a.h5: is also an input of this run")
    assert (tmp_path / "a.h5").read_bytes() == before


@pytest.fixture
def state() -> files.Arrays:
    return {name: np.zeros((13, width), np.float32) for name, width in WIDTHS.items()}


class Refusing:
    def __init__(self, case: Case, folder: Path) -> None:
        self.folder = folder
        self.args = case.inputs

    def __call__(self, code: int, spec: str, *words: object) -> None:
        refuse(self.folder, code, *words, args=[*self.args, "--initial-state", spec])

    def npz(self, arrays: files.Arrays, *words: object) -> None:
        np.savez(self.folder / "s.npz", **arrays)  # type: ignore[arg-type]
        self(65, "s.npz", "s.npz", *words)
        (self.folder / "s.h5").unlink(missing_ok=True)
        files.write_h5(self.folder / "s.h5", **{f"state/{name}": value for name, value in arrays.items()})
        self(65, "s.h5", "s.h5::/state", *words)


@pytest.fixture
def refused(case: Case, tmp_path: Path) -> Iterator[Refusing]:
    return Refusing(case, tmp_path)  # type: ignore[return-value]


def test_states_of_another_model(state: files.Arrays, refused: Refusing) -> None:
    refused.npz({name: state[name] for name in ("0/c", "0/h")}, "another model", "named 0/c, 0/h, 1/c, 1/h", "without 1/c, 1/h")
    refused.npz(state | {"2/c": state["1/c"]}, "another model", "with 2/c")
    refused.npz({"c": state["0/c"]}, "without 0/c, 0/h, 1/c, 1/h and with c")
    refused.npz(state | {"1/h": np.zeros((13, 6), "f4")}, "1/h", "another model", "expected shape (13, 5)", "got (13, 6)")
    refused.npz(state | {"0/c": np.zeros((13, 21, 1), "f4")}, "0/c", "expected shape (13, 21)", "got (13, 21, 1)")
    refused.npz(state | {"0/c": np.array(3.0, "f4")}, "0/c", "expected shape (13, 21)", "got ()")


def test_states_of_another_batch(state: files.Arrays, refused: Refusing) -> None:
    refused.npz({name: value[:12] for name, value in state.items()}, "0/c", "expected the states of 13 sequences", "got 12")


def test_states_that_are_no_floats(state: files.Arrays, refused: Refusing) -> None:
    refused.npz(state | {"0/h": np.zeros((13, 21), "i4")}, "0/h", "expected float16, float32 or float64, got int32")
    refused.npz(state | {"0/h": np.zeros((13, 21), "c8")}, "0/h", "got complex64")


def test_a_value_too_large(state: files.Arrays, refused: Refusing) -> None:
    large = np.zeros((13, 5))
    large[7, 1] = 1e300
    refused.npz(state | {"1/c": large}, "1/c", "a value is too large for float32", "float64")


def test_files_that_are_missing_or_no_states(state: files.Arrays, refused: Refusing) -> None:
    folder = refused.folder
    refused(66, "no.h5", "no.h5: cannot be opened")
    refused(66, ".", ".: expected a file, got a directory")
    refused(2, "-", "--initial-state -")
    files.write_npy(folder / "s.npy", state["0/c"])
    refused(65, "s.npy", "s.npy: expected the states of a result: HDF5 or NPZ")
    (folder / "empty").touch()
    refused(65, "empty", "empty: expected the states of a result: HDF5 or NPZ")
    files.write_h5(folder / "s.h5", x=state["0/c"])
    refused(65, "s.h5", "s.h5::/state: expected a group of states", "got no such group")
    refused(65, "s.h5::/x", "s.h5::/x: expected a group of states", "got a dataset")
    np.savez(folder / "s.npz", **state)  # type: ignore[arg-type]
    refused(65, "s.npz::/state", "s.npz: group /state is named, but this is not an HDF5 file")


def test_links_are_not_followed(state: files.Arrays, refused: Refusing) -> None:
    files.write_h5(refused.folder / "other.h5", **{f"state/{name}": value for name, value in state.items()})
    with h5py.File(refused.folder / "s.h5", "w") as file:
        file["state"] = h5py.ExternalLink("other.h5", "/state")
    refused(65, "s.h5", "state is a soft or external link")
    with h5py.File(refused.folder / "s.h5", "w") as file:
        file.create_dataset("state/0/c", (13, 21), "f4", external=[("raw", 0, 13 * 21 * 4)])
    refused(65, "s.h5", "0/c: its data lies in other files")


def test_states_that_were_never_written(refused: Refusing) -> None:
    for options in ({}, {"chunks": (5, 5)}):
        with h5py.File(refused.folder / "s.h5", "w") as file:
            for name, width in WIDTHS.items():
                file.create_dataset(f"state/{name}", (13, width), "f4", **options)
        refused(65, "s.h5", "0/c: ", "never written")


def test_a_chunk_that_claims_too_much(refused: Refusing) -> None:
    with h5py.File(refused.folder / "s.h5", "w") as file:
        shape = {"chunks": (1 << 14, 1 << 14), "maxshape": (None, None), "compression": "gzip"}
        file.create_dataset("state/0/c", (13, 21), "f8", **shape)
    refused(65, "s.h5", "0/c: has chunks (16384, 16384)")


def write_npz(path: Path, state: files.Arrays, edit: tuple[bytes, bytes] = (b"", b""), how: int = zipfile.ZIP_STORED) -> bytes:
    """An NPZ with right checksums, of members in which the one is replaced by the other."""
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, value in state.items():
            content = io.BytesIO()
            np.save(content, value)
            archive.writestr(f"{name}.npy", content.getvalue().replace(*edit) if edit[0] else content.getvalue())
    return path.read_bytes()


def test_damaged_npz(state: files.Arrays, refused: Refusing) -> None:
    path = refused.folder / "s.npz"
    state = {name: value + 1 for name, value in state.items()}
    whole = write_npz(path, state)
    for content in (whole[:-30], whole[:200], whole.replace(np.float32([1] * 4).tobytes(), np.float32([2] * 4).tobytes(), 1)):
        path.write_bytes(content)
        refused(65, "s.npz", "s.npz", "damaged")
    for old, new, words in [
        (b"NUMPY", b"NUMPI", "expected NPY"),
        (b"(13, 21)", b"(13, 22)", "for shape (13, 22) of float32, got"),
        (b"'fortran_order': False", b"'fortran_order': True ", "is in Fortran order"),
        (b"<f4", b"|O4", "objects and records are never read"),
    ]:
        write_npz(path, state, (old, new))
        refused(65, "s.npz", "s.npz, 0/c", words)
    write_npz(path, state, how=zipfile.ZIP_BZIP2)
    refused(65, "s.npz", "s.npz, 0/c: expected what np.savez", "another compression")


@pytest.mark.parametrize("shard", [1, 2])
def test_a_damaged_npz_is_found_in_every_part(shard: int, case: Case, tmp_path: Path) -> None:
    """Whose rows are not all of the array, and the damage is in those of the other part."""
    rng = np.random.default_rng(0)
    files.write_npy(tmp_path / "x.npy", rng.normal(size=(2000, 1, 20)).astype(np.float32))
    state = {name: rng.normal(size=(2000, width)).astype(np.float32) for name, width in WIDTHS.items()}
    np.savez(tmp_path / "s.npz", **state)  # type: ignore[arg-type]
    whole = bytearray((tmp_path / "s.npz").read_bytes())
    whole[whole.index(state["0/h"][{1: 1990, 2: 500}[shard]].tobytes())] ^= 1
    (tmp_path / "s.npz").write_bytes(whole)
    words = ("-i", "x.npy", "-l", "none", "-w", case.weights, "--initial-state", "s.npz")
    succeed("plan", *words, "--shards", 2, "-o", "plan.json", cwd=tmp_path)
    done = lstmcli("run", "--plan", "plan.json", "--shard", shard, "-q", cwd=tmp_path)
    assert_one_line(done, 65, "0/h", "CRC" if shard == 2 else "")
