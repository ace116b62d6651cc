"""TensorFlow 1 checkpoints: X.index, a table of names to entries, and X.data-*, the values.

The table is LevelDB's (tensorflow/core/lib/io/format.h): blocks of prefix-compressed keys, each with a masked CRC-32C, an index
block that points to them, and a footer. The entries are protocol buffers (core/protobuf/tensor_bundle.proto).
Variables: kernel (E + P, 4U) with the rows of x first, bias (4U,), gates i, j, f, o (j is the candidate, our g).
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np

from lstmcli import hdf5
from lstmcli.errors import DataError, UsageError, shown
from lstmcli.importers.crc32c import crc32c, unmasked
from lstmcli.importers.imported import DTYPES, Choices, Draft, Imported, Origin, Tensor, choose, decode, reorder
from lstmcli.importers.protobuf import Message, varint
from lstmcli.model import Bidirectional, Cell, Floats, Model, Stack, as_root
from lstmcli.sources import FileBytes

FOOTER = 48
TRAILER = 5  # bytes after a block: its compression and its checksum
BLOCK_LIMIT = 1 << 28
TYPES = {1: "F32", 2: "F64", 14: "BF16", 19: "F16"}  # core/framework/types.proto
GATES = (0, 2, 1, 3)

CELLS = (
    "lstm_cell", "basic_lstm_cell", "lstm_fused_cell", "lstm_block_wrapper", "cudnn_compatible_lstm_cell",
    "LSTMCell", "BasicLSTMCell",
)  # fmt: skip
ADDRESS = re.compile(
    r"(?P<scope>(?:.*?/)??)"
    r"(?P<pair>(?:stack_bidirectional_rnn(?:_\d+)?/cell_(?P<level>\d{1,4})/)?bidirectional_rnn(?:_\d+)?/(?P<direction>fw|bw)/)?"
    r"(?:(?:multi_rnn_cell(?:_\d+)?/cell_|MultiRNNCell(?:_\d+)?/Cell)(?P<layer>\d{1,4})/)?"
    rf"(?P<cell>{'|'.join(CELLS)})(?:_\d+)?/"
    r"(?P<field>kernel|weights|W_0|bias|biases|B|w_i_diag|w_f_diag|w_o_diag|projection/kernel|projection/weights|W_P_0|projection/bias)",
    re.DOTALL,
)
FIELDS = {  # of TensorFlow 1.1 and before, as they are called since
    "weights": "kernel", "W_0": "kernel", "biases": "bias", "B": "bias",
    "projection/kernel": "projection", "projection/weights": "projection", "W_P_0": "projection",
}  # fmt: skip


class Place(NamedTuple):
    """Of a cell in its LSTM: which bidirectional pair, which direction of it, which layer of that; None: no such level."""

    level: int | None
    direction: str | None
    layer: int | None


Variables = dict[str, Tensor]  # by field


def import_checkpoint(index: FileBytes, path: str, choices: Choices) -> Imported:
    """The LSTM of a checkpoint. forget_bias (TensorFlow's default is 1), clips and activation come from `choices` alone.

    DataError: damaged, none or several LSTMs, incomplete. MissingInputError: a data file is missing.
    """
    where = index.name
    choices.allow(where, "select", "forget_bias", "cell_clip", "projection_clip", "activation")
    with ExitStack() as stack:
        draft = Draft("a TensorFlow 1 checkpoint", where, read_tensors(index, path.removesuffix(".index"), stack))
        lstms: dict[str, dict[Place, Variables]] = {}
        for tensor in draft.tensors:
            if match := ADDRESS.fullmatch(tensor.name):
                level, direction, layer = match["level"], match["direction"], match["layer"]
                place = Place(int(level) if level else None, direction, int(layer) if layer else None)
                name = (
                    match["scope"] + re.sub(r"(/cell_\d+/.*|(?<=bidirectional_rnn)/(fw|bw)/)$", "", match["pair"] or "")
                ).rstrip("/")
                field = FIELDS.get(match["field"], match["field"])
                lstms.setdefault(name, {}).setdefault(place, {})[field] = tensor
        name = choose({name: described(cells) for name, cells in lstms.items()}, choices.select, draft)
        with draft.building(f"LSTM {name!r}"):
            cudnn = any("cudnn_compatible" in v["kernel"].name for v in lstms[name].values() if "kernel" in v)
            model = read_pairs(lstms[name], draft, options(choices, cudnn, draft))
        if choices.projection_clip is not None and not any(cell.projection_clip for _, cell in as_root(model).cells()):
            raise UsageError(f"--projection-clip: no layer of LSTM {shown(name)!r} in {where} has a projection")
        return draft.finish(model)


def options(choices: Choices, cudnn: bool, draft: Draft) -> dict[str, float | str | None]:
    default = 0.0 if cudnn else 1.0  # CudnnLSTM has it in its bias
    if choices.forget_bias is None:
        why = "as CudnnLSTM trains it" if cudnn else "TensorFlow's default"
        draft.note(f"forget_bias {default} is assumed, {why}: a checkpoint does not hold it; --forget-bias says another")
    found = {
        "forget_bias": default if choices.forget_bias is None else choices.forget_bias,
        "cell_clip": choices.cell_clip,
        "projection_clip": choices.projection_clip,
        "activation": choices.activation or "tanh",
    }
    unsaid = {"activation": "tanh", "cell_clip": "none", "projection_clip": "none"}
    if assumed := [f"{name} {value}" for name, value in unsaid.items() if getattr(choices, name) is None]:
        draft.note(f"also assumed: {', '.join(assumed)}; a checkpoint does not hold them")
    return found


def described(cells: dict[Place, Variables]) -> str:
    return ", ".join(str(variables["kernel"]) for variables in cells.values() if "kernel" in variables)[:200] or "no kernel"


def read_pairs(cells: dict[Place, Variables], draft: Draft, chosen: dict[str, float | str | None]) -> Model:
    """A stack of bidirectional pairs (stack_bidirectional_dynamic_rnn), or what is below one of them."""
    levels = in_order({place.level for place in cells}, "stack_bidirectional_rnn/cell_")
    pairs = []
    for level in levels:
        below = {place: variables for place, variables in cells.items() if place.level == level}
        found = sorted({place.direction for place in below}, key=str)
        if found not in ([None], ["bw", "fw"]):
            raise DataError(f"expected both fw and bw, or neither, got {', '.join(map(str, found))}")
        directions = [
            read_stack({place: variables for place, variables in below.items() if place.direction == direction}, draft, chosen)
            for direction in sorted(found, key=str, reverse=True)
        ]
        pairs.append(Bidirectional(directions[0], directions[1]) if len(directions) == 2 else directions[0])
    return pairs[0] if levels == [None] else Stack(tuple(pairs))


def read_stack(cells: dict[Place, Variables], draft: Draft, chosen: dict[str, float | str | None]) -> Model:
    layers = in_order({place.layer for place in cells}, "multi_rnn_cell/cell_")
    by_layer = {place.layer: variables for place, variables in cells.items()}
    made = [read_cell(by_layer[layer], draft, chosen) for layer in layers]
    return made[0] if layers == [None] else Stack(tuple(made))


def in_order(numbers: set[int | None], what: str) -> list[int | None]:
    found = sorted(numbers, key=lambda number: -1 if number is None else number)
    if found not in ([None], list(range(len(found)))):
        raise DataError(f"expected {what}0, 1, ... and nothing beside them, got {', '.join(map(str, found))}")
    return found


def read_cell(variables: Variables, draft: Draft, chosen: dict[str, float | str | None]) -> Cell:
    peepholes = [name for name in ("w_i_diag", "w_f_diag", "w_o_diag") if name in variables]
    needed = ["kernel", "bias", *(["w_i_diag", "w_f_diag", "w_o_diag"] if peepholes else [])]
    if missing := [name for name in needed if name not in variables]:
        some = next(iter(variables.values()))
        raise DataError(f"expected {missing[0]} beside {shown(some.name)}, got none")
    if extra := variables.get("projection/bias"):
        raise DataError(f"{extra}: a projection with a bias, which no LSTMCell of TensorFlow has")
    kernel, bias = variables["kernel"].array(rank=2), variables["bias"].array(rank=1)
    units = len(bias) // 4
    projection = variables["projection"].array(rank=2) if "projection" in variables else None
    width = units if projection is None else projection.shape[1]
    if kernel.shape[0] <= width:
        raise DataError(f"{variables['kernel']}: expected more rows than the {width} of h")
    split = len(kernel) - width
    origins = [
        Origin(variables["kernel"], "input_kernel", f"rows 0 to {split - 1}, gates i, j, f, o"),
        Origin(variables["kernel"], "recurrent_kernel", f"rows {split} to {len(kernel) - 1}, gates i, j, f, o"),
        Origin(variables["bias"], "bias", "gates i, j, f, o"),
        *(Origin(variables[name], "peephole", f"row {name[2]}") for name in peepholes),
    ]
    if projection is not None:
        origins.append(Origin(variables["projection"], "projection", "as it is"))
    kernel = reorder(kernel, GATES)
    peephole = np.stack([variables[name].array(rank=1) for name in peepholes]) if peepholes else None
    return draft.cell(
        origins, kernel[:split], kernel[split:], bias=reorder(bias, GATES), peephole=peephole, projection=projection,
        **chosen if projection is not None else chosen | {"projection_clip": None},
    )  # fmt: skip


# The file format.


def read_tensors(index: FileBytes, prefix: str, files: ExitStack) -> list[Tensor]:
    """All tensors of a checkpoint; their values, from files that stay open with `files`, are read when they are asked for."""
    where = index.name
    table = dict(read_table(index))
    header = Message(table.pop(b"", b""), where)
    count = header.integer(1)
    if not 0 < count <= 99999 or header.integer(2):
        raise DataError(
            f"{where}: expected a little-endian checkpoint of 1 to 99999 data files, got {count}; the older format "
            "of one file (V1) is not read: save it again with tf.train.Saver(write_version=tf.train.SaverDef.V2)"
        )
    shards: dict[int, FileBytes] = {}

    def shard(number: int) -> FileBytes:
        if not 0 <= number < count:
            raise DataError(f"{where}: damaged: a tensor in data file {number} of {count}")
        if number not in shards:
            path = f"{prefix}.data-{number:05d}-of-{count:05d}"
            fd = hdf5.open_readable(path)
            files.callback(os.close, fd)
            shards[number] = FileBytes(fd, shown(path))
        return shards[number]

    tensors = []
    for key, value in table.items():
        name, entry = key.decode("utf-8", "backslashreplace"), Message(value, where)
        if name.endswith("/.ATTRIBUTES/VARIABLE_VALUE"):
            raise DataError(
                f"{where}: a TensorFlow 2 checkpoint of objects ({shown(name)}); save the model as .keras or .weights.h5"
            )
        shape = tuple(size.integer(1) for size in entry.message(2).messages(2))
        if any(not 0 <= size < 1 << 48 for size in shape):
            raise DataError(f"{where}: damaged: {shown(name)} has shape {shape}")
        dtype = TYPES.get(entry.integer(1), f"type {entry.integer(1)}")
        tensors.append(Tensor(name, shape, dtype, partial(values, entry, name, shape, dtype, shard)))
    return tensors


def values(entry: Message, name: str, shape: tuple[int, ...], dtype: str, shard: Callable[[int], FileBytes]) -> Floats:
    where = f"{entry.where}: {shown(name)}"
    if 7 in entry:
        raise DataError(f"{where}: is partitioned into slices, which are not read; save it again without a partitioner")
    offset, size = entry.integer(4), entry.integer(5)
    file = shard(entry.integer(3))
    if size != math.prod(shape) * DTYPES[dtype].itemsize:
        raise DataError(f"{where}: {dtype} of shape {shape} does not take {size} bytes")
    if offset < 0 or offset + size > file.opened.st_size:
        raise DataError(f"{file.name}: ends at byte {file.opened.st_size}, but {shown(name)} at {offset + size}; it was cut")
    data = file.take(offset, size)
    stored = entry.fixed32(6)
    if stored is None or crc32c(data) != unmasked(stored):
        raise DataError(f"{file.name}: {shown(name)}: wrong checksum, it is damaged; copy the checkpoint again")
    return decode(data, dtype).reshape(shape)


def read_table(file: FileBytes) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values. DataError: damaged, or compressed."""
    footer = memoryview(file.take(file.opened.st_size - FOOTER, FOOTER))
    _, at = handle(footer, 0, file.name)
    index, _ = handle(footer, at, file.name)
    for _, place in entries(read_block(file, index), file.name):
        yield from entries(read_block(file, handle(place, 0, file.name)[0]), file.name)


def handle(data: memoryview, at: int, where: str) -> tuple[tuple[int, int], int]:
    """((offset, size) of a block, where that ends)."""
    offset, at = varint(data, at, where)
    size, at = varint(data, at, where)
    return (offset, size), at


def read_block(file: FileBytes, place: tuple[int, int]) -> memoryview:
    offset, size = place
    if size > BLOCK_LIMIT or offset + size + TRAILER > file.opened.st_size:
        raise DataError(f"{file.name}: damaged: a block of {size} bytes at byte {offset}, the file has {file.opened.st_size}")
    data = memoryview(file.take(offset, size + TRAILER))
    if crc32c(data[: size + 1]) != unmasked(int.from_bytes(data[size + 1 :], "little")):
        raise DataError(f"{file.name}: wrong checksum of the block at byte {offset}, it is damaged; copy the checkpoint again")
    if data[size]:
        raise DataError(
            f"{file.name}: its table is compressed (type {data[size]}), which TensorFlow's Saver never does; save it again"
        )
    return data[:size]


def entries(block: memoryview, where: str) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a block: each key is a number of bytes of the one before, and the rest of its own."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise DataError(f"{where}: damaged: a block of {len(block)} bytes with {restarts} restarts")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at, where)
        fresh, at = varint(block, at, where)
        size, at = varint(block, at, where)
        if shared > len(key) or fresh + size > end - at:
            raise DataError(f"{where}: damaged: an entry of {fresh} + {size} bytes, where {end - at} are left")
        key = key[:shared] + bytes(block[at : at + fresh])
        yield key, block[at + fresh : at + fresh + size]
        at += fresh + size
