"""What --input names, opened: a ragged input, whose sequences lie without padding, or else a padded one."""

import posixpath
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmcli.blocks import Lengths, holds_floats
from lstmcli.errors import DataError, UsageError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import FileKind, is_several, open_by_kind, split_spec
from lstmcli.files.npy import NpyArray
from lstmcli.files.positioned_file import FileBytes, is_file
from lstmcli.inputs.open_input import open_source, source_of
from lstmcli.inputs.source import Source, StoredArray
from lstmcli.inputs.valid_steps import IDS, LENGTHS

if TYPE_CHECKING:
    from lstmcli.inputs.beside.ids import Found

# What reads ragged inputs is imported inside functions, so that a padded one does not load it.


def open_sequences(
    spec: str,
    lens: str | None = None,
    offsets: str | None = None,
    axes: str = "NTE",
    follow_links: bool = False,
    token_ids: bool = False,
    also: tuple[str, ...] = (),
) -> Source:
    """Opens the input that `spec` names, as open_source() does, or a ragged one, which has its `lengths`.

    Ragged are: an array (R, E) in NPY, NPZ or HDF5, with `offsets`, or `lens` that add up to R, or one of them beside it in an
    HDF5 file, or nothing, which makes one sequence of it; an array (L, E) for each sequence in HDF5, NPZ, safetensors or what
    torch.save() wrote; and several such files: a folder, a pattern, @ and a list, or `also`. token_ids: integers, (L,) each.
    """
    path, name = split_spec(spec)
    found = None
    if also or is_several(path):
        found = _open_several((path, *also), name, token_ids)
    elif offsets is None:
        try:
            return with_ids(open_source(spec, axes, follow_links, token_ids), follow_links)
        except DataError:  # most inputs are padded, so that is looked for first
            ragged = _is_file(path) and axes == "NTE"
            found = _open_ragged(path, name, lens, offsets, token_ids, follow_links) if ragged else None
            if not found:
                raise
    elif _is_file(path):
        found = _open_ragged(path, name, lens, offsets, token_ids, follow_links)
    with ExitStack() as failed:
        if found:
            failed.callback(found.close)
        if offsets is not None and not isinstance(getattr(found, "flat", None), Source):
            raise UsageError(f"--offsets {offsets}: expected a flat input, floats (rows, features); {spec} is another one")
        assert found
        if axes != "NTE":
            raise UsageError(f"--axes {axes}: {found.name} is ragged, (steps, features) for each sequence; leave it out")
        with_ids(found, follow_links)
        if lens not in (None, "none"):
            _check_lengths(found, str(lens), follow_links)
        failed.pop_all()
    return found


def _is_file(path: str) -> bool:
    return path != "-" and is_file(path)  # a pipe may be opened only once


def _check_lengths(source: Source, lens: str, follow_links: bool) -> None:
    """Raises DataError unless --lens says the lengths that a ragged input has anyway, in the order of its ids."""
    from lstmcli.inputs.beside.ids import check_order
    from lstmcli.inputs.ragged.flat import read_numbers

    ids: list[str] = []
    lengths, origin = read_numbers(lens, "--lens", ids, follow_links)
    assert source.lengths is not None
    check_order(ids, source.ids or (), origin)
    if len(lengths) != len(source.lengths):
        raise DataError(f"{origin}: expected {len(source.lengths)} lengths, those of {source.name}, got {len(lengths)}")
    if (wrong := np.flatnonzero(lengths != source.lengths)).size:
        row = int(wrong[0])
        raise DataError(
            f"{origin}, row {row}: expected {source.lengths[row]}, the steps of {source.sequence(row)} in {source.name}, got "
            f"{lengths[row]}"
        )


def with_ids(source: Source, follow_links: bool = False) -> Source:
    """Adds the ids beside an array in HDF5 or an NPZ. Closes the source, and raises DataError, where they are damaged."""
    if source.ids is None:
        try:
            if found := _ids_beside(source, follow_links):
                source.ids, source.ids_origin, note = found
                source.notes += (note,) if note else ()
        except BaseException:
            source.close()
            raise
    return source


def _ids_beside(source: Source, follow_links: bool) -> "Found | None":
    if source.dataset is not None and (paths := hdf5_safety.beside(source.dataset, IDS, follow_links)):
        from lstmcli.inputs.beside.ids import ids_in

        return ids_in(source.dataset.file, paths, source.shape[0], follow_links)
    if source.archive is not None:
        from lstmcli.files.zip_reader import npz_names

        held = npz_names(source.archive)
        if names := [name for name in IDS if name in held]:
            from lstmcli.inputs.beside.ids import ids_in_npz

            return ids_in_npz(source.archive, names, source.shape[0])
    return None


def _open_several(paths: tuple[str, ...], name: str | None, token_ids: bool) -> Source:
    from lstmcli.inputs.ragged.placed import PlacedSequences
    from lstmcli.inputs.ragged.several_files import in_several_files

    with ExitStack() as failed:
        files = failed.enter_context(ExitStack())
        source = PlacedSequences(in_several_files(paths, name, token_ids, files), files)
        failed.pop_all()
    return source


def _open_ragged(
    path: str, name: str | None, lens: str | None, offsets: str | None, token_ids: bool, follow: bool
) -> Source | None:
    """Opens a file as a ragged input; None: it is none."""
    with ExitStack() as failed:
        files = failed.enter_context(ExitStack())
        data, kind = files.enter_context(open_by_kind(path))
        divided = lens not in (None, "none") or offsets is not None
        source = None
        if kind is FileKind.ZIP and not divided:
            name, lens, offsets = _flat_in_npz(data, path, name, token_ids) or (name, lens, offsets)
            divided = lens not in (None, "none") or offsets is not None
        if kind is FileKind.HDF5:
            file = files.enter_context(hdf5.open_file(path))
            source = _in_hdf5(file, name, lens, offsets, token_ids, follow, files)
        elif divided and (kind is FileKind.NPY or (kind is FileKind.ZIP and name)):
            source = _in_npy(data, kind, name, lens, offsets, token_ids, follow, files)
        if source is None and kind is not FileKind.HDF5:
            from lstmcli.inputs.ragged.placed import PlacedSequences
            from lstmcli.inputs.ragged.several_files import in_one_file

            found = in_one_file(data, path, kind, name, token_ids, files)
            source = PlacedSequences(found, files) if found else None
        if source:
            failed.pop_all()
    return source


def _flat_in_npz(file: FileBytes, path: str, name: str | None, token_ids: bool) -> tuple[str, str | None, str | None] | None:
    """Returns the name of the only array of rows in an NPZ, and --lens and --offsets out of what says lengths beside it."""
    from lstmcli.files.zip_reader import npz_forms

    forms = npz_forms(file)
    told = [next((each for each in names if each in forms), None) for names in (LENGTHS, ("offsets",))]
    others = [one for one in forms if one not in (*LENGTHS, "offsets", *IDS) and name in (None, f"/{one}")]
    rows = [one for one in others if _are_rows(*forms[one], token_ids)]
    if len(rows) != 1 or not any(told):
        return None
    lens, offsets = (each and f"{path}::{each}" for each in told)
    return rows[0], lens, offsets


def _in_npy(
    file: FileBytes,
    kind: FileKind,
    name: str | None,
    lens: str | None,
    offsets: str | None,
    token_ids: bool,
    follow: bool,
    files: ExitStack,
) -> Source | None:
    size, data = file.opened.st_size, file
    if kind is FileKind.ZIP:
        from lstmcli.files.zip_reader import NpzMember, npz_names  # loading zipfile takes 10 ms

        data = member = NpzMember(file, npz_names(file), str(name).lstrip("/"))
        size = member.size
    elif name is not None:
        return None
    array = NpyArray(data.fetch, data.name)
    if not _are_rows(array.shape, array.dtype, token_ids):
        return None
    array.check_size(size)
    stored = StoredArray(data, data.name, array.shape, array.dtype, array.offset, fortran=array.fortran)
    stored = stored._replace(archive=file if kind is FileKind.ZIP else None)
    return _flat(stored, lens, offsets, None, follow, files)


def _are_rows(shape: tuple[int, ...] | None, dtype: Any, token_ids: bool) -> bool:
    """Says whether an array can be the rows of sequences: floats (R, E), or token ids (R,)."""
    return dtype is not None and len(shape or ()) == (2 if holds_floats(dtype) else token_ids and dtype.kind in "iu") > 0


def _in_hdf5(
    file: Any, name: str | None, lens: str | None, offsets: str | None, token_ids: bool, follow: bool, files: ExitStack
) -> Source | None:
    import h5py

    from lstmcli.files.hdf5_bytes.list_datasets import Listed
    from lstmcli.inputs.ragged.datasets import below_ids, in_datasets, sequences_below
    from lstmcli.inputs.ragged.placed import PlacedSequences
    from lstmcli.model.model_file import FORMAT, RESULT_FORMAT

    item = file
    form = None if name else hdf5.attribute(file, "format")
    if form == FORMAT:
        raise DataError(f"{shown(file.filename)}: is a model file, for --weights; expected sequences")
    if form == RESULT_FORMAT and "outputs" in file:
        name = "/outputs"
    if name:
        try:
            item = hdf5_safety.find(file, name)
        except DataError:
            return None  # a link, which open_source may follow
    if isinstance(item, h5py.Dataset):
        entry = hdf5.entry_of(name or "", item)
        if not _are_rows(entry.shape, entry.dtype, token_ids):
            return None
        group, listed = item.parent, [Listed(posixpath.basename(item.name), item.shape, entry.dtype)]
    elif not isinstance(item, h5py.Group):
        return None
    else:
        group, listed = item, sequences_below(item, bool(name), token_ids)
        if not listed:
            return None
        if item.name == "/":
            group, listed = below_ids(file, listed)
    only = hdf5_safety.dataset(group, listed[0].name, follow and len(listed) == 1)
    if len(listed) == 1 and _are_rows(only.shape, hdf5.dtype_of(only), token_ids):
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
            return _flat(stored, lens, offsets, beside, follow, files)
    found = in_datasets(group, listed, token_ids)
    if len(listed) == 1 and (item is file or item == only):
        label = f"{hdf5.label(only)}: {only.shape}"
        found = found._replace(notes=(f"{label} is taken as one sequence; --lens or --offsets divides it into several",))
    return PlacedSequences(found, files)


def _beside(item: Any) -> Any:
    """Returns the dataset beside a flat one that says where its sequences begin or end, or None."""
    for name in ("offsets", "idptr", *LENGTHS):
        if (found := hdf5_safety.find(item.parent, name)) is not None:
            return found
    return None


def _flat(array: StoredArray, lens: str | None, offsets: str | None, beside: Any, follow: bool, files: ExitStack) -> Source:
    from lstmcli.inputs.ragged.flat import (
        FlatSequences,
        from_lengths,
        from_offsets,
        from_starts,
        numbers_of,
        read_numbers,
    )

    rows, width = (*array.shape, 1)[:2]  # token ids are a single number a step
    where = array.name
    if not width:
        raise DataError(f"{where}: expected at least one feature, got shape {array.shape}")
    lengths: Lengths | None = None
    told = origin = ""
    if lens not in (None, "none"):
        lengths, origin = read_numbers(str(lens), "--lens", follow_links=follow)
    if offsets is not None:
        values, told = read_numbers(offsets, "--offsets", follow_links=follow)
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
    token_ids = array.dtype.kind in "iu"
    inner = source_of(array._replace(shape=(rows, width, 1), token_ids=token_ids), ExitStack())
    return FlatSequences(inner, begins, lengths, origin, files)


def _lengths_of(offsets: Any, count: int) -> tuple[Lengths, str] | None:
    """Returns the lengths beside a dataset of starts, if there are as many as starts: then they are no offsets (N + 1,)."""
    for name in LENGTHS:
        found = hdf5_safety.find(offsets.parent, name)
        if found is not None and found.shape == (count,):
            from lstmcli.inputs.ragged.flat import numbers_of

            return numbers_of(hdf5.DatasetRows(hdf5_safety.dataset(offsets.parent, name)))
    return None
