"""The ids of sequences, as a file says them beside the sequences or in them.

Strings in a dataset or an array `ids` or `keys` must differ. Names, texts and numbers that repeat are no ids but something
else, such as the speaker of each sequence, and are left alone.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.npy import NpyArray
from lstmcli.files.positioned_file import FileBytes

SURE = ("ids", "keys")


class Candidate(NamedTuple):
    """What may be the ids of the sequences."""

    where: str
    ids: list[str]
    sure: bool  # that they are meant as ids


class Found(NamedTuple):
    """The ids of sequences, where there are some."""

    ids: list[str] | None = None
    where: str | None = None
    note: str | None = None  # why what looks like ids is none


def ids_in(file: Any, paths: Iterable[str], batch: int, follow_links: bool = False) -> Found:
    """Reads the ids of `batch` sequences from the first of these datasets of an h5py.File that can be ids.

    Raises DataError where they are damaged, or two of them are the same.
    """
    return first_that_differ(candidates_in(file, paths, batch, follow_links))


def ids_in_npz(file: FileBytes, names: Iterable[str], batch: int) -> Found:
    """Reads ids as ids_in() does, from the first of these arrays of an NPZ."""
    return first_that_differ(candidates_in_npz(file, names, batch))


def first_that_differ(candidates: Iterable[Candidate]) -> Found:
    """Returns the first ids that are all different. Raises DataError where those that are surely meant as ids are not."""
    note = None
    for where, ids, sure in candidates:
        if len(set(ids)) < len(ids) and not sure:
            same = next(name for name, count in Counter(ids).items() if count > 1)
            note = note or f"{where}: holds {shown(same)} more than once, so it is not taken for the ids of sequences"
            continue
        check_ids(ids, where)
        return Found(ids, where)
    return Found(note=note)


def candidates_in(file: Any, paths: Iterable[str], batch: int, follow_links: bool) -> Iterator[Candidate]:
    for path in paths:
        dataset = hdf5_safety.find(file, path, follow_links)
        if getattr(dataset, "shape", None) == (batch,) and may_be_ids(dataset):
            ids = strings_of(hdf5_safety.dataset(file, path, follow_links))
            yield Candidate(hdf5.label(dataset), ids, path.rpartition("/")[2] in SURE and dataset.dtype.kind not in "iu")


def candidates_in_npz(file: FileBytes, names: Iterable[str], batch: int) -> Iterator[Candidate]:
    from lstmcli.files.zip_reader import NpzMember, npz_forms, npz_names

    held = npz_names(file)
    present = [name for name in names if name in held]
    forms = npz_forms(file) if present else {}
    for name in present:
        shape, dtype = forms.get(name, ((), None))
        if dtype is None or shape != (batch,) or dtype.kind not in "iuSU":
            continue
        data = NpzMember(file, held, name)
        array = NpyArray(data.fetch, data.name)
        array.check_size(data.size)
        values = array.rows(0, batch)
        if dtype.kind == "U" and values.view(f"{dtype.byteorder}u4").max(initial=0) > sys.maxunicode:
            raise DataError(f"{data.name}: damaged: expected texts, got numbers that are no characters")
        is_text = dtype.kind in "SU"
        ids = [as_id(value) if is_text else str(value) for value in values.tolist()]
        yield Candidate(data.name, ids, name in SURE and is_text)


def may_be_ids(item: Any) -> bool:
    """Says whether a dataset holds strings or whole numbers."""
    import h5py

    dtype = hdf5.entry_of("", item).dtype
    return dtype is not None and (dtype.kind in "iu" or h5py.check_string_dtype(dtype) is not None)


def strings_of(item: Any) -> list[str]:
    """Returns the strings, or the whole numbers as text, of a dataset (N,). Raises DataError where some were never written."""
    where = hdf5.label(item)
    with hdf5.reading(where):
        if hdf5.raw_offset(item) is None and hdf5.written_chunks(item) is not None:
            raise DataError(f"{where}: some of its chunks were never written; was its writer stopped?")
        if item.dtype.kind in "iu":
            return [str(number) for number in item[:].tolist()]
    from lstmcli.files.hdf5_bytes.texts import read_texts

    return read_texts(item)


def as_id(name: str | bytes) -> str:
    """Returns a name as a text that every file can hold: bytes that are no UTF-8, and lone surrogates, are escaped."""
    if isinstance(name, bytes):
        return name.decode("utf-8", "backslashreplace")
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def check_ids(ids: Sequence[str], where: str) -> None:
    """Raises DataError where two ids are the same, or one holds a NUL, which no string in HDF5 can."""
    if len(set(ids)) < len(ids):
        rows: dict[str, int] = {}
        for row, name in enumerate(ids):
            if (first := rows.setdefault(name, row)) != row:
                raise DataError(
                    f"{where}: sequences {first} and {row} have the same id, {shown(name)}; ids must differ: give each "
                    "sequence its own, or call them something else"
                )
    if bad := next((name for name in ids if "\0" in name), None):
        raise DataError(f"{where}: the id {shown(bad)} holds a NUL character; rename it")


def check_order(ids: Sequence[str], of_input: Sequence[str], where: str) -> None:
    """Raises DataError where what lies in `where` for each sequence bears the ids of the input in another order."""
    if len(ids) == len(of_input) and set(ids) == set(of_input):
        for row, (got, expected) in enumerate(zip(ids, of_input, strict=True)):
            if got != expected:
                raise DataError(
                    f"{where}, row {row}: expected the id {shown(expected)}, which that sequence of the input has, got "
                    f"{shown(got)}; put the rows into the order of the input"
                )


def rows_by_id(wanted: Iterable[str], ids: Sequence[str], where: str) -> list[int]:
    """Returns the row of each wanted id among `ids`. Raises DataError for the first that is not there."""
    rows = {name: row for row, name in enumerate(ids)}
    wanted = list(wanted)
    try:
        return [rows[name] for name in wanted]
    except KeyError as error:
        absent = [name for name in wanted if name not in rows]
        raise DataError(
            f"{where}: has no {shown(absent[0])}, sequence {wanted.index(absent[0])} of the input; ids like that: "
            f"{len(absent)} of {len(wanted)}"
        ) from error
