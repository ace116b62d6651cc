"""Ragged inputs give the bits of the padded one: in one run, stopped and resumed, in parts, and as predictions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed
from helpers.small_run import write_sequences
from helpers.system_tools import run_with_faults

PADDED = ("--layout", "padded")


@pytest.fixture
def forms(case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The input of the case in every ragged form: what to say, by its name."""
    sequences = [row[:length] for row, length in zip(case.x, case.lengths, strict=True)]
    files.write_npy(tmp_path / "flat.npy", np.concatenate(sequences))
    files.write_npy(tmp_path / "offsets.npy", np.r_[0, np.cumsum(case.lengths)])
    files.write_npy(tmp_path / "lens.npy", case.lengths)
    files.write_h5(tmp_path / "flat.h5", emb=np.concatenate(sequences), lengths=case.lengths)
    files.write_h5(tmp_path / "many.h5", **{f"all/{k}": sequence for k, sequence in enumerate(sequences)})
    with h5py.File(tmp_path / "gzip.h5", "w") as file:
        for k, sequence in enumerate(sequences):
            file.create_dataset(f"{k}/emb", data=sequence, compression="gzip" if len(sequence) else None)
    folder = tmp_path_factory.mktemp("folder")
    named = {f"{k:03}": sequence for k, sequence in enumerate(sequences)}
    for name, sequence in named.items():
        files.write_npy(folder / f"{name}.npy", sequence)
    np.savez_compressed(tmp_path / "many.npz", **named)
    exact = [np.float32, ">f8", np.float64]  # which hold the values of the case
    files.write_h5(tmp_path / "sizes.h5", **{name: rows.astype(exact[k % 3]) for k, (name, rows) in enumerate(named.items())})
    return {
        "offsets": ["-i", "flat.npy", "--offsets", "offsets.npy"],
        "lengths": ["-i", "flat.npy", "--lens", "lens.npy"],
        "flat in HDF5": ["-i", "flat.h5"],
        "a dataset for each": ["-i", "many.h5::/all"],
        "a compressed dataset for each": ["-i", "gzip.h5"],
        "a folder": ["-i", str(folder)],
        "several files": [word for name in named for word in ("-i", f"{folder}/{name}.npy")],
        "an NPZ": ["-i", "many.npz"],
        "floats of several sizes": ["-i", "sizes.h5"],
        "with lengths to check": ["-i", f"{folder}/*.npy", "--lens", "lens.npy"],
    }


def test_every_form_gives_the_bits_of_the_padded_one(forms: dict[str, list[str]], case: Case, tmp_path: Path) -> None:
    """In one block, and in many that cut sequences in time."""
    for form in forms.values():
        for memory in ("1GB", "50KB"):
            args = (*form, *PADDED, "-w", case.weights, "-o", "out.h5", "--max-memory", memory, "--overwrite", "-q")
            succeed("run", *args, cwd=tmp_path)
            files.assert_same_bits(files.read_result(tmp_path / "out.h5"), case.result)
    succeed("verify", "out.h5", cwd=tmp_path)


@pytest.mark.parametrize("form", ["offsets", "a dataset for each", "several files", "floats of several sizes"])
def test_parts(form: str, forms: dict[str, list[str]], case: Case, tmp_path: Path) -> None:
    said = ("-w", case.weights, *forms[form], *PADDED)
    succeed("plan", *said, "--shards", 3, "--output", "plan.json", cwd=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for number in (1, 2, 3):
        succeed("run", "--plan", "../plan.json", "--shard", number, cwd=tmp_path / "elsewhere")
    succeed("merge", "plan.json", "--output", "merged.h5", cwd=tmp_path)
    files.assert_same_bits(files.read_result(tmp_path / "merged.h5"), case.result)
    succeed("run", *said, "--output", "whole.h5", cwd=tmp_path)
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("form", ["offsets", "a compressed dataset for each", "a folder", "floats of several sizes"])
def test_a_killed_run_is_resumed(form: str, forms: dict[str, list[str]], case: Case, tmp_path: Path) -> None:
    argv = ["run", *forms[form], *PADDED, "-w", str(case.weights), "--threads", "1", "--max-memory", "50KB", "-q", "-o"]
    succeed(*argv, "want.h5", cwd=tmp_path)
    want = hashlib.sha256((tmp_path / "want.h5").read_bytes()).hexdigest()
    told = run_with_faults(tmp_path, argv=[*argv, "out.h5"], output="out.h5", fault="kill", step=7)
    assert len(told) > 4
    assert all(one.get("result", one["output"]) == want for one in told), told


WRITTEN_TOGETHER = ("many.npz", "many.ark", "many.scp", "many.safetensors")


@pytest.mark.parametrize("name", [*WRITTEN_TOGETHER, "many.pt", "many.arrow", "many.parquet"])
def test_files_of_other_programs(name: str, case: Case, tmp_path: Path) -> None:
    """The bits of the padded run with any threads and memory, in parts, and killed and resumed."""
    write_others(name, case, tmp_path)
    said = ("-i", name, "-w", str(case.weights), *PADDED, "-q")
    want = b""
    for threads, memory in ((1, "1GB"), (2, "50KB"), (1, "50KB")):
        succeed("run", *said, "-o", "o.h5", "--threads", threads, "--max-memory", memory, "--overwrite", cwd=tmp_path)
        files.assert_same_bits(files.read_result(tmp_path / "o.h5"), case.result)
        want = want or (tmp_path / "o.h5").read_bytes()
        assert (tmp_path / "o.h5").read_bytes() == want
    argv = ["run", *said, "--threads", "1", "--max-memory", "50KB", "-o", "k.h5"]
    run_with_faults(tmp_path, argv=argv, output="k.h5", fault="kill", stop=30)
    assert (tmp_path / "k.h5.journal").exists()
    succeed(*argv, "--resume", cwd=tmp_path)
    assert (tmp_path / "k.h5").read_bytes() == want
    succeed("plan", *said, "--shards", 2, "--output", "plan.json", cwd=tmp_path)
    for number in (1, 2):
        succeed("run", "--plan", "plan.json", "--shard", number, "-q", cwd=tmp_path)
    succeed("merge", "plan.json", "--output", "m.h5", "-q", cwd=tmp_path)
    assert (tmp_path / "m.h5").read_bytes() == want


def write_others(name: str, case: Case, folder: Path) -> None:
    sequences = [row[:length] for row, length in zip(case.x, case.lengths, strict=True)]
    if name in WRITTEN_TOGETHER:
        write_sequences(folder, sequences)
    elif name == "many.pt":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
        torch.save({f"s{k:02}": torch.from_numpy(rows.copy()) for k, rows in enumerate(sequences)}, folder / name)
    else:
        pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
        from pyarrow import feather, parquet

        rows = pa.array([list(sequence) for sequence in sequences], pa.list_(pa.list_(pa.float32())))
        table = pa.table({"id": [f"s{k:02}" for k in range(len(sequences))], "x": rows})
        write = parquet.write_table if name == "many.parquet" else feather.write_feather
        write(table, folder / name, compression="NONE" if write is parquet.write_table else "uncompressed")


def test_the_default_layout_is_flat(forms: dict[str, list[str]], case: Case, tmp_path: Path) -> None:
    """Where no steps are stored there is none."""
    for form in forms.values():
        succeed("run", *form, "-w", case.weights, "-o", "out.h5", "--overwrite", "-q", cwd=tmp_path)
        with h5py.File(tmp_path / "out.h5") as file:
            assert file["outputs"].shape == (case.lengths.sum(), case.outputs.shape[2])
    succeed("run", *forms["offsets"], "-w", case.weights, "--save", "states", "-o", "states.h5", cwd=tmp_path)
    for name, value in files.read_result(tmp_path / "states.h5")[1].items():
        assert files.bits(value) == files.bits(case.state[name])
    with h5py.File(tmp_path / "states.h5") as file:
        assert "offsets" not in file


def test_the_summary(forms: dict[str, list[str]], case: Case, tmp_path: Path) -> None:
    said = (*PADDED, "-w", case.weights, "--dry-run", "--json")
    facts = succeed("run", *forms["offsets"], *said, cwd=tmp_path).json
    assert facts["input"]["shape"] == list(case.x.shape)
    assert facts["lengths"]["from"] == "offsets.npy"
    assert facts["valid_steps"] == case.lengths.sum()


def test_malformed_files(forms: dict[str, list[str]], case: Case, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "back.npy", [0, 5, 3, case.lengths.sum()])
    files.write_npy(tmp_path / "floats.npy", np.zeros((2, 20), "f8"))
    files.write_npy(tmp_path / "integers.npy", np.zeros((2, 20), "i8"))
    files.write_h5(tmp_path / "widths.h5", a=np.zeros((2, 20), "f4"), b=np.zeros((2, 19), "f4"))
    files.write_npy(tmp_path / "ones.npy", np.ones(13, "i8"))
    for code, words, args in (
        (65, "back.npy, row 2: expected offsets that never go back", ["-i", "flat.npy", "--offsets", "back.npy"]),
        (66, "no.npy: cannot be opened", ["-i", "flat.npy", "--offsets", "no.npy"]),
        (65, "widths.h5::/b: expected a sequence (steps, 20) of float32", ["-i", "widths.h5"]),
        (65, "integers.npy: expected a sequence (steps, 20) of float64, as floats", ["-i", "floats.npy", "-i", "integers.npy"]),
        (65, "the lengths of ones.npy add up to 13", ["-i", "flat.npy", "--lens", "ones.npy"]),
    ):
        assert_one_line(lstmcli("run", *args, *PADDED, "-w", case.weights, "-o", "out.h5", cwd=tmp_path), code, words)
    assert not (tmp_path / "out.h5").exists()
