"""Sequences in another layout or format, with the same values, in bounded memory. A result stays a result."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Span, Valid
from lstmcli.errors import DataError, UsageError, shown
from lstmcli.files import hdf5
from lstmcli.files.file_kind import split_spec
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.inputs.source import Source
from lstmcli.inputs.valid_steps import read_valid_steps
from lstmcli.model.chain_file import any_model_in
from lstmcli.results.checked_result import CheckedResult, open_result
from lstmcli.results.formats.fields import FLAT, PADDED, PER_SEQUENCE, Arrays
from lstmcli.results.formats.hdf5_result import Hdf5Result
from lstmcli.results.formats.paths import HDF5, Paths, check_paths, refuse_inputs
from lstmcli.results.formats.per_sequence import check_names
from lstmcli.results.formats.result import Metadata, Result
from lstmcli.results.naming import check_left_overs
from lstmcli.run.memory import Limits, cut_into_spans
from lstmcli.tools.converted_files import ARROW, NAME, ArrowTable, CompressedHdf5, NpyArrays, NpzArrays, PlainHdf5, Target
from lstmcli.tools.sequences import open_floats_or_ids
from lstmcli.tools.what_is import What, what_is

ORDER = "outputs", "cells", "layers", "predictions", "pooled", "state", "forward", "backward", "c", "h"  # parts of names
BLOCK_BYTES, SEQUENCES = 32_000_000, 100_000  # that are read at a time


def convert(
    a: str,
    b: str,
    layout: str | None = None,
    compress: str | None = None,
    overwrite: bool = False,
    lens: str | None = None,
    offsets: str | None = None,
    padding: str | None = None,
) -> dict[str, Any]:
    """Writes the sequences of a file into another one. Returns the facts, ready for JSON. Raises LstmcliError.

    layout: one of LAYOUTS; None: that of the input. compress: gzip, in HDF5. lens, offsets, padding: as a run takes them.
    """
    path, suffix = Path(b), Path(b).suffix
    if suffix not in (*HDF5, ".npy", ".npz", *ARROW):
        raise UsageError(f"{b}: expected a name that ends in .h5, .hdf5, .npy, .npz, .parquet or .arrow")
    if compress and suffix not in HDF5:
        raise UsageError(f"--compress {compress}: is for HDF5; use a name that ends in .h5")
    if layout and suffix in ARROW:
        raise UsageError(f"--layout {layout}: a table has a row for each sequence; leave it out")
    refuse_inputs(Paths(path), (a, lens, offsets))
    check_paths(Paths(path), overwrite, resume=False)
    if not overwrite:
        check_left_overs(Paths(path))
    name = split_spec(a)[1]
    if a != "-" and name is None and what_is(a) is What.RESULT:
        if suffix in HDF5:
            if compress:
                raise UsageError(
                    f"--compress {compress}: a result lies in one piece, as its checksums need; convert {a}::/outputs, which "
                    "makes an input of it"
                )
            return convert_result(a, path, layout, overwrite)
        a = f"{a}::/{main_array(a)}"
    return convert_data(a, path, layout, compress, overwrite, lens, offsets, padding)


def main_array(path: str) -> str:
    with open_result(path) as whole:
        for name in ("outputs", "predictions"):
            if name in whole.fields and whole.fields[name].has_steps:
                return name
    raise DataError(f"{shown(path)}: holds no steps, and so no sequences to convert")


def convert_result(a: str, path: Path, layout: str | None, overwrite: bool) -> dict[str, Any]:
    """Makes the same result in another layout. Every row is compared with its checksum."""
    with open_result(a) as whole:
        has_steps = any(field.has_steps for field in whole.fields.values())
        layout = (layout or whole.layout) if has_steps else PADDED
        metadata = metadata_in(whole, layout, a)
        longest = int((whole.valid.starts + whole.valid.lengths).max(initial=0))
        arrays: Arrays = {}
        for name, field in whole.fields.items():
            shape = field.shape
            if field.has_steps and whole.layout != PADDED:  # which does not say how many steps its padding had
                shape = (shape[0], longest, shape[2])
            arrays[name] = shape, field.dtype
        arrays = dict(sorted(arrays.items(), key=lambda item: place_in_run(item[0])))
        row = sum(shape[2] * dtype.itemsize for shape, dtype in arrays.values() if len(shape) == 3)
        result = Hdf5Result(path, arrays, metadata, overwrite, resume=False)
        with writing(result):
            limits = Limits(max(1, BLOCK_BYTES // max(1, row)), SEQUENCES, fill=1)
            for span in cut_into_spans(whole.valid.lengths, limits, (1, 1)):
                valid = span.valid(whole.placed)
                result.put(span, {name: field.get(span.first, valid) for name, field in whole.fields.items()})
                if span.last:
                    check_sums(a, span, whole, result)
            result.seal(metadata.nonfinite)
    shapes = {name: metadata.stored_shape(shape) for name, (shape, _) in arrays.items()}
    return facts(a, path, layout, whole.valid, shapes, [])


def place_in_run(name: str) -> list[int]:
    """Returns what sorts the arrays of a result as a run lays them out: layer 2 before 10, forward before backward."""
    return [int(part) if part.isdecimal() else ORDER.index(part) if part in ORDER else len(ORDER) for part in name.split("/")]


def metadata_in(whole: CheckedResult, layout: str, a: str) -> Metadata:
    """Returns what a result says besides its arrays, as it says it in another layout."""
    attrs = whole.file.attrs
    texts = {name: json.loads(value) for name, value in attrs.items() if isinstance(value, str) and name != "format"}
    options = {name: value for name, value in texts.get("options", {}).items() if name != "layout"}
    if layout != PADDED:
        first = {name: options.pop(name) for name in ("dtype", "save") if name in options}
        options = first | {"layout": layout} | options
    nonfinite = None
    if "nonfinite_steps" in attrs:
        nonfinite = Nonfinite(int(attrs["nonfinite_steps"]), *attrs["nonfinite_first"].tolist())
    ids = whole.ids
    numbers = numbered(len(whole.valid.lengths))
    if ids == numbers and whole.layout == PER_SEQUENCE:  # which names sequences without ids so
        ids = None
    if layout == PER_SEQUENCE:
        ids = numbers if ids is None else ids
        check_names(ids, f"{shown(a)}::/ids")
    model = any_model_in(whole.file)
    order = ("model_config", "options", "versions", "assumed", "part", "input", "weights", "initial_state")  # that of a run
    attributes = {name: texts[name] for name in order if name in texts} | {"options": options}
    attributes |= {name: value for name, value in texts.items() if name not in order}
    return Metadata(model, whole.valid, attributes, nonfinite, ids=ids, layout=layout, windows=whole.windows)


def check_sums(a: str, span: Span, whole: CheckedResult, result: Result) -> None:
    """Raises DataError if the rows that were read are not those that the run has stored."""
    for name, found in result.running.items():
        wrong = np.flatnonzero(found != whole.sums[name][span.first : span.first + span.count])
        if len(wrong):
            row = span.first + wrong[0]
            raise DataError(f"{shown(a)}::/{name}, row {row}: its bytes are not what was written: their checksum differs")


def convert_data(
    a: str,
    path: Path,
    layout: str | None,
    compress: str | None,
    overwrite: bool,
    lens: str | None,
    offsets: str | None,
    padding: str | None,
) -> dict[str, Any]:
    """Writes the sequences of an input, without padding or with it behind each."""
    with ExitStack() as opened:
        source = opened.enter_context(closing(open_floats_or_ids(a, lens, offsets)))
        valid = read_valid_steps(lens, padding, source).valid
        lengths = valid.lengths
        layout = layout or (PADDED if source.lengths is None else FLAT)
        ids = source.ids
        if layout == PER_SEQUENCE or path.suffix in ARROW:
            ids = numbered(len(lengths)) if ids is None else ids
        if layout == PER_SEQUENCE and ids is not None:
            check_names(ids, source.ids_origin or source.name)
        dtype = source.dtype.newbyteorder("=") if source.token_ids else source.exact_dtype
        target = Target(path, layout, source.shape, dtype, lengths, ids, overwrite, source.token_ids)
        result = writer(target, compress)
        with writing(result):
            for span, rows in blocks(source, valid, whole=path.suffix in ARROW):
                result.put(span, {NAME: rows})
            source.finish()
            result.seal(None)
        lost = path.suffix == ".npy" and ids is not None
        notes = ["an NPY file holds no ids, and they are left out; .h5 and .npz hold them"] if lost else []
        return facts(a, path, layout, valid, {NAME: target.stored_shape}, notes)


def writer(target: Target, compress: str | None) -> Result:
    """Makes the file."""
    suffix = target.path.suffix
    if suffix in ARROW:
        return ArrowTable(target)
    if suffix in HDF5:
        return CompressedHdf5(target) if compress else PlainHdf5(target)
    return NpzArrays(target) if suffix == ".npz" else NpyArrays(target)


def blocks(source: Source, valid: Valid, whole: bool) -> Iterator[tuple[Span, NDArray[Any]]]:
    """Yields spans with their packed rows. whole: no sequence is cut in time, however long it is."""
    kind = np.dtype(np.int64 if source.token_ids else np.float64 if source.dtype.itemsize == 8 else np.float32)
    rows = max(1, BLOCK_BYTES // (source.shape[2] * kind.itemsize))
    if whole:
        rows = max(rows, int(valid.lengths.max(initial=0)))
    buffer: NDArray[Any] = np.empty((min(rows, int(valid.lengths.sum())), source.shape[2]), kind)
    for span in cut_into_spans(valid.lengths, Limits(rows, SEQUENCES, fill=1), source.chunk):
        starts, steps = span.valid(valid)
        packed = buffer[: steps.sum()]
        source.read(span.first, starts, steps, packed)
        yield span, packed


@contextmanager
def writing(result: Result) -> Iterator[None]:
    """Gives a file its name when the body has completed it, and leaves nothing of it otherwise."""
    try:
        yield
        result.publish()
    except BaseException:
        result.discard()
        raise
    result.close()


def facts(
    a: str, path: Path, layout: str, valid: Valid, shapes: dict[str, tuple[int, ...]], notes: list[str]
) -> dict[str, Any]:
    """Returns the facts of a conversion, ready for JSON."""
    return {
        "input": a,
        "output": str(path),
        "layout": layout,
        "sequences": len(valid.lengths),
        "steps": int(valid.lengths.sum()),
        "arrays": {name: list(shape) for name, shape in shapes.items()},
        "notes": [*notes, *hdf5.notes_on_locks()],
    }


def numbered(count: int) -> list[str]:
    return [str(row) for row in range(count)]
