"""A run cut into parts that are made one by one and merged has the bytes of one run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.command import LSTMCLI, SECONDS, assert_one_line, lstmcli, succeed
from helpers.system_tools import run_with_faults

import lstmcli as lstmcli_api
from lstmcli.errors import DataError
from lstmcli.kernel.native import cache as kernel_cache

BATCH = 70


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 sequences of 0 to 23 steps, as NPY, time-major and in chunks, NaN in two of the steps; and states to begin with."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(4)
    lengths = rng.integers(0, 24, BATCH)
    lengths[[0, 40, 41, 69]] = 0, 9, 0, 23
    x = rng.normal(size=(BATCH, 23, 6)).astype(np.float32)
    files.write_npy(folder / "lens.npy", lengths)
    files.write_npy(folder / "x.npy", x)
    starts = rng.integers(0, 24 - lengths)[:, None]
    starts[:30] = 0  # a part of the run has no starts to store
    files.write_npy(folder / "mask.npy", (np.arange(23) >= starts) & (np.arange(23) < starts + lengths[:, None]))
    files.write_npy(folder / "turned.npy", x.swapaxes(0, 1))
    with h5py.File(folder / "chunks.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(4, 7, 6), compression="gzip", compression_opts=1)
    with h5py.File(folder / "ids.h5", "w") as file:
        file["x"], file["long"] = x, np.maximum(lengths, 3)
        file["ids"] = [f"series {k}" for k in range(BATCH)]
    x[40, 8, 2], x[69, 3, 1] = np.nan, np.inf
    files.write_npy(folder / "nan.npy", x)
    files.write_model(folder / "model.h5", files.random_model(6, [5]))
    np.savez(folder / "start.npz", **{"0/c": rng.normal(size=(BATCH, 5)), "0/h": rng.normal(size=(BATCH, 5))})
    return folder


MODEL = ("-w", "model.h5")
RUNS: dict[str, tuple[str, ...]] = {
    "plain": ("-i", "x.npy", *MODEL),
    "start": ("-i", "turned.npy", "--time-major", *MODEL, "--initial-state", "start.npz"),
    "chunks": ("-i", "chunks.h5::/x", "-u", "3", "--peepholes", "--projection", "2", "--save", "outputs,states,cells,layers"),
    "both": ("-i", "x.npy", "-u", "4,3", "--bidirectional", "--dtype", "float64", "--seed", "5"),
    "nan": ("-i", "nan.npy", *MODEL),
    "states": ("-i", "nan.npy", *MODEL, "--save", "states", "--nonfinite", "pass"),
    "in front": ("-i", "nan.npy", *MODEL, "--padding", "pre"),
    "mask": ("-i", "chunks.h5::/x", *MODEL, "-l", "mask.npy"),
    "flat": ("-i", "x.npy", *MODEL, "--layout", "flat", "--store", "float16"),
    "pooled": ("-i", "x.npy", *MODEL, "--pool", "mean", "--save", "pooled"),
    "windows": ("-i", "ids.h5::/x", *MODEL, "-l", "ids.h5::/long", "--window", "3", "--pool", "max"),
}


def run_options(inputs: Path, name: str) -> list[str]:
    words = [*RUNS[name], *(() if "-l" in RUNS[name] else ("-l", "lens.npy"))]
    return [str(inputs / word) if (inputs / word.split("::")[0]).is_file() else word for word in words]


def make_plan(inputs: Path, folder: Path, name: str, shards: int) -> int:
    """plan.json in the folder; the number of its parts."""
    made = succeed("plan", *run_options(inputs, name), "--shards", shards, "-o", "plan.json", "--json", cwd=folder)
    return len(made.json["parts"])


def make_parts(folder: Path, count: int) -> None:
    """In one process, for speed."""
    code = (
        "import sys; from lstmcli.cluster.parts import run_part; from lstmcli.cluster.plan import read_plan\n"
        "plan = read_plan(sys.argv[1])\n"
        "for k in range(1, int(sys.argv[2]) + 1): run_part(plan, k, plan.job.resources, on_progress=lambda steps, total: 0)"
    )
    subprocess.run([sys.executable, "-c", code, folder / "plan.json", str(count)], cwd="/", timeout=SECONDS, check=True)


def serial(inputs: Path, folder: Path, name: str, output: str = "serial.h5") -> bytes:
    succeed("run", *run_options(inputs, name), "-o", output, "-q", cwd=folder)
    return (folder / output).read_bytes()


def merged(folder: Path, *args: object) -> bytes:
    succeed("merge", "plan.json", "-o", "out.h5", "-q", *args, cwd=folder)
    return (folder / "out.h5").read_bytes()


@pytest.fixture(scope="module")
def done(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan, its five parts, and what one run makes."""
    folder = tmp_path_factory.mktemp("done")
    assert make_plan(inputs, folder, "plain", 5) == 5
    make_parts(folder, 5)
    serial(inputs, folder, "plain")
    return folder


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("shards", [7])
def test_the_bytes_of_one_run(name: str, shards: int, inputs: Path, tmp_path: Path) -> None:
    count = make_plan(inputs, tmp_path, name, shards)
    assert 5 <= count <= 7
    make_parts(tmp_path, count)
    assert merged(tmp_path) == serial(inputs, tmp_path, name)


def test_files_of_one_name_whose_paths_are_relative_and_absolute(tmp_path: Path) -> None:
    """Their order is that of the absolute paths, which the plan has."""
    for name in ("a", "z"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "e.npz", **{f"{name}{k}": np.full((k + 1, 3), k, np.float32) for k in range(4)})
    (tmp_path / "list.txt").write_text(f"{tmp_path}/z/e.npz\n")
    options = ["-i", "@list.txt", "-i", "a/e.npz", "-u", "2"]
    succeed("plan", *options, "--shards", 2, "-o", "plan.json", cwd=tmp_path)
    make_parts(tmp_path, 2)
    succeed("run", *options, "-o", "serial.h5", cwd=tmp_path)
    assert merged(tmp_path) == (tmp_path / "serial.h5").read_bytes()
    with h5py.File(tmp_path / "serial.h5") as file:
        assert file["ids"].asstr()[0] == "a0"


@pytest.mark.parametrize("shards", [1, 2, 64])
def test_any_number_of_parts(shards: int, inputs: Path, tmp_path: Path) -> None:
    count = make_plan(inputs, tmp_path, "nan", shards)
    assert shards // 2 < count <= shards
    make_parts(tmp_path, count)
    assert merged(tmp_path) == serial(inputs, tmp_path, "nan")


def test_as_npy(copied: Path, inputs: Path) -> None:
    serial(inputs, copied, "plain", "serial.npy")
    succeed("merge", "plan.json", "-o", "out.npy", cwd=copied)
    for ending in (".npy", ".states.npz", ".model.h5"):
        assert (copied / f"out{ending}").read_bytes() == (copied / f"serial{ending}").read_bytes()


def test_a_batch_of_nothing(inputs: Path, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.zeros((0, 4, 6), np.float32))
    options = ["-i", "x.npy", "-u", "3"]
    succeed("plan", *options, "--shards", 4, "-o", "plan.json", cwd=tmp_path)
    succeed("run", "--plan", "plan.json", "--shard", 1, cwd=tmp_path)
    succeed("run", *options, "-o", "serial.h5", cwd=tmp_path)
    assert merged(tmp_path) == (tmp_path / "serial.h5").read_bytes()


def test_the_commands_from_any_folder(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "x.npy").symlink_to(inputs / "x.npy")
    shutil.copy(inputs / "lens.npy", tmp_path / "jobs")
    options = ["-i", "x.npy", "-l", "lens.npy", "-u", "3"]
    made = succeed("plan", *options, "--shards", 3, "-o", "plan.json", cwd=tmp_path / "jobs")
    assert "3 of " in made.text
    plan = ["--plan", "jobs/plan.json"]
    env = os.environ | {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "1"}
    ran = lstmcli("run", *plan, "--shard", "auto", "--threads", 1, "--resume", "--json", cwd=tmp_path, env=env)
    assert ran.code == 0, ran.err
    assert "part 2 of 3, as SLURM_ARRAY_TASK_ID says" in ran.err
    first, stop = ran.json["part"]
    assert (ran.json["output"], ran.json["threads"]) == (str(tmp_path / "jobs/plan.parts/part-0002.h5"), 1)
    assert succeed("plan", "--missing", "jobs/plan.json", cwd=tmp_path).text == "1,3\n"
    with h5py.File(ran.json["output"]) as part:
        assert part["outputs"].shape[0] == stop - first
        assert json.loads(part.attrs["part"])["rows"] == [first, stop]
    part_bytes = Path(ran.json["output"]).read_bytes()
    again = succeed("run", *plan, "--shard", 2, "--json", cwd=tmp_path)
    assert again.json == {"output": ran.json["output"], "part": [first, stop], "already_done": True}
    assert Path(ran.json["output"]).read_bytes() == part_bytes
    assert "was there already" in succeed("run", *plan, "--shard", 2, cwd=tmp_path).text
    succeed("run", *plan, "--shard", 1, "-q", cwd=tmp_path)
    succeed("run", *plan, "--shard", 3, "-q", cwd=tmp_path)
    ran = succeed("plan", "--missing", "jobs/plan.json", cwd=tmp_path)
    assert (ran.out, ran.err) == (b"", "")
    succeed("verify", *(tmp_path / "jobs/plan.parts").iterdir(), cwd=tmp_path)
    ran = succeed("merge", "jobs/plan.json", "-o", "out.h5", "--json", cwd=tmp_path)
    assert (ran.json["parts"], ran.json["output"]) == (3, "out.h5")
    succeed("run", *options, "-o", "serial.h5", cwd=tmp_path / "jobs")
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "jobs" / "serial.h5").read_bytes()


def test_nan_is_named_by_its_sequence_in_the_whole(inputs: Path, tmp_path: Path) -> None:
    count = make_plan(inputs, tmp_path, "nan", 7)
    ran = succeed("run", "--plan", "plan.json", "--shard", count, cwd=tmp_path)
    assert "first in sequence 69, step 3" in ran.err
    succeed("plan", *run_options(inputs, "nan"), "--nonfinite", "error", "--shards", 7, "-o", "strict.json", cwd=tmp_path)
    assert_one_line(lstmcli("run", "--plan", "strict.json", "--shard", count, cwd=tmp_path), 65, "sequence 69, step 3")


def test_dry_run(inputs: Path, tmp_path: Path) -> None:
    options = [*run_options(inputs, "chunks"), "--shards", 3, "-o", "plan.json", "--dry-run", "--max-memory", "2GB"]
    made = succeed("plan", *options, cwd=tmp_path)
    assert not list(tmp_path.iterdir())
    assert "2,000,000,000 bytes" in made.text
    facts = succeed("plan", *options, "--json", cwd=tmp_path).json
    steps = [part["steps"] for part in facts["parts"]]
    assert sum(steps) == facts["valid_steps"] == np.load(inputs / "lens.npy").sum()
    assert all(f"{count:,} steps" in made.text for count in steps)
    assert all(part["bytes_read"] == 24 * part["steps"] for part in facts["parts"])
    assert all(part["rows"][0] % 4 == 0 for part in facts["parts"])
    assert not list(tmp_path.iterdir())


def test_parts_that_were_killed_and_resumed(copied: Path) -> None:
    parts = copied / "plan.parts"
    want = hashlib.sha256((parts / "part-0002.h5").read_bytes()).hexdigest()
    (parts / "part-0002.h5").unlink()
    argv = ["run", "--plan", str(copied / "plan.json"), "--shard", "2", "-q", "--max-memory", "10KB", "--threads", "1"]
    told = run_with_faults(parts, argv=argv, output="part-0002.h5", fault="kill", step=4)
    assert len(told) > 5
    assert {one["result"] for one in told[:-1]} == {want}
    assert all(one["left"] == ["part-0002.h5"] for one in told)
    assert merged(copied) == (copied / "serial.h5").read_bytes()


@pytest.mark.parametrize(("output", "fault"), [("out.h5", "kill"), ("out.h5", "ENOSPC"), ("out.npy", "kill")])
def test_a_merge_that_was_stopped_and_resumed(output: str, fault: str, copied: Path, inputs: Path) -> None:
    (copied / "work").mkdir()
    want = hashlib.sha256(serial(inputs, copied, "plain", f"one{Path(output).suffix}")).hexdigest()
    argv = ["merge", str(copied / "plan.json"), "-o", output, "-q"]
    told = run_with_faults(copied / "work", argv=argv, output=output, fault=fault, step=13)
    assert len(told) > 5
    assert {one["result"] for one in told[:-1]} == {want}
    assert all(one["output"] in (None, want) for one in told)
    names = [output] if output == "out.h5" else ["out.model.h5", "out.npy", "out.states.npz"]
    assert all(one["left"] == names for one in told)


def test_a_merge_that_is_not_resumed_is_refused(copied: Path) -> None:
    (copied / "out.h5.partial").write_bytes(b"something")
    assert_one_line(lstmcli("merge", "plan.json", "-o", "out.h5", cwd=copied), 73, "--overwrite")
    (copied / "out.h5.journal").write_bytes(b"{}")
    assert_one_line(lstmcli("merge", "plan.json", "-o", "out.h5", cwd=copied), 73, "--resume", "--overwrite")


def want_lengths(folder: Path) -> bytes:
    with h5py.File(folder / "serial.h5") as file:
        return file["lengths"][:].tobytes()


def test_virtual(copied: Path) -> None:
    (copied / "shown").mkdir()
    succeed("merge", "plan.json", "-o", "shown/out.h5", "--virtual", "-q", cwd=copied)
    assert "5 parts, all checksums right" in succeed("verify", "shown/out.h5", cwd=copied).text
    moved = copied.parent / "moved"
    copied.rename(moved)  # the parts are named relative to the file
    got, want = files.read_result(moved / "shown" / "out.h5"), files.read_result(moved / "serial.h5")
    files.assert_same_bits(got, want)
    with h5py.File(moved / "shown" / "out.h5") as file, h5py.File(moved / "serial.h5") as whole:
        assert {**file.attrs}.keys() == {**whole.attrs}.keys()
        assert (file["lengths"][:] == whole["lengths"][:]).all()
    flipped = bytearray((moved / "shown" / "out.h5").read_bytes())
    flipped[flipped.index(want_lengths(moved)) + 8] ^= 1
    (moved / "shown" / "flipped.h5").write_bytes(flipped)
    assert_one_line(lstmcli("verify", "shown/flipped.h5", cwd=moved), 65, "flipped.h5", "not what was written")
    part = moved / "plan.parts" / "part-0002.h5"
    right = part.read_bytes()
    with h5py.File(part) as file:
        at = file["outputs"].id.get_offset()
    part.write_bytes(right[:at] + bytes([right[at] ^ 1]) + right[at + 1 :])
    assert_one_line(lstmcli("verify", "shown/out.h5", cwd=moved), 65, "part-0002.h5::/outputs, row", "checksum differs")
    part.write_bytes((moved / "plan.parts" / "part-0003.h5").read_bytes())
    assert_one_line(lstmcli("verify", "shown/out.h5", cwd=moved), 65, "part-0002.h5", "another part")
    part.write_bytes(right)
    (moved / "plan.parts" / "part-0003.h5").unlink()
    assert_one_line(lstmcli("verify", "shown/out.h5", cwd=moved), 65, "part-0003.h5", "cannot be opened")
    outputs, state = files.read_result(moved / "shown" / "out.h5")
    assert outputs is not None
    assert np.isnan(outputs).all(axis=(1, 2)).sum() == np.isnan(state["0/c"]).all(axis=1).sum() > 5
    moved.rename(copied)


def test_what_reads_results_reads_virtual_ones(copied: Path) -> None:
    succeed("merge", "plan.json", "-o", "virtual.h5", "--virtual", "-q", cwd=copied)
    assert "equal to the bit" in succeed("compare", "virtual.h5", "serial.h5", cwd=copied).text
    facts, whole = (succeed("inspect", name, "--json", cwd=copied).json for name in ("virtual.h5", "serial.h5"))
    assert facts["what"] == f"{whole['what']}, in the 5 parts of a virtual merge"
    assert {name for name in facts if facts[name] != whole[name]} == {"path", "bytes", "what", "arrays"}
    with lstmcli_api.open_result(copied / "virtual.h5") as one, lstmcli_api.open_result(copied / "serial.h5") as other:
        assert files.bits(one.outputs.padded()) == files.bits(other.outputs.padded())
        assert files.bits(np.asarray(one.state["0/c"])) == files.bits(np.asarray(other.state["0/c"]))
    for word, advice in (("virtual.h5", "merge without --virtual"), ("virtual.h5::/outputs", "lstmcli run --follow-links")):
        assert_one_line(lstmcli("convert", word, "b.npz", cwd=copied), 65, word, advice)
    part = copied / "plan.parts" / "part-0002.h5"
    part.rename(copied / "away.h5")
    for command in (("compare", "serial.h5"), ("inspect",), ("verify",)):
        ended = lstmcli(command[0], "virtual.h5", *command[1:], cwd=copied)
        assert_one_line(ended, 65, "virtual.h5: lies in ", "part-0002.h5", "cannot be opened")


@pytest.mark.parametrize("name", ["flat", "pooled", "windows"])
def test_virtual_ones_of_other_forms(name: str, inputs: Path, tmp_path: Path) -> None:
    make_parts(tmp_path, make_plan(inputs, tmp_path, name, 3))
    serial(inputs, tmp_path, name)
    succeed("merge", "plan.json", "-o", "virtual.h5", "--virtual", "-q", cwd=tmp_path)
    assert "equal to the bit" in succeed("compare", "virtual.h5", "serial.h5", cwd=tmp_path).text
    facts, whole = (succeed("inspect", one, "--json", cwd=tmp_path).json for one in ("virtual.h5", "serial.h5"))
    assert [array["name"] for array in facts["arrays"]] == [array["name"] for array in whole["arrays"]]


def test_names_of_parts_that_hdf5_takes_for_something_else(inputs: Path, tmp_path: Path) -> None:
    """To libhdf5 %b is the number of a file, and %% one percent sign; it stores names in UTF-8."""
    make_parts(tmp_path, make_plan(inputs, tmp_path, "plain", 2))
    serial(inputs, tmp_path, "plain")
    for name in ("50%%b%b", os.fsdecode(b"\xff")):
        (tmp_path / name).mkdir()
        shutil.copytree(tmp_path / "plan.parts", tmp_path / name / "plan.parts")
        shutil.copy(tmp_path / "plan.json", tmp_path / name)
    succeed("merge", "50%%b%b/plan.json", "-o", "virtual.h5", "--virtual", "-q", cwd=tmp_path)
    succeed("verify", "virtual.h5", cwd=tmp_path)
    assert "equal to the bit" in succeed("compare", "virtual.h5", "serial.h5", cwd=tmp_path).text
    files.assert_same_bits(files.read_result(tmp_path / "virtual.h5"), files.read_result(tmp_path / "serial.h5"))
    ran = lstmcli("merge", os.fsdecode(b"\xff/plan.json"), "-o", "other.h5", "--virtual", cwd=tmp_path)
    assert_one_line(ran, 2, "--virtual", "UTF-8")


def test_a_virtual_merge_leads_to_its_parts_alone(copied: Path) -> None:
    """Whoever makes one by hand cannot make another program read what lies elsewhere."""
    succeed("merge", "plan.json", "-o", "virtual.h5", "--virtual", "-q", cwd=copied)
    with h5py.File(copied / "virtual.h5", "r+") as file:
        shape, dtype = file["state/0/c"].shape, file["state/0/c"].dtype
        del file["state/0/c"]
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource("serial.h5", "state/0/c", shape)
        file.create_virtual_dataset("state/0/c", layout)
        at = file["parts/container"].id.get_offset()
    content = bytearray((copied / "virtual.h5").read_bytes())
    content[at : at + 4] = zlib.crc32(content[:at] + content[at + 4 :]).to_bytes(4, "little")
    (copied / "virtual.h5").write_bytes(content)
    with pytest.raises(DataError, match=r"state/0/c: lies in .*serial\.h5, which is none of the parts that were merged$"):
        lstmcli_api.open_result(copied / "virtual.h5")


@pytest.mark.slow
def test_50_tasks_at_once_with_a_cold_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTMCLI_CACHE_DIR", str(tmp_path / "cache"))
    files.write_npy(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 20, 6)).astype(np.float32))
    succeed("plan", "-i", "x.npy", "-u", "5", "--shards", 50, "-o", "plan.json", cwd=tmp_path)
    tasks = [
        subprocess.Popen([*LSTMCLI, "run", "--plan", "plan.json", "--shard", f"{k + 1}", "-q"], cwd=tmp_path) for k in range(50)
    ]
    seen = set()
    while any(task.poll() is None for task in tasks):
        for path in (tmp_path / "cache").glob("lstmcli-lstm-f32-*.kernel"):
            kernel_cache.read(path)  # ValueError: a part of one
            seen.add(path.read_bytes())
        time.sleep(0.01)
    assert [task.returncode for task in tasks] == [0] * 50
    assert len(seen) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1
    succeed("run", "-i", "x.npy", "-u", "5", "-o", "serial.h5", cwd=tmp_path)
    assert merged(tmp_path) == (tmp_path / "serial.h5").read_bytes()
