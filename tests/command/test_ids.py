"""Ids go with their sequences: into results, parts, merges and messages, and initial states are found by them."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed
from helpers.system_tools import run_with_faults


@pytest.fixture
def ids(case: Case, tmp_path: Path) -> list[str]:
    """Those of x.h5, which is the input of the case."""
    ids = [f"P{31 * k % 17:02}|ä" for k in range(len(case.x))]
    files.write_h5(tmp_path / "x.h5", x=case.x, lengths=case.lengths, ids=np.array(ids, h5py.string_dtype()))
    return ids


def stored_ids(path: Path) -> list[str]:
    with h5py.File(path) as file:
        assert h5py.check_string_dtype(file["ids"].dtype) == ("utf-8", None)
        return list(file["ids"].asstr()[:])


def test_in_results_parts_and_merges(case: Case, ids: list[str], tmp_path: Path) -> None:
    said = ("-i", "x.h5", "-w", case.weights)
    facts = succeed("run", *said, "-o", "whole.h5", "--json", cwd=tmp_path).json
    assert facts["input"]["ids"] == "x.h5::/ids"
    assert stored_ids(tmp_path / "whole.h5") == ids
    files.assert_same_bits(files.read_result(tmp_path / "whole.h5"), case.result)
    succeed("verify", "whole.h5", cwd=tmp_path)
    succeed("plan", *said, "--shards", 3, "-o", "plan.json", cwd=tmp_path)
    for number in (1, 2, 3):
        succeed("run", "--plan", "plan.json", "--shard", number, cwd=tmp_path)
    assert stored_ids(tmp_path / "plan.parts/part-0001.h5") == ids[: len(stored_ids(tmp_path / "plan.parts/part-0001.h5"))]
    succeed("merge", "plan.json", "-o", "merged.h5", cwd=tmp_path)
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    succeed("merge", "plan.json", "-o", "virtual.h5", "--virtual", cwd=tmp_path)
    assert stored_ids(tmp_path / "virtual.h5") == ids
    succeed("run", "-i", "whole.h5::/outputs", "-u", 3, "-o", "next.h5", cwd=tmp_path)
    assert stored_ids(tmp_path / "next.h5") == ids


def test_an_npz_has_its_ids_beside_the_array(case: Case, ids: list[str], tmp_path: Path) -> None:
    """Also the one that convert writes."""
    np.savez(tmp_path / "x.npz", x=case.x, lengths=case.lengths, ids=ids)
    succeed("convert", "x.h5", "converted.npz", cwd=tmp_path)
    for name in ("x.npz", "converted.npz"):
        facts = succeed("run", "-i", name, "-w", case.weights, "-o", f"{name}.h5", "--json", cwd=tmp_path).json
        assert facts["input"]["ids"] == f"{name}::ids"
        assert stored_ids(tmp_path / f"{name}.h5") == ids
        files.assert_same_bits(files.read_result(tmp_path / f"{name}.h5"), case.result)


def test_a_killed_run_is_resumed(case: Case, ids: list[str], tmp_path: Path) -> None:
    argv = ["run", "-i", "x.h5", "-w", str(case.weights), "--threads", "1", "--max-memory", "50KB", "-q", "-o"]
    succeed(*argv, "want.h5", cwd=tmp_path)
    run_with_faults(tmp_path, argv=[*argv, "out.h5"], output="out.h5", fault="kill", stop=43)
    assert (tmp_path / "out.h5.journal").exists()
    succeed(*argv, "out.h5", "--resume", cwd=tmp_path)
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "want.h5").read_bytes()


def test_another_id_is_another_run(case: Case, ids: list[str], tmp_path: Path) -> None:
    succeed("plan", "-i", "x.h5", "-w", case.weights, "--shards", 2, "-o", "plan.json", cwd=tmp_path)
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["ids"][3] = "another"
    ran = lstmcli("run", "--plan", "plan.json", "--shard", 1, cwd=tmp_path)
    assert_one_line(ran, 65, "the run is not the one that was planned", "ids was")


def test_messages_name_the_id(case: Case, ids: list[str], tmp_path: Path) -> None:
    x, row = case.x.copy(), int(np.flatnonzero(case.lengths > 1)[2])
    x[row, 1] = np.inf
    shutil.copy(tmp_path / "x.h5", tmp_path / "bad.h5")
    with h5py.File(tmp_path / "bad.h5", "a") as file:
        file["x"][:] = x
    said = ("-i", "bad.h5", "-w", case.weights, "-o", "out.h5")
    assert_one_line(
        lstmcli("run", *said, "--nonfinite", "error", cwd=tmp_path), 65, f"bad.h5::/x, sequence {row} ({ids[row]}), step 1"
    )
    ran = lstmcli("run", *said, "--json", cwd=tmp_path)
    assert f"first in sequence {row} ({ids[row]}), step 1" in ran.err
    assert ran.json["nonfinite"] == {"steps": 1, "row": row, "step": 1, "id": ids[row]}


def test_an_initial_state_is_found_by_its_id(case: Case, ids: list[str], tmp_path: Path) -> None:
    """Whatever the order, and among others; by its row where only one of the files has ids."""
    succeed("run", "-i", "x.h5", "-w", case.weights, "-o", "first.h5", cwd=tmp_path)
    succeed("run", *case.inputs, "--initial-state", "first.h5", "-o", "want.h5", cwd=tmp_path)
    want = files.read_result(tmp_path / "want.h5")
    order = np.random.default_rng(0).permutation(len(ids))[:-2]
    names = np.array([ids[k] for k in order], h5py.string_dtype())
    files.write_h5(tmp_path / "turned.h5", x=case.x[order], lengths=case.lengths[order], ids=names)
    succeed("run", "-i", "turned.h5", "-w", case.weights, "--initial-state", "first.h5", "-o", "turned_out.h5", cwd=tmp_path)
    files.assert_same_bits(files.read_result(tmp_path / "turned_out.h5"), files.rows_of(want, order))
    files.write_h5(tmp_path / "less.h5", x=case.x[:4], lengths=case.lengths[:4], ids=np.array([*ids[:3], "new"], "O"))
    ran = lstmcli("run", "-i", "less.h5", "-w", case.weights, "--initial-state", "first.h5", "-o", "o.h5", cwd=tmp_path)
    assert_one_line(ran, 65, "first.h5::/state: has no new, sequence 3 of the input")
    files.write_h5(tmp_path / "single.h5", x=case.x[:1], lengths=case.lengths[:1], ids=np.array(ids[:1], "O"))
    succeed("run", "-i", "single.h5", "-w", case.weights, "-o", "single_out.h5", cwd=tmp_path)
    ran = lstmcli("run", "-i", "less.h5", "-w", case.weights, "--initial-state", "single_out.h5", "-o", "o.h5", cwd=tmp_path)
    assert_one_line(ran, 65, f"single_out.h5::/state: has no {ids[1]}, sequence 1 of the input")


def test_the_same_id_twice(case: Case, ids: list[str], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["ids"][5] = ids[2]
    ran = lstmcli("run", "-i", "x.h5", "-w", case.weights, "-o", "out.h5", cwd=tmp_path)
    assert_one_line(ran, 65, "x.h5::/ids: sequences 2 and 5 have the same id", ids[2])


@pytest.mark.dask
def test_on_a_cluster(case: Case, ids: list[str], tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="Dask is not installed: pip install distributed")
    said = ("-i", "x.h5", "-w", case.weights)
    succeed("run", *said, "-o", "whole.h5", cwd=tmp_path)
    succeed("run", *said, "--scheduler", "local:2", "-o", "out.h5", cwd=tmp_path)
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("name", ["names", "ids"])
def test_what_repeats_is_said(name: str, case: Case, tmp_path: Path) -> None:
    """Texts may be of speakers, and numbers of anything: the run goes on without ids and says so."""
    values = np.array(["a", "b"] * 7, object)[:13] if name == "names" else np.arange(13) % 5
    files.write_h5(tmp_path / "x.h5", x=case.x, lengths=case.lengths, **{name: values})
    done = succeed("run", "-i", "x.h5", "-w", case.weights, "-o", "out.h5", "--json", cwd=tmp_path)
    assert done.json["input"]["ids"] is None
    same = "a" if name == "names" else "0"
    assert done.json["notes"] == [f"x.h5::/{name}: holds {same} more than once, so it is not taken for the ids of sequences"]
