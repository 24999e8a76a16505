"""What Numba's loops are built from where LLVM must be told: bits, whole vectors, and an FMA.

None of them changes a result: `wide` asks for the longest vectors, which LLVM by itself does not
use on most CPUs that have them; `fma` is one instruction where the CPU has it.
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

__all__ = [
    "bits",
    "fma",
    "largest_of_row",
    "number",
    "sum_of_64",
    "sum_of_128",
    "sum_of_row",
    "wide",
]


SIXTEEN = ir.VectorType(ir.FloatType(), 16)

# Each of these writes LLVM for a call of it: `generate` puts instructions where the call stands.


def _wide(context: Any) -> Any:  # noqa: ARG001 - Numba's signature
    """To be called first in a compiled function: its loops take vectors of 512 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        # llvmlite lists the attributes that it knows, and this is none of them.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


def _fma(context: Any, a: Any, b: Any, c: Any) -> Any:  # noqa: ARG001
    """a * b + c of one type with one rounding."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.fma(*arguments)

    return a(a, a, a), generate


def _bits(context: Any, x: Any) -> Any:  # noqa: ARG001
    """The bits of a float32 or float64 as an integer."""
    integer: Any = types.int32 if x == types.float32 else types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.bitcast(arguments[0], ir.IntType(integer.bitwidth))

    return integer(x), generate


def _number(context: Any, b: Any) -> Any:  # noqa: ARG001
    """The float32 or float64 that has these bits."""
    narrow = b == types.int32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.bitcast(arguments[0], ir.FloatType() if narrow else ir.DoubleType())

    return (types.float32 if narrow else types.float64)(b), generate


def _summed(builder: Any, data: Any, width: int) -> Any:
    """The sum of numbers in a row, later halves onto earlier ones; `width` a multiple of 16."""
    start = builder.bitcast(data, SIXTEEN.as_pointer())
    parts = [
        builder.load(builder.gep(start, [ir.Constant(ir.IntType(64), at)]))
        for at in range(width // 16)
    ]
    for part in parts:
        part.align = 4
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [builder.fadd(parts[at], parts[at + half]) for at in range(half)]
    return _folded(builder, parts[0], builder.fadd)


def _folded(builder: Any, total: Any, join: Any) -> Any:
    """One number of a vector's: its later half onto its earlier one, by `join`, and so on."""
    width = total.type.count
    while width > 1:
        width //= 2
        lanes = ir.VectorType(ir.IntType(32), width)
        nothing = ir.Constant(total.type, ir.Undefined)
        lower, upper = (
            builder.shuffle_vector(total, nothing, ir.Constant(lanes, list(range(at, at + width))))
            for at in (0, width)
        )
        total = join(lower, upper)
    return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))


def _sum_of(width: int) -> Any:
    """The sum of the first `width` of a contiguous float32 array, in the order of `_summed`.

    LLVM unrolls such short loops before it could make vectors of them.
    """

    def summed(context: Any, y: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = make_array(signature.args[0])(context, builder, arguments[0]).data
            return _summed(builder, data, width)

        return types.float32(y), generate

    return intrinsic(summed)


def _row_joined(builder: Any, array: Any, row: Any, start: float, join: Any) -> Any:
    """One number of row `row` of a contiguous array [R,C]: 16 lanes over the row, joined by halves,
    then what is left at its end; `start` of none at all.
    """
    count, long = builder.extract_value(array.shape, 1), ir.IntType(64)
    data = builder.gep(array.data, [builder.mul(row, count)])
    number = data.type.pointee
    lanes = ir.VectorType(number, 16)
    so_far = cgutils.alloca_once_value(builder, ir.Constant(lanes, [start] * 16))
    whole = builder.and_(count, ir.Constant(long, -16))
    with cgutils.for_range_slice(
        builder, ir.Constant(long, 0), whole, ir.Constant(long, 16), intp=long
    ) as (at, _):
        some = builder.bitcast(builder.gep(data, [at]), lanes.as_pointer())
        builder.store(join(builder.load(some, align=4), builder.load(so_far)), so_far)
    total = cgutils.alloca_once_value(builder, _folded(builder, builder.load(so_far), join))
    with cgutils.for_range_slice(builder, whole, count, ir.Constant(long, 1), intp=long) as (at, _):
        one = builder.load(builder.gep(data, [at]))
        builder.store(join(one, builder.load(total)), total)
    return builder.load(total)


def _largest_of_row(context: Any, S: Any, r: Any) -> Any:  # noqa: ARG001
    """The largest of row `r` of contiguous rows of float32 without NaN; -inf of none at all.

    LLVM by itself keeps the order of such comparisons, for the sake of NaN and of -0.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        array = make_array(signature.args[0])(context, builder, arguments[0])
        return _row_joined(builder, array, arguments[1], float("-inf"), larger)

    return types.float32(S, r), generate


def _sum_of_row(context: Any, S: Any, r: Any) -> Any:  # noqa: ARG001
    """The sum of row `r` of contiguous rows, in one order wherever it is called.

    An order that is left to LLVM may be another one in each function that is compiled.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, arguments[0])
        return _row_joined(builder, array, arguments[1], 0.0, builder.fadd)

    return S.dtype(S, r), generate


largest_of_row: Any = intrinsic(_largest_of_row)
sum_of_64: Any = _sum_of(64)
sum_of_128: Any = _sum_of(128)
sum_of_row: Any = intrinsic(_sum_of_row)
wide: Any = intrinsic(_wide)
fma: Any = intrinsic(_fma)
bits: Any = intrinsic(_bits)
number: Any = intrinsic(_number)
