"""Sequences as arrays by name: in an NPZ, in safetensors, or in what torch.save() wrote. Nothing of a pickle is run."""

import math
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import BFLOAT16
from lstmcli.errors import DataError, shown
from lstmcli.files.npy import NpyArray
from lstmcli.files.positioned_file import FileBytes, open_readable
from lstmcli.files.zip_reader import ENCRYPTED, MEMORY, NpzMember, begin_of, fetch_from, reading_zip
from lstmcli.inputs.ragged.placed import DECODED, Found
from lstmcli.weights.containers import safetensors
from lstmcli.weights.containers.zip_archive import Archive
from lstmcli.weights.torch_format.pickle_machine import Storage, Strided
from lstmcli.weights.torch_format.saved_files import is_torch, read_tree, values

MAX_DEFLATE = 1032  # times that deflate can make data larger
FLOATS = {"F16": "<f2", "BF16": BFLOAT16.str, "F32": "<f4", "F64": "<f8"}
INTEGERS = {"I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8"}
OF_SAFETENSORS = FLOATS | INTEGERS
OF_TORCH = FLOATS | {"int8": "i1", "uint8": "u1", "int16": "<i2", "int32": "<i4", "int64": "<i8"}


class LastArchive:
    """Keeps open the ZIP archive that was asked for last, as files are read one after the other."""

    def __init__(self, files: ExitStack) -> None:
        self.path, self.opened = "", ExitStack()
        files.callback(self.opened.close)

    def get(self, path: str) -> Archive:
        if path != self.path:
            self.opened.close()
            self.path = ""
            fd = open_readable(path)
            try:
                self.archive = Archive(fd, shown(path))
            finally:
                os.close(fd)
            self.opened.callback(self.archive.close)
            self.path = path
        return self.archive


def in_zip(file: FileBytes, path: str, name: str | None, archives: LastArchive) -> list[Found]:
    """Returns the sequences of an NPZ, or of what torch.save() wrote; name: only this one, or this layer of ESM's."""
    archive = archives.get(path)
    return in_torch(file, path, name, archives) if is_torch(archive) else in_npz(file, path, name, archives)


def in_npz(file: FileBytes, path: str, name: str | None, archives: LastArchive) -> list[Found]:
    archive = archives.get(path)
    members = {info.filename.removesuffix(".npy"): info for info in archive.file.infolist()}
    if name is not None:
        NpzMember(file, list(members), name)  # says what there is if there is no such array
        members = {name: members[name]}
    return [_of_npz(file, path, member, info, archives) for member, info in members.items()]


def _of_npz(file: FileBytes, path: str, name: str, info: ZipInfo, archives: LastArchive) -> Found:
    where = f"{file.name}::{shown(name)}"
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise DataError(f"{where}: expected the name of an array, got a path that leads out of the archive")
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED) or info.flag_bits & ENCRYPTED:
        raise DataError(f"{where}: expected what np.savez or np.savez_compressed writes, got another compression")
    if info.compress_type == ZIP_STORED:
        begin = begin_of(info, file, where)
        array = NpyArray(lambda view, offset: file.fetch(view, begin + offset), where)
        array.check_size(info.file_size)
        if not array.fortran or len(array.shape) < 2:
            return Found(where, name, array.shape, array.dtype, begin + array.offset)
    else:
        if info.file_size > MEMORY or info.file_size > MAX_DEFLATE * info.compress_size + MAX_DEFLATE:
            raise DataError(
                f"{where}: is compressed, and {info.file_size:,} bytes are more than the {MEMORY:,} that are decoded into "
                f"memory, or than {info.compress_size:,} can hold; save it with np.savez"
            )
        with reading_zip(where), archives.get(path).file.open(info) as stream:
            array = NpyArray(partial(fetch_from, stream, where), where)
        array.check_size(info.file_size)
    return Found(where, name, array.shape, array.dtype, read=partial(_decoded, path, info, array, archives))


def _decoded(path: str, info: ZipInfo, array: NpyArray, archives: LastArchive) -> NDArray[Any]:
    """Returns a whole array of an NPZ."""
    with reading_zip(array.name):
        content = archives.get(path).file.read(info)
    found = np.frombuffer(content, array.dtype, math.prod(array.shape), array.offset)
    return found.reshape(array.shape, order="F" if array.fortran else "C")


def in_safetensors(file: FileBytes, path: str, name: str | None) -> list[Found]:
    """Returns the sequences of a safetensors file; name: only this one."""
    entries = [entry for entry in safetensors.read_entries(file) if name in (None, entry.name)]
    if name is not None and not entries:
        raise DataError(f"{file.name}: no tensor {shown(name)}")
    found = []
    for entry in entries:
        where = f"{file.name}::{shown(entry.name)}"
        dtype = np.dtype(OF_SAFETENSORS.get(entry.dtype, f"V{safetensors.BITS[entry.dtype] // 8}"))
        found.append(Found(where, entry.name, entry.shape, dtype, entry.offset))
    return found


def in_torch(file: FileBytes, path: str, name: str | None, archives: LastArchive) -> list[Found]:
    """Returns the sequences of what torch.save() wrote: a tensor, tensors by id, or ESM's {label, representations}."""
    archive = archives.get(path)
    root, machine, folder = read_tree(archive)
    found = []
    for key, tensor in _named(root, name, file.name, Path(path).stem):
        where = f"{file.name}::{shown(key)}"
        dtype = np.dtype(OF_TORCH.get(tensor.dtype, "V1"))
        member = archive.members.get(f"{folder}data/{tensor.storage.key}")
        place = DECODED
        steps = tuple(math.prod(tensor.shape[k + 1 :]) for k in range(len(tensor.shape)))
        if member and tensor.dtype in OF_TORCH and (tensor.strides == steps or 0 in tensor.shape):
            size = dtype.itemsize
            held = member.file_size // size
            first = tensor.storage.start + tensor.offset
            if first + math.prod(tensor.shape) > held or member.compress_type != ZIP_STORED:
                raise DataError(f"{where}: {tensor.shape} is larger than its storage of {held} {tensor.storage.dtype}")
            place = begin_of(member, file, where) + first * size
        read = partial(_torch_values, path, folder, machine.item_bytes, key, tensor, archives)
        found.append(Found(where, key, tensor.shape, dtype, place, read))
    return found


def _torch_values(
    path: str, folder: str, item_bytes: dict[str, int], name: str, tensor: Strided, archives: LastArchive
) -> NDArray[Any]:
    archive = archives.get(path)

    def fetch(storage: Storage) -> tuple[bytes, int]:
        data = archive.read(f"{folder}data/{storage.key}")
        return data, len(data) // item_bytes[storage.key]

    return values(archive.where, fetch, name, tensor)


def _named(root: Any, name: str | None, where: str, stem: str) -> list[tuple[str, Strided]]:
    """Lists the tensors of a file by their ids. name: one of them, or one of the layers of ESM's representations."""
    if isinstance(root, Strided):
        return [(stem, root)]
    if isinstance(root, dict) and isinstance(root.get("representations"), dict):
        layers = {str(layer): tensor for layer, tensor in root["representations"].items() if isinstance(tensor, Strided)}
        wanted = name if name is not None else next(iter(layers)) if len(layers) == 1 else None
        if wanted not in layers:
            raise DataError(
                f"{where}: expected one layer of representations, got {', '.join(map(shown, layers)) or 'none'}; name one: "
                f"{where}::{shown(next(iter(layers), 'LAYER'))}"
            )
        label = root.get("label")
        return [(label if isinstance(label, str) else stem, layers[wanted])]
    if isinstance(root, dict):
        named = [(str(key), tensor) for key, tensor in root.items() if isinstance(tensor, Strided)]
    elif isinstance(root, list | tuple):
        named = [(str(k), tensor) for k, tensor in enumerate(root) if isinstance(tensor, Strided)]
    else:
        named = []
    chosen = [(key, tensor) for key, tensor in named if name in (None, key)]
    if not chosen:
        raise DataError(
            f"{where}: expected a dict of tensors, one for each sequence, or ESM's label and representations, got "
            f"{f'none with the name {shown(name)}' if name is not None and named else type(root).__name__}"
        )
    return chosen


def is_safetensors(begin: bytes, size: int) -> bool:
    """Says whether a file of this size begins as safetensors does."""
    return len(begin) > 8 and begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= size - 8
