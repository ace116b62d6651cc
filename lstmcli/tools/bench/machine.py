"""Where `lstmcli bench` measures, so that its figures mean something elsewhere."""

import datetime
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lstmcli.kernel.native.target import target
from lstmcli.tools.bench.contenders import PEERS
from lstmcli.version import __version__


def machine() -> dict[str, Any]:
    """Return the CPU, how many of them there are, the versions of the contenders that are installed, and the date."""
    versions = {"lstmcli": __version__}
    for package in (*PEERS, "numpy"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "cpu": f"{cpu_model()} ({target().cpu})",
        "cpus": os.cpu_count(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }


def cpu_model() -> str:
    """Return what the CPU calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
