"""What this installation runs on."""

import platform
from importlib.metadata import version
from typing import Any

from lstmcli.engine.cpus import available_threads
from lstmcli.kernel import compiled
from lstmcli.version import __version__

PACKAGES = ("numpy", "numba", "llvmlite", "h5py", "click", "rich")
FLOATS = (32, 64)  # bits


def warm_up() -> None:
    """Compiles the kernels that are not in the cache."""
    for bits in FLOATS:
        if not compiled.is_cached(bits):
            compiled.load(bits)


def describe() -> dict[str, Any]:
    here, folder = compiled.target(), compiled.cache_folder()
    return {
        "lstmcli": __version__,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "cpu": here.cpu,
        "tiles": {f"float{bits}": f"{here.shape(bits).rows} sequences x {here.shape(bits).width} units" for bits in FLOATS},
        "threads": available_threads(),
        "cache": str(folder) if folder else None,
        "cached": {f"float{bits}": compiled.is_cached(bits) for bits in FLOATS},
    }
