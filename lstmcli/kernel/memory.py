"""Memory by its addresses, as Numba compiles it: numbers in tables, copies, zeros."""

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lstmcli.kernel.vectors.simd import I64, POINTER, fetch_line
from lstmcli.kernel.waiting import ADDRESSES


@intrinsic
def get(context: Any, array: types.Type, index: types.Type) -> Any:
    """Return array[index]."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.load(builder.gep(args[0], [args[1]], source_etype=I64), typ=I64)

    return types.int64(ADDRESSES, types.int64), emit


@intrinsic
def put(context: Any, array: types.Type, index: types.Type, value: types.Type) -> Any:
    """Set array[index] = value."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]], source_etype=I64))
        return context.get_dummy_value()

    return types.none(ADDRESSES, types.int64, types.int64), emit


@intrinsic
def at(context: Any, address: types.Type) -> Any:
    """Return the array of int64 at an address."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.inttoptr(args[0], context.get_value_type(ADDRESSES))

    return ADDRESSES(types.int64), emit


@intrinsic
def min_of(context: Any, a: types.Type, b: types.Type) -> Any:
    """Return the smaller one. Numba's own min() brings in code that needs the interpreter."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.select(builder.icmp_signed("<", *args), *args)

    return types.int64(types.int64, types.int64), emit


@intrinsic
def copy(context: Any, target: types.Type, source: types.Type, size: types.Type) -> Any:
    """Copy `size` bytes between places that do not overlap."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        target, source = (builder.inttoptr(a, POINTER) for a in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), emit


@intrinsic
def clear(context: Any, target: types.Type, size: types.Type) -> Any:
    """Set `size` bytes to zero."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        cgutils.memset(builder, builder.inttoptr(args[0], POINTER), args[1], 0)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), emit


@intrinsic
def prefetch(context: Any, address: types.Type) -> Any:
    """Bring the cache line of an address near, without waiting for it."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        fetch_line(builder, builder.inttoptr(args[0], POINTER))
        return context.get_dummy_value()

    return types.none(types.int64), emit
