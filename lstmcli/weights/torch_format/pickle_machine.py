"""A pickle machine whose values are inert: its opcodes are followed here, and nothing of a pickle is ever imported or called.

What they build are lists, dicts, numbers, tensors as PyTorch's pickles describe them, and in place of everything else a Thing,
which has the name of a class or function and what it was given, and does nothing. See torch/_weights_only_unpickler.py.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import IO, Any, NoReturn

from lstmcli.errors import DataError, shown

# Of the elements: the name in a Tensor, and the bytes.
STORAGES = {
    "HalfStorage": ("F16", 2), "FloatStorage": ("F32", 4), "DoubleStorage": ("F64", 8), "BFloat16Storage": ("BF16", 2),
    "ByteStorage": ("uint8", 1), "CharStorage": ("int8", 1), "ShortStorage": ("int16", 2), "IntStorage": ("int32", 4),
    "LongStorage": ("int64", 8), "BoolStorage": ("bool", 1), "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16), "UntypedStorage": ("bytes", 1), "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1), "QInt32Storage": ("qint32", 4),
}  # fmt: skip
REBUILT = {"_rebuild_tensor": 4, "_rebuild_tensor_v2": 6, "_rebuild_tensor_v3": 7, "_rebuild_qtensor": 4}  # how many arguments
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
LARGEST = 1 << 48
MAX_STEPS = 1 << 23  # opcodes; a tensor takes about 40
MAX_AXES = 64
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number with which a file of PyTorch before 1.6 begins, in any protocol
ADVICE = "save the weights alone: torch.save(model.state_dict(), ...), or safetensors.torch.save_file"


@dataclass(frozen=True)
class Global:
    """The name of a class or function; nothing was imported for it."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Thing:
    """What would have been an object: of a class, or the result of a function, that is not known here."""

    kind: Global
    arguments: Any
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Storage:
    """`count` values from `start` on of the `whole` that the file calls `key`; data: these, where they are in the pickle."""

    key: str
    dtype: str
    count: int
    start: int
    whole: int
    data: bytes | memoryview | None = None


@dataclass(frozen=True)
class Strided:
    """A tensor: `shape` elements of a storage from `offset` on, an element apart by `strides`. dtype: as in a Tensor."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Mark:
    """The place in the stack that MARK makes."""


class Key:
    """A key of a dict that is no plain value: to hash a tuple of tuples may take forever."""


@dataclass(eq=False)
class Machine:
    """Runs pickles. named: the globals, by what they are called, in order. item_bytes: of the storages, by key.
    depth: how many machines this one is inside of. made: what once() has made, by the identity of what it was made of.
    """

    where: str
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    named: dict[str, Global] = field(default_factory=dict)
    item_bytes: dict[str, int] = field(default_factory=dict)
    depth: int = 0
    made: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def run(self, stream: IO[bytes]) -> Any:
        """What the next pickle of a stream says. DataError: damaged, or not a pickle that PyTorch could have written."""
        self.stack.clear()
        self.memo.clear()
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count == MAX_STEPS:
                    raise DataError(f"{self.where}: a pickle of more than {MAX_STEPS:,} steps; {ADVICE}")
                if opcode.name != "STOP":  # which is the last one
                    self.step(opcode.name, argument)
            return self.stack.pop()
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.where}: damaged pickle: {shown(str(error))[:200]}") from error

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "READONLY_BUFFER":
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
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(argument)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.marked()
            case "DUP":
                stack.append(stack[-1])
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
                elements(stack[-1]).append(value)
            case "APPENDS" | "ADDITEMS":
                values = self.marked()
                elements(stack[-1]).extend(values)
            case "SETITEM":
                pair = [stack.pop(), stack.pop()][::-1]
                items(stack[-1]).update(paired(pair))
            case "SETITEMS":
                values = self.marked()
                items(stack[-1]).update(paired(values))
            case "GLOBAL":
                stack.append(self.global_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self.global_name(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(self.call(stack.pop(), arguments))
            case "NEWOBJ_EX":
                named, arguments = stack.pop(), stack.pop()
                stack.append(self.call(stack.pop(), (*arguments, named) if isinstance(arguments, tuple) else named))
            case "INST":
                stack.append(self.call(self.global_name(*argument.split(" ", 1)), tuple(self.marked())))
            case "OBJ":
                kind, *values = self.marked()
                stack.append(self.call(kind, tuple(values)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Thing):
                    stack[-1].state = state
                elif not isinstance(stack[-1], dict | Strided):  # of which it is the metadata of a state_dict, or attributes
                    self.refuse("a state of what has none")
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case _:
                self.refuse(f"opcode {name}")

    def empty(self) -> NoReturn:
        raise DataError(f"{self.where}: damaged pickle: takes more than there is")

    def refuse(self, what: str) -> NoReturn:
        raise DataError(f"{self.where}: refused: the pickle uses {shown(what)[:200]}, which PyTorch does not; {ADVICE}")

    def marked(self) -> list[Any]:
        """Takes everything down to the last mark."""
        for at in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[at], Mark):
                values = self.stack[at + 1 :]
                del self.stack[at:]
                return values
        self.empty()

    def inner_storage(self, data: bytes) -> Storage:
        """Of a tensor that was pickled alone: its storage is a file of PyTorch in the pickle."""
        machine = Machine(self.where, depth=self.depth + 1)
        if machine.depth > 1:
            self.refuse("a file in a file in a file")
        root, places = read_legacy(data, machine)
        if not isinstance(root, Storage) or root.key not in places:
            self.refuse("a storage that is none of PyTorch's")
        begin, count = places[root.key]
        return replace(root, data=data[begin : begin + count * machine.item_bytes[root.key]])

    def once(self, given: Any, make: Callable[[Any], Any]) -> Any:
        """What is made of an object, however often the pickle asks for it."""
        if id(given) not in self.made:
            self.made[id(given)] = given, make(given)
        return self.made[id(given)][1]

    def global_name(self, module: Any, name: Any) -> Global:
        if not type(module) is type(name) is str:
            # Not str() of what else it may be: a tuple of tuples can be longer than any memory.
            self.refuse("a global without a name")
        found = Global(module, name)
        self.named.setdefault(str(found), found)
        return found

    def call(self, function: Any, arguments: Any) -> Any:
        """A dict or tensor for what PyTorch makes them with; for anything else a Thing."""
        match function, arguments:
            case Global("collections", "OrderedDict"), ():
                return {}
            case Global("collections", "OrderedDict"), (list(pairs),) if all(
                isinstance(p, list | tuple) and len(p) == 2 for p in pairs
            ):
                return paired([part for pair in pairs for part in pair])
            case Global("torch._utils", name), (Strided() as tensor, *_) if name in PARAMETERS:
                return tensor
            case Global("torch._utils", name), (Storage() as storage, int(at), tuple(shape), tuple(strides), *more) if (
                name in REBUILT and len(more) >= REBUILT[name] - 4
            ):
                return self.tensor(name, storage, at, shape, strides, more)
            case Global("torch._tensor", "_rebuild_from_type_v2"), (Global() as made, _, tuple(given), _):
                return self.call(made, given)
            case Global("torch.storage", "_load_from_bytes"), (bytes(data),):
                return self.once(data, self.inner_storage)
            case Global("_codecs", "encode"), (str(text), "latin1"):  # bytes, in the protocols before 3
                return self.once(text, lambda text: text.encode("latin1"))
            case Global(), _:
                return Thing(function, arguments)
            case Thing(), _:  # a class that a function has made
                return Thing(function.kind, arguments)
        return self.refuse("a call of what is no function")

    def tensor(
        self, name: str, storage: Storage, at: int, shape: tuple[Any, ...], strides: tuple[Any, ...], more: list[Any]
    ) -> Strided:
        if (
            len(shape) != len(strides)
            or len(shape) > MAX_AXES
            or not all(type(n) is int and 0 <= n < LARGEST for n in (at, *shape, *strides))
        ):
            raise DataError(f"{self.where}: damaged: a tensor whose shape and strides are no sizes")
        dtype = storage.dtype
        if name == "_rebuild_tensor_v3":
            dtype = more[2].name if isinstance(more[2], Global) else "unknown"
        elif name == "_rebuild_qtensor" and not dtype.startswith("q"):
            dtype = "quantized"
        elif name == "_rebuild_tensor_v2" and len(more) > 2 and more[2]:
            dtype = "conjugated or negated"  # the metadata of a view that reads other values than are stored
        return Strided(storage, dtype, at, shape, strides)

    def persistent(self, identity: Any) -> Any:
        match identity:
            case ("storage", Global(name=name), str(key), str(), int(count), *view) if (
                name in STORAGES and 0 <= count < LARGEST
            ):
                dtype, self.item_bytes[key] = STORAGES[name]
                match view:
                    case [(_, int(start), int(size))] if 0 <= start <= start + size <= count:  # before PyTorch 1.6
                        return Storage(key, dtype, size, start, count)
                    case [] | [None]:
                        return Storage(key, dtype, count, 0, count)
            case ("module", Global() as kind, *_):  # a class with its source, before PyTorch 1.6
                return kind
        return self.refuse("a storage that is none of PyTorch's")


def items(value: Any) -> dict[Any, Any]:
    return value.items if isinstance(value, Thing) else value


def elements(value: Any) -> list[Any]:
    return value.elements if isinstance(value, Thing) else value


def paired(values: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn. Only plain keys are kept."""
    if len(values) % 2:
        raise ValueError("a key without a value")
    plain = (str, int, float, bool, bytes, type(None))
    return {key if isinstance(key, plain) else Key(): value for key, value in zip(values[::2], values[1::2], strict=True)}


def is_legacy(begin: bytes) -> bool:
    """Whether a file is of PyTorch before 1.6, or saved with _use_new_zipfile_serialization=False."""
    return LEGACY in begin[:32]


def read_legacy(data: bytes, machine: Machine) -> tuple[Any, dict[str, tuple[int, int]]]:
    """What such a file says, and where in it the values of each storage lie: (begin, count).

    It is five pickles (magic number, version, byte order and sizes, the object, the storages' keys), then for each key the
    count as int64 and the values.
    """
    stream = io.BytesIO(data)
    _, version, system, root, keys = (machine.run(stream) for _ in range(5))
    little = isinstance(system, dict) and system.get("little_endian") is True
    if version != 1001 or not little or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DataError(f"{machine.where}: damaged, or of another version or a big-endian machine; {ADVICE}")
    places, at = {}, stream.tell()
    for key in keys:
        count = int.from_bytes(data[at : at + 8], "little")
        places[key] = (at + 8, count)
        at += 8 + count * machine.item_bytes.get(key, 1)
    if at != len(data):
        raise DataError(f"{machine.where}: damaged: expected {at} bytes with all storages, got {len(data)}")
    return root, places
