"""What this installation runs on: `lstmcli env`."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from lstmcli.engine.cpus import available_threads
from lstmcli.errors import OutputError, UsageError
from lstmcli.kernel import lstm
from lstmcli.kernel.heads.call import VECTORS, dense_recipe, pointwise_recipe
from lstmcli.kernel.layout import Options, tile_shape
from lstmcli.kernel.native import compiled
from lstmcli.kernel.native.amx import may_use_amx
from lstmcli.kernel.native.cache import ANOTHER_FOLDER, cache_folder, why_not_kept
from lstmcli.kernel.native.target import LEVELS, target, target_of
from lstmcli.kernel.threads import box
from lstmcli.version import __version__

PACKAGES = ("numpy", "numba", "llvmlite", "h5py", "click", "rich")
FLOATS = (32, 64)  # bits
NATIVE = "native"  # this CPU, among the LEVELS
AMX, BELOW_AMX = "amx", "avx512"  # what CPUs with AMX take for bfloat16, and the level that all of them have


def warm_up(cpus: Sequence[str]) -> None:
    """Puts the kernels of plain cells and of the layers around them into the cache: for this CPU, those of LEVELS, or AMX.

    What is there already is compiled again for other CPUs than this one. Raises OutputError where nothing can be kept, and
    UsageError for a level that this kind of machine does not have.
    """
    if cache_folder() is None:
        raise OutputError(f"--warmup: no kernel can be kept: {why_not_kept()}; {ANOTHER_FOLDER}")
    known = LEVELS.get(platform.machine(), {})
    names = [*([AMX] if BELOW_AMX in known else []), *known]
    if unknown := [cpu for cpu in cpus if cpu not in names and cpu != NATIVE]:
        raise UsageError(f"--cpu {unknown[0]}: expected {NATIVE} or, on {platform.machine()}, one of {', '.join(names)}")
    recipes = [
        recipe
        for bits in FLOATS
        for recipe in (lstm.recipe(bits), pointwise_recipe(bits), *(dense_recipe(bits, n) for n in VECTORS))
    ]
    recipes.append(box.recipe())
    for cpu in cpus:
        if cpu == AMX:
            compiled.keep(lstm.recipe(32, Options(bfloat16=True), amx=True), target_of(BELOW_AMX), BELOW_AMX)
            continue
        for recipe in recipes:
            if cpu != NATIVE:
                compiled.keep(recipe, target_of(cpu), cpu)
            elif not compiled.is_cached(recipe):
                compiled.load(recipe)


def describe() -> dict[str, Any]:
    here, folder = target(), cache_folder()
    shapes = {f"float{bits}": tile_shape(here, bits) for bits in FLOATS}
    return {
        "lstmcli": __version__,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "cpu": here.cpu,
        "tiles": {name: f"{shape.rows} sequences x {shape.width} units" for name, shape in shapes.items()},
        "bfloat16": "AMX" if may_use_amx() else "float32 operations",
        "threads": available_threads(),
        "cache": str(folder) if folder else None,
        "cached": {f"float{bits}": lstm.is_cached(bits) for bits in FLOATS},
    }
