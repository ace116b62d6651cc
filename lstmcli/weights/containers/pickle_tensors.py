"""The tensors of a .pt or .pth file: a ZIP archive of data.pkl and a member for each storage of values.

Nothing of the pickle is run. Its opcodes are followed here, and what they build are lists, dicts and stand-ins; the model is
torch/_weights_only_unpickler.py. Any other global is refused by its name.
"""

import math
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown
from lstmcli.weights.containers.tensor import DTYPES, Tensor, decode
from lstmcli.weights.containers.zip_archive import Archive

STORAGES = {"HalfStorage": "F16", "FloatStorage": "F32", "DoubleStorage": "F64", "BFloat16Storage": "BF16"} | {
    f"{name}Storage": name.lower()
    for name in ("Byte", "Char", "Short", "Int", "Long", "Bool", "ComplexFloat", "ComplexDouble", "Untyped")
}
REBUILD = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"}
INERT = {"device", "Size", "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"}
MAX_DEPTH = 100
MAX_AXES = 8
ADVICE = "save the weights alone: torch.save(model.state_dict(), ...), or safetensors.torch.save_file"


@dataclass(frozen=True)
class Global:
    """A name that the pickle may use; nothing was imported for it."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class Strided:
    """A tensor: `shape` elements of a storage from `offset` on, an element apart by `strides`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Mark:
    """The place in the stack that MARK makes."""


class Opaque:
    """Anything that no tensor is found in."""


@dataclass(eq=False)
class Machine:
    """A pickle machine whose values are inert."""

    where: str
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, data: bytes) -> Any:
        """What the pickle says. DataError: damaged, or anything that would have to be run."""
        try:
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.where}: damaged pickle: {shown(str(error))[:200]}") from error
        raise DataError(f"{self.where}: damaged pickle: it does not end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(Mark())
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                stack.append(argument)
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "STRING" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "POP":
                stack.pop()
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])] if len(stack) >= count else self.empty()
            case "TUPLE":
                stack.append(tuple(self.marked()))
            case "LIST" | "FROZENSET":
                stack.append(self.marked())
            case "DICT":
                stack.append(paired(self.marked()))
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "APPENDS" | "ADDITEMS":
                values = self.marked()
                stack[-1].extend(values)
            case "SETITEM":
                pair = [stack.pop(), stack.pop()][::-1]
                stack[-1].update(paired(pair))
            case "SETITEMS":
                values = self.marked()
                stack[-1].update(paired(values))
            case "GLOBAL":
                stack.append(self.allowed(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self.allowed(module, attribute))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(self.call(stack.pop(), arguments))
            case "BUILD":
                stack.pop()  # such as the _metadata of a state_dict
                if not isinstance(stack[-1], dict):
                    self.refuse("an object with a state")
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case _:
                self.refuse(f"opcode {name}")

    def empty(self) -> NoReturn:
        raise DataError(f"{self.where}: damaged pickle: takes more than there is")

    def refuse(self, what: str) -> NoReturn:
        raise DataError(f"{self.where}: refused: the pickle uses {shown(what)[:200]}, and nothing in a file is run; {ADVICE}")

    def marked(self) -> list[Any]:
        """Takes everything down to the last mark."""
        for at in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[at], Mark):
                values = self.stack[at + 1 :]
                del self.stack[at:]
                return values
        self.empty()

    def allowed(self, module: Any, name: Any) -> Global:
        match module, name:
            case ("collections", "OrderedDict") | (
                "torch._utils",
                "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_parameter",
            ):
                return Global(module, name)
            case ("torch" | "torch.storage", str()) if name in STORAGES:
                return Global(module, name)
            case ("torch", str()) if name in INERT:
                return Global(module, name)
        # Not str() of what else it may be: a tuple of tuples can be longer than any memory.
        return self.refuse(f"the global {module}.{name}" if type(module) is type(name) is str else "a global without a name")

    def call(self, function: Any, arguments: Any) -> Any:
        match function, arguments:
            case Global(name="OrderedDict"), ():
                return {}
            case Global(name="OrderedDict"), (list(pairs),) if all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
                return paired([part for pair in pairs for part in pair])
            case Global(name="_rebuild_parameter"), (Strided() as tensor, *_):
                return tensor
            case Global(name="_rebuild_tensor" | "_rebuild_tensor_v2"), (
                Storage() as storage,
                int(at),
                tuple(shape),
                tuple(strides),
                *_,
            ):
                if len(shape) != len(strides) or not all(type(n) is int and 0 <= n < 1 << 48 for n in (at, *shape, *strides)):
                    raise DataError(f"{self.where}: damaged: a tensor whose shape and strides are no sizes")
                return Strided(storage, at, shape, strides)
            case Global(name="device" | "Size"), tuple():
                return Opaque()
        called = f"{function.module}.{function.name}" if isinstance(function, Global) else "a value"
        return self.refuse(f"a call of {called} with other arguments than PyTorch's")

    def storage(self, identity: Any) -> Storage:
        match identity:
            case ("storage", Global(name=name), str(key), str(), int(count), *_) if name in STORAGES and 0 <= count < 1 << 48:
                return Storage(key, STORAGES[name], count)
        return self.refuse("a storage that is none of PyTorch's")


def paired(values: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn. Only plain keys are kept: to hash a tuple of tuples may take forever."""
    if len(values) % 2:
        raise ValueError("a key without a value")
    plain = (str, int, float, bool, bytes, type(None))
    return {key if isinstance(key, plain) else Opaque(): value for key, value in zip(values[::2], values[1::2], strict=True)}


def read_tensors(archive: Archive) -> list[Tensor]:
    """All tensors below the dicts and lists of the file, by the keys that lead to them joined with dots."""
    (member,) = [name for name in archive.members if is_pickle(name)][:1]
    folder = member.removesuffix("data.pkl")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.members else b"little"
    if order != b"little":
        raise DataError(f"{archive.where}: expected little-endian values, got byteorder {shown(str(order))[:20]}; {ADVICE}")
    root = Machine(f"{archive.where}, {shown(member)}").run(archive.read(member))
    return [
        Tensor(name, strided.shape, strided.storage.dtype, partial(values, archive, folder, name, strided))
        for name, strided in leaves(root)
    ]


def is_pickle(member: str) -> bool:
    return member == "data.pkl" or (member.endswith("/data.pkl") and member.count("/") == 1)


def leaves(root: Any) -> Iterator[tuple[str, Strided]]:
    """The tensors of a tree, each container once, to a depth that no state_dict has."""
    seen, waiting = set(), [("", root, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, Strided):
            yield name, value
        if not isinstance(value, dict | list | tuple) or id(value) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        below = [(f"{name}.{key}" if name else str(key), part, depth + 1) for key, part in items if not isinstance(key, Opaque)]
        waiting.extend(reversed(below))


def values(archive: Archive, folder: str, name: str, tensor: Strided) -> Floats:
    storage = tensor.storage
    where = f"{archive.where}: tensor {shown(name)}"
    data = archive.read(f"{folder}data/{storage.key}")
    if len(data) != storage.count * DTYPES[storage.dtype].itemsize:
        raise DataError(f"{where}: expected a storage of {storage.count} {storage.dtype}, got {len(data)} bytes")
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if last >= storage.count or math.prod(tensor.shape) > storage.count:
        raise DataError(f"{where}: {tensor.shape} with strides {tensor.strides} is larger than its storage of {storage.count}")
    flat = decode(data, storage.dtype)
    steps = tuple(stride * flat.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, steps, writeable=False)
