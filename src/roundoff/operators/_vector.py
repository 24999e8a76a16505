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
from numba.extending import intrinsic

__all__ = ["bits", "fma", "number", "wide"]


# Each of these writes LLVM for a call of it: `generate` puts instructions where the call stands.


def _wide(context: Any) -> Any:  # noqa: ARG001 - Numba's signature
    """To be called first in a compiled function: its loops take vectors of 512 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        # llvmlite lists the attributes that it knows, and this is none of them.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


def _fma(context: Any, a: Any, b: Any, c: Any) -> Any:  # noqa: ARG001
    """a * b + c of float32 with one rounding."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


def _bits(context: Any, x: Any) -> Any:  # noqa: ARG001
    """The bits of a float32 as int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


def _number(context: Any, b: Any) -> Any:  # noqa: ARG001
    """The float32 that has these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


wide: Any = intrinsic(_wide)
fma: Any = intrinsic(_fma)
bits: Any = intrinsic(_bits)
number: Any = intrinsic(_number)
