"""sample_data/ is what its README says, and its script makes it again, byte for byte."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
from helpers import files
from helpers.files import SAMPLE_DATA

SCRIPT = Path(__file__).parents[1] / "data" / "make_sample_data.py"


def test_script_makes_the_same_bytes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lens.npy", "x.h5"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (SAMPLE_DATA / path.name).read_bytes(), path.name


def test_batch_of_the_original_example() -> None:
    lengths = np.load(SAMPLE_DATA / "lens.npy")
    assert lengths.tolist() == [4, 9, 10, 5, 10]
    with h5py.File(SAMPLE_DATA / "x.h5") as file:
        assert list(file) == ["x"]
        dataset = file["x"]
        assert (dataset.shape, dataset.dtype, dataset.chunks) == ((5, 10, 20), np.dtype("<f4"), None)
        x = dataset[:]
    valid = ~files.padding(x.shape, lengths)
    assert not x[~valid].any()
    assert 0 <= x.min() < 0.01 < 0.99 < x[valid].max() < 1


def test_vowels() -> None:
    with h5py.File(SAMPLE_DATA / "vowels.h5") as file:
        x, lengths, speaker = file["embeddings"][:], file["lengths"][:], file["speaker"][:]
        assert file["embeddings"].compression == "gzip"
    assert (x.shape, x.dtype) == ((370, 29, 12), np.float32)
    assert (lengths.min(), lengths.max()) == (7, 29)
    assert set(speaker) == set(range(9))
    valid = ~files.padding(x.shape, lengths)
    assert not x[~valid].any()
    assert x[valid].any(axis=1).all()
    with (SAMPLE_DATA / "vowels_speakers.csv").open(newline="") as table:
        assert list(csv.reader(table)) == [["id", "speaker"], *([str(k), str(one)] for k, one in enumerate(speaker))]


def test_readme_names_every_file_and_the_licence() -> None:
    readme = (SAMPLE_DATA / "README.md").read_text()
    for path in SAMPLE_DATA.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in readme
    assert "CC BY 4.0" in readme
    assert "Kudo" in readme
