"""CRC-32 (that of zlib, PNG and ZIP) at the speed of memory, where the CPU multiplies without carry.

zlib takes a byte a third of a nanosecond, and a call of it a microsecond; 64 bytes at a time are folded into the next 64, which
leaves the CRC as it is, and what remains goes byte by byte through a table.
V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009; constants for
the reflected polynomial 0xEDB88320: x^(4*128+32), x^(4*128-32), x^(128+32), x^(128-32) modulo it.
"""

import ctypes
import functools
import os
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.kernel.native import compiled
from lstmcli.kernel.native.target import cpu_facts

PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
MULTIPLY = "call <2 x i64> @llvm.x86.pclmulqdq(<2 x i64> {}, <2 x i64> {}, i8 {})"
FAR, NEAR = "<i64 5708721108, i64 7631803798>", "<i64 6259578832, i64 3433693342>"


def crc32_rows(rows: NDArray[Any], ends: NDArray[np.int64], sums: NDArray[np.uint32], much: bool) -> None:
    """Carries on the CRC-32 of each sequence: rows ends[s - 1] .. ends[s] are those of sequence s.

    rows  (R, ...)  in      C-contiguous
    ends  (n,)      in      contiguous
    sums  (n,)      in/out  contiguous
    much            whether so much is to come that it is worth compiling for a hundredth of a second
    """
    width = rows.nbytes // max(1, len(rows))
    if much and (native := compile_rows()):
        native(rows.ctypes.data, ends.ctypes.data, sums.ctypes.data, len(ends), width)
        return
    places = (ends * width).tolist()
    pieces = map(rows.reshape(-1).view(np.uint8).data.__getitem__, map(slice, [0, *places], places))
    sums[:] = list(map(zlib.crc32, pieces, sums.tolist()))


@functools.cache
def compile_rows() -> Callable[..., None] | None:
    """crc32_rows(address of rows, of ends, of sums, count of sequences, bytes of a row); None: not on this CPU."""
    if "NUMBA_CPU_FEATURES" in os.environ or not {"pclmulqdq", "sse2"} <= set(cpu_facts().split()):
        return None
    recipe = compiled.Recipe("crc", None, lambda here: compiled.compile_text(here, assembly(), "crc32_rows"))
    (place,), _, keep_alive = compiled.load(recipe)
    function = PROTOTYPE(place)
    function.keep_alive = keep_alive  # type: ignore[attr-defined]
    return function


ROWS = """
define void @crc32_rows(ptr %data, ptr %ends, ptr %sums, i64 %count, i64 %width) {
start:
    %state = alloca <2 x i64>
    br label %test
test:
    %s = phi i64 [0, %start], [%next, %done]
    %begin = phi i64 [0, %start], [%end, %done]
    %more = icmp slt i64 %s, %count
    br i1 %more, label %sequence, label %return
sequence:
    %end_at = getelementptr i64, ptr %ends, i64 %s
    %end_row = load i64, ptr %end_at
    %end = mul i64 %end_row, %width
    %size = sub i64 %end, %begin
    %blocks = ashr i64 %size, 6
    %place = getelementptr i8, ptr %data, i64 %begin
    %sum_at = getelementptr i32, ptr %sums, i64 %s
    %sum = load i32, ptr %sum_at
    %register = xor i32 %sum, -1
    %long = icmp sgt i64 %blocks, 0
    br i1 %long, label %fold, label %done
fold:
    call void @fold(ptr %place, i64 %blocks, i32 %register, ptr %state)
    %folded = call i32 @bytes(ptr %state, i64 16, i32 0)
    br label %done
done:
    %going = phi i32 [%register, %sequence], [%folded, %fold]
    %taken = shl i64 %blocks, 6
    %left = sub i64 %size, %taken
    %rest = getelementptr i8, ptr %place, i64 %taken
    %last = call i32 @bytes(ptr %rest, i64 %left, i32 %going)
    %new = xor i32 %last, -1
    store i32 %new, ptr %sum_at
    %next = add i64 %s, 1
    br label %test
return:
    ret void
}
define internal i32 @bytes(ptr %data, i64 %size, i32 %register) {
start:
    br label %test
test:
    %k = phi i64 [0, %start], [%next, %loop]
    %r = phi i32 [%register, %start], [%new, %loop]
    %more = icmp slt i64 %k, %size
    br i1 %more, label %loop, label %return
loop:
    %at = getelementptr i8, ptr %data, i64 %k
    %byte = load i8, ptr %at
    %low = trunc i32 %r to i8
    %both = xor i8 %byte, %low
    %index = zext i8 %both to i64
    %entry_at = getelementptr [256 x i32], ptr @table, i64 0, i64 %index
    %entry = load i32, ptr %entry_at
    %high = lshr i32 %r, 8
    %new = xor i32 %entry, %high
    %next = add i64 %k, 1
    br label %test
return:
    ret i32 %r
}
"""


def assembly() -> str:
    return "\n".join([f"@table = internal constant [256 x i32] [{', '.join(f'i32 {v}' for v in table())}]", ROWS, *fold()])


def table() -> list[int]:
    """What a byte becomes in the register."""
    return [zlib.crc32(bytes([k]), 0xFFFFFFFF) ^ 0xFFFFFFFF for k in range(256)]


def fold() -> list[str]:
    """fold(address, blocks of 64 bytes, register of the CRC, address of 16 bytes whose CRC is the same)."""
    lines = ["declare <2 x i64> @llvm.x86.pclmulqdq(<2 x i64>, <2 x i64>, i8)"]
    lines += ["define internal void @fold(ptr %data, i64 %blocks, i32 %register, ptr %state) {", "first:"]
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
    return [*lines, "store <2 x i64> %y3, ptr %state, align 1", "ret void", "}"]


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
