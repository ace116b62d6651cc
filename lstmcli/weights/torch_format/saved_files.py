"""The tensors of PyTorch's files: torch.save() in its ZIP archive or, before 1.6, in one stream; TorchScript; torch.export.

Their pickles are followed by pickle_machine.py, which runs nothing of them.
"""

import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown
from lstmcli.weights.containers.tensor import DTYPES, Tensor, decode
from lstmcli.weights.containers.zip_archive import Archive
from lstmcli.weights.torch_format.pickle_machine import (
    ADVICE,
    LARGEST,
    MAX_AXES,
    Machine,
    Storage,
    Strided,
    Thing,
    is_legacy,
    read_legacy,
)

MAX_DEPTH = 100
MAX_NAME = 300  # characters; a name may be put together of the same long text again and again
EXPORTED = "data/weights/model_weights_config.json"
EXPORTS = ("archive_format", "serialized_exported_program.json", "model_weights_config.json")  # of any version of torch.export
EXPORTED_DTYPES = {6: "F16", 7: "F32", 8: "F64", 13: "BF16"}  # torch/_export/serde/schema.py
OWN = ("torch", "torch._utils", "torch._tensor", "torch.storage", "torch.serialization", "torch.jit._pickle", "collections")
TORCHSCRIPT = "save the weights of the module before torch.jit.freeze: torch.save(module.state_dict(), ...)"
QUANTIZED = ("quantized", "ScriptObject", "torch.classes.rnn", "_rebuild_qtensor")

Fetch = Callable[[Storage], tuple[memoryview | bytes, int]]  # the bytes of a whole storage, and how many values it has


@dataclass(frozen=True)
class Contents:
    """What a file of PyTorch holds.

    kind: of file, as a message calls it. classes: of modules, by the modules' names, where the file says them. named: classes
    and functions in its pickle that are not PyTorch's own; none was run. quantized: whether some weights are packed integers.
    """

    kind: str
    tensors: list[Tensor]
    classes: dict[str, str]
    named: list[str]
    quantized: bool = False


def is_torch(archive: Archive) -> bool:
    """Whether an archive is one of PyTorch's."""
    held = {name.rpartition("/")[2] for name in archive.members}
    return any(map(is_pickle, archive.members)) or not held.isdisjoint({"model.json", *EXPORTS})


def read_archive(archive: Archive) -> Contents:
    """All tensors below the dicts, lists, objects and modules of a file, by what leads to them, with dots. DataError."""
    if folders := export_folders(archive):
        return read_export(archive, folders[0])
    root, machine, folder = read_tree(archive)

    @lru_cache(maxsize=1)  # all weights of an LSTM that was on a GPU are views of one storage
    def fetch(storage: Storage) -> tuple[bytes, int]:
        data = archive.read(f"{folder}data/{storage.key}")
        return data, len(data) // machine.item_bytes[storage.key]

    found = contents(root, archive.where, machine, fetch)
    if f"{folder}constants.pkl" not in archive.members:
        return found
    if not found.tensors and not found.quantized:
        raise DataError(f"{archive.where}: a TorchScript archive without named weights: frozen, or it has none; {TORCHSCRIPT}")
    return replace(found, kind="PyTorch (TorchScript)")


def read_tree(archive: Archive) -> tuple[Any, Machine, str]:
    """What torch.save() was given, with a Strided for each tensor; the machine that made it; the folder in the archive.

    The values of a storage are the member FOLDERdata/KEY. DataError.
    """
    pickles = [name for name in archive.members if is_pickle(name)]
    if not pickles and any(name.endswith(EXPORTS) for name in archive.members):
        raise DataError(f"{archive.where}: a .pt2 archive without plain weights; save torch.export.load(...).state_dict()")
    if not pickles:
        raise DataError(f"{archive.where}: a TorchScript archive of PyTorch before 1.4; {TORCHSCRIPT}")
    folder = pickles[0].removesuffix("data.pkl")
    check_order(archive, folder)
    machine = Machine(f"{archive.where}, {shown(pickles[0])}")
    return machine.run(io.BytesIO(archive.describe(pickles[0]))), machine, folder


def read_stream(data: bytes, where: str) -> Contents:
    """Likewise of a file that begins with a pickle: of PyTorch before 1.6, or one of pickle.dump. DataError."""
    machine = Machine(where)
    if not is_legacy(data):
        return contents(machine.run(io.BytesIO(data)), where, machine, lambda storage: missing(where, storage))
    root, places = read_legacy(data, machine)
    view = memoryview(data)

    def fetch(storage: Storage) -> tuple[memoryview, int]:
        if storage.key not in places:
            missing(where, storage)
        begin, count = places[storage.key]
        return view[begin : begin + count * machine.item_bytes[storage.key]], count

    return contents(root, where, machine, fetch)


def missing(where: str, storage: Storage) -> Any:
    raise DataError(f"{where}: storage {shown(storage.key)}: missing; was the file cut?")


def contents(root: Any, where: str, machine: Machine, fetch: Fetch) -> Contents:
    classes: dict[str, str] = {}
    tensors = [
        Tensor(name, strided.shape, strided.dtype, partial(values, where, fetch, name, strided))
        for name, strided in leaves(root, classes)
    ]
    named = [text for text, name in machine.named.items() if name.module not in OWN]
    quantized = any(sign in text for text in machine.named for sign in QUANTIZED)
    return Contents("PyTorch (.pt)", tensors, classes, named, quantized)


def is_pickle(member: str) -> bool:
    return member == "data.pkl" or (member.endswith("/data.pkl") and member.count("/") == 1)


def check_order(archive: Archive, folder: str) -> None:
    order = archive.describe(f"{folder}byteorder") if f"{folder}byteorder" in archive.members else b"little"
    if order != b"little":
        raise DataError(f"{archive.where}: expected little-endian values, got byteorder {shown(str(order))[:20]}; {ADVICE}")


def leaves(root: Any, classes: dict[str, str]) -> Iterator[tuple[str, Strided]]:
    """The tensors of a tree, each container once, to a depth that no state_dict has; objects' classes go into `classes`."""
    seen, waiting = set(), [("", root, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, Strided):
            yield name, value
        if not isinstance(value, dict | list | tuple | Thing) or id(value) in seen or depth > MAX_DEPTH or len(name) > MAX_NAME:
            continue
        seen.add(id(value))
        if isinstance(value, Thing) and isinstance(value.state, dict):
            classes[name] = str(value.kind)
        below = [(f"{name}.{key}".strip("."), part, depth + 1) for key, part in inside(value)]
        waiting.extend(reversed(below))


def inside(value: Any) -> list[tuple[str, Any]]:
    """What is right below a container, by its key; "" for containers without a level of their own.

    Of a module that is what its state_dict() has. A TorchScript module's _flat_weights are its parameters once more.
    """
    if isinstance(value, dict):
        # Python refuses to write very long numbers as text.
        plain = [
            (key, part) for key, part in value.items() if isinstance(key, str) or (type(key) is int and abs(key) < LARGEST)
        ]
        return [(str(key), part) for key, part in plain if key != "_flat_weights"]
    if isinstance(value, list | tuple):
        return [(str(k), part) for k, part in enumerate(value)]
    state = value.state
    registered = ("_parameters", "_buffers", "_modules")
    if isinstance(state, dict) and all(isinstance(state.get(name), dict) for name in registered):
        return [("", state[name]) for name in registered]
    given = value.arguments if isinstance(value.arguments, tuple) else ()
    states = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # two: of a class with __slots__
    return [("", part) for part in (*given, *states, value.items) if isinstance(part, dict)] + inside(value.elements)


def values(where: str, fetch: Fetch, name: str, tensor: Strided) -> Floats:
    storage = tensor.storage
    where = f"{where}: tensor {shown(name)}"
    size = DTYPES[tensor.dtype].itemsize
    data, count = (storage.data, len(storage.data) // size) if storage.data is not None else fetch(storage)
    if len(data) != count * size or storage.whole != count:
        raise DataError(f"{where}: expected a storage of {storage.whole} {storage.dtype}, got {len(data)} bytes")
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if last >= storage.count or math.prod(tensor.shape) > storage.count:
        raise DataError(f"{where}: {tensor.shape} with strides {tensor.strides} is larger than its storage of {storage.count}")
    flat = decode(data, tensor.dtype)
    steps = tuple(stride * flat.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(flat[storage.start + tensor.offset :], tensor.shape, steps, writeable=False)


# torch.export: a JSON file with the shapes, and a member of raw values for each tensor.


def export_folders(archive: Archive) -> list[str]:
    return [name.removesuffix(EXPORTED) for name in archive.members if name.endswith(EXPORTED)]


def read_export(archive: Archive, folder: str) -> Contents:
    """The weights of a .pt2 archive, by their names. DataError."""
    where = f"{archive.where}, {shown(folder + EXPORTED)}"
    check_order(archive, folder)
    try:
        config = json.loads(archive.describe(folder + EXPORTED))["config"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: damaged .pt2 of torch.export: {shown(str(error))[:200]}") from error
    tensors = []
    for name, entry in config:
        match entry:
            case {
                "path_name": str(path),
                "use_pickle": False,
                "tensor_meta": {"dtype": int(dtype), "sizes": list(sizes), "strides": list(strides), "storage_offset": offset},
            } if len(sizes) == len(strides) <= MAX_AXES and all(map(is_size, (*sizes, *strides, offset))):
                shape, steps = (tuple(n["as_int"] for n in numbers) for numbers in (sizes, strides))
            case _:
                raise DataError(
                    f"{where}: tensor {shown(name)} is described as {shown(str(entry))[:100]}; expected a .pt2 of torch.export"
                )
        kind = EXPORTED_DTYPES.get(dtype, f"type {dtype}")
        key = f"{folder}data/weights/{path}"
        held = archive.members[key].file_size // DTYPES[kind].itemsize if key in archive.members and kind in DTYPES else 0
        strided = Strided(Storage(key, kind, held, 0, held), kind, offset["as_int"], shape, steps)
        tensors.append(Tensor(name, shape, kind, partial(values, archive.where, partial(member, archive), name, strided)))
    return Contents("PyTorch (.pt2 of torch.export)", tensors, {}, [])


def is_size(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("as_int")) is int and 0 <= value["as_int"] < LARGEST


def member(archive: Archive, storage: Storage) -> tuple[bytes, int]:
    return archive.read(storage.key), storage.whole
