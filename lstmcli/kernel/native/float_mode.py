"""The CPU's floating-point mode: machine code sets its own, and gives the caller's back.

Another library in the process may have set a mode in which subnormal numbers count as zero, as torch.set_flush_denormal(True)
does, or another rounding. A thread has the mode of the one that started it, so the threads of a call might even differ.
"""

# By architecture: what is declared, and how the mode is read, set to rounding to nearest with nothing flushed, and set back.
MODES = {
    "x86_64": """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)

define void @"{outer}"(ptr %table, i64 %thread) {{
  %theirs = alloca i32
  %own = alloca i32
  store i32 8064, ptr %own
  call void @llvm.x86.sse.stmxcsr(ptr %theirs)
  call void @llvm.x86.sse.ldmxcsr(ptr %own)
  call void @"{inner}"(ptr %table, i64 %thread)
  call void @llvm.x86.sse.ldmxcsr(ptr %theirs)
  ret void
}}
""",
    "aarch64": """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)

define void @"{outer}"(ptr %table, i64 %thread) {{
  %theirs = call i64 @llvm.aarch64.get.fpcr()
  call void @llvm.aarch64.set.fpcr(i64 0)
  call void @"{inner}"(ptr %table, i64 %thread)
  call void @llvm.aarch64.set.fpcr(i64 %theirs)
  ret void
}}
""",
}
MODES["arm64"] = MODES["aarch64"]


def with_own_mode(assembly: str, function: str, triple: str) -> tuple[str, str]:
    """Add a function to LLVM's assembly that calls `function`, of compiled.SIGNATURE, in a mode of its own.

    Returns the assembly and the name of the function to call: on an architecture that is not known, `function` as it is.
    """
    mode = MODES.get(triple.split("-")[0])
    if mode is None:
        return assembly, function
    outer = f"{function}.in_own_mode"
    return assembly + mode.format(outer=outer, inner=function), outer
