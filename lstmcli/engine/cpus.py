"""How many CPUs this process may use, and what cache a core has."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

CGROUPS, MEMBERSHIPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SECOND_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")


def available_threads() -> int:
    """Return the least of this process's affinity, the quotas of its control groups, and SLURM_CPUS_PER_TASK; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min([affinity, *quotas(), *([int(slurm)] if slurm.isdecimal() else [])]))


def quotas() -> Iterator[int]:
    """Yield how many CPUs, rounded up, each control group (version 1 and 2) of this process allows, and each group above it."""
    try:
        memberships = MEMBERSHIPS.read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controllers, group = membership.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = CGROUPS / "cpu" if controllers else CGROUPS
        path = PurePosixPath(group.lstrip("/"))
        for folder in (path, *path.parents):
            yield from quota(mount / folder)


def quota(folder: Path) -> Iterator[int]:
    try:
        if (limit := folder / "cpu.max").exists():
            allowed, period = limit.read_text().split()
        else:
            allowed, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if allowed not in ("max", "-1"):
            yield -(-int(allowed) // int(period))
    except (OSError, ValueError):
        return  # no such group in this container


@cache
def second_cache_bytes() -> int:
    """Return the size of a core's second-level cache; 1 MiB where the system does not say."""
    try:
        return int(SECOND_CACHE.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 1 << 20
