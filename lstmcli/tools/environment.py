"""What this installation runs on: `lstmcli env`."""

import platform
from importlib.metadata import version
from typing import Any

from lstmcli.engine.cpus import available_threads
from lstmcli.kernel import lstm
from lstmcli.kernel.layout import tile_shape
from lstmcli.kernel.native.cache import cache_folder
from lstmcli.kernel.native.target import target
from lstmcli.version import __version__

PACKAGES = ("numpy", "numba", "llvmlite", "h5py", "click", "rich")
FLOATS = (32, 64)  # bits


def warm_up() -> None:
    """Compile the kernels of plain cells that are not in the cache."""
    for bits in FLOATS:
        if not lstm.is_cached(bits):
            lstm.load(bits)


def describe() -> dict[str, Any]:
    here, folder = target(), cache_folder()
    shapes = {f"float{bits}": tile_shape(here, bits) for bits in FLOATS}
    return {
        "lstmcli": __version__,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "cpu": here.cpu,
        "tiles": {name: f"{shape.rows} sequences x {shape.width} units" for name, shape in shapes.items()},
        "threads": available_threads(),
        "cache": str(folder) if folder else None,
        "cached": {f"float{bits}": lstm.is_cached(bits) for bits in FLOATS},
    }
