"""`lstmcli predict`: files of models in, predictions out, the same however they are computed."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.command import assert_one_line, lstmcli, shell, succeed
from helpers.result_bytes import without_origins

DATA = Path(__file__).parents[1] / "data" / "models"
SENTIMENT = ("-w", DATA / "torch_sentiment.safetensors", "--chain", "embedding, lstm, final, fc1, relu, fc2, softmax")
TAGGER = ("-w", DATA / "torch_tagger.safetensors", "--chain", "word_embeddings, rnn, hidden2tag, log_softmax")


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 sequences of up to 40 ids of the models' tables, as NPY, and as HDF5 with ids and a mask."""
    folder = tmp_path_factory.mktemp("batch")
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 41, 300)
    x = rng.integers(0, 20, (300, 40)).astype(np.int32)
    np.save(folder / "x.npy", x)
    np.save(folder / "lens.npy", lengths)
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("tokens", data=x, chunks=(7, 11), compression="gzip")
        file["lengths"] = lengths
        file["ids"] = [f"sequence {k}, of 300" for k in range(300)]
    succeed("predict", "-i", "x.npy", "-l", "lens.npy", *SENTIMENT, "-o", "vectors.h5", cwd=folder)
    succeed("predict", "-i", "x.npy", "-l", "lens.npy", *TAGGER, "-o", "steps.h5", cwd=folder)
    return folder


def predictions(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["predictions"][:]


@pytest.mark.parametrize("name", ["torch_sentiment", "torch_tagger", "torch_forecast", "torch_pooled"])
def test_models_of_pytorch(name: str, tmp_path: Path) -> None:
    with np.load(DATA / f"{name}.npz") as file:
        np.save(tmp_path / "x.npy", file["x"])
        np.save(tmp_path / "lens.npy", file["lens"])
        line, want, lengths = str(file["chain"]), file["predictions"], file["lens"]
    weights = ("-w", DATA / f"{name}.safetensors", "--chain", line)
    succeed("predict", "-i", "x.npy", "-l", "lens.npy", *weights, "-o", "p.npy", cwd=tmp_path)
    got = np.load(tmp_path / "p.npy")
    if got.ndim == 3:
        padding = files.padding(got.shape, lengths)
        assert not got[padding].any()
        want = np.where(padding[:, :, None], 0, want)
    assert np.abs(got - want).max() <= 3e-6


def test_the_layers_of_a_long_model_are_told_in_several_lines(batch: Path, tmp_path: Path) -> None:
    """A pipe wraps nothing, and a model of Keras easily has twenty layers with names of twenty letters."""
    words = ("-i", "x.npy", "-l", "lens.npy", *SENTIMENT, "-o", tmp_path / "p.npy", "--dry-run")
    lines = succeed("predict", *words, cwd=batch).text.splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("model     7 layers"))
    assert lines[at + 1 : at + 4] == [
        "          embedding (embedding), lstm (stack), final (pool), fc1 (dense)",
        "          relu (activation), fc2 (dense), softmax (activation)",
        "predicts  (300, 3) float32",
    ]


@pytest.mark.parametrize(("model", "result"), [(SENTIMENT, "vectors.h5"), (TAGGER, "steps.h5")])
@pytest.mark.parametrize("how", [("--threads", 1), ("--threads", 3), ("--max-memory", "160KB"), ("-i", "x.h5")])
def test_the_same_bytes_however_it_is_computed(
    how: tuple[object, ...], model: tuple[object, ...], result: str, batch: Path, tmp_path: Path
) -> None:
    given = how if how[0] == "-i" else ("-i", "x.npy", *how)
    succeed("predict", *given, "-l", "lens.npy", *model, "-o", tmp_path / "p.h5", cwd=batch)
    if how[0] == "-i":  # its ids are in the result, but nothing else may differ
        assert files.bits(predictions(tmp_path / "p.h5")) == files.bits(predictions(batch / result))
        arrays = files.read_arrays(batch / "x.h5", but="ids")
        files.write_h5(tmp_path / "a", x=arrays["tokens"], lengths=arrays["lengths"])  # a::/x is as long as x.npy
        succeed("predict", "-i", tmp_path / "a", *model, "-o", tmp_path / "p.h5", "--overwrite", cwd=batch)
        assert without_origins((tmp_path / "p.h5").read_bytes()) == without_origins((batch / result).read_bytes())
    else:
        assert (tmp_path / "p.h5").read_bytes() == (batch / result).read_bytes()
    assert "all checksums right" in succeed("verify", tmp_path / "p.h5", cwd=batch).text


def test_the_order_of_sequences_and_padding_in_front(batch: Path, tmp_path: Path) -> None:
    x, lengths = np.load(batch / "x.npy"), np.load(batch / "lens.npy")
    order = np.random.default_rng(1).permutation(len(x))
    front = np.full_like(x, 19)
    for row, length in enumerate(lengths):
        front[row, 40 - length :] = x[row, :length]
    np.save(tmp_path / "x.npy", front[order])
    np.save(tmp_path / "lens.npy", lengths[order])
    succeed("predict", "-i", "x.npy", "-l", "lens.npy", "--padding", "pre", *SENTIMENT, "-o", "p.h5", cwd=tmp_path)
    assert files.bits(predictions(tmp_path / "p.h5")) == files.bits(predictions(batch / "vectors.h5")[order])


@pytest.mark.parametrize("more", [(), ("--top", 1)])
@pytest.mark.parametrize("model", [SENTIMENT, TAGGER])
def test_parquet_has_the_columns_of_a_text(
    model: tuple[object, ...], more: tuple[object, ...], batch: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install pyarrow")
    for output in ("p.csv", "p.parquet"):
        succeed("predict", "-i", batch / "x.npy", "-l", batch / "lens.npy", *model, *more, "-o", output, cwd=tmp_path)
    with (tmp_path / "p.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    table = parquet.read_table(tmp_path / "p.parquet")
    assert table.column_names == head
    columns = [column.to_numpy() if column.type != "string" else column.to_pylist() for column in table.columns]
    assert [[str(value) for value in line] for line in zip(*columns, strict=True)] == lines


@pytest.mark.parametrize(("model", "result"), [(SENTIMENT, "vectors.h5"), (TAGGER, "steps.h5")])
def test_predictions_in_half_the_space(model: tuple[object, ...], result: str, batch: Path, tmp_path: Path) -> None:
    """In HDF5, NPY and tables, and in parts of a plan; rounded after they are computed."""
    want = predictions(batch / result).astype(np.float16)
    options = ("-i", batch / "x.npy", "-l", batch / "lens.npy", *model, "--store", "float16")
    for name in ("p.h5", "p.npy", "p.csv"):
        facts = succeed("predict", *options, "-o", name, "--json", cwd=tmp_path).json
        assert facts["predictions"]["dtype"] == "float16"
    assert files.bits(predictions(tmp_path / "p.h5")) == files.bits(want)
    assert files.bits(np.load(tmp_path / "p.npy")) == files.bits(want)
    with (tmp_path / "p.csv").open(newline="") as file:
        values = [line[-want.shape[-1] :] for line in csv.reader(file)][1:]
    rows = want.reshape(-1, want.shape[-1])
    if want.ndim == 3:
        rows = want[~files.padding(want.shape, np.load(batch / "lens.npy"))]
    assert files.bits(np.array(values, np.float16)) == files.bits(rows)
    assert "all checksums right" in succeed("verify", "p.h5", cwd=tmp_path).text
    succeed("plan", "--predict", *options, "--shards", 2, "-o", "plan.json", cwd=tmp_path)
    for part in (1, 2):
        succeed("run", "--plan", "plan.json", "--shard", part, cwd=tmp_path)
    succeed("merge", "plan.json", "-o", "m.h5", cwd=tmp_path)
    assert (tmp_path / "m.h5").read_bytes() == (tmp_path / "p.h5").read_bytes()


def test_what_predict_leaves_to_run(batch: Path, tmp_path: Path) -> None:
    options = ("-i", batch / "x.npy", *SENTIMENT)
    text = "lstmcli run has it; a whole model says itself what it pools"
    assert_one_line(lstmcli("predict", *options, "--pool", "mean", cwd=tmp_path), 2, "No such option: --pool", text)
    assert_one_line(lstmcli("predict", *options, "--save", "states", cwd=tmp_path), 2, "predict stores predictions alone")
    planned = lstmcli("plan", "--predict", *options, "--pool", "mean", "--shards", 2, "-o", "p.json", cwd=tmp_path)
    assert_one_line(planned, 2, "--pool: pools the outputs of LSTMs")
    assert_one_line(lstmcli("run", *options[:2], "-u", 2, "--pol", "mean", cwd=tmp_path), 2, "did you mean --pool?")


@pytest.mark.parametrize(("model", "result"), [(SENTIMENT, "vectors.h5"), (TAGGER, "steps.h5")])
def test_parts_and_a_merge(model: tuple[object, ...], result: str, batch: Path, tmp_path: Path) -> None:
    options = ("-i", batch / "x.npy", "-l", batch / "lens.npy", *model)
    succeed("plan", "--predict", *options, "--shards", 3, "-o", "plan.json", cwd=tmp_path)
    for part in (3, 1, 2):
        succeed("run", "--plan", "plan.json", "--shard", part, cwd=tmp_path)
    succeed("merge", "plan.json", "-o", "p.h5", cwd=tmp_path)
    assert (tmp_path / "p.h5").read_bytes() == (batch / result).read_bytes()


@pytest.mark.parametrize("name", ["p.h5", "p.npy", "p.csv"])
def test_a_run_that_was_stopped_goes_on(name: str, batch: Path, tmp_path: Path) -> None:
    options = ("-i", batch / "x.npy", "-l", batch / "lens.npy", *TAGGER, "--max-memory", "160KB", "-o", name)
    stopped = lstmcli("predict", *options, "--stop-after", "0.001", cwd=tmp_path)
    assert stopped.code == 75, stopped.err
    assert not (tmp_path / name).exists()
    succeed("predict", *options, "--resume", cwd=tmp_path)
    resumed = (tmp_path / name).read_bytes()
    succeed("predict", *options, "--overwrite", cwd=tmp_path)
    assert resumed == (tmp_path / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def rows_of(path: Path, delimiter: str = ",") -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


def test_a_table_holds_what_the_array_holds(batch: Path, tmp_path: Path) -> None:
    succeed("predict", "-i", batch / "x.h5", *SENTIMENT, "-o", "p.csv", cwd=tmp_path)
    head, *rows = rows_of(tmp_path / "p.csv")
    assert head == ["id", "p0", "p1", "p2"]
    assert [row[0] for row in rows] == [f"sequence {k}, of 300" for k in range(300)]
    values = np.array([row[1:] for row in rows], np.float32)
    assert files.bits(values) == files.bits(predictions(batch / "vectors.h5"))


def test_a_table_of_steps(batch: Path, tmp_path: Path) -> None:
    succeed("predict", "-i", batch / "x.npy", "-l", batch / "lens.npy", *TAGGER, "-o", "p.tsv", cwd=tmp_path)
    head, *rows = rows_of(tmp_path / "p.tsv", "\t")
    assert head == ["id", "step", "p0", "p1", "p2", "p3"]
    lengths, want = np.load(batch / "lens.npy"), predictions(batch / "steps.h5")
    assert [row[:2] for row in rows] == [[str(k), str(t)] for k, n in enumerate(lengths.tolist()) for t in range(n)]
    values = np.array([row[2:] for row in rows], np.float32)
    assert files.bits(values) == files.bits(want[~files.padding(want.shape, lengths)])


def test_the_best_classes_by_name(batch: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("bad\nso so\ngood, really\n")
    options = ("-i", batch / "x.npy", "-l", batch / "lens.npy", *SENTIMENT, "-o", "p.csv")
    succeed("predict", *options, "--top", 2, "--labels", "names.txt", cwd=tmp_path)
    head, *rows = rows_of(tmp_path / "p.csv")
    assert head == ["id", "class1", "value1", "class2", "value2"]
    names = np.array(["bad", "so so", "good, really"])
    want = predictions(batch / "vectors.h5")
    order = np.argsort(-want, axis=1, kind="stable")[:, :2]
    assert [row[1::2] for row in rows] == names[order].tolist()
    assert [[float(cell) for cell in row[2::2]] for row in rows] == [
        [float(str(value)) for value in values] for values in np.take_along_axis(want, order, axis=1)
    ]


def test_a_name_of_a_class_ends_where_its_line_ends(batch: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("\ufeffa\u2028b\r\nc\x0cd\x1ce\rf\x85\n".encode())
    options = ("-i", batch / "x.npy", "-l", batch / "lens.npy", *SENTIMENT, "-o", "p.csv")
    succeed("predict", *options, "--labels", "names.txt", cwd=tmp_path)
    assert rows_of(tmp_path / "p.csv")[0] == ["id", "a\u2028b", "c\x0cd\x1ce", "f\x85"]


def test_a_stream(batch: Path) -> None:
    weights = DATA / "torch_sentiment.safetensors"
    line = 'lstmcli predict -i - -l lens.npy -w "$1" --chain "$2" -o - < x.npy > stream.npy'
    ran = shell(line, batch, weights, SENTIMENT[3])
    assert ran.code == 0, ran.err
    assert files.bits(np.load(batch / "stream.npy")) == files.bits(predictions(batch / "vectors.h5"))


def test_what_is_refused(batch: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wrong.npy", np.array([[1, 2, 3], [4, 5, 400]]))
    np.save(tmp_path / "large.npy", np.array([[1, 2, 3], [4, 5, 2**64 - 1]], ">u8"))
    np.save(tmp_path / "floats.npy", np.zeros((2, 3, 4), np.float32))
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    weights = ("-w", DATA / "torch_sentiment.safetensors")
    right = ("-i", batch / "x.npy", *SENTIMENT)
    for code, words, args in [
        (65, ["wrong.npy", "sequence 1, step 2", "got 400"], ("-i", "wrong.npy", *SENTIMENT)),
        (65, ["large.npy", "sequence 1, step 2", f"got {2**64 - 1}"], ("-i", "large.npy", *SENTIMENT)),
        (65, ["takes token ids", "floats.npy"], ("-i", "floats.npy", *SENTIMENT)),
        (2, ["--chain 'embedding, lstm, final, fc1, fc2'"], ("-i", batch / "x.npy", *weights)),
        (2, ["fc3 is no module"], ("-i", batch / "x.npy", *weights, "--chain", "embedding, lstm, final, fc3")),
        (65, ["takes 5 features, got 14"], ("-i", batch / "x.npy", *weights, "--chain", "embedding, lstm, final, fc2")),
        (2, ["--weights"], ("-i", batch / "x.npy")),
        (2, ["--top"], (*right, "--top", 2)),
        (2, ["--top 4", "3 classes"], (*right, "--top", 4, "-o", "p.csv")),
        (2, ["expected 3 names", "got 2"], (*right, "--labels", "names.txt", "-o", "p.csv")),
        (66, ["none.txt"], (*right, "--labels", "none.txt", "-o", "p.csv")),
        (2, [".csv, .tsv or .parquet"], (*right, "-o", "p.xlsx")),
    ]:
        before = files.snapshot(tmp_path)
        assert_one_line(lstmcli("predict", *args, cwd=tmp_path), code, *words)
        assert files.snapshot(tmp_path) == before
