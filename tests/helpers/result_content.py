"""What a result holds besides the names of the files that it was made of."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ORIGINS = ("input", "weights", "initial_state")
OF_ALL_BYTES = "checksums/container"  # the checksum of the container, origins included


def content(result: Path | bytes) -> dict[str, Any]:
    """Returns all arrays and attributes, to be compared with those of the same run over another file."""
    found: dict[str, Any] = {}

    def keep(name: str, item: Any) -> None:
        attributes = {key: np.asarray(value).tolist() for key, value in item.attrs.items() if name or key not in ORIGINS}
        value = item[()] if isinstance(item, h5py.Dataset) and name != OF_ALL_BYTES else np.zeros(0)
        found[name] = (attributes, value.dtype.str, value.shape, value.tolist() if value.dtype.hasobject else value.tobytes())

    with h5py.File(io.BytesIO(result) if isinstance(result, bytes) else result) as file:
        keep("", file)
        file.visititems(keep)
    return found
