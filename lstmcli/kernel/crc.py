"""CRC-32 (that of zlib, PNG and ZIP) at the speed of memory, where the CPU multiplies without carry.

zlib takes a byte a third of a nanosecond; 64 bytes at a time are folded into the next 64, which leaves the CRC as it is.
V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009; constants for
the reflected polynomial 0xEDB88320: x^(4*128+32), x^(4*128-32), x^(128+32), x^(128-32) modulo it.
"""

import ctypes
import functools
import zlib
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from lstmcli.kernel import compiled

FEW = 1024  # bytes that zlib has done before this has begun
PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32, ctypes.c_void_p)
MULTIPLY = "call <2 x i64> @llvm.x86.pclmulqdq(<2 x i64> {}, <2 x i64> {}, i8 {})"
FAR, NEAR = "<i64 5708721108, i64 7631803798>", "<i64 6259578832, i64 3433693342>"


def crc32_rows(rows: NDArray[Any], ends: NDArray[np.int64], sums: NDArray[np.uint32], much: bool) -> None:
    """Carries on the CRC-32 of each sequence: rows ends[s - 1] .. ends[s] are those of sequence s.

    rows  (R, ...)  in      C-contiguous
    sums  (n,)      in/out
    much            whether so much is to come that it is worth compiling for some hundredths of a second
    """
    view = rows.reshape(-1).view(np.uint8).data
    places = (ends * (len(view) // max(1, len(rows)))).tolist()
    fold = folding() if much and len(view) > FEW * len(places) else None
    if fold is None:
        pieces = map(view.__getitem__, map(slice, [0, *places], places))
        sums[:] = list(map(zlib.crc32, pieces, sums.tolist()))
        return
    base, state = rows.ctypes.data, np.empty(16, np.uint8)
    begin = 0
    for k, (end, checksum) in enumerate(zip(places, sums.tolist(), strict=True)):
        if end - begin >= FEW:
            folded = (end - begin) // 64 * 64
            fold(base + begin, folded // 64, checksum ^ 0xFFFFFFFF, state.ctypes.data)
            checksum, begin = zlib.crc32(state.data, 0xFFFFFFFF), begin + folded
        sums[k], begin = zlib.crc32(view[begin:end], checksum), end


@functools.cache
def folding() -> Callable[..., None] | None:
    """fold(address, blocks of 64 bytes, register of the CRC, address of 16 bytes whose CRC is the same); None: not here."""
    here = compiled.target()
    if not {"+pclmul", "+sse2"} <= set(here.features.split(",")):
        return None
    code = here.machine().emit_object(llvm.parse_assembly(assembly()))
    jit = llvm.create_lljit_compiler(here.machine(jit=True))
    library = llvm.JITLibraryBuilder().add_object_img(code).export_symbol("fold").link(jit, "fold")
    function = PROTOTYPE(library["fold"])
    function.keep_alive = library, jit  # type: ignore[attr-defined]
    return function


def assembly() -> str:
    lines = ["declare <2 x i64> @llvm.x86.pclmulqdq(<2 x i64>, <2 x i64>, i8)"]
    lines += ["define void @fold(ptr %data, i64 %blocks, i32 %register, ptr %state) {", "first:"]
    lines += load("%data", "first")
    lines += [
        "%wide = zext i32 %register to i64",
        "%before = insertelement <2 x i64> zeroinitializer, i64 %wide, i32 0",
        "%begun = xor <2 x i64> %first0, %before",
        "br label %test",
        "test:",
        "%k = phi i64 [1, %first], [%next, %loop]",
        *(f"%x{i} = phi <2 x i64> [%{'begun' if i == 0 else f'first{i}'}, %first], [%new{i}, %loop]" for i in range(4)),
        "%more = icmp slt i64 %k, %blocks",
        "br i1 %more, label %loop, label %last",
        "loop:",
        "%offset = shl i64 %k, 6",
        "%place = getelementptr i8, ptr %data, i64 %offset",
        *load("%place", "read"),
    ]
    for i in range(4):
        lines += fold_into(f"%x{i}", FAR, f"%read{i}", f"%new{i}")
    lines += ["%next = add i64 %k, 1", "br label %test", "last:"]
    lines += [
        *fold_into("%x0", NEAR, "%x1", "%y1"),
        *fold_into("%y1", NEAR, "%x2", "%y2"),
        *fold_into("%y2", NEAR, "%x3", "%y3"),
    ]
    return "\n".join([*lines, "store <2 x i64> %y3, ptr %state, align 1", "ret void", "}"])


def load(place: str, name: str) -> list[str]:
    """64 bytes."""
    lines = []
    for i in range(4):
        lines += [f"%{name}at{i} = getelementptr i8, ptr {place}, i64 {16 * i}"]
        lines += [f"%{name}{i} = load <2 x i64>, ptr %{name}at{i}, align 1"]
    return lines


def fold_into(value: str, constants: str, following: str, result: str) -> list[str]:
    return [
        f"{result}low = {MULTIPLY.format(value, constants, 0)}",
        f"{result}high = {MULTIPLY.format(value, constants, 17)}",
        f"{result}both = xor <2 x i64> {result}low, {result}high",
        f"{result} = xor <2 x i64> {result}both, {following}",
    ]
