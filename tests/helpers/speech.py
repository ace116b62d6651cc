"""The vowels' models, and what their frameworks computed (vowels/README.md)."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np

from helpers import files
from helpers.files import SAMPLE_DATA

FOLDER = Path(__file__).parents[1] / "data" / "vowels"
SAFETENSORS = SAMPLE_DATA / "vowels_bilstm.safetensors"
KERAS = FOLDER / "keras_stack.keras"
CHECKPOINT = FOLDER / "tf1_stack.ckpt.index"
CHECKPOINT_OPTIONS = ("--cell-clip", "10,none", "--projection-clip", 3)
# By file: whose it is, and what has to be said.
MODELS: dict[Path, tuple[str, tuple[object, ...]]] = {
    SAFETENSORS: ("torch_bilstm", ()),
    FOLDER / "torch_bilstm.pt": ("torch_bilstm", ()),
    FOLDER / "torch_bilstm.onnx": ("torch_bilstm", ()),
    KERAS: ("keras_stack", ()),
    CHECKPOINT: ("tf1_stack", CHECKPOINT_OPTIONS),
}
PATHS = {  # in expected.npz: in /state of a result
    "torch_bilstm": {
        f"{part}{k}": f"{k // 2}/{'forward' if k % 2 == 0 else 'backward'}/{part}" for k in range(4) for part in "ch"
    },
    "keras_stack": {"c": "1/c", "h": "1/h"},
    "tf1_stack": {f"{part}{k}": f"{k}/{part}" for k in range(2) for part in "ch"},
}
OUTPUTS = {"torch_bilstm": "outputs", "keras_stack": "outputs_keras_repeats_last", "tf1_stack": "outputs"}


def utterances() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (370, 29, 12), lengths, speakers."""
    with h5py.File(SAMPLE_DATA / "vowels.h5") as file:
        return file["embeddings"][:], file["lengths"][:], file["speaker"][:]


def expected(name: str) -> dict[str, np.ndarray]:
    """rows, logits, accuracy, outputs (zeros past each length), and the states by their paths."""
    with np.load(FOLDER / "expected.npz") as file:
        found = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(name) or key == "rows"}
    if name == "torch_bilstm":
        found |= {f"{part}{k}": value for part in "ch" for k, value in enumerate(found.pop(part))}
    outputs = found[OUTPUTS[name]]
    outputs[files.padding(outputs.shape, utterances()[1][found["rows"]])] = 0
    states = {path: found[key] for key, path in PATHS[name].items()}
    return {key: found[key] for key in ("rows", "logits", "accuracy")} | {"outputs": outputs} | states


def keras_weights(folder: Path) -> Path:
    """The .weights.h5 that is inside of the .keras file."""
    with zipfile.ZipFile(KERAS) as archive:
        (folder / "keras_stack.weights.h5").write_bytes(archive.read("model.weights.h5"))
    return folder / "keras_stack.weights.h5"


def safetensor(path: Path, name: str) -> np.ndarray:
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:begin])[name]
    start, end = entry["data_offsets"]
    return np.frombuffer(data[begin + start : begin + end], "<f4").reshape(entry["shape"])


def logits(name: str, state: dict[str, np.ndarray]) -> np.ndarray:
    """What the model's head makes of final states, (N, 9)."""
    if name == "torch_bilstm":
        h = np.concatenate([state["1/forward/h"], state["1/backward/h"]], axis=1)
        return h @ safetensor(SAFETENSORS, "head.weight").T + safetensor(SAFETENSORS, "head.bias")
    if name == "keras_stack":
        with zipfile.ZipFile(KERAS) as archive, h5py.File(BytesIO(archive.read("model.weights.h5"))) as file:
            return state["1/h"] @ file["layers/dense/vars/0"][:] + file["layers/dense/vars/1"][:]
    values = CHECKPOINT.with_suffix(".data-00000-of-00001").read_bytes()
    bias, kernel = np.frombuffer(values, "<f4", 9, 8), np.frombuffer(values, "<f4", 32 * 9, 116)  # as its index says
    return state["1/h"] @ kernel.reshape(32, 9) + bias
