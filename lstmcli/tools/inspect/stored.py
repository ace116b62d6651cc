"""How the arrays of a file are stored: shape, dtype, chunks, filters."""

from typing import Any, NamedTuple

from lstmcli.blocks import is_bfloat16
from lstmcli.files import hdf5
from lstmcli.files.hdf5_safety import BUILT_IN, FILTERS, PLUGINS

SHOWN = 20  # arrays of a file that are listed


class Listing(NamedTuple):
    """Some arrays of a file, and how many there are."""

    arrays: list[dict[str, Any]]
    total: int

    def facts(self) -> dict[str, Any]:
        return {"arrays": self.arrays, "arrays_in_file": self.total}


def hdf5_arrays(file: Any, left_out: tuple[str, ...] = ()) -> Listing:
    """Lists the datasets of an h5py.File, without those below the groups that are left out."""
    found = [entry for entry in hdf5.entries(file) if not entry.name.startswith(left_out or ("\0",))]
    listed = [stored(entry.name, entry.shape, entry.dtype, how_stored(file[entry.name])) for entry in found[:SHOWN]]
    return Listing(listed, len(found))


def stored(name: str, shape: tuple[int, ...] | None, dtype: Any, layout: str) -> dict[str, Any]:
    named = "bfloat16" if dtype is not None and is_bfloat16(dtype) else str(dtype)
    return {"name": name, "shape": None if shape is None else list(shape), "dtype": named, "layout": layout}


def how_stored(item: Any) -> str:
    """Returns in words how the values of an h5py.Dataset lie in its file."""
    import h5py

    with hdf5.reading(hdf5.label(item)):
        properties = item.id.get_create_plist()
        if item.is_virtual:
            return "virtual: its values lie in other files"
        if properties.get_external_count():
            return "its values lie in another file"
        if not item.chunks:
            return "compact" if properties.get_layout() == h5py.h5d.COMPACT else "contiguous"
        names = [filter_name(*properties.get_filter(k)[::2]) for k in range(properties.get_nfilters())]
    return ", ".join([f"chunks {item.chunks}", *names])


def filter_name(number: int, values: tuple[int, ...]) -> str:
    """Returns the name of a filter, with its level where it has one."""
    name = FILTERS.get(number) or BUILT_IN.get(number) or PLUGINS.get(number) or f"filter {number}"
    return f"gzip {values[0]}" if number == 1 and values else name
