"""What the compiled loops are built from where LLVM must be told: bits, loose sums, places of bits.

None of them changes a result but `added`, which leaves the order of a sum to LLVM.
"""
# Types in here are Numba's, which has no stubs.
# pyright: basic

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = ["LANES", "ROWS", "added", "area", "bits", "lowest", "wide"]

LANES, ROWS = 16, 1 << 12

# Each of these writes LLVM for a call of it: `generate` puts instructions where the call stands.


def _added(context: Any, a: Any, b: Any) -> Any:  # noqa: ARG001
    """a + b of a sum whose order is left to LLVM, which can then make vectors of it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.fadd(*arguments, flags=("reassoc", "nsz"))

    return a(a, b), generate


def _bits(context: Any, x: Any) -> Any:  # noqa: ARG001
    """The bits of a float64: those of sizes are in the order of the sizes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(x), generate


def _lowest(context: Any, word: Any) -> Any:  # noqa: ARG001
    """The place of the lowest bit that is set in an int64 other than 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


def _wide(context: Any, x: Any) -> Any:  # noqa: ARG001
    """A float32, a float64 or the bits of a bfloat16 (an int16) as a float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        value = arguments[0]
        if x == types.float64:
            return value
        if x == types.int16:
            upper = builder.zext(value, ir.IntType(32))
            value = builder.bitcast(builder.shl(upper, ir.IntType(32)(16)), ir.FloatType())
        return builder.fpext(value, ir.DoubleType())

    return types.float64(x), generate


def _area(context: Any, net: Any, before: Any) -> Any:  # noqa: ARG001
    """The sum of |before + net[0] + ... + net[c]| over all codes c; clears `net`.

    Each row of `net` holds LANES codes a whole column apart, so that the sums of all columns
    grow at once; where each column begins is found by a first pass.
    """
    long, double = ir.IntType(64), ir.DoubleType()
    integer = ir.IntType(net.dtype.bitwidth)
    whole, real = ir.VectorType(integer, LANES), ir.VectorType(double, LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, arguments[0]).data
        zero, rows = ir.Constant(whole, [0] * LANES), ir.Constant(long, ROWS)
        size = integer.width // 8

        def row(at: Any) -> Any:
            first = builder.gep(data, [builder.mul(at, ir.Constant(long, LANES))])
            return builder.bitcast(first, whole.as_pointer())

        totals = cgutils.alloca_once_value(builder, zero)
        with cgutils.for_range(builder, rows, intp=long) as loop:
            some = builder.load(row(loop.index), align=size)
            builder.store(builder.add(builder.load(totals), some), totals)
        start, ahead = builder.trunc(arguments[1], integer), ir.Constant(whole, ir.Undefined)
        ends = builder.load(totals)
        for lane in range(LANES):
            place = ir.Constant(ir.IntType(32), lane)
            ahead = builder.insert_element(ahead, start, place)
            start = builder.add(start, builder.extract_element(ends, place))
        heights = cgutils.alloca_once_value(builder, ahead)
        areas = cgutils.alloca_once_value(builder, ir.Constant(real, [0.0] * LANES))
        with cgutils.for_range(builder, rows, intp=long) as loop:
            place = row(loop.index)
            height = builder.add(builder.load(heights), builder.load(place, align=size))
            builder.store(zero, place, align=size)
            builder.store(height, heights)
            below = builder.icmp_signed("<", height, zero)
            height = builder.select(below, builder.sub(zero, height), height)
            grown = builder.fadd(builder.load(areas), builder.sitofp(height, real))
            builder.store(grown, areas)
        total, each = ir.Constant(double, 0.0), builder.load(areas)
        for lane in range(LANES):
            part = builder.extract_element(each, ir.Constant(ir.IntType(32), lane))
            total = builder.fadd(total, part)
        return total

    return types.float64(net, before), generate


added: Any = intrinsic(_added)
area: Any = intrinsic(_area)
bits: Any = intrinsic(_bits)
lowest: Any = intrinsic(_lowest)
wide: Any = intrinsic(_wide)
