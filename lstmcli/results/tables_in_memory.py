"""A stored result as pandas and xarray have it, where these are installed."""

from typing import TYPE_CHECKING, Any

import numpy as np

from lstmcli.errors import DataError

if TYPE_CHECKING:
    from lstmcli.results.stored_result import StoredResult


def to_pandas(result: "StoredResult", name: str | None) -> Any:
    """Does what StoredResult.to_pandas() says."""
    import pandas as pd

    ids = result.ids if result.ids is not None else range(len(result))
    if name is None:
        tables = {array.name: np.asarray(array) for array in result.arrays.values() if not has_steps(array)}
        columns = pd.MultiIndex.from_tuples(
            [(array, unit) for array, values in tables.items() for unit in range(values.shape[1])], names=["array", "unit"]
        )
        values = np.concatenate(list(tables.values()), axis=1) if tables else np.empty((len(result), 0))
        return pd.DataFrame(values, index=pd.Index(ids, name="id"), columns=columns)
    if name not in result.arrays:
        raise DataError(f"{result.where}: has no array {name}; there is {', '.join(result.arrays)}")
    array: Any = result.arrays[name]
    if not has_steps(array):
        return pd.DataFrame(np.asarray(array), index=pd.Index(ids, name="id"))
    starts, lengths = array.valid
    rows = np.repeat(np.arange(len(lengths)), lengths)
    steps = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths - starts, lengths)
    index = pd.MultiIndex.from_arrays([np.asarray(ids)[rows], steps], names=["id", "step"])
    return pd.DataFrame(array.read(0, len(result)), index=index)


def to_xarray(result: "StoredResult") -> Any:
    """Does what StoredResult.to_xarray() says."""
    import xarray as xr

    arrays: dict[str, Any] = {"lengths": ("sequence", result.lengths)}
    array: Any
    for name, array in result.arrays.items():
        if has_steps(array):
            starts, lengths = array.valid
            values, steps = array.padded(), np.arange(array.shape[1])
            values[(steps < starts[:, None]) | (steps >= (starts + lengths)[:, None])] = np.nan
            arrays[name] = ("sequence", "step", f"unit of {name}"), values
        else:
            arrays[name] = ("sequence", f"unit of {name}"), np.asarray(array)
    ids = result.ids if result.ids is not None else np.arange(len(result))
    return xr.Dataset(arrays, coords={"sequence": list(ids)}, attrs={"path": result.path})


def has_steps(array: Any) -> bool:
    return hasattr(array, "padded")
