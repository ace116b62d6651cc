"""Writes models and reads results with plain h5py and numpy, from the description of the file formats alone.

Nothing here comes from lstmcli, so that a change of its formats shows.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from helpers import naive

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
Arrays = dict[str, np.ndarray]
DATASETS = ("input_kernel", "recurrent_kernel", "bias", "peephole", "projection", "initial_c", "initial_h")
CLIPS = ("cell_clip", "projection_clip", "gate_clip")


def write_model(path: Path, model: naive.Node, dtype: str = "float32") -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "lstmcli-model"
        file.attrs["format_version"] = 1
        write_node(file.create_group("model"), model, dtype)
    return path


def write_node(group: h5py.Group, node: naive.Node, dtype: str) -> None:
    group.attrs["kind"] = type(node).__name__.lower()
    match node:
        case naive.Cell():
            write_cell(group, node, dtype)
        case naive.Stack():
            for k, layer in enumerate(node.layers):
                write_node(group.create_group(str(k)), layer, dtype)
        case naive.Bidirectional():
            group.attrs["merge"] = node.merge
            write_node(group.create_group("forward"), node.forward, dtype)
            write_node(group.create_group("backward"), node.backward, dtype)
        case naive.Reverse() | naive.Residual():
            write_node(group.create_group("inner"), node.inner, dtype)


def write_cell(group: h5py.Group, cell: naive.Cell, dtype: str) -> None:
    for name in DATASETS:
        if (value := getattr(cell, name)) is not None:
            group[name] = np.asarray(value, dtype)
    for name in CLIPS:
        if (value := getattr(cell, name)) is not None:
            group.attrs[name] = value
    if cell.input_forget:
        group.attrs["input_forget"] = True
    group.attrs["units"] = cell.units
    group.attrs["activation"] = cell.activation
    group.attrs["recurrent_activation"] = cell.recurrent_activation
    group.attrs["forget_bias"] = cell.forget_bias
    group.attrs["gate_order"] = "i,f,g,o"


def read_model(path: Path) -> naive.Node:
    """A model file as the naive reference runs it."""
    with h5py.File(path) as file:
        assert (file.attrs["format"], file.attrs["format_version"]) == ("lstmcli-model", 1)
        return read_node(file["model"])


def read_node(group: h5py.Group) -> naive.Node:
    children = {name: read_node(child) for name, child in group.items() if isinstance(child, h5py.Group)}
    match group.attrs["kind"]:
        case "stack":
            return naive.Stack(tuple(children[str(k)] for k in range(len(children))))
        case "bidirectional":
            return naive.Bidirectional(children["forward"], children["backward"], group.attrs["merge"])
        case "reverse" | "residual" as kind:
            return (naive.Reverse if kind == "reverse" else naive.Residual)(children["inner"])
    names = ("activation", "recurrent_activation", "forget_bias", "input_forget", *CLIPS)
    options = {name: group.attrs[name] for name in names if name in group.attrs}
    return naive.Cell(**{name: value[:] for name, value in group.items()}, **options)


def random_model(features: int, units: list[int], seed: int = 0) -> naive.Stack:
    """A stack of plain cells; every weight and bias differs, so that no gate can stand in for another."""
    rng = np.random.default_rng(seed)
    layers: list[naive.Node] = []
    for width in units:
        scale = 1.5 / np.sqrt(features + width)
        layers.append(
            naive.Cell(
                input_kernel=rng.normal(0, scale, (features, 4 * width)).astype(np.float32),
                recurrent_kernel=rng.normal(0, scale, (width, 4 * width)).astype(np.float32),
                bias=rng.normal(0, 0.3, 4 * width).astype(np.float32),
                forget_bias=1.0,
            )
        )
        features = width
    return naive.Stack(tuple(layers))


def write_h5(path: Path, /, **datasets: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
    return path


def read_arrays(path: Path, but: str) -> Arrays:
    """All datasets of a file without groups, but one."""
    with h5py.File(path) as file:
        return {name: item[:] for name, item in file.items() if name != but}


STEPS = ("outputs", "cells", "layers/0", "layers/1")


def read_all(path: Path) -> Arrays:
    """All arrays of a result but its model; datasets of single sequences are put together, as the flat layout has them."""
    found: Arrays = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("model/"):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(visit)
        ids = file["ids"].asstr()[:].tolist() if "ids" in file else []
    for array in STEPS:
        each = [found.pop(f"{array}/{name}") for name in ids if f"{array}/{name}" in found]
        if each:
            found[array] = np.concatenate(each)
            assert found["lengths"].tolist() == [len(one) for one in each]
    return found


def write_npy(path: Path, value: object) -> Path:
    np.save(path, np.asarray(value))
    return path


def read_result(path: Path) -> tuple[np.ndarray | None, Arrays]:
    """Outputs (None where none are stored) and the final states by path, such as 0/c, of an HDF5 result."""
    with h5py.File(path) as file:
        outputs = file["outputs"][:] if "outputs" in file else None
        state: Arrays = {}
        if "state" in file:
            file["state"].visititems(lambda name, node: state.update({name: node[:]} if isinstance(node, h5py.Dataset) else {}))
    return outputs, state


def read_npz(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def bits(value: np.ndarray) -> tuple[tuple[int, ...], str, bytes]:
    """What has to be equal for the same bits: shape, dtype and every byte (NaN equals NaN, and -0 is not +0)."""
    return value.shape, value.dtype.str, value.tobytes()


def assert_same_bits(got: tuple[np.ndarray | None, Arrays], want: tuple[np.ndarray | None, Arrays]) -> None:
    assert got[0] is not None
    assert want[0] is not None
    assert bits(got[0]) == bits(want[0]), "outputs"
    assert got[1].keys() == want[1].keys()
    for path, value in want[1].items():
        assert bits(got[1][path]) == bits(value), path


def rows_of(result: tuple[np.ndarray | None, Arrays], rows: object) -> tuple[np.ndarray, Arrays]:
    """The same result of some of its sequences: an index, a slice or a mask along the first axis."""
    outputs, state = result
    assert outputs is not None
    return outputs[rows], {path: value[rows] for path, value in state.items()}


def padding(shape: tuple[int, ...], lengths: np.ndarray) -> np.ndarray:
    """(N, T) bool: the steps past each sequence's length."""
    return np.arange(shape[1]) >= np.asarray(lengths)[:, None]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes: equal snapshots mean that nothing came, went or changed."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
