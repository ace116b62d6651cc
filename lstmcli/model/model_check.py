"""What a model is known to compute: an input, and the outputs that the framework gave for it, kept in a model file.

/check       x (N, T, E) and y (N, T, D) in float32 or float64, and lengths (N,) int64 where not every sequence has T steps
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import FLOATS, Floats, Lengths, is_float
from lstmcli.errors import DataError, UsageError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import FileKind, open_by_kind
from lstmcli.files.npy import NpyArray

GROUP = "check"
MAX_BYTES = 64 << 20  # of x, and of y: they are read whole, and kept


class Check(NamedTuple):
    x: Floats  # (N, T, E)
    y: Floats  # (N, T, D)
    lengths: Lengths | None  # (N,)


def read_check_files(spec: str) -> Check:
    """Reads the arrays that "X.npy,Y.npy" or "X.npy,Y.npy,LENS.npy" names. Raises UsageError, MissingInputError, DataError."""
    paths = spec.split(",")
    if len(paths) not in (2, 3) or "" in paths:
        raise UsageError(f"--check {spec}: expected X.npy,Y.npy or X.npy,Y.npy,LENS.npy")
    x, y, *others = (read_npy(path) for path in paths)
    return checked(x, y, others[0] if others else None, paths)


def read_npy(path: str) -> NDArray[Any]:
    with open_by_kind(path) as (file, kind):
        if kind is not FileKind.NPY:
            raise DataError(f"{file.name}: expected an NPY file, as np.save writes it")
        array = NpyArray(file.fetch, file.name)
        array.check_size(file.opened.st_size)
        if array.size > MAX_BYTES:
            raise DataError(
                f"{file.name}: a check is kept in the model file; expected at most {MAX_BYTES:,} bytes, got {array.size:,}"
            )
        if array.fortran and len(array.shape) > 1:
            raise DataError(f"{file.name}: is in Fortran order; save np.ascontiguousarray(...) of it")
        return array.rows(0, array.shape[0] if array.shape else 1)


def checked(x: NDArray[Any], y: NDArray[Any], lengths: NDArray[Any] | None, names: list[str]) -> Check:
    """Makes a check of arrays. Raises DataError for types and shapes that do not go together."""
    for name, array in zip(names, (x, y), strict=False):
        if array.ndim != 3 or not is_float(array.dtype):
            raise DataError(f"{shown(name)}: expected {FLOATS} (N, T, features), got {array.dtype} {array.shape}")
    if y.shape[:2] != x.shape[:2]:
        raise DataError(f"{shown(names[1])}: expected outputs of {x.shape[0]} sequences of {x.shape[1]} steps, got {y.shape}")
    if lengths is not None:
        if lengths.shape != x.shape[:1] or lengths.dtype.kind not in "iu":
            raise DataError(f"{shown(names[2])}: expected {x.shape[0]} integers, got {lengths.dtype} {lengths.shape}")
        if lengths.size and not 0 <= lengths.min() <= lengths.max() <= x.shape[1]:
            raise DataError(
                f"{shown(names[2])}: expected lengths from 0 to {x.shape[1]}, got {lengths.min()} to {lengths.max()}"
            )
        lengths = lengths.astype(np.int64)
    return Check(at_least_single(x), at_least_single(y), lengths)


def at_least_single(array: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(array, np.float64 if array.dtype.itemsize == 8 else np.float32)


def write_check(group: Any, check: Check) -> None:
    """Writes it into an empty h5py group."""
    for name, array in check._asdict().items():
        if array is not None:
            group.create_dataset(name, data=array)


def read_check(file: Any) -> Check | None:
    """Returns the check of an open model file, or None. Raises DataError: damaged."""
    group = hdf5_safety.find(file, GROUP)
    if group is None:
        return None
    items = {name: hdf5_safety.dataset(file, f"{GROUP}/{name}") for name in ("x", "y")}
    if hdf5_safety.find(file, f"{GROUP}/lengths") is not None:
        items["lengths"] = hdf5_safety.dataset(file, f"{GROUP}/lengths")
    for item in items.values():
        if item.size * hdf5.dtype_of(item).itemsize > MAX_BYTES:
            raise DataError(f"{hdf5.label(item)}: {item.shape} is larger than a check may be ({MAX_BYTES:,} bytes)")
    x, y, *others = (hdf5.read_array(item) for item in items.values())
    return checked(x, y, others[0] if others else None, [hdf5.label(item) for item in items.values()])
