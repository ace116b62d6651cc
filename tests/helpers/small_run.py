"""What the fixture `small_run` makes: inputs, the words of a run over them, and the bytes that every such run must give."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from helpers import files
from helpers.command import succeed

# Of 14 sequences, some of which are long, so that with little memory blocks of them are cut in time.
SOME_LONG = np.array([3, 0, 2, 1, 5, 60, 41, 0, 60, 2, 4, 1, 7, 0])


@dataclass(frozen=True)
class SmallRun:
    folder: Path  # of the inputs, and of nothing else
    units: int
    options: tuple[str, ...]  # what the run is told besides the names of files and the units
    result: bytes = b""  # of an undisturbed run, in HDF5

    def words(self, output: object = "out.h5", x: object = "x.npy", folder: Path | None = None) -> list[str]:
        """The words of the run. folder: where its inputs lie now; Path() for the folder in which it is started."""
        folder = self.folder if folder is None else folder
        stored = (self.folder / "model.h5").exists()
        model = ("-w", folder / "model.h5") if stored else ("-u", self.units)
        inputs = ("-i", folder / str(x), "-l", folder / "lens.npy", *model)
        return [str(word) for word in ("run", *inputs, *self.options, "-o", output)]

    def copy_to(self, folder: Path) -> None:
        """Copies the inputs, with the times of their last changes."""
        for path in self.folder.iterdir():
            shutil.copy2(path, folder)


def make_small_run(
    folder: Path,
    sequences: int,
    steps: int,
    units: int,
    *,
    features: int = 16,
    seed: int = 0,
    lengths: np.ndarray | None = None,
    formats: Collection[str] = (),
    x_name: str = "x.npy",
    options: str = "--threads 2 --max-memory 300KB -q",
) -> SmallRun:
    """Writes x.npy, perhaps under another name, and lens.npy, and makes the run once.

    formats: more files of the same numbers, of x.h5, chunked.h5, mask.npy and lens.txt; many: ragged ones. With model.h5
    the run takes its weights, else new ones. Without `lengths` they are random, from 0 to `steps`.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sequences, steps, features)).astype(np.float32)
    lengths = rng.integers(0, steps + 1, sequences) if lengths is None else lengths
    files.write_npy(folder / x_name, x)
    files.write_npy(folder / "lens.npy", lengths)
    if "x.h5" in formats:
        files.write_h5(folder / "x.h5", x=x)
    if "chunked.h5" in formats:
        with h5py.File(folder / "chunked.h5", "w") as file:
            file.create_dataset("x", data=x, chunks=(4, 16, features), compression="gzip", fletcher32=True)
    if "mask.npy" in formats:
        files.write_npy(folder / "mask.npy", ~files.padding(x.shape, lengths))
    if "many" in formats:
        write_sequences(folder, [row[:length] for row, length in zip(x, lengths, strict=True)])
    if "lens.txt" in formats:
        (folder / "lens.txt").write_text("\n".join(map(str, lengths)) + "\n")
    if "model.h5" in formats:
        files.write_model(folder / "model.h5", files.random_model(features, [units]))
    run = SmallRun(folder, units, tuple(options.split()))
    succeed(*run.words("result.h5", x_name), cwd=folder)
    result = (folder / "result.h5").read_bytes()
    (folder / "result.h5").unlink()
    return replace(run, result=result)


def write_sequences(folder: Path, sequences: list[np.ndarray]) -> None:
    """Writes an array for each sequence: many.npz, many.h5, many.ark and its many.scp, and many.safetensors."""
    named = {f"s{k:02}": rows.astype("<f4") for k, rows in enumerate(sequences)}
    np.savez_compressed(folder / "many.npz", **named)
    ark, places, header, at = b"", "", {}, 0
    with h5py.File(folder / "many.h5", "w") as file:
        for name, rows in named.items():
            file[name] = rows
            places += f"{name} many.ark:{len(ark) + len(name) + 1}\n"
            ark += name.encode() + b" \0BFM " + struct.pack("<bibi", 4, len(rows), 4, rows.shape[1]) + rows.tobytes()
            header[name] = {"dtype": "F32", "shape": rows.shape, "data_offsets": [at, at + rows.nbytes]}
            at += rows.nbytes
    (folder / "many.ark").write_bytes(ark)
    (folder / "many.scp").write_text(places)
    text = json.dumps(header).encode()
    values = b"".join(rows.tobytes() for rows in named.values())
    (folder / "many.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + values)
