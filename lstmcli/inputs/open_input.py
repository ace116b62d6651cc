"""What --input names, opened: an NPY file, an array of an NPZ, an HDF5 dataset, or an NPY stream in a pipe."""

import os
from contextlib import ExitStack
from typing import Any

from lstmcli.blocks import holds_floats
from lstmcli.errors import DataError, MissingInputError, UsageError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import FileKind, open_by_kind, split_spec
from lstmcli.files.npy import NpyArray
from lstmcli.files.positioned_file import FileBytes, PipeBytes
from lstmcli.inputs.contiguous import ContiguousArray
from lstmcli.inputs.source import Source, StoredArray
from lstmcli.inputs.valid_steps import LENGTHS, MASKS, RESULT

HEADER_BEGIN = 10  # bytes of an NPY file before the text of its header, at least


def open_source(spec: str, axes: str = "NTE", follow_links: bool = False, token_ids: bool = False) -> Source:
    """Opens the input that `spec` names: a path (NPY or HDF5, told by its first bytes), `file.h5::/dataset`, or `-`.

    axes: what its axes are, from the first to the last: NTE, TNE, ETN or ENT. Raises UsageError for a pipe in another order
    than the first, which would have to be read as a whole. follow_links: an HDF5 dataset may be a link or lie in other files.
    token_ids: integers (N, T) are taken as well, as the ids of an embedding.
    Raises MissingInputError for no such file, and DataError for what is no array that can be read: it says what is there.
    """
    path, dataset = split_spec(spec)
    with ExitStack() as failed:
        files = failed.enter_context(ExitStack())
        if path == "-":
            fd, kind = _standard_input(), FileKind.STREAM
            files.callback(os.close, fd)
            data = FileBytes(fd, path)
        else:
            data, kind = files.enter_context(open_by_kind(path, pipes=True))
        if dataset is not None and kind not in (FileKind.HDF5, FileKind.ZIP):
            raise DataError(f"{data.name}: dataset {shown(dataset)} is named, but this is not an HDF5 file")
        if kind is FileKind.HDF5:
            file = files.enter_context(hdf5.open_file(path))
            array = _find_dataset(file, dataset, follow_links, token_ids)
        elif kind is FileKind.STREAM:
            if axes != "NTE":
                order = "time-major order" if axes == "TNE" else f"order {axes}"
                raise UsageError(
                    f"{data.name}: a pipe in {order} holds the first sequence's last step only near its end; "
                    "give a file, or write it as (sequences, steps, features) and leave --time-major and --axes out"
                )
            array = _read_npy_stream(PipeBytes(data.fd, data.name))
        elif kind is FileKind.ZIP:
            array = _read_npz(data, path, dataset)
        else:
            array = _read_npy(data)
        array = array._replace(axes=axes)
        if token_ids and array.dtype.kind in "iu" and len(array.shape) == 2 and axes[-1] == "E":
            array = array._replace(shape=(*array.shape, 1), token_ids=True)
        source = source_of(array, files)
        failed.pop_all()
    return source


def source_of(array: StoredArray, files: ExitStack) -> Source:
    """Returns what reads an array where it lies. Raises DataError."""
    if array.offset is None:
        from lstmcli.inputs.chunked import ChunkedArray

        return ChunkedArray(array, files)
    if array.order == "NTE":
        return ContiguousArray(array, files)
    from lstmcli.inputs.strided import StridedArray

    return StridedArray(array, files)


def _standard_input() -> int:
    try:
        return os.dup(0)
    except OSError as error:
        raise MissingInputError("-: standard input is closed") from error


def _read_npy(data: FileBytes) -> StoredArray:
    if (found := data.opened.st_size) < HEADER_BEGIN:
        raise DataError(f"{data.name}: expected NPY or HDF5, got {f'{found} bytes' if found else 'an empty file'}")
    array = NpyArray(data.fetch, data.name)
    array.check_size(found)
    return StoredArray(data, data.name, array.shape, array.dtype, array.offset, fortran=array.fortran)


def _read_npz(file: FileBytes, path: str, member: str | None) -> StoredArray:
    from lstmcli.files.zip_reader import NpzMember, npz_forms, npz_names  # loading zipfile takes 10 ms

    names = npz_names(file)
    if member is None:
        forms = npz_forms(file)
        fitting = [
            name for name, (shape, dtype) in forms.items() if holds_floats(dtype) and len(shape) == 3 and name not in MASKS
        ]
        if len(fitting) != 1:
            held = [f"{shown(name)} {shape} {dtype}" for name, (shape, dtype) in list(forms.items())[:10]]
            raise DataError(
                f"{file.name}: expected NPY or HDF5, or an NPZ with one float array of rank 3, got an NPZ or another ZIP "
                f"archive with {len(fitting)}: ",
                held or ["no array"],
                f"; name the one to read: {file.name}::NAME, or save it with np.save",
            )
        member = fitting[0]
    member = member.lstrip("/")
    data = NpzMember(file, names, member)
    array = NpyArray(data.fetch, data.name)
    array.check_size(data.size)
    beside = [f"{path}::{name}" for name in (*LENGTHS, *MASKS) if name in names and name != member]
    found = StoredArray(data, data.name, array.shape, array.dtype, array.offset, fortran=array.fortran)
    return found._replace(archive=file, lengths_beside=beside[0] if beside else None)


def _read_npy_stream(data: PipeBytes) -> StoredArray:
    array = NpyArray(data.fetch, data.name)
    data.size = array.size
    if array.fortran:
        raise DataError(
            f"{data.name}: is in Fortran order, so every sequence is spread over the whole stream; "
            "write it with np.save(..., np.ascontiguousarray(x)), or give a file"
        )
    return StoredArray(data, data.name, array.shape, array.dtype, array.offset)


def _find_dataset(file: Any, name: str | None, follow_links: bool, token_ids: bool) -> StoredArray:
    dataset = hdf5_safety.dataset(file, name or _only_candidate(file, token_ids), follow_links)
    where = hdf5.label(dataset)
    dtype, offset = hdf5.dtype_of(dataset), hdf5.raw_offset(dataset)
    data = FileBytes(dataset.file.id.get_vfd_handle(), where)
    if offset is not None and offset + dataset.nbytes > data.opened.st_size:
        raise DataError(f"{where}: ends at byte {offset + dataset.nbytes}, the file at {data.opened.st_size}; it was cut")
    return StoredArray(data, where, dataset.shape, dtype, offset, dataset=dataset)


def _only_candidate(file: Any, token_ids: bool) -> str:
    """Returns the name of the only float dataset of rank 3, or of a result's outputs. token_ids: integers of rank 2 will do."""
    found = hdf5.entries(file, hdf5.NAMES_LOOKED_AT)
    if len(found) == hdf5.NAMES_LOOKED_AT:
        raise DataError(f"{shown(file.filename)}: has {len(found)} datasets or more; name the one to read: FILE::/dataset")
    ranks = {"f": 3, "i": 2, "u": 2} if token_ids else {"f": 3}
    fitting = [e for e in found if e.dtype is not None and e.shape and len(e.shape) == ranks.get(e.dtype.kind)]
    fitting = [e for e in fitting if e.name.rpartition("/")[2] not in MASKS]
    if len(fitting) > 1 and hdf5.attribute(file, "format") == RESULT and any(e.name == "/outputs" for e in fitting):
        return "/outputs"
    if len(fitting) != 1:
        expected = "one float dataset of rank 3" + " or one of token ids, integers of rank 2" * token_ids
        path = shown(file.filename)
        example = shown(fitting[0].name) if fitting else "/dataset"
        raise DataError(
            f"{path}: expected {expected}, found {len(fitting)}: ",
            hdf5.listed(fitting or found),
            f"; name the one to read: {path}::{example}",
        )
    return fitting[0].name
