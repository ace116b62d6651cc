"""The CPU that machine code is made for."""

import functools
import itertools
import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

CPU_VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")


class Level(NamedTuple):
    """A kind of CPUs that machine code can be made for ahead, on another one: LLVM's name of it, and what it must have."""

    cpu: str
    features: tuple[str, ...]  # as LLVM calls them
    flags: frozenset[str]  # as /proc/cpuinfo calls them


V3 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
V4 = (*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
AMX = ("amx-tile", "amx-bf16")  # what CPUs beyond that may have for products of bfloat16 numbers
OTHER_NAMES = {"bmi": "bmi1", "lzcnt": "abm"}  # of features, in /proc/cpuinfo
# From the best to the least, by the machine's name. The levels of x86-64 are those of its ABI.
LEVELS = {
    "x86_64": {
        name: Level(cpu, features, frozenset(OTHER_NAMES.get(feature, feature) for feature in features))
        for name, cpu, features in (("avx512", "x86-64-v4", V4), ("avx2", "x86-64-v3", V3), ("baseline", "x86-64", ()))
    },
    "aarch64": {"baseline": Level("generic", ("neon",), frozenset())},
}
CPU_FACTS = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags"}  # of x86, in /proc/cpuinfo
CPU_FACTS |= {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"}  # of Arm


class Target(NamedTuple):
    """A CPU as LLVM describes it: triple, name, and features as "+avx,+fma,-avx512f"."""

    triple: str
    cpu: str
    features: str

    @property
    def vector_bytes(self) -> int:
        """The widest vectors that it computes with."""
        enabled = self.features.split(",")
        return 64 if "+avx512f" in enabled else 32 if "+avx" in enabled else 16

    @property
    def vector_registers(self) -> int:
        return 32 if self.vector_bytes == 64 or not self.triple.startswith(("x86_64", "i686")) else 16

    def machine(self, **options: Any) -> Any:
        """Create LLVM's target machine, which emits assembly and objects."""
        import llvmlite.binding as llvm

        return llvm.Target.from_triple(self.triple).create_target_machine(
            cpu=self.cpu, features=self.features, opt=3, reloc="pic", **options
        )


@functools.cache
def target() -> Target:
    """Ask LLVM for the CPU to compile for: this one, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = map(os.environ.get, CPU_VARIABLES)
    if features is None:
        features = llvm.get_host_cpu_features().flatten()
    else:  # LLVM leaves out features that it does not know, and aborts for a word that is none
        features = ",".join(word for word in features.split(",") if word.startswith(("+", "-")))
    return Target(llvm.get_process_triple(), cpu or llvm.get_host_cpu_name(), features)


@functools.cache
def cpu_facts() -> str:
    """Tell apart all CPUs for which LLVM may write different code, without loading LLVM, which takes most of a short run."""
    said = [os.environ.get(name, "") for name in CPU_VARIABLES]
    with suppress(OSError), Path("/proc/cpuinfo").open() as file:
        facts = (line.partition(":") for line in itertools.takewhile(str.strip, file))
        return str(
            [*said, platform.machine(), *((name.strip(), value) for name, _, value in facts if name.strip() in CPU_FACTS)]
        )
    return str([*said, platform.system(), platform.machine()])


def levels_here() -> list[str]:
    """Name the LEVELS that this CPU has, the best first; none where NUMBA_CPU_NAME or NUMBA_CPU_FEATURES say another CPU."""
    if any(map(os.environ.get, CPU_VARIABLES)):
        return []
    flags = flags_here()
    return [name for name, level in LEVELS.get(platform.machine(), {}).items() if level.flags <= flags]


def flags_here() -> set[str]:
    """Find the words of /proc/cpuinfo about this CPU."""
    return set(re.findall(r"\w+", cpu_facts()))


def target_of(level: str) -> Target:
    """Describe the CPUs of a level to LLVM. Raises KeyError for one that this kind of machine does not have."""
    found = LEVELS[platform.machine()][level]
    return target()._replace(cpu=found.cpu, features=",".join(f"+{feature}" for feature in found.features))
