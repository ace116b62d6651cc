"""The model file, and the /model group of a result: a tree of groups whose leaves hold the weights of a cell.

/model       attribute kind = "stack" | "bidirectional" | "reverse" | "residual" | "cell"
  stack: groups 0, 1, ...   bidirectional: groups forward, backward; attribute merge   residual, reverse: group inner
  cell: datasets input_kernel (E, 4*U), recurrent_kernel (P, 4*U), and where present bias (4*U,), peephole (3, U),
        projection (U, P), initial_c (U,), initial_h (P,); attributes units, activation, recurrent_activation, forget_bias,
        gate_order = "i,f,g,o", and where present cell_clip, projection_clip, gate_clip, input_forget
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lstmcli.blocks import is_float
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.partial_file import write_whole
from lstmcli.files.positioned_file import FileBytes
from lstmcli.model.tree import Bidirectional, Cell, Model, Residual, Reverse, Stack, as_root

if TYPE_CHECKING:
    from lstmcli.model.model_check import Check


FORMAT, FORMAT_VERSION = "lstmcli-model", 1
RESULT_FORMAT, RESULT_VERSION = "lstmcli-result", 1  # of a result as a whole; it holds its model in the same way
GATE_ORDER = "i,f,g,o"
CHAIN = "chain"  # the kind of a whole model
OPTIONAL_WEIGHTS = ("bias", "peephole", "projection", "initial_c", "initial_h")
MAX_WEIGHT = 1 << 34  # bytes; what a file may claim for one array before memory is taken for it
MAX_DEPTH = 32
SEARCHED = 64 << 20  # bytes whose heaps are checked: all of a model; of a large result the begin, where its texts lie

Value = TypeVar("Value", str, int, float, bool)


def write_model(group: Any, model: Model) -> None:
    """Writes the tree into an empty h5py group."""
    group.attrs["kind"] = model.kind
    for name, child in model.children().items():
        write_model(group.create_group(name), child)
    if isinstance(model, Bidirectional):
        group.attrs["merge"] = model.merge
    if isinstance(model, Cell):
        for name, weight in model.weights().items():
            group.create_dataset(name, data=weight)
        group.attrs["gate_order"] = GATE_ORDER
        group.attrs["units"] = model.units
        for name, value in model.options().items():
            group.attrs[name] = value


def model_image(model: Model, check: "Check | None" = None) -> bytes:
    """Returns the bytes of a whole model file, with what the model is known to compute, if anything."""
    return file_image(lambda group: write_model(group, model), check)


def file_image(write: Callable[[Any], None], check: "Check | None" = None) -> bytes:
    """Returns the bytes of a model file whose group /model is what `write` writes into it."""
    import h5py

    # In memory: on a full disk libhdf5 fails only when it closes the file, and then crashes.
    with h5py.File("model", "w", driver="core", backing_store=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        write(file.create_group("model"))
        if check:
            from lstmcli.model.model_check import GROUP, write_check

            write_check(file.create_group(GROUP), check)
        file.flush()
        return bytes(file.id.get_file_image())


def save_model(model: Model, path: Path, overwrite: bool = False, check: "Check | None" = None) -> None:
    """Writes a model file, whole or not at all. Raises OutputError, StorageError."""
    write_whole(path, [model_image(model, check)], overwrite)


def load_model(path: str) -> Model:
    """Returns the LSTMs of a model file or of a result that hold no more. Raises MissingInputError, DataError."""
    with undamaged(path) as file:
        return model_in(file)


@contextmanager
def undamaged(path: str) -> Iterator[Any]:
    """Opens a file whose structure libhdf5 can follow, and whose checksums, if it has any, are right but for values.

    Raises MissingInputError, DataError.
    """
    with hdf5.open_file(str(path)) as file:
        where = hdf5.label(file).removesuffix("::/")
        data = FileBytes(file.id.get_vfd_handle(), where)
        hdf5_safety.check_heaps(data.take, min(data.opened.st_size, SEARCHED), where)
        if hdf5_safety.find(file, hdf5.CONTAINER) is not None:
            from lstmcli.model.result_container import check_container  # a model file has no checksums

            check_container(file, data)
        yield file


def model_in(file: Any) -> Model:
    """Returns the LSTMs of an open h5py.File whose structure is known to be undamaged. Raises DataError."""
    check_format(file)
    return as_root(read_tree(file, "model", 0))


def check_format(file: Any) -> None:
    """Raises DataError for a file that is neither a model file nor a result, or of another version."""
    where = hdf5.label(file).removesuffix("::/")
    got, version = (hdf5.attribute(file, name) for name in ("format", "format_version"))
    if not isinstance(got, str) or got not in (FORMAT, RESULT_FORMAT):
        raise DataError(
            f"{where}: expected a model file (attribute format = {FORMAT!r}) or a result of a run, "
            f"got {'no such attribute' if got is None else f'format {got!r}'}"
        )
    expected = FORMAT_VERSION if got == FORMAT else RESULT_VERSION
    if not isinstance(version, int | np.integer) or version != expected:
        raise DataError(f"{where}: expected format_version {expected}, got {version}; a newer lstmcli may read it")


def is_chain(group: Any) -> bool:
    """Says whether the group /model of a file, if there is one, holds a whole model, which chain_file reads."""
    return group is not None and has(group, "kind") and attribute(group, "kind", str) == CHAIN


def read_tree(parent: Any, name: str, depth: int) -> Model:
    group = hdf5_safety.find(parent, name)
    if group is None or not hasattr(group, "keys"):
        raise DataError(f"{hdf5.label(parent).rstrip('/')}/{name}: expected a group of the model tree, got none")
    where = hdf5.label(group)
    if depth > MAX_DEPTH:
        raise DataError(f"{where}: the tree is more than {MAX_DEPTH} levels deep")

    def child(name: str) -> Model:
        return read_tree(group, name, depth + 1)

    kind = attribute(group, "kind", str)
    try:
        if kind == "cell":
            return read_cell(group)
        if kind == "stack":
            with hdf5.reading(where):
                names = [str(k) for k in range(len(group))]
            return Stack(tuple(child(name) for name in names))
        if kind == "bidirectional":
            return Bidirectional(child("forward"), child("backward"), attribute(group, "merge", str, "concat"))
        if kind == "reverse":
            return Reverse(child("inner"))
        if kind == "residual":
            return Residual(child("inner"))
    except DataError as error:
        if str(error).startswith(shown(group.file.filename)):
            raise
        raise DataError(f"{where}: {error}") from error
    raise DataError(f"{where}: expected kind stack, bidirectional, reverse, residual or cell, got {kind!r}")


def read_cell(group: Any) -> Cell:
    order = attribute(group, "gate_order", str, GATE_ORDER)
    if order != GATE_ORDER:
        raise DataError(f"expected gate_order {GATE_ORDER!r}, got {order!r}")
    optional: dict[str, Any] = {
        name: read_weight(group, name) for name in OPTIONAL_WEIGHTS if hdf5_safety.find(group, name) is not None
    }
    clips = ("cell_clip", "projection_clip", "gate_clip")
    optional |= {name: attribute(group, name, float) for name in clips if has(group, name)}
    cell = Cell(
        read_weight(group, "input_kernel"),
        read_weight(group, "recurrent_kernel"),
        activation=attribute(group, "activation", str, "tanh"),
        recurrent_activation=attribute(group, "recurrent_activation", str, "sigmoid"),
        # No default: TensorFlow's is 1, all others' is 0, and the wrong one gives wrong numbers without a sign of it.
        forget_bias=attribute(group, "forget_bias", float),
        input_forget=attribute(group, "input_forget", bool, default=False),
        **optional,
    )
    if (units := attribute(group, "units", int, cell.units)) != cell.units:
        raise DataError(f"units is {units}, but input_kernel {cell.input_kernel.shape} has 4 * {cell.units} columns")
    return cell


def read_weight(group: Any, name: str) -> Any:
    item = hdf5_safety.dataset(group, name)
    dtype = hdf5.dtype_of(item)
    if not is_float(dtype) or item.ndim > 3:
        raise DataError(f"{hdf5.label(item)}: expected float32 or float64 of rank 1 to 3, got {dtype} {item.shape}")
    if item.size * dtype.itemsize > MAX_WEIGHT:
        raise DataError(f"{hdf5.label(item)}: {item.shape} is larger than this program takes for weights ({MAX_WEIGHT} bytes)")
    weight = np.ascontiguousarray(hdf5.read_array(item), dtype.newbyteorder("="))
    weight.flags.writeable = False  # so that the cell need not copy it
    return weight


def has(group: Any, name: str) -> bool:
    with hdf5.reading(hdf5.label(group)):
        return name in group.attrs


def attribute(group: Any, name: str, kind: type[Value], default: Value | None = None) -> Value:
    """Returns a scalar attribute. Raises DataError if it is missing (and has no default) or is not of this kind."""
    where = f"{hdf5.label(group)}, attribute {name}"
    if not has(group, name):
        if default is None:
            raise DataError(f"{where}: expected {kind.__name__}, got none")
        return default
    value = hdf5.attribute(group, name)
    with hdf5.reading(where):
        value = value.decode() if isinstance(value, bytes) else value  # a C program's string of fixed length
    accepted = {str: str, int: int | np.integer, float: int | float | np.integer | np.floating, bool: np.bool_}[kind]
    if not isinstance(value, accepted):
        raise DataError(f"{where}: expected {kind.__name__}, got {value!r}")
    return kind(value)
