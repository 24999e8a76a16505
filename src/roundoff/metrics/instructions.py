"""What the compiled loops are built from where LLVM must be told: bits, loose sums, places of bits.

None of them changes a result but `added`, which leaves the order of a sum to LLVM.
"""
# Types in here are Numba's, which has no stubs.
# pyright: basic

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["added", "bits", "lowest", "wide"]

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


added: Any = intrinsic(_added)
bits: Any = intrinsic(_bits)
lowest: Any = intrinsic(_lowest)
wide: Any = intrinsic(_wide)
