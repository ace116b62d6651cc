"""What was begun with one input is never completed with another one, however alike their files are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.command import assert_one_line, lstmcli, succeed
from helpers.small_run import SOME_LONG, SmallRun
from helpers.system_tools import run_with_faults

MODELS = Path(__file__).parents[1] / "data" / "models"


@pytest.fixture(scope="module")
def job(small_run: Callable[..., SmallRun]) -> SmallRun:
    options = "--threads 1 --max-memory 60KB -q"
    return small_run(14, 60, 5, features=20, seed=2, lengths=SOME_LONG, formats=("model.h5",), options=options)


@pytest.fixture
def folder(job: SmallRun, tmp_path: Path) -> Path:
    """The inputs of the job, and two arrays of its shape and two states in one file each."""
    job.copy_to(tmp_path)
    rng = np.random.default_rng(5)
    x = np.load(tmp_path / "x.npy")
    files.write_h5(tmp_path / "two.h5", a=x, b=x[::-1])
    np.savez(tmp_path / "two.npz", a=x, b=x[::-1])
    with h5py.File(tmp_path / "states.h5", "w") as file:
        for name in ("a/0/c", "a/0/h", "b/0/c", "b/0/h"):
            file[name] = rng.normal(size=(14, 5))
    return tmp_path


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["-i", "two.h5::/a"], ["-i", "two.h5::/b"]),
        (["-i", "two.npz::a"], ["-i", "two.npz::b"]),
        (["--initial-state", "states.h5::/a"], ["--initial-state", "states.h5::/b"]),
    ],
)
def test_a_stopped_run_does_not_go_on_with_another_input(
    first: list[str], second: list[str], job: SmallRun, folder: Path
) -> None:
    words = job.words(folder=Path())
    if first[0] == "-i":  # in the place of the one that is there
        at = words.index("-i") if "-i" in words else words.index("--input")
        del words[at : at + 2]
    run_with_faults(folder, argv=[*words, *first], output="out.h5", fault="kill", stop=43)
    before = files.snapshot(folder)
    what = "initial_state" if "states" in first[1] else "input name"
    assert_one_line(lstmcli(*words, *second, "--resume", cwd=folder), 65, "out.h5.journal: belongs to another run", what)
    assert files.snapshot(folder) == before
    succeed(*words, *first, "--resume", cwd=folder)
    anew = ["anew.h5" if word == "out.h5" else word for word in words]
    succeed(*anew, *first, cwd=folder)
    assert (folder / "out.h5").read_bytes() == (folder / "anew.h5").read_bytes()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["-i", "two.h5::/a"], ["-i", "two.h5::/b"]),
        (["-i", "x.npy", "--initial-state", "states.h5::/a"], ["-i", "x.npy", "--initial-state", "states.h5::/b"]),
    ],
)
def test_parts_of_another_plan_are_not_merged(first: list[str], second: list[str], folder: Path) -> None:
    plan = ("plan", "-l", "lens.npy", "-u", 5, "--shards", 2, "-o", "plan.json", "--overwrite")
    part = ("run", "--plan", "plan.json", "-q")
    succeed(*plan, *first, cwd=folder)
    for number in (1, 2):
        succeed(*part, "--shard", number, cwd=folder)
    succeed("merge", "plan.json", "-o", "first.h5", cwd=folder)
    succeed(*plan, *second, cwd=folder)
    what = "initial_state name" if "--initial-state" in first else "input name"
    assert_one_line(lstmcli("merge", "plan.json", "-o", "out.h5", cwd=folder), 65, "belongs to another run", what)
    assert_one_line(lstmcli("merge", "plan.json", "-o", "out.h5", "--virtual", cwd=folder), 65, "belongs to another run", what)
    assert succeed("plan", "--missing", "plan.json", cwd=folder).text.split() == ["1-2"]
    for number in (1, 2):
        assert_one_line(lstmcli(*part, "--shard", number, cwd=folder), 65, "belongs to another run", "--overwrite")
        succeed(*part, "--shard", number, "--overwrite", cwd=folder)
    succeed("merge", "plan.json", "-o", "out.h5", cwd=folder)
    succeed("run", *second, "-l", "lens.npy", "-u", 5, "-o", "anew.h5", "-q", cwd=folder)
    assert (folder / "out.h5").read_bytes() == (folder / "anew.h5").read_bytes()
    assert (folder / "out.h5").read_bytes() != (folder / "first.h5").read_bytes()


def test_a_stopped_table_does_not_go_on_with_other_texts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["tokens"], file["ids"] = rng.integers(0, 20, (300, 40)).astype(np.int32), [f"s{k}" for k in range(300)]
    (tmp_path / "one.txt").write_text("no\nyes\nmaybe\n")
    (tmp_path / "two.txt").write_text("yes\nno\nmaybe\n")
    model = ("-w", MODELS / "torch_sentiment.safetensors", "--chain", "embedding, lstm, final, fc1, relu, fc2, softmax")
    words = list(map(str, ("predict", "-i", "x.h5", *model, "--max-memory", "160KB", "--threads", 1, "-q", "-o", "out.csv")))
    labels = ["--labels", "one.txt"]
    run_with_faults(tmp_path, argv=[*words, *labels], output="out.csv", fault="kill", stop=40)
    before = files.snapshot(tmp_path)
    for other, what in ((["--labels", "two.txt"], "labels"), ([*labels, "--top", "1"], "top"), ([], "labels")):
        assert_one_line(lstmcli(*words, *other, "--resume", cwd=tmp_path), 65, "out.csv.journal", f"table {what} was")
        assert files.snapshot(tmp_path) == before
    succeed(*words, *labels, "--resume", cwd=tmp_path)
    assert (tmp_path / "out.csv").read_text().startswith("id,no,yes,maybe\ns0,")
