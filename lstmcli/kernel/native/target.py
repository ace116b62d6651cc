"""The CPU that machine code is made for."""

import functools
import itertools
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

CPU_VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")
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
    return str([*said, platform.system(), platform.machine(), platform.processor()])
