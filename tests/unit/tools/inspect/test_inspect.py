"""inspect: what it says of files, against what plain NumPy finds in them."""

from __future__ import annotations

import ast
import fcntl
import itertools
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed
from hypothesis import given
from hypothesis import strategies as st

from lstmcli.blocks import Span, Valid
from lstmcli.errors import DataError, LstmcliError
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.results.journal import Journal, StoredSpan
from lstmcli.tools.inspect import unfinished
from lstmcli.tools.inspect import values as values_module
from lstmcli.tools.inspect.inspect import inspect
from lstmcli.tools.inspect.lengths import BINS, about_lengths, about_padding


@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=60))
def test_a_histogram_counts_every_length_once(lengths: list[int]) -> None:
    found = about_lengths(np.array(lengths))
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    assert 1 <= len(counts) == len(edges) - 1 <= BINS
    assert (edges[0], edges[-1]) == (min(lengths), max(lengths) + 1)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        assert count == sum(low <= length < high for length in lengths)
    assert len({high - low for low, high in itertools.pairwise(edges[:-1])}) <= 1
    assert (found["total"], found["zero"], found["median"]) == (sum(lengths), lengths.count(0), np.median(lengths))


@pytest.mark.parametrize(
    ("starts", "lengths", "share", "place"),
    [
        ([0, 0], [4, 4], 0.0, "none"), ([0, 0], [4, 1], 3 / 8, "behind"), ([0, 3], [4, 1], 3 / 8, "in front"),
        ([1, 0], [2, 4], 2 / 8, "on both sides"), ([0, 0], [0, 4], 0.5, "none"),
    ],
)  # fmt: skip
def test_padding(starts: list[int], lengths: list[int], share: float, place: str) -> None:
    assert about_padding(Valid(np.array(starts), np.array(lengths)), 4) == {"share": share, "place": place}


def test_an_input(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, lengths = rng.normal(size=(9, 8, 3)).astype(np.float16), rng.integers(1, 9, 9)
    x[4, 0, 1], x[5, 0, 2] = np.nan, np.inf
    x[files.padding(x.shape, lengths)] = np.nan
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(4, 8, 3), compression="gzip", compression_opts=7, shuffle=True)
        file["lengths"] = lengths
        file["ids"] = [f"protein {k}" for k in range(9)]
    facts = inspect(str(tmp_path / "x.h5"))
    valid = x[~files.padding(x.shape, lengths)].astype(float)
    assert (facts["sequences"]["shape"], facts["sequences"]["dtype"]) == ([9, 8, 3], "float16")
    assert facts["sequences"]["layout"] == "chunks (4, 8, 3), shuffle, gzip 7"
    assert (facts["lengths"]["total"], facts["lengths"]["max"]) == (lengths.sum(), lengths.max())
    assert facts["padding"] == {"share": 1 - lengths.sum() / 72, "place": "behind"}
    assert facts["ids"]["first"] == [f"protein {k}" for k in range(5)]
    found = facts["values"]
    assert (found["nan"], found["inf"], found["looked_at"], found["total"]) == (1, 1, valid.size, valid.size)
    finite = valid[np.isfinite(valid)]
    assert (found["min"], found["max"], found["mean"]) == (finite.min(), finite.max(), pytest.approx(finite.mean()))
    assert np.float16(found["first"]).tolist() == x[0].ravel()[:5].tolist()
    assert [array["name"] for array in facts["arrays"]] == ["/ids", "/lengths", "/x"]
    assert facts["cost"]["bytes_read"] == valid.size * 2
    text = succeed("inspect", "x.h5", cwd=tmp_path).text
    assert "1 NaN, 1 Inf in all" in text
    assert max(map(len, text.splitlines())) <= 100
    assert text.isascii()


def test_a_large_array_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values_module, "SAMPLE", 4096)
    x = np.random.default_rng(0).normal(size=(500, 20, 4)).astype(np.float32)
    found = inspect(str(files.write_npy(tmp_path / "x.npy", x)))["values"]
    assert 0 < found["looked_at"] < found["total"] == x.size
    assert "a sample of" in succeed_with_sample(found)
    flat = inspect(str(files.write_npy(tmp_path / "flat.npy", x.reshape(-1, 4))))["values"]
    assert 0 < flat["looked_at"] < flat["total"] == x.size


def succeed_with_sample(found: dict[str, object]) -> str:
    from lstmcli.cli.report.inspect_report import about_values

    return "\n".join(about_values(found, True))


def test_padding_that_nobody_told_of(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    x[:, 3:] = 0
    (note,) = inspect(str(files.write_npy(tmp_path / "behind.npy", x)))["notes"]
    assert note.startswith("6 of 6 sequences looked at end with zeros: if that is padding, --lens says so")
    (note,) = inspect(str(files.write_npy(tmp_path / "front.npy", x[:, ::-1])))["notes"]
    assert "begin with zeros: if that is padding, --lens, and --padding pre, says so" in note
    lens = files.write_npy(tmp_path / "lens.npy", np.full(6, 3))
    facts = inspect(str(tmp_path / "behind.npy"), str(lens))
    assert (facts["notes"], facts["padding"]["share"], facts["lengths"]["from"]) == ([], pytest.approx(0.4), str(lens))


def test_lengths_masks_and_other_arrays(tmp_path: Path, case: Case) -> None:
    mask = np.arange(17) < case.lengths[:, None]
    for name, value, what in [
        ("lens.npy", case.lengths, "13 lengths"),
        ("whole.npy", case.lengths.astype(float), "13 lengths"),
        ("offsets.npy", np.r_[0, np.cumsum(case.lengths)], "offsets of 13 sequences"),
        ("mask.npy", mask, "a mask: 1 where a step is valid"),
        ("mask_of_floats.npy", mask.astype(np.float32), "a mask: 1 where a step is valid"),
    ]:
        facts = inspect(str(files.write_npy(tmp_path / name, value)))
        assert (facts["what"], facts["lengths"]["total"]) == (what, case.lengths.sum()), name
    (tmp_path / "lens.txt").write_text("\n".join(map(str, case.lengths)))
    assert inspect(str(tmp_path / "lens.txt"))["lengths"]["total"] == case.lengths.sum()
    assert inspect(str(files.write_npy(tmp_path / "flat.npy", case.x[0])))["what"] == "a flat array of rows"
    assert inspect(str(files.write_npy(tmp_path / "four.npy", np.zeros((1, 2, 3, 4)))))["what"] == "an array of rank 4"
    tokens = inspect(str(files.write_npy(tmp_path / "tokens.npy", np.arange(12).reshape(3, 4))))
    assert (tokens["what"], tokens["sequences"]["shape"]) == ("padded sequences, token ids", [3, 4])
    np.savez(tmp_path / "some.npz", a=np.zeros((2, 2)), b=np.zeros(3, complex))
    assert [array["name"] for array in inspect(str(tmp_path / "some.npz"))["arrays"]] == ["a", "b"]
    (tmp_path / "table.csv").write_text("id,p0,p1\na,0.5,0.5\nb,1,0\n")
    table = inspect(str(tmp_path / "table.csv"))
    assert (table["what"], table["columns"]) == ("a table of 3 columns, 2 lines below them", ["id", "p0", "p1"])
    (tmp_path / "poem.txt").write_text("Nothing beside remains.\n")
    with pytest.raises(DataError, match="a text that is neither a table nor lengths"):
        inspect(str(tmp_path / "poem.txt"))


@pytest.mark.parametrize("layout", ["padded", "flat", "per-sequence"])
def test_a_result(layout: str, case: Case, tmp_path: Path) -> None:
    succeed("run", *case.inputs, "--layout", layout, "-o", "out.h5", cwd=tmp_path)
    facts = inspect(str(tmp_path / "out.h5"))
    assert facts["what"] == f"result of LSTMs over 13 sequences, {layout}"
    assert (facts["lengths"]["total"], facts["kind"]) == (case.lengths.sum(), "result")
    valid = case.outputs[~files.padding(case.outputs.shape, case.lengths)]
    found = facts["values"]["outputs"]
    assert (found["min"], found["max"], found["total"]) == (valid.min(), valid.max(), valid.size)
    assert facts["values"]["state/0/c"]["max"] == case.state["0/c"].max()
    assert facts["made_of"]["options"]["dtype"] == "float32"
    assert facts["nonfinite"] == {"steps": 0}
    assert facts["model"]["parameters"] == sum(int(np.prod(weight.shape)) for weight in weights_in(case.weights))
    assert facts["cost"]["flop_per_step"] == 8 * (21 * (20 + 21) + 5 * (21 + 5))
    text = succeed("inspect", "out.h5", cwd=tmp_path).text
    assert "/state/1/h (13, 5) float32, contiguous" in text
    assert max(map(len, text.splitlines())) <= 100
    assert succeed("inspect", "--json", "out.h5", cwd=tmp_path).json["values"] == json.loads(json.dumps(facts["values"]))


def test_a_result_is_told_fast(case: Case, tmp_path: Path) -> None:
    """Without what reads the weights of frameworks, and without OpenSSL: they take as long to load as all else together."""
    (tmp_path / "result.h5").write_bytes((case.folder / "result.h5").read_bytes())
    code = (
        "import sys, numpy; sys.argv = ['lstmcli', 'inspect', 'result.h5']\n"
        "by_numpy = {*sys.modules}  # OpenSSL too, by NumPy 1\n"
        "from lstmcli.cli.main import lstmcli\n"
        "lstmcli.main(standalone_mode=False); print([name for name in sys.modules if name not in by_numpy])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(ran.stdout.splitlines()[-1])
    assert "lstmcli.tools.inspect.results" in loaded
    assert [name for name in loaded if name.startswith(("lstmcli.weights", "lstmcli.kernel", "numba", "_hashlib"))] == []


def weights_in(path: Path) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    return found


def test_a_model_and_weights(case: Case, tmp_path: Path) -> None:
    facts = inspect(str(case.weights))
    assert (facts["what"], [layer["units"] for layer in facts["model"]["layers"]]) == ("LSTMs in a model file", [21, 5])
    facts = inspect(str(files.SAMPLE_DATA / "vowels_bilstm.safetensors"))
    assert facts["what"] == "LSTMs, PyTorch (safetensors)"
    assert facts["left_out"] == ["head.bias (9,)", "head.weight (9, 64)"]
    assert facts["tensors"][0]["name"] == "lstm.weight_ih_l0"


def test_a_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[3] / "data" / "models" / "sentiment.keras"
    facts = inspect(str(path))
    assert facts["whole"]
    assert any("after the LSTM" in name for name in facts["left_out"])

    def several(path: str, choices: object) -> None:
        raise DataError("holds 2 LSTMs")

    monkeypatch.setattr("lstmcli.weights.load.load_weights", several)
    assert inspect(str(path))["what"].startswith("a whole model, Keras")
    with pytest.raises(DataError, match=r"^holds 2 LSTMs$"):
        inspect(str(files.SAMPLE_DATA / "vowels_bilstm.safetensors"))


def test_a_plan_and_its_parts(case: Case, tmp_path: Path) -> None:
    succeed("plan", *case.inputs, "--shards", 3, "-o", "plan.json", cwd=tmp_path)
    succeed("run", "--plan", "plan.json", "--shard", 2, cwd=tmp_path)
    facts = inspect(str(tmp_path / "plan.json"))
    assert facts["what"] == "plan of 3 parts over 13 sequences, 1 of them there"
    assert (facts["plan"]["parts_there"], facts["made_of"]["weights"]) == ([2], str(case.weights))
    first, stop = facts["plan"]["cuts"][1:3]
    part = inspect(str(tmp_path / "plan.parts" / "part-0002.h5"))
    assert part["what"].startswith(f"part of a plan, sequences {first} to {stop - 1}: result of LSTMs over {stop - first}")


def test_ragged_forms(tmp_path: Path, case: Case) -> None:
    sequences = {f"s{k}": case.x[k, :length] for k, length in enumerate(case.lengths)}
    np.savez(tmp_path / "each.npz", **sequences)
    (tmp_path / "folder").mkdir()
    for name, values in sequences.items():
        np.save(tmp_path / "folder" / name, values)
    files.write_h5(tmp_path / "each.h5", **sequences)
    rows = np.concatenate(list(sequences.values()))
    files.write_h5(tmp_path / "flat.h5", rows=rows, lengths=case.lengths)
    for name in ("each.npz", "folder", "folder/*.npy", "each.h5", "flat.h5"):
        facts = inspect(str(tmp_path / name))
        assert facts["what"] == "sequences without padding, 20 features at a step", name
        assert (facts["lengths"]["count"], facts["lengths"]["total"]) == (13, case.lengths.sum())
        assert facts["values"]["max"] == rows.max()
        assert facts["padding"] is None
        assert name == "flat.h5" or set(facts["ids"]["first"]) <= set(sequences)
        json.dumps(facts)
    assert inspect(str(case.folder / "result.h5"))["kind"] == "result"


def test_refusals(tmp_path: Path, case: Case) -> None:
    assert_one_line(lstmcli("inspect", "nothing.h5", cwd=tmp_path), 66, "nothing.h5", "No such file")
    assert_one_line(lstmcli("inspect", "-", cwd=tmp_path), 2, "reads a file more than once")
    assert_one_line(lstmcli("inspect", case.weights, "--rows", "1", cwd=tmp_path), 2, "--rows is for a picture")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 4)
    assert_one_line(lstmcli("inspect", "noise", cwd=tmp_path), 65, "noise", "begins with")


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture(ending: str, case: Case, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install matplotlib")
    name = f"picture.{ending}"
    succeed("inspect", case.folder / "result.h5", "--plot", name, "--rows", "0,7", cwd=tmp_path)
    begin = (tmp_path / name).read_bytes()[:5]
    assert begin == {"png": b"\x89PNG\r", "svg": b"<?xml"}[ending]
    assert_one_line(lstmcli("inspect", case.folder / "result.h5", "--plot", name, cwd=tmp_path), 73, "exists already")
    succeed("inspect", case.x_npy, "-l", case.lens_npy, "--plot", name, "--overwrite", cwd=tmp_path)
    assert_one_line(lstmcli("inspect", case.x_npy, "--plot", name, "--rows", "13", cwd=tmp_path), 65, "--rows 13", "0 to 12")
    assert_one_line(lstmcli("inspect", case.weights, "--plot", "m.png", cwd=tmp_path), 2, "no sequences to draw")
    assert_one_line(lstmcli("inspect", case.x_npy, "--plot", "x.gif", cwd=tmp_path), 2, ".png or .svg")


def test_names_in_a_picture_are_no_formulas(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install matplotlib")
    folder = "a folder with a name that is far too long for a title, even for that of a picture as wide as this one is"
    (tmp_path / folder).mkdir()
    with h5py.File(tmp_path / folder / "x $^ y$.h5", "w") as file:
        for name in ("a$\\b$", "$_$"):
            file[name] = np.ones((3, 2), np.float32)
    spec = f"{folder}/x $^ y$.h5"
    succeed("inspect", spec, "--plot", "x.svg", cwd=tmp_path)
    text = (tmp_path / "x.svg").read_text()  # what it draws as curves it says in comments
    assert f"<!-- {spec[:30]}...{spec[-30:]} -->" in text
    assert "input of sequence 0, $_$, 3 steps -->" in text


def test_a_picture_needs_matplotlib(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert_one_line(lstmcli("inspect", case.x_npy, "--plot", "x.png", cwd=tmp_path), 2, "pip install 'lstmcli[plot]'")


@pytest.mark.parametrize("listed", [True, False])
def test_a_lock_is_seen_and_left(listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system has no list of locks, as macOS."""
    if not listed:
        monkeypatch.setattr(unfinished, "LOCKS", tmp_path / "locks")
    elif not unfinished.LOCKS.exists():
        pytest.skip("this system has no /proc/locks")
    path = tmp_path / "out.h5.journal"
    path.touch()
    assert not unfinished.is_locked(path)
    with path.open() as file:
        for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX):  # the first one again is refused if the call above has kept its own
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            assert unfinished.is_locked(path)
        fcntl.flock(file, fcntl.LOCK_UN)
        assert not unfinished.is_locked(path)


def test_a_stopped_run_of_a_cluster(tmp_path: Path) -> None:
    """What was stored behind a gap is told apart, and hides nothing of what comes after it in the journal."""
    journal = Journal(tmp_path / "out.h5", {"input": {"shape": [20, 9, 4]}}, resume=False)
    journal.begin()

    class Files:
        def start_sync(self) -> None: ...
        def sync(self) -> None: ...

    def stored(first: int, count: int) -> StoredSpan:
        return StoredSpan(Span(first, count, 0, 9, last=True), 1, Nonfinite(), None)

    journal.note_ahead([[stored(8, 3)], [stored(15, 2)]])
    journal.record(stored(0, 4), Files())
    journal.flush(Files())
    journal.close()
    facts = unfinished.about_stopped(str(tmp_path / "out.h5"))
    assert facts["what"] == "result of a run that was stopped: 4 of 20 sequences are on disk, and 5 behind a gap"
    assert facts["stopped"]["sequences_done"] == 4


@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_a_name_too_long_for_what_a_run_leaves_beside_it(suffix: str, tmp_path: Path) -> None:
    """The system says so instead of saying that there is no such file."""
    with pytest.raises(LstmcliError, match="xxx"):
        inspect(str(tmp_path / f"{'x' * 250}{suffix}"))


def test_a_table_of_parquet_without_sequences(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install pyarrow")
    parquet.write_table(pa.table({"id": ["a"], "pooled": [[0.5, 1.0]]}), tmp_path / "table.parquet")
    table = inspect(str(tmp_path / "table.parquet"))
    assert (table["what"], table["columns"]) == ("a table of 2 columns", ["id", "pooled"])
    (tmp_path / "table.parquet").write_bytes((tmp_path / "table.parquet").read_bytes()[:100])
    with pytest.raises(DataError, match="damaged"):
        inspect(str(tmp_path / "table.parquet"))
