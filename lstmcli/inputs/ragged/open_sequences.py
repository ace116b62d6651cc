"""What --input names, opened: a ragged input, whose sequences lie without padding, or else a padded one."""

import posixpath
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from lstmcli.blocks import Lengths
from lstmcli.errors import DataError, UsageError
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import FileKind, open_by_kind, split_spec
from lstmcli.files.npy import NpyArray
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.open_input import open_source, source_of
from lstmcli.inputs.source import Source, StoredArray
from lstmcli.inputs.valid_steps import LENGTHS

IDS = ("ids", "keys", "names", "texts")  # of datasets beside an input; the first that can be ids counts

# What reads ragged inputs is imported inside functions, so that a padded one does not load it.


def open_sequences(
    spec: str,
    lens: str | None = None,
    offsets: str | None = None,
    axes: str = "NTE",
    follow_links: bool = False,
    token_ids: bool = False,
) -> Source:
    """Opens the input that `spec` names, as open_source() does, or a ragged one, which has its `lengths`.

    Ragged are: a float array (R, E) in NPY, NPZ or HDF5, with `offsets`, or `lens` that add up to R, or one of them beside it
    in an HDF5 file; and an HDF5 group whose float datasets are (L, E) each.
    """
    path, name = split_spec(spec)
    may_be_ragged = path != "-" and Path(path).is_file()  # a pipe may be opened only once
    found = None
    if offsets is None:
        try:
            return with_ids(open_source(spec, axes, follow_links, token_ids), follow_links)
        except DataError:  # most inputs are padded, so that is looked for first
            found = _open_ragged(path, name, lens, offsets) if may_be_ragged else None
            if not found:
                raise
    elif may_be_ragged:
        found = _open_ragged(path, name, lens, offsets)
    if not found:
        raise UsageError(f"--offsets {offsets}: expected a flat input, floats (rows, features); {spec} is another one")
    if axes != "NTE":
        found.close()
        raise UsageError(f"--axes {axes}: {found.name} is ragged, (steps, features) for each sequence; leave it out")
    return with_ids(found, follow_links)


def with_ids(source: Source, follow_links: bool = False) -> Source:
    """Adds the ids that lie beside an HDF5 dataset. Closes the source, and raises DataError, where they are damaged."""
    if source.ids is None and source.dataset is not None:
        try:
            if paths := hdf5_safety.beside(source.dataset, IDS, follow_links):
                from lstmcli.inputs.beside.ids import ids_in

                source.ids, source.ids_origin = ids_in(source.dataset.file, paths, source.shape[0], follow_links)
        except BaseException:
            source.close()
            raise
    return source


def _open_ragged(path: str, name: str | None, lens: str | None, offsets: str | None) -> Source | None:
    """Opens a file as a ragged input; None: it is none."""
    with ExitStack() as failed:
        files = failed.enter_context(ExitStack())
        data, kind = files.enter_context(open_by_kind(path))
        source = None
        if kind is FileKind.HDF5:
            source = _in_hdf5(files.enter_context(hdf5.open_file(path)), name, lens, offsets, files)
        elif kind is FileKind.NPY or (kind is FileKind.ZIP and name):
            source = _in_npy(data, kind, name, lens, offsets, files)
        if source:
            failed.pop_all()
    return source


def _in_npy(
    file: FileBytes, kind: FileKind, name: str | None, lens: str | None, offsets: str | None, files: ExitStack
) -> Source | None:
    if lens in (None, "none") and offsets is None:
        return None
    size, data = file.opened.st_size, file
    if kind is FileKind.ZIP:
        from lstmcli.files.zip_reader import NpzMember, npz_names  # loading zipfile takes 10 ms

        data = member = NpzMember(file, npz_names(file), str(name).lstrip("/"))
        size = member.size
    elif name is not None:
        return None
    array = NpyArray(data.fetch, data.name)
    if len(array.shape) != 2 or array.dtype.kind != "f":
        return None
    array.check_size(size)
    stored = StoredArray(data, data.name, array.shape, array.dtype, array.offset, fortran=array.fortran)
    return _flat(stored, lens, offsets, None, files)


def _in_hdf5(file: Any, name: str | None, lens: str | None, offsets: str | None, files: ExitStack) -> Source | None:
    import h5py

    item = file
    if name:
        try:
            item = hdf5_safety.find(file, name)
        except DataError:
            return None  # a link, which open_source may follow
    if isinstance(item, h5py.Dataset):
        dtype = hdf5.entry_of(name or "", item).dtype
        if item.ndim != 2 or dtype is None or dtype.kind != "f":
            return None
        group, names = item.parent, [posixpath.basename(item.name)]
    elif item is None or not _may_be_ragged(item, bool(name)):
        return None
    else:
        from lstmcli.inputs.ragged.datasets import sequence_names

        group, names = item, sequence_names(item)
    only = hdf5_safety.dataset(group, names[0])
    if len(names) == 1 and only.ndim == 2:
        beside = _beside(only)
        if lens not in (None, "none") or offsets is not None or beside:
            stored = StoredArray(
                FileBytes(file.id.get_vfd_handle(), hdf5.label(only)),
                hdf5.label(only),
                only.shape,
                hdf5.dtype_of(only),
                hdf5.raw_offset(only),
                dataset=only,
            )
            return _flat(stored, lens, offsets, beside, files)
        if item is file or item == only:
            return None  # a lone array (N, E) that nothing divides is more likely a mistake than a single sequence
    if lens not in (None, "none") or offsets is not None:
        option = "--offsets" if offsets is not None else "--lens"
        raise UsageError(f"{option}: {hdf5.label(group)} has a dataset for each sequence, which says its length; leave it out")
    from lstmcli.inputs.ragged.datasets import SequenceDatasets

    return SequenceDatasets(group, names, files)


def _may_be_ragged(group: Any, named: bool) -> bool:
    """Says whether float datasets of rank 2 are what a group holds: no other ones, or in a file that no name was given for no
    others than rows of the same width."""
    shapes = [e.shape for e in hdf5.entries(group) if e.dtype is not None and e.dtype.kind == "f" and e.shape]
    ranks = {len(shape) for shape in shapes}
    if 2 not in ranks or max(ranks) > 2:
        return False
    return named or ranks == {2} or len({shape[-1] for shape in shapes}) == 1


def _beside(item: Any) -> Any:
    """Returns the dataset beside a flat one that says where its sequences begin or end, or None."""
    for name in ("offsets", "idptr", *LENGTHS):
        if (found := hdf5_safety.find(item.parent, name)) is not None:
            return found
    return None


def _flat(array: StoredArray, lens: str | None, offsets: str | None, beside: Any, files: ExitStack) -> Source:
    from lstmcli.inputs.ragged.flat import FlatSequences, from_lengths, from_offsets, from_starts
    from lstmcli.inputs.ragged.numbers import numbers_of, read_numbers

    rows, width = array.shape
    where = array.name
    if not width:
        raise DataError(f"{where}: expected at least one feature, got shape {array.shape}")
    lengths: Lengths | None = None
    told = origin = ""
    if lens not in (None, "none"):
        lengths, origin = read_numbers(str(lens), "--lens")
    if offsets is not None:
        values, told = read_numbers(offsets, "--offsets")
    elif lengths is None:
        dataset = hdf5_safety.dataset(beside.parent, posixpath.basename(beside.name))
        values, told = numbers_of(hdf5.DatasetRows(dataset))
        kind = posixpath.basename(dataset.name)
        if kind in LENGTHS:
            lengths, origin, told = values, told, ""
        elif kind == "idptr":
            values = np.r_[0, values]
        elif (more := _lengths_of(dataset, len(values))) is not None:
            lengths, origin = more
    if lengths is None:
        begins, lengths = from_offsets(values, rows, told, where)
        origin = told
    elif told:
        begins = from_starts(values, lengths, rows, told, where)
    else:
        begins = from_lengths(lengths, array.shape, origin, where)
    inner = source_of(array._replace(shape=(rows, width, 1)), ExitStack())
    return FlatSequences(inner, begins, lengths, origin, files)


def _lengths_of(offsets: Any, count: int) -> tuple[Lengths, str] | None:
    """Returns the lengths beside a dataset of starts, if there are as many as starts: then they are no offsets (N + 1,)."""
    for name in LENGTHS:
        found = hdf5_safety.find(offsets.parent, name)
        if found is not None and found.shape == (count,):
            from lstmcli.inputs.ragged.numbers import numbers_of

            return numbers_of(hdf5.DatasetRows(hdf5_safety.dataset(offsets.parent, name)))
    return None
