"""All datasets below an HDF5 group, by the bytes of their headers where these are plain: libhdf5 takes 0.1 ms to open one."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lstmcli.files import hdf5
from lstmcli.files.hdf5_bytes.object_headers import addresses_of, attribute_name, read_headers
from lstmcli.files.hdf5_bytes.texts import reference_in
from lstmcli.files.positioned_file import FileBytes

UNKNOWN = -2  # in the place of an offset: to be asked of libhdf5
UNREAD = b""  # in the place of an attribute: to be asked of libhdf5


class Listed(NamedTuple):
    """A dataset below a group, as far as it was looked at."""

    name: str  # from that group on
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None  # None: NumPy has no equivalent
    offset: int = UNKNOWN
    attribute: bytes | None = UNREAD  # the reference to the text of the one that was asked for; None: it has none


def datasets_below(
    group: Any, others: list[str], attribute: str = "", above: str = "", seen: set[int] | None = None
) -> Iterator[Listed]:
    """Yields all datasets below a group. Links of another kind than hard ones go into `others`.

    Each group is gone through once: two links each from one to the next would double the datasets at every level.

    attribute: the one that Listed.attribute is about. above: the path of this group. seen: the headers of groups until now.
    """
    import h5py

    seen = {hdf5.header_offset(group)} if seen is None else seen
    with hdf5.reading(hdf5.label(group)):
        names, addresses, other = addresses_of(group)
        if other is not None:
            others.append(above + other.decode("utf-8", "backslashreplace"))
        sizes, base = group.file.id.get_create_plist().get_sizes(), group.file.userblock_size
        data = FileBytes(group.file.id.get_vfd_handle(), hdf5.label(group))
        headers = read_headers(data, addresses, base) if sizes == (8, 8) else iter([None] * len(names))
        dtypes: dict[bytes, np.dtype[Any] | None] = {}
        for name, address, header in zip(names, addresses, headers, strict=True):
            text = above + name.decode("utf-8", "surrogateescape")
            if header is not None and header.datatype not in dtypes:
                entry = hdf5.entry_of(text, group[name])
                plain = entry.dtype is not None and hdf5.is_plain(group[name])
                dtypes[header.datatype] = entry.dtype if plain else None
            dtype = dtypes[header.datatype] if header is not None else None
            if header is not None and dtype is not None:
                count = math.prod(header.shape)
                if header.size == count * dtype.itemsize and (header.address is not None or not count):
                    named = [one for one in header.attributes if attribute_name(one) == attribute.encode()]
                    reference = reference_in(named[0]) if named else None
                    yield Listed(text, header.shape, dtype, header.address or 0, reference)
                    continue
            item = group[name]
            if isinstance(item, h5py.Dataset):
                entry = hdf5.entry_of(text, item)
                yield Listed(text, entry.shape or (), entry.dtype)
            elif isinstance(item, h5py.Group) and address not in seen:
                seen.add(address)
                yield from datasets_below(item, others, attribute, f"{text}/", seen)
