"""Writes weights as the frameworks do, from the descriptions of their file formats; nothing here comes from lstmcli.

The layouts are the inverse of what an import has to do: from naive cells (gates i, f, g, o) to each framework's own tensors.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

from helpers import naive

Arrays = dict[str, np.ndarray]


def random_cell(
    features: int, units: int, seed: int, *, projection: int | None = None, bias: bool = True, peephole: bool = False
) -> naive.Cell:
    """Every number differs, so that nothing can stand in for another."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    return naive.Cell(
        draw(features, 4 * units),
        draw(projection or units, 4 * units),
        draw(4 * units) if bias else None,
        draw(3, units) if peephole else None,
        draw(units, projection) if projection else None,
    )


def gates(weight: np.ndarray, order: str) -> np.ndarray:
    """Blocks i, f, g, o along the last axis, in another order."""
    blocks = dict(zip("ifgo", np.split(weight, 4, axis=-1), strict=True))
    return np.concatenate([blocks[gate] for gate in order], axis=-1)


# PyTorch.


def torch_parameters(cell: naive.Cell, suffix: str) -> Arrays:
    found = {f"weight_ih{suffix}": cell.input_kernel.T, f"weight_hh{suffix}": cell.recurrent_kernel.T}
    if cell.bias is not None:  # two that do not round when they are summed
        half = np.float32(np.float16(cell.bias))
        found |= {f"bias_ih{suffix}": half, f"bias_hh{suffix}": cell.bias - half}
    if cell.projection is not None:
        found[f"weight_hr{suffix}"] = cell.projection.T
    return found


def torch_state_dict(model: naive.Stack, prefix: str = "") -> Arrays:
    found: Arrays = {}
    for k, layer in enumerate(model.layers):
        pair = (layer.forward, layer.backward) if isinstance(layer, naive.Bidirectional) else (layer,)
        for cell, end in zip(pair, ("", "_reverse"), strict=False):
            assert isinstance(cell, naive.Cell)
            found |= torch_parameters(cell, f"_l{k}{end}")
    return {prefix + name: value for name, value in found.items()}


SAFE = {np.dtype("f2"): "F16", np.dtype("f4"): "F32", np.dtype("f8"): "F64", np.dtype("i8"): "I64"}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], **names: str) -> Path:
    """names: dtypes that NumPy does not have, by tensor."""
    header, data = {}, b""
    for name, value in tensors.items():
        value = np.array(value, order="C")  # ascontiguousarray() makes (1,) of ()
        dtype = names.get(name, SAFE.get(value.dtype))
        header[name] = {"dtype": dtype, "shape": value.shape, "data_offsets": [len(data), len(data) + value.nbytes]}
        data += value.tobytes()
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def p_text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def p_int(number: int) -> bytes:
    return b"J" + struct.pack("<i", number) if abs(number) < 1 << 31 else b"\x8a\x08" + struct.pack("<q", number)


def p_tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def p_dict(pairs: Iterable[tuple[str, bytes]]) -> bytes:
    return b"}(" + b"".join(p_text(key) + value for key, value in pairs) + b"u"


def p_tensor(
    key: str, count: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, kind: str = "Float"
) -> bytes:
    storage = p_tuple(p_text("storage"), f"ctorch\n{kind}Storage\n".encode(), p_text(key), p_text("cpu"), p_int(count)) + b"Q"
    sizes = p_tuple(*map(p_int, shape)), p_tuple(*map(p_int, strides))
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + p_tuple(storage, p_int(offset), *sizes, b"\x89", hooks) + b"R"


def p_array(key: str, value: np.ndarray) -> bytes:
    kind = {"f2": "Half", "f4": "Float", "f8": "Double", "i8": "Long"}[value.dtype.str[1:]]
    return p_tensor(key, value.size, value.shape, tuple(s // value.itemsize for s in value.strides), kind=kind)


def write_pt(path: Path, pickle: bytes, storages: Mapping[str, bytes], **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickle + b".")
        for name, data in {"version": b"3\n", **members}.items():
            archive.writestr(f"archive/{name}", data)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def write_state_dict(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """As torch.save(model.state_dict()) does; strides are the arrays' own."""
    pairs = [(name, p_array(str(k), value)) for k, (name, value) in enumerate(tensors.items())]
    data = {
        str(k): value.T.tobytes() if value.ndim == 2 and value.flags.f_contiguous else value.tobytes()
        for k, value in enumerate(tensors.values())
    }
    return write_pt(path, p_dict(pairs), data)


LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"


def write_legacy(path: Path, pickle: bytes, storages: Mapping[str, np.ndarray], version: int = 1001) -> Path:
    """As torch.save did before 1.6: pickles one after another, then for each storage its count and its values."""
    system = b"}(" + p_text("little_endian") + b"\x88" + p_text("type_sizes") + b"}u"
    keys = b"](" + b"".join(p_text(key) for key in storages) + b"e"
    pickles = [LEGACY_MAGIC, p_int(version), system, pickle, keys]
    data = b"".join(b"\x80\x02" + each + b"." for each in pickles)
    data += b"".join(struct.pack("<q", value.size) + value.tobytes() for value in storages.values())
    path.write_bytes(data)
    return path


def p_view(key: str, whole: int, start: int, value: np.ndarray) -> bytes:
    """A tensor in a part of a storage, as in files of before 1.6."""
    view = p_tuple(p_text(f"{key}-{start}"), p_int(start), p_int(value.size))
    identity = p_tuple(p_text("storage"), b"ctorch\nFloatStorage\n", p_text(key), p_text("cpu"), p_int(whole), view)
    sizes = p_tuple(*map(p_int, value.shape)), p_tuple(*(p_int(step // value.itemsize) for step in value.strides))
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + p_tuple(identity + b"Q", p_int(0), *sizes, b"\x89", hooks) + b"R"


def p_object(kind: str, state: bytes) -> bytes:
    """An object of the class module.Name, made with no arguments and given its state."""
    module, _, name = kind.rpartition(".")
    return f"c{module}\n{name}\n)".encode() + b"\x81" + state + b"b"


def p_module(kind: str, parameters: Mapping[str, bytes] = {}, modules: Mapping[str, bytes] = {}, **state: bytes) -> bytes:
    """A module of PyTorch, as torch.save(module) has it."""
    parts = {"_parameters": parameters, "_buffers": {}, "_modules": modules}
    pairs = [*((name, p_dict(part.items())) for name, part in parts.items()), *state.items()]
    return p_object(kind, p_dict(pairs))


def write_export(path: Path, tensors: Mapping[str, np.ndarray], **changes: object) -> Path:
    """A .pt2 archive of torch.export. changes: of what it says of each tensor."""
    config = {
        name: {
            "path_name": f"weight_{k}", "is_param": True, "use_pickle": False,
            "tensor_meta": {
                "dtype": 7, "sizes": [{"as_int": size} for size in value.shape],
                "strides": [{"as_int": step // 4} for step in value.strides], "storage_offset": {"as_int": 0}, "layout": 7,
            } | changes,
        }
        for k, (name, value) in enumerate(tensors.items())
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        for k, value in enumerate(tensors.values()):
            archive.writestr(f"m/data/weights/weight_{k}", value.tobytes())
        archive.writestr("m/data/weights/model_weights_config.json", json.dumps({"config": config}))
        archive.writestr("m/archive_format", b"pt2")
        archive.writestr("m/byteorder", b"little")
    return path


# TensorFlow 1.


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for octet in data:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> bytes:
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def v(number: int) -> bytes:
    """A varint; negative numbers as 64 bits."""
    number &= (1 << 64) - 1
    data = b""
    while number >= 0x80:
        data += bytes([number & 0x7F | 0x80])
        number >>= 7
    return data + bytes([number])


def field(number: int, value: int | bytes | str) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return v(number << 3) + v(value)
    value = value.encode() if isinstance(value, str) else value
    return v(number << 3 | 2) + v(len(value)) + value


def block(pairs: Iterable[tuple[bytes, bytes]], compression: int = 0) -> bytes:
    data, before = b"", b""
    for key, value in pairs:
        shared = next((k for k in range(min(len(key), len(before))) if key[k] != before[k]), min(len(key), len(before)))
        data += v(shared) + v(len(key) - shared) + v(len(value)) + key[shared:] + value
        before = key
    data += struct.pack("<II", 0, 1) + bytes([compression])
    return data + masked(crc32c(data))


def table(blocks: list[bytes]) -> bytes:
    file, index = b"", []
    for k, data in enumerate(blocks):
        index.append((bytes([k]) + b"\xff", v(len(file)) + v(len(data) - 5)))
        file += data
    handles = b""
    for data in (block([]), block(index)):
        handles += v(len(file)) + v(len(data) - 5)
        file += data
    return file + handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


TF_TYPES = {"f4": 1, "f8": 2, "f2": 19, "i8": 9}


def write_checkpoint(
    prefix: Path,
    variables: Mapping[str, np.ndarray],
    *,
    header: bytes = field(1, 1),
    compression: int = 0,
    extra: Mapping[str, bytes] = {},
) -> Path:
    """X.index of two blocks, and one data file. extra: more entries, by name."""
    data, entries = b"", {b"": header}
    for name, value in variables.items():
        shape = b"".join(field(2, field(1, size)) for size in value.shape)
        stored = np.ascontiguousarray(value).tobytes()
        entry = field(1, TF_TYPES[value.dtype.str[1:]]) + field(2, shape) + field(4, len(data)) + field(5, len(stored))
        entries[name.encode()] = entry + v(6 << 3 | 5) + masked(crc32c(stored))
        data += stored
    entries |= {name.encode(): value for name, value in extra.items()}
    pairs = sorted(entries.items())
    half = len(pairs) // 2
    index = prefix.with_name(prefix.name + ".index")
    index.write_bytes(table([block(pairs[:half], compression), block(pairs[half:], compression)]))
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)
    return index


def tensorflow_variables(cell: naive.Cell, scope: str, kernel: str = "kernel", bias: str = "bias") -> Arrays:
    assert cell.bias is not None
    found = {
        f"{scope}/{kernel}": gates(np.concatenate([cell.input_kernel, cell.recurrent_kernel]), "igfo"),
        f"{scope}/{bias}": gates(cell.bias, "igfo"),
    }
    if cell.peephole is not None:
        found |= {f"{scope}/w_{gate}_diag": row for gate, row in zip("ifo", cell.peephole, strict=True)}
    if cell.projection is not None:
        found[f"{scope}/projection/kernel"] = cell.projection
    return found


GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def object_graph(
    keys: Mapping[str, str], programs: Mapping[str, str], links: Mapping[str, str], empty: Iterable[str] = ()
) -> bytes:
    """TensorFlow 2's graph of objects. keys, programs: of variables, by their places, what their names in the checkpoint and in
    the program are. links: other places of objects. empty: places of objects without variables."""
    numbers: dict[str, int] = {"": 0}
    children: list[dict[str, int]] = [{}]
    for place in [*keys, *empty]:
        parts = place.split("/")
        for k, name in enumerate(parts):
            at, above = "/".join(parts[: k + 1]), "/".join(parts[:k])
            if at not in numbers:
                numbers[at] = len(children)
                children.append({})
            children[numbers[above]][name] = numbers[at]
    for link, target in links.items():
        above, _, name = link.rpartition("/")
        children[numbers[above]][name] = numbers[target]
    nodes = [b"".join(field(1, field(1, child) + field(2, name)) for name, child in of.items()) for of in children]
    for place, key in keys.items():
        nodes[numbers[place]] += field(2, field(1, "VARIABLE_VALUE") + field(2, programs.get(place, "")) + field(3, key))
    return b"".join(field(1, node) for node in nodes)


def write_objects(
    prefix: Path,
    variables: Mapping[str, np.ndarray],
    programs: Mapping[str, str] = {},
    links: Mapping[str, str] = {},
    empty: Iterable[str] = (),
    *,
    listed: bool = False,
) -> Path:
    """A checkpoint of TensorFlow 2 (see object_graph). listed: with the keys of a SavedModel, variables/0 and so on."""
    ends = {place: f"variables/{k}" if listed else place for k, place in enumerate(variables)}
    keys = {place: f"{end}/.ATTRIBUTES/VARIABLE_VALUE" for place, end in ends.items()}
    stored = {keys[place]: value for place, value in variables.items()}
    graph = object_graph(keys, programs, links, empty)
    length = struct.pack("<I", len(graph))
    after = masked(crc32c(length)) + graph
    text = v(len(graph)) + after
    begin = sum(value.nbytes for value in stored.values())
    entry = field(1, 7) + field(2, b"") + field(4, begin) + field(5, len(text)) + v(6 << 3 | 5) + masked(crc32c(length + after))
    index = write_checkpoint(prefix, stored, extra={GRAPH: entry})
    data = prefix.with_name(prefix.name + ".data-00000-of-00001")
    data.write_bytes(data.read_bytes() + text)
    return index


# ONNX.


def onnx_tensor(name: str, value: np.ndarray) -> bytes:
    kind = {"f4": 1, "f2": 10, "f8": 11, "i8": 7}[value.dtype.str[1:]]
    return b"".join(field(1, size) for size in value.shape) + field(2, kind) + field(8, name) + field(9, value.tobytes())


def onnx_attribute(name: str, value: object) -> bytes:
    match value:
        case int():
            return field(1, name) + field(3, value) + field(20, 2)
        case float():
            return field(1, name) + v(2 << 3 | 5) + struct.pack("<f", value) + field(20, 1)
        case str():
            return field(1, name) + field(4, value) + field(20, 3)
        case [str(), *_]:
            return field(1, name) + b"".join(field(9, text) for text in value) + field(20, 8)
        case [float(), *_]:
            return field(1, name) + b"".join(v(7 << 3 | 5) + struct.pack("<f", number) for number in value) + field(20, 6)
        case [int(), *_]:
            return field(1, name) + b"".join(field(8, number) for number in value) + field(20, 7)
    raise TypeError(name)


def onnx_node(operator: str, inputs: Iterable[str], outputs: Iterable[str], name: str = "", **attributes: object) -> bytes:
    parts = [*(field(1, i) for i in inputs), *(field(2, o) for o in outputs), field(3, name), field(4, operator)]
    return b"".join(parts) + b"".join(field(5, onnx_attribute(key, value)) for key, value in attributes.items())


def onnx_weights(cells: Iterable[naive.Cell]) -> Arrays:
    """W, R, and where the cells have them B, P."""
    cells = list(cells)
    found = {
        "W": np.stack([gates(cell.input_kernel, "iofg").T for cell in cells]),
        "R": np.stack([gates(cell.recurrent_kernel, "iofg").T for cell in cells]),
    }
    if cells[0].bias is not None:
        halves = [(np.float32(np.float16(cell.bias)), cell.bias) for cell in cells if cell.bias is not None]
        found["B"] = np.stack([np.concatenate([gates(half, "iofg"), gates(bias - half, "iofg")]) for half, bias in halves])
    if cells[0].peephole is not None:
        found["P"] = np.stack([cell.peephole[[0, 2, 1]].reshape(-1) for cell in cells if cell.peephole is not None])
    return found


def write_onnx(
    path: Path,
    nodes: Iterable[bytes],
    initializers: Iterable[bytes],
    inputs: Mapping[str, tuple[int | str, ...]] = {},
    outputs: Iterable[str] = (),
) -> Path:
    def value(name: str, shape: tuple[int | str, ...]) -> bytes:
        sizes = b"".join(field(1, field(1, size) if isinstance(size, int) else field(2, size)) for size in shape)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, sizes)))

    graph = (
        b"".join(field(1, node) for node in nodes) + field(2, "graph") + b"".join(field(5, tensor) for tensor in initializers)
    )
    graph += b"".join(field(11, value(name, shape)) for name, shape in inputs.items())
    graph += b"".join(field(12, field(1, name) + field(2, field(1, field(1, 1)))) for name in outputs)
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17)))
    return path


# Keras.


def keras_lstm(name: str, units: int, **config: object) -> dict[str, object]:
    plain = {
        "units": units,
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "use_bias": True,
        "return_sequences": True,
    }
    return {"class_name": "LSTM", "config": {"name": name, **plain, "go_backwards": False, **config}}


def keras_bidirectional(name: str, units: int, merge_mode: object = "concat", **config: object) -> dict[str, object]:
    inner = keras_lstm(f"forward_{name}", units, **config)
    return {"class_name": "Bidirectional", "config": {"name": name, "layer": inner, "merge_mode": merge_mode}}


def sequential(*layers: dict[str, object]) -> dict[str, object]:
    return {"class_name": "Sequential", "config": {"name": "sequential", "layers": list(layers)}}


def keras_arrays(cell: naive.Cell) -> list[np.ndarray]:
    return [weight for weight in (cell.input_kernel, cell.recurrent_kernel, cell.bias) if weight is not None]


def write_keras_h5(file: h5py.File, cells: Mapping[str, naive.Cell], names: Mapping[str, str] = {}) -> None:
    """Keras 3: cells by their groups, such as layers/lstm; names: the layers' own names, by group."""
    for group, cell in cells.items():
        for k, value in enumerate(keras_arrays(cell)):
            file[f"{group}/cell/vars/{k}"] = value
    for group, name in names.items():
        file.require_group(f"{group}/vars").attrs["name"] = name


def write_keras(path: Path, config: object, weights: bytes, version: str = "3.15.1") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    return path


def write_legacy_h5(
    path: Path, layers: Mapping[str, Mapping[str, np.ndarray]], config: object = None, version: str | None = "2.9.0"
) -> Path:
    """Keras 2: for each layer its weights by name. Without a configuration a file of weights alone."""
    with h5py.File(path, "w") as file:
        group = file if config is None else file.create_group("model_weights")
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
        group.attrs["layer_names"] = [name.encode() for name in layers]
        for name, weights in layers.items():
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, value in weights.items():
                layer[weight] = value
        if version is not None:
            file.attrs["keras_version"] = version
    return path


def keras1_weights(name: str, cell: naive.Cell, apart: bool = True) -> Arrays:
    """Of Keras 1, whose gates i, c, f, o are apart, or side by side in the order i, f, c, o."""
    arrays = dict(zip("WUb", keras_arrays(cell), strict=True))
    if not apart:
        return {f"{name}_{part}": value for part, value in arrays.items()}
    parts = {part: dict(zip("ifco", np.split(value, 4, axis=-1), strict=True)) for part, value in arrays.items()}
    return {f"{name}_{part}_{gate}": parts[part][gate] for gate in "icfo" for part in "WUb"}


def legacy_weights(scope: str, cell: naive.Cell) -> Arrays:
    names = ("kernel:0", "recurrent_kernel:0", "bias:0")
    return {f"{scope}/{name}": value for name, value in zip(names, keras_arrays(cell), strict=False)}
