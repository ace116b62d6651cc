"""Padding in front and masks: the bits of the same sequences with padding behind, at the places where the input has them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, refuse, succeed

Result = tuple[np.ndarray | None, files.Arrays]


def moved(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, padding: float) -> np.ndarray:
    """Arrays (N, T, ...) with each sequence's first steps from starts[s] on."""
    out = np.full_like(values, padding)
    for row, source, start, length in zip(out, values, starts, lengths, strict=True):
        row[start : start + length] = source[:length]
    return out


def places(padding: str, lengths: np.ndarray, steps: int) -> np.ndarray:
    """Where the sequences of an input begin: at the only place for padding in front, anywhere for a mask."""
    rng = np.random.default_rng(8)
    starts = steps - lengths if padding == "pre" else rng.integers(0, steps - lengths + 1)
    return np.where(lengths > 0, starts, 0)


def write_lens(folder: Path, padding: str, starts: np.ndarray, lengths: np.ndarray, steps: int) -> list[str]:
    """The options that say where the valid steps are."""
    if padding == "pre":
        files.write_npy(folder / "lens.npy", lengths)
        return ["--lens", "lens.npy", "--padding", "pre"]
    at = np.arange(steps)
    files.write_npy(folder / "mask.npy", (at >= starts[:, None]) & (at < (starts + lengths)[:, None]))
    return ["--lens", "mask.npy"]


def write_input(folder: Path, form: str, x: np.ndarray) -> list[str]:
    time_major = ["--time-major"] if "turned" in form else []
    x = np.asarray(x.swapaxes(0, 1) if time_major else x, order="F" if "fortran" in form else "C")
    if not form.startswith("h5"):
        files.write_npy(folder / "x.npy", x)
        return ["--input", "x.npy", *time_major]
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("x", data=x, **({"chunks": (3, 4, 7), "compression": "gzip"} if "gzip" in form else {}))
    return ["--input", "x.h5::/x", *time_major]


def assert_moved(got: Result, want: Result, starts: np.ndarray, lengths: np.ndarray) -> None:
    assert want[0] is not None
    files.assert_same_bits(got, (moved(want[0], starts, lengths, 0.0), want[1]))


FORMS = ["npy", "fortran", "turned", "turned fortran", "h5", "h5 gzip", "h5 gzip turned"]


@pytest.mark.parametrize("padding", ["pre", "mask"])
@pytest.mark.parametrize("form", FORMS)
def test_the_bits_of_padding_behind(form: str, padding: str, case: Case, tmp_path: Path) -> None:
    starts = places(padding, case.lengths, 17)
    options = write_input(tmp_path, form, moved(case.x, starts, case.lengths, np.nan))
    options += write_lens(tmp_path, padding, starts, case.lengths, 17)
    succeed("run", *options, "--weights", case.weights, "--output", "out.h5", "--quiet", cwd=tmp_path)
    assert_moved(files.read_result(tmp_path / "out.h5"), case.result, starts, case.lengths)
    plain = case.inputs
    succeed("run", *plain, "--output", "plain.h5", "--quiet", cwd=tmp_path)
    with h5py.File(tmp_path / "out.h5") as got, h5py.File(tmp_path / "plain.h5") as want:
        assert got["starts"].dtype == np.int64
        assert got["starts"][:].tolist() == starts.tolist()
        assert got["lengths"][:].tolist() == case.lengths.tolist()
        assert got["checksums/outputs"][:].tolist() == want["checksums/outputs"][:].tolist()
        assert "starts" not in want
    succeed("verify", "out.h5", cwd=tmp_path)


@pytest.mark.parametrize("padding", ["pre", "mask"])
@pytest.mark.parametrize(
    ("model", "little"),
    [(("-u", "9,5"), "60KB"), (("-u", "5", "--bidirectional"), "400KB")],
    ids=["stack", "bidirectional"],
)
def test_blocks_threads_and_pipes(model: tuple[str, ...], little: str, padding: str, tmp_path: Path) -> None:
    """In blocks that cut sequences in time where the model allows it, and all arrays that can be saved."""
    rng = np.random.default_rng(4)
    lengths = np.where(rng.random(60) < 0.1, 0, rng.integers(0, 91, 60))
    x = rng.normal(size=(60, 90, 6)).astype(np.float32)
    files.write_npy(tmp_path / "plain.npy", x)
    files.write_npy(tmp_path / "plain_lens.npy", lengths)
    save = ["--save", "outputs,states,cells,layers", "--quiet"]
    succeed("run", "-i", "plain.npy", "-l", "plain_lens.npy", *model, *save, "-o", "plain.h5", cwd=tmp_path)
    want = files.read_result(tmp_path / "plain.h5")
    starts = places(padding, lengths, 90)
    options = [*write_input(tmp_path, "npy", moved(x, starts, lengths, np.inf)), *model]
    options += write_lens(tmp_path, padding, starts, lengths, 90)
    for memory, threads in [(little, 1), (little, 2), ("1GB", 3)]:
        how = ["--max-memory", memory, "--threads", threads, "--overwrite"]
        succeed("run", *options, *save, *how, "-o", "out.h5", cwd=tmp_path)
        assert_moved(files.read_result(tmp_path / "out.h5"), want, starts, lengths)
        with h5py.File(tmp_path / "out.h5") as got, h5py.File(tmp_path / "plain.h5") as plain:
            for name in ("cells", "layers/0"):
                assert files.bits(got[name][:]) == files.bits(moved(plain[name][:], starts, lengths, 0.0))
    stdin = (tmp_path / "x.npy").read_bytes()
    piped = [*options[2:], "--max-memory", little, "-i", "-", "-o", "-", "--states", "s.npz", "-q"]
    (tmp_path / "piped.npy").write_bytes(succeed("run", *piped, cwd=tmp_path, stdin=stdin).out)
    assert_moved((np.load(tmp_path / "piped.npy"), files.read_npz(tmp_path / "s.npz")), want, starts, lengths)


def test_permuted_sequences(case: Case, tmp_path: Path) -> None:
    starts, order = places("mask", case.lengths, 17), np.random.default_rng(3).permutation(13)
    options = write_input(tmp_path, "npy", moved(case.x, starts, case.lengths, np.nan)[order])
    options += write_lens(tmp_path, "mask", starts[order], case.lengths[order], 17)
    succeed("run", *options, "--weights", case.weights, "--output", "out.h5", "--quiet", cwd=tmp_path)
    want = case.outputs[order], {name: value[order] for name, value in case.state.items()}
    assert_moved(files.read_result(tmp_path / "out.h5"), want, starts[order], case.lengths[order])


def test_full_sequences_have_no_padding_to_tell_of(case: Case, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "full.npy", np.full(13, 17))
    options = ["--input", case.x_npy, "--lens", "full.npy", "--weights", case.weights, "--quiet"]
    succeed("run", *options, "--output", "post.h5", cwd=tmp_path)
    succeed("run", *options, "--padding", "pre", "--output", "pre.h5", cwd=tmp_path)
    assert (tmp_path / "pre.h5").read_bytes() == (tmp_path / "post.h5").read_bytes()


def test_a_result_is_the_input_of_another_run(case: Case, tmp_path: Path) -> None:
    """Its lengths and starts are taken with its outputs, beside them or by name."""
    starts = places("pre", case.lengths, 17)
    options = write_input(tmp_path, "npy", moved(case.x, starts, case.lengths, np.nan))
    options += write_lens(tmp_path, "pre", starts, case.lengths, 17)
    succeed("run", *options, "--weights", case.weights, "--output", "front.h5", "--quiet", cwd=tmp_path)
    plain = case.inputs
    succeed("run", *plain, "--output", "plain.h5", "--quiet", cwd=tmp_path)
    again = ["-u", 4, "--overwrite", "-o", "again.h5", "--json"]
    succeed("run", "-i", "plain.h5::/outputs", *again, cwd=tmp_path)
    want = files.read_result(tmp_path / "again.h5")
    for lens in ([], ["-l", "front.h5::/lengths"]):
        ran = succeed("run", "-i", "front.h5::/outputs", *lens, *again, cwd=tmp_path)
        assert ran.json["lengths"]["from"] == "front.h5::/lengths"
        assert ran.json["lengths"]["padding"] == "starts"
        assert_moved(files.read_result(tmp_path / "again.h5"), want, starts, case.lengths)
    ran = succeed("run", "-i", "front.h5::/outputs", "--padding", "pre", *again, cwd=tmp_path)
    assert ran.json["lengths"]["padding"] == "pre"
    assert_moved(files.read_result(tmp_path / "again.h5"), want, starts, case.lengths)


def test_verify_reads_the_padding_in_front(case: Case, tmp_path: Path) -> None:
    starts = places("pre", case.lengths, 17)
    options = write_input(tmp_path, "npy", moved(case.x, starts, case.lengths, 0.0))
    options += write_lens(tmp_path, "pre", starts, case.lengths, 17)
    succeed("run", *options, "--weights", case.weights, "--output", "out.h5", "--quiet", cwd=tmp_path)
    row = int(np.flatnonzero(starts)[0])
    for step, words in [(0, "expected zeros outside of its"), (16, "their checksum differs")]:
        whole = (tmp_path / "out.h5").read_bytes()
        with h5py.File(tmp_path / "out.h5") as file:
            outputs = file["outputs"]
            at = outputs.id.get_offset() + (row * 17 + step) * outputs.shape[2] * 4
        (tmp_path / "bad.h5").write_bytes(whole[:at] + b"\1" + whole[at + 1 :])
        assert_one_line(lstmcli("verify", "bad.h5", cwd=tmp_path), 65, f"bad.h5::/outputs, row {row}: ", words)


def test_nan_is_named_by_its_place_in_the_input(case: Case, tmp_path: Path) -> None:
    starts = places("pre", case.lengths, 17)
    row = int(np.flatnonzero(case.lengths > 5)[0])
    x = moved(case.x, starts, case.lengths, np.nan)
    x[row, 14] = np.inf
    options = [*write_input(tmp_path, "npy", x), *write_lens(tmp_path, "pre", starts, case.lengths, 17)]
    ran = succeed("run", *options, "--weights", case.weights, "--max-memory", "60KB", "--json", cwd=tmp_path)
    assert ran.json["nonfinite"] == {"steps": 1, "row": row, "step": 14}


def test_what_is_refused_and_what_is_noted(case: Case, tmp_path: Path) -> None:
    starts = places("pre", case.lengths, 17)
    options = write_input(tmp_path, "npy", moved(case.x, starts, case.lengths, 0.0))
    options += ["--weights", str(case.weights)]
    lens = write_lens(tmp_path, "pre", starts, case.lengths, 17)
    mask = write_lens(tmp_path, "mask", starts, case.lengths, 17)
    refuse(tmp_path, 2, "--padding pre: mask.npy is a mask", args=[*options, *mask, "--padding", "pre"])
    refuse(tmp_path, 2, "--padding pre: no lengths are known", args=[*options, "--padding", "pre"])
    hole = np.load(tmp_path / "mask.npy")
    row = int(np.flatnonzero(case.lengths > 5)[0])
    hole[row, starts[row] + 2] = False
    files.write_npy(tmp_path / "hole.npy", hole)
    words = f"hole.npy, row {row}, step {starts[row] + 2}: expected the ones of a row in one run"
    refuse(tmp_path, 65, words, args=[*options, "--lens", "hole.npy"])
    ran = succeed("run", *options, *lens, "--dry-run", cwd=tmp_path)
    assert "padding, in front, skipped  lens.npy\n" in ran.text
    assert ran.err == ""
    ran = succeed("run", *options, *lens[:2], "--dry-run", cwd=tmp_path)
    assert "if padding stands in front, give --padding pre" in ran.err
