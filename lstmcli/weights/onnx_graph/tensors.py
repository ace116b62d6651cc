"""ONNX's TensorProto: numbers in the model itself, in one of several fields, or in a file beside it."""

import math
import os
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError, shown
from lstmcli.files.positioned_file import FileBytes, open_readable
from lstmcli.weights.containers.model_folder import is_beside, real_path
from lstmcli.weights.containers.protobuf import Message
from lstmcli.weights.containers.tensor import DTYPES, Tensor, decode


class Type(NamedTuple):
    name: str  # of floats: as in DTYPES
    dtype: str
    field: int  # that holds values which are not raw; 5 and 7 are variable-length integers


TYPES = {
    1: Type("F32", "<f4", 4), 2: Type("U8", "<u1", 5), 3: Type("I8", "<i1", 5), 4: Type("U16", "<u2", 5),
    5: Type("I16", "<i2", 5), 6: Type("I32", "<i4", 5), 7: Type("I64", "<i8", 7), 9: Type("BOOL", "|b1", 5),
    10: Type("F16", "<f2", 5), 11: Type("F64", "<f8", 10), 12: Type("U32", "<u4", 11), 13: Type("U64", "<u8", 11),
    16: Type("BF16", "<u2", 5),
}  # fmt: skip
EXTERNAL = 1
MAX_RANK = 32  # what every version of NumPy has room for


def read_tensor(message: Message, name: str, path: str, where: str) -> Tensor:
    """Returns a tensor, its values not read yet. path: of the model, beside which they may lie. DataError: damaged."""
    shape = tuple(message.integers(1))
    if len(shape) > MAX_RANK or any(not 0 <= size < 1 << 48 for size in shape):
        raise DataError(f"{where}: damaged: {shown(name)} has shape {str(shape)[:200]}")
    kind = TYPES.get(message.integer(2), Type(f"type {message.integer(2)}", "", 0))
    read = cache(partial(values, message, path, f"{where}: {shown(name)}", shape, kind))  # a whole model is followed twice
    return Tensor(name, shape, kind.name, read)


def sparse_tensor(message: Message, name: str, where: str) -> Tensor:
    return Tensor(name, tuple(message.integers(3)), "sparse", partial(refuse, f"{where}: {shown(name)}: is sparse, not read"))


def refuse(text: str) -> NoReturn:
    raise DataError(text)


def values(message: Message, path: str, where: str, shape: tuple[int, ...], kind: Type) -> NDArray[Any]:
    if not kind.dtype:
        raise DataError(f"{where}: expected numbers, got {kind.name}")
    dtype = np.dtype(kind.dtype)
    size = math.prod(shape) * dtype.itemsize
    if message.integer(14) == EXTERNAL:
        data: Any = external({entry.text(1): entry.text(2) for entry in message.messages(13)}, path, where, size)
    elif 9 in message:
        data = message.data(9)
    elif kind.field in (4, 10):
        data = message.numbers(kind.field, kind.dtype).tobytes()
    else:  # of float16 and bfloat16 the bits, as an integer
        stored = np.dtype("<u2") if dtype.kind == "f" else dtype
        data = np.array(message.integers(kind.field), np.int64).astype(stored).tobytes()
    if len(data) != size:
        raise DataError(f"{where}: {kind.name} of shape {shape} takes {size} bytes, got {len(data)}")
    if kind.name in DTYPES:
        return decode(data, kind.name).reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape)


def external(entry: dict[str, str], path: str, where: str, size: int) -> bytes:
    """Reads values in a file of their own: in the model's folder or below, or in that of the file which the model is a link
    to, where the caches of model hubs have both. DataError for any other place."""
    location = entry.get("location", "")
    model = Path(path)
    targets = [folder / location for folder in dict.fromkeys((model.parent, real_path(model).parent))]
    target = next((one for one in targets if os.path.lexists(one)), targets[0])
    plain = location and not Path(location).is_absolute() and ".." not in Path(location).parts
    if not plain or not is_beside(target, model):
        raise DataError(f"{where}: its values lie in {shown(location)!r}, outside of the model's folder, where nothing is read")
    try:
        offset, length = int(entry.get("offset", "0")), int(entry.get("length", str(size)))
    except ValueError as error:
        raise DataError(f"{where}: damaged: external data at offset {shown(str(entry))[:200]}") from error
    if target.exists() and not target.is_file():
        raise DataError(f"{where}: its values lie in {shown(location)!r}, which is not a plain file")
    fd = open_readable(str(target))
    try:
        file = FileBytes(fd, shown(str(target)))
        if length != size or offset < 0 or offset + size > file.opened.st_size:
            raise DataError(
                f"{where}: takes {size} bytes, got {length} at {offset} of {file.name} ({file.opened.st_size} bytes)"
            )
        return file.take(offset, size)
    finally:
        os.close(fd)
