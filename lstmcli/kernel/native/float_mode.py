"""The CPU's floating-point mode: machine code sets its own, and gives the caller's back.

Another library in the process may have set a mode in which subnormal numbers count as zero, as torch.set_flush_denormal(True)
does, or another rounding. A thread has the mode of the one that started it, so the threads of a call might even differ.

A kernel of bfloat16 wants just that mode: every operand that is subnormal counts as a zero of its sign, and so does every
result that is subnormal after rounding (on Arm, before).
"""

# By architecture: what is declared, and how the mode is read, set to rounding to nearest, and set back.
MODES = {
    "x86_64": """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)

define void @"{outer}"(ptr %table, i64 %thread) {{
  %theirs = alloca i32
  %own = alloca i32
  store i32 {mode}, ptr %own
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
  call void @llvm.aarch64.set.fpcr(i64 {mode})
  call void @"{inner}"(ptr %table, i64 %thread)
  call void @llvm.aarch64.set.fpcr(i64 %theirs)
  ret void
}}
""",
}
MODES["arm64"] = MODES["aarch64"]

# The bits of the mode: all exceptions masked on x86, and those that let subnormal numbers count as zero.
KEPT = {"x86_64": 0x1F80, "aarch64": 0, "arm64": 0}
FLUSHED = {"x86_64": 0x8040, "aarch64": 1 << 24, "arm64": 1 << 24}


def with_own_mode(assembly: str, function: str, triple: str, flushes: bool = False) -> tuple[str, str]:
    """Add a function to LLVM's assembly that calls `function`, of compiled.SIGNATURE, in a mode of its own.

    flushes  whether subnormal numbers count as zero in it
    Returns the assembly and the name of the function to call: on an architecture that is not known, `function` as it is.
    """
    architecture = triple.split("-")[0]
    if architecture not in MODES:
        return assembly, function
    mode = KEPT[architecture] | (FLUSHED[architecture] if flushes else 0)
    outer = f"{function}.in_own_mode"
    return assembly + MODES[architecture].format(outer=outer, inner=function, mode=mode), outer
