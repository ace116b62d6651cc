"""What plans, parts and merges refuse, and what they say."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed

from lstmcli.cluster import merge as merging
from lstmcli.cluster.job_scripts import INDEX
from lstmcli.cluster.plan import Plan, read_plan
from lstmcli.errors import DataError
from lstmcli.files.hdf5 import CONTAINER, container_checksum
from lstmcli.model.result_container import extent

PLAN = ["plan", "-i", "x.npy", "-l", "lens.npy", "-w", "model.h5", "--shards", "3", "-o", "plan.json"]


@pytest.fixture(scope="module")
def planned(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan with its three parts, and the first part of another run."""
    folder = tmp_path_factory.mktemp("planned")
    for name in ("x.npy", "lens.npy", "model.h5"):
        shutil.copy2(case.folder / name, folder)
    succeed(*PLAN, "-q", cwd=folder)
    for k in (1, 2, 3):
        succeed("run", "--plan", "plan.json", "--shard", k, "-q", cwd=folder)
    succeed(*PLAN[:-1], "other.json", "--dtype", "float64", "-q", cwd=folder)
    succeed("run", "--plan", "other.json", "--shard", 1, "-q", cwd=folder)
    return folder


@pytest.fixture
def left(planned: Path, tmp_path: Path) -> Path:
    shutil.copytree(planned, tmp_path, dirs_exist_ok=True)
    # The plan names its inputs by their absolute paths: those of the first folder, which nobody changes.
    return tmp_path


def flip(path: Path, name: str) -> None:
    """One bit of the first valid value of a dataset."""
    with h5py.File(path) as file:
        at = int(file[name].id.get_offset())
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def remark(path: Path, text: str) -> None:
    """Forges what a part says of the run that it belongs to: the checksum of its container is right."""
    with h5py.File(path, "r+") as file:
        file.attrs["part"] = text
    with h5py.File(path) as file:
        names = [name for name in ("outputs", "state/0/c", "state/0/h", "state/1/c", "state/1/h") if name in file]
        own = extent(file[CONTAINER])
        extents = [own, *(extent(file[name]) for name in names)]
    content = bytearray(path.read_bytes())
    checksum = container_checksum(lambda at, count: bytes(content[at : at + count]), len(content), extents)
    content[own.offset : own.offset + own.size] = checksum.to_bytes(4, "little")
    path.write_bytes(content)


SPOILED: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing": (lambda parts: (parts / "part-0002.h5").unlink(), ["missing: 2 of 1-3"]),
    "truncated": (
        lambda parts: (parts / "part-0002.h5").write_bytes((parts / "part-0002.h5").read_bytes()[:-100]),
        ["part 2", "part-0002.h5"],
    ),
    "empty": (lambda parts: (parts / "part-0002.h5").write_bytes(b""), ["part 2", "part-0002.h5"]),
    "of another run": (
        lambda parts: shutil.copy(parts.parent / "other.parts" / "part-0001.h5", parts),
        ["part 1", "another run", "dtype was float64, is now float32"],
    ),
    "of other rows": (lambda parts: shutil.copy(parts / "part-0001.h5", parts / "part-0002.h5"), ["part 2", "rows was [0, "]),
    "structure": (lambda parts: flip(parts / "part-0003.h5", "model/0/bias"), ["part 3", "not what was written"]),
    "mark": (lambda parts: remark(parts / "part-0001.h5", "{"), ["part 1", "part-0001.h5: damaged"]),
    "mark of too many brackets": (
        lambda parts: remark(parts / "part-0001.h5", "[" * 50_000),
        ["part 1", "part-0001.h5: damaged"],
    ),
    "whole": (
        lambda parts: succeed("run", *PLAN[1:7], "-o", "plan.parts/part-0001.h5", "--overwrite", "-q", cwd=parts.parent),
        ["part 1", "result of a whole run"],
    ),
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("virtual", [(), ("--virtual",)], ids=["copy", "virtual"])
def test_parts_that_cannot_be_merged(how: str, virtual: tuple[str, ...], left: Path) -> None:
    spoil, words = SPOILED[how]
    spoil(left / "plan.parts")
    before = files.snapshot(left)
    assert_one_line(lstmcli("merge", "plan.json", "-o", "out.h5", *virtual, cwd=left), 65, "plan.json", *words)
    assert files.snapshot(left) == before
    if not virtual:
        ran = succeed("plan", "--missing", "plan.json", cwd=left)
        number = words[0].split()[1].rstrip(":")
        assert ran.text == f"{number}\n"
        assert ("part-000" in ran.err) == (how != "missing")
        ran = lstmcli("run", "--plan", "plan.json", "--shard", number, "-q", cwd=left)
        if how != "missing":
            assert_one_line(ran, 65, "part-000", "--overwrite")
            succeed("run", "--plan", "plan.json", "--shard", number, "--overwrite", "-q", cwd=left)
        assert succeed("plan", "--missing", "plan.json", cwd=left).text == ""


@pytest.mark.parametrize("virtual", [(), ("--virtual",)], ids=["copy", "virtual"])
@pytest.mark.parametrize("name", ["outputs", "state/1/h"])
def test_one_flipped_bit_of_a_value(virtual: tuple[str, ...], name: str, left: Path) -> None:
    flip(left / "plan.parts" / "part-0002.h5", name)
    before = files.snapshot(left)
    ran = lstmcli("merge", "plan.json", "-o", "out.h5", *virtual, cwd=left)
    assert_one_line(ran, 65, "part-0002.h5", f"/{name}, row 0", "checksum")
    if virtual:
        assert files.snapshot(left) == before
        return
    after = files.snapshot(left)
    assert after.keys() - before.keys() == {"out.h5.partial", "out.h5.journal"}  # part 1, which is right, is kept
    succeed("run", "--plan", "plan.json", "--shard", 2, "--overwrite", "-q", cwd=left)
    succeed("merge", "plan.json", "-o", "out.h5", "--resume", cwd=left)
    succeed("merge", "plan.json", "-o", "anew.h5", cwd=left)
    assert (left / "out.h5").read_bytes() == (left / "anew.h5").read_bytes()


def test_several_wrong_parts_are_all_named(left: Path) -> None:
    (left / "plan.parts" / "part-0001.h5").unlink()
    (left / "plan.parts" / "part-0003.h5").write_text("nothing")
    assert_one_line(lstmcli("merge", "plan.json", "-o", "out.h5", cwd=left), 65, "missing: 1 of 1-3", "part 3")
    told = succeed("plan", "--missing", "plan.json", "--json", "-q", cwd=left).json
    assert (told["parts"], told["missing"], told["array"], list(told["wrong"])) == (3, [1, 3], "1,3", ["3"])


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "lstmcli-plan"}', "[" * 100_000, '{"format": "model"}'])
def test_files_that_are_no_plans(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    for command in (["merge", "plan.json", "-o", "out.h5"], ["plan", "--missing", "plan.json"]):
        assert_one_line(lstmcli(*command, cwd=tmp_path), 65, "plan.json", "expected")
    assert_one_line(lstmcli("run", "--plan", "nowhere.json", "--shard", 1, cwd=tmp_path), 66, "nowhere.json")


def test_a_file_too_large_for_any_plan(tmp_path: Path) -> None:
    with (tmp_path / "plan.json").open("wb") as file:
        file.truncate(1 << 40)
    assert_one_line(lstmcli("merge", "plan.json", "-o", "out.h5", cwd=tmp_path), 65, "plan.json", "expected a plan")


def test_plans_that_were_edited(left: Path) -> None:
    text = (left / "plan.json").read_text()
    (left / "plan.json").write_text(text.replace('"dtype": "float32"', '"dtype": "float64"'))
    assert_one_line(lstmcli("run", "--plan", "plan.json", "--shard", 1, cwd=left), 65, "plan.json", "edited")
    content = json.loads(text) | {"cuts": 5}
    del content["checksum"]
    content["checksum"] = f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"
    (left / "plan.json").write_text(json.dumps(content))
    assert_one_line(lstmcli("run", "--plan", "plan.json", "--shard", 1, cwd=left), 65, "plan.json")


@pytest.mark.parametrize(("name", "word"), [("x.npy", "input sample"), ("lens.npy", "lengths was"), ("model.h5", "model was")])
def test_inputs_that_changed(name: str, word: str, case: Case, tmp_path: Path) -> None:
    for file in ("x.npy", "lens.npy", "model.h5"):
        shutil.copy(case.folder / file, tmp_path)
    succeed(*PLAN, "-q", cwd=tmp_path)
    if name == "model.h5":
        files.write_model(tmp_path / name, files.random_model(20, [5, 21]))
    else:
        value = np.load(tmp_path / name)
        value.flat[3] -= 1
        files.write_npy(tmp_path / name, value)
    ran = lstmcli("run", "--plan", "plan.json", "--shard", 2, "--resume", cwd=tmp_path)
    assert_one_line(ran, 65, "x.npy", word, "plan anew")
    assert not list((tmp_path / "plan.parts").iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "--plan", "plan.json"], ["--shard"]),
        (["run", "--shard", "1", "-i", "x.npy", "-u", "3"], ["--plan"]),
        (["run", "--plan", "plan.json", "--shard", "1", "--input", "x.npy"], ["--input", "the plan"]),
        (["run", "--plan", "plan.json", "--shard", "1", "--dtype", "float32"], ["--dtype", "the plan"]),
        (["run", "--plan", "plan.json", "--shard", "1", "-o", "out.h5"], ["--output", "the plan"]),
        (["run", "--plan", "plan.json", "--shard", "0"], ["--shard 0", "1 to 3"]),
        (["run", "--plan", "plan.json", "--shard", "4"], ["--shard 4", "1 to 3"]),
        (["run", "--plan", "plan.json", "--shard", "1/3"], ["--shard 1/3", "whole number"]),
        (["run", "--plan", "plan.json", "--shard", "auto"], ["--shard auto", "SLURM_ARRAY_TASK_ID"]),
        (["run", "-u", "3"], ["--input"]),
        (["plan", "-i", "x.npy", "-u", "3"], ["--shards"]),
        (["plan", "-i", "x.npy", "-u", "3", "--shards", "2", "-o", "plan.h5"], [".json"]),
        (["plan", "-i", "-", "-u", "3", "--shards", "2", "-o", "new.json"], ["pipe"]),
        (["plan", "--shards", "2", "-o", "new.json", "-u", "3"], ["--input"]),
        (["plan", "-i", "x.npy", "--shards", "2", "-o", "new.json"], ["--units"]),
        (["plan", "--missing", "plan.json", "--shards", "3"], ["--shards", "--missing"]),
        (["plan", "--missing", "plan.json", "--format", "slurm", "--json"], ["--format"]),
        (["merge", "plan.json", "-o", "-"], ["pipe"]),
        (["merge", "plan.json", "-o", "out.npy", "--virtual"], ["--virtual"]),
        (["merge", "plan.json", "-o", "out.h5", "--virtual", "--resume"], ["--virtual"]),
        (["merge", "plan.json", "-o", "out.h5", "--states", "s.npz"], ["--states"]),
    ],
)
def test_wrong_usage(args: list[str], words: list[str], planned: Path) -> None:
    before = files.snapshot(planned)
    env = {name: value for name, value in os.environ.items() if name not in INDEX}
    assert_one_line(lstmcli(*args, cwd=planned, stdin=(planned / "x.npy").read_bytes(), env=env), 2, *words)
    assert files.snapshot(planned) == before


def test_outputs_that_are_in_the_way(left: Path, planned: Path) -> None:
    before, inputs = files.snapshot(left), files.snapshot(planned)
    assert_one_line(lstmcli(*PLAN, cwd=left), 73, "plan.json", "--overwrite")
    part = "plan.parts/part-0002.h5"
    assert_one_line(lstmcli("merge", "plan.json", "-o", part, cwd=left), 73, part, "exists")
    for output in (part, planned / "model.h5"):
        assert_one_line(lstmcli("merge", "plan.json", "-o", output, "--overwrite", cwd=left), 73, output, "input")
    assert (files.snapshot(left), files.snapshot(planned)) == (before, inputs)


@pytest.mark.parametrize("scheduler", ["slurm", "pbs", "sge", "lsf"])
def test_job_scripts(scheduler: str, left: Path) -> None:
    def script(*gone: int) -> str:
        for number in gone:
            (left / "plan.parts" / f"part-000{number}.h5").unlink()
        return succeed("plan", "--missing", "plan.json", "--format", scheduler, cwd=left).text

    assert script() == ""
    one = script(3)
    assert one.startswith("#!/bin/sh\n")
    assert ("--shard 3" if scheduler == "pbs" else "3") in one
    some = script(1)
    assert "1,3" in some if scheduler in ("slurm", "lsf") else "set -- 1 3\n" in some
    whole = script(2)
    assert "1-3" in whole
    assert f"--plan {left / 'plan.json'} --resume --shard auto" in whole


@pytest.mark.parametrize("how", ["same", "another run", "cut"])
def test_a_part_that_is_made_anew_while_it_is_merged(how: str, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was checked, and before it is copied: its own bytes again, or others. The copy of part 1 stays."""
    part = left / "plan.parts" / "part-0002.h5"
    content = bytearray(part.read_bytes())
    with h5py.File(part) as file:
        at = file["outputs"].id.get_offset()
    if how == "another run":
        content[at : at + 4] = np.float32(0.25).tobytes()
    if how == "cut":
        del content[at:]
    real = merging.check_parts

    def check_parts(plan: Plan) -> merging.JoinedParts:
        whole = real(plan)
        (left / "new.h5").write_bytes(content)
        (left / "new.h5").rename(part)
        return whole

    monkeypatch.setattr(merging, "check_parts", check_parts)
    plan = read_plan(str(left / "plan.json"))
    if how == "same":
        merging.merge(plan, str(left / "out.h5"), None, overwrite=False, resume=False)
        succeed("merge", "plan.json", "-o", "want.h5", cwd=left)
        assert (left / "out.h5").read_bytes() == (left / "want.h5").read_bytes()
    else:
        with pytest.raises(DataError, match=r"part-0002\.h5.*--shard 2 --overwrite; merge --resume then goes on"):
            merging.merge(plan, str(left / "out.h5"), None, overwrite=False, resume=False)
        assert not (left / "out.h5").exists()
        assert {path.name for path in left.glob("out.h5*")} == {"out.h5.partial", "out.h5.journal"}


@pytest.mark.parametrize("pool", [(), ("--pool", "mean")])
def test_a_table_of_parts_that_hold_outputs(pool: tuple[str, ...], left: Path) -> None:
    """What to say instead are options of the command that decides what is stored, which is plan."""
    succeed(*PLAN, *pool, "--overwrite", "-q", cwd=left)
    how = "say --save pooled, or --save states, in run or plan" if pool else "--pool mean --save pooled, or --save states, in"
    assert_one_line(lstmcli("merge", "plan.json", "-o", "out.csv", cwd=left), 2, "out.csv", "use --output NAME.h5", how)
    succeed(*PLAN, "--pool", "mean", "--save", "pooled", "--overwrite", "-q", cwd=left)
    for k in (1, 2, 3):
        succeed("run", "--plan", "plan.json", "--shard", k, "--overwrite", "-q", cwd=left)
    succeed("merge", "plan.json", "-o", "out.csv", "-q", cwd=left)
