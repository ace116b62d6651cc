"""Layouts of a result: the steps have the bits of the padded one, and the file those of an undisturbed run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, shell, succeed
from helpers.system_tools import run_with_faults

import lstmcli as lstmcli_api

SAVE = ("--save", "outputs,states,cells,layers")
FLAT, EACH = ("--layout", "flat"), ("--layout", "per-sequence")
UNPADDED = pytest.mark.parametrize("layout", [FLAT, EACH], ids=["flat", "per-sequence"])


def flat(padded: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([row[:length] for row, length in zip(padded, lengths, strict=True)])


@UNPADDED
@pytest.mark.parametrize("memory", ["1GB", "50KB"])
def test_the_bits_of_padded(layout: tuple[str, str], memory: str, case: Case, tmp_path: Path) -> None:
    for name, said in (("padded.h5", ()), ("flat.h5", layout)):
        succeed("run", *case.inputs, *SAVE, *said, "--max-memory", memory, "-o", name, "-q", cwd=tmp_path)
    padded, got = files.read_all(tmp_path / "padded.h5"), files.read_all(tmp_path / "flat.h5")
    if layout == FLAT:
        assert got.pop("offsets").tolist() == [0, *np.cumsum(case.lengths)]
    else:
        assert got.pop("ids").tolist() == [b"%d" % row for row in range(13)]
    assert got.pop("checksums/container") != padded.pop("checksums/container")
    assert got.keys() == padded.keys()
    for name, value in padded.items():
        assert files.bits(got[name]) == files.bits(flat(value, case.lengths) if name in files.STEPS else value), name
    assert "8 arrays, all checksums right" in succeed("verify", "flat.h5", cwd=tmp_path).text


def test_npy_and_pipes(case: Case, tmp_path: Path) -> None:
    succeed("run", *case.inputs, *FLAT, "-o", "flat.npy", "-q", cwd=tmp_path)
    assert files.bits(np.load(tmp_path / "flat.npy")) == files.bits(flat(case.outputs, case.lengths))
    ran = succeed("run", *case.inputs, *FLAT, "-o", "-", "-q", cwd=tmp_path)
    assert ran.out == (tmp_path / "flat.npy").read_bytes()
    words = " ".join(case.inputs[2:])
    shell(f'cat "$1" | lstmcli run -i - {words} --layout flat -o piped.h5 -q', tmp_path, case.x_npy)
    assert files.bits(files.read_all(tmp_path / "piped.h5")["outputs"]) == files.bits(flat(case.outputs, case.lengths))


def test_masks(case: Case, tmp_path: Path) -> None:
    """Where the valid steps stand in the input changes nothing but /starts."""
    front = np.zeros_like(case.x)
    for row, source, length in zip(front, case.x, case.lengths, strict=True):
        row[len(row) - length :] = source[:length]
    files.write_npy(tmp_path / "front.npy", front)
    words = ("-i", "front.npy", *case.inputs[2:], "--padding", "pre", *FLAT, "-q")
    for memory in ("1GB", "50KB"):
        succeed("run", *words, "-o", "out.h5", "--max-memory", memory, "--overwrite", cwd=tmp_path)
        got = files.read_all(tmp_path / "out.h5")
        assert files.bits(got["outputs"]) == files.bits(flat(case.outputs, case.lengths))
        assert got["starts"].tolist() == np.where(case.lengths > 0, 17 - case.lengths, 0).tolist()
    succeed("verify", "out.h5", cwd=tmp_path)


@UNPADDED
def test_parts(layout: tuple[str, str], case: Case, tmp_path: Path) -> None:
    succeed("run", *case.inputs, *SAVE, *layout, "-o", "whole.h5", "-q", cwd=tmp_path)
    succeed("plan", *case.inputs, *SAVE, *layout, "--shards", 4, "-o", "plan.json", "-q", cwd=tmp_path)
    for number in (1, 2, 3, 4):
        succeed("run", "--plan", "plan.json", "--shard", number, "-q", cwd=tmp_path)
    merged = succeed("merge", "plan.json", "-o", "merged.h5", "--json", cwd=tmp_path).json
    assert merged["arrays"][0]["shape"] == [case.lengths.sum(), case.outputs.shape[2]]
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    if layout == EACH:
        assert_one_line(lstmcli("merge", "plan.json", "-o", "v.h5", "--virtual", cwd=tmp_path), 2, "per-sequence")
        return
    succeed("merge", "plan.json", "-o", "virtual.h5", "--virtual", "-q", cwd=tmp_path)
    assert "equal to the bit" in succeed("compare", "virtual.h5", "whole.h5", cwd=tmp_path).text
    whole = files.read_all(tmp_path / "whole.h5")
    for name, value in files.read_all(tmp_path / "virtual.h5").items():
        if not name.startswith("parts/"):  # which says what the parts must be
            assert files.bits(value) == files.bits(whole[name]), name


@UNPADDED
def test_a_killed_run_is_resumed(layout: tuple[str, str], case: Case, tmp_path: Path) -> None:
    argv = ["run", *case.inputs, *layout, "--threads", "1", "--max-memory", "50KB", "-q", "-o"]
    succeed(*argv, "want.h5", cwd=tmp_path)
    want = hashlib.sha256((tmp_path / "want.h5").read_bytes()).hexdigest()
    told = run_with_faults(tmp_path, argv=[*argv, "out.h5"], output="out.h5", fault="kill", step=7)
    assert len(told) > 4
    assert all(one.get("result", one["output"]) == want for one in told), told


@UNPADDED
def test_damage_is_found(layout: tuple[str, str], case: Case, tmp_path: Path) -> None:
    succeed("run", *case.inputs, *layout, "-o", "out.h5", "-q", cwd=tmp_path)
    with h5py.File(tmp_path / "out.h5") as file:
        if layout == FLAT:
            at = file["outputs"].id.get_offset() + 18 * file["outputs"].shape[1] * 4
        else:
            at = file["outputs/1"].id.get_offset() + 4
    with (tmp_path / "out.h5").open("r+b") as file:
        file.seek(at)
        file.write(b"\xff")
    assert_one_line(lstmcli("verify", "out.h5", cwd=tmp_path), 65, "out.h5::/outputs, sequence 1: its bytes are not")


def test_a_flat_result_is_an_input(case: Case, tmp_path: Path) -> None:
    succeed("run", *case.inputs, *FLAT, "-o", "first.h5", "-q", cwd=tmp_path)
    succeed("run", "-i", "first.h5::/outputs", "-u", 4, "--layout", "padded", "-o", "flat.h5", "-q", cwd=tmp_path)
    succeed("run", *case.inputs, "-o", "padded.h5", "-q", cwd=tmp_path)
    succeed("run", "-i", "padded.h5::/outputs", "-u", 4, "-o", "want.h5", "-q", cwd=tmp_path)
    files.assert_same_bits(files.read_result(tmp_path / "flat.h5"), files.read_result(tmp_path / "want.h5"))


def test_ids_name_the_datasets(case: Case, tmp_path: Path) -> None:
    """Nested where they hold a slash, as an input of such datasets has them."""
    ids = [f"sp|P{row:03}/chain é" for row in range(13)]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, row, length in zip(ids, case.x, case.lengths, strict=True):
            file[f"all/{name}"] = row[:length]
    words = ("-w", case.weights, "-q")
    succeed("run", "-i", "x.h5::/all", *words, *EACH, "-o", "out.h5", cwd=tmp_path)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["ids"].asstr()[:].tolist() == ids
        for name, row, length in zip(ids, case.outputs, case.lengths, strict=True):
            assert files.bits(file[f"outputs/{name}"][:]) == files.bits(row[:length])
    succeed("run", "-i", "out.h5::/outputs", "-u", 3, "-q", "-o", "again.h5", cwd=tmp_path)
    with h5py.File(tmp_path / "again.h5") as file:
        assert file["ids"].asstr()[:].tolist() == ids


@pytest.mark.parametrize("bad", ["", "a//b", "./x", "7/a"])
def test_ids_that_cannot_be_names(bad: str, case: Case, tmp_path: Path) -> None:
    ids = [str(row) for row in range(12)] + [bad]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"], file["lengths"] = case.x, case.lengths
        file["ids"] = np.array(ids, object)
    words = ("-i", "x.h5", "-w", case.weights, *EACH, "-o", "out.h5")
    assert_one_line(lstmcli("run", *words, cwd=tmp_path), 65, "x.h5::/ids, sequence 12", "--layout flat")
    assert not list(tmp_path.glob("out.h5*"))


def test_only_hdf5_has_datasets(case: Case, tmp_path: Path) -> None:
    for output in ("out.npy", "-"):
        assert_one_line(lstmcli("run", *case.inputs, *EACH, "-o", output, cwd=tmp_path), 2, "--layout per-sequence")


def test_the_next_run_keeps_the_order(tmp_path: Path) -> None:
    """That of /ids, and not that of the names in the file, in which 10 and b come before."""
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    for ids in (["c", "b", "10", "9"], ["10", "9", "2", "1"], ["é/2", "é/10", "a", "é/1"]):
        files.write_h5(tmp_path / "x.h5", x=x, ids=np.array(ids, "O"))
        for name, spec in (("each.h5", "x.h5::/x"), ("next.h5", "each.h5::/outputs")):
            succeed("run", "-i", spec, *EACH, "-u", 2, "--overwrite", "-o", name, "-q", cwd=tmp_path)
            with h5py.File(tmp_path / name) as file:
                assert file["ids"].asstr()[:].tolist() == ids


@pytest.mark.parametrize("layout", ["padded", "flat", "per-sequence"])
def test_no_sequences(layout: str, tmp_path: Path) -> None:
    """A padded and a ragged input without any give results of every layout, which become one another."""
    files.write_h5(tmp_path / "padded.h5", x=np.zeros((0, 5, 4), "f4"))
    files.write_h5(tmp_path / "ragged.h5", x=np.zeros((0, 4), "f4"), offsets=np.zeros(1, "i8"))
    for name in ("padded.h5", "ragged.h5"):
        words = ("-i", name, "-u", "3", "--save", "outputs,layers", "--store", "float16", "--layout", layout, "-q")
        succeed("run", *words, "-o", "o.h5", "--overwrite", cwd=tmp_path)
        for other in ("padded", "flat", "per-sequence"):
            succeed("convert", "o.h5", "c.h5", "--layout", other, "--overwrite", "-q", cwd=tmp_path)
            succeed("convert", "c.h5", "again.h5", "--layout", layout, "--overwrite", "-q", cwd=tmp_path)
            assert "checksums right" in succeed("verify", "c.h5", cwd=tmp_path).text
            succeed("compare", "c.h5", "again.h5", "-q", cwd=tmp_path)
            for made in ("o.h5", "c.h5", "again.h5"):
                with lstmcli_api.open_result(tmp_path / made) as result:
                    assert (list(result.outputs), result.outputs.shape[2], result.outputs.dtype) == ([], 3, np.float16)
                    assert list(result.layers["0"]) == []
