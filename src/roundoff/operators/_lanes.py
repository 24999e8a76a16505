"""Formulas that become LLVM on one number or on a whole stretch of a row at once.

A formula is a Python function of `Lanes`, called once while Numba compiles. LLVM's own vectors
take a long chain of steps one after the other, each step waiting for the one before it; here some
vectors take each step side by side.
"""
# Types in here are Numba's and llvmlite's, which have no stubs.
# pyright: basic

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = ["Formula", "Lanes", "along_row", "in_place", "scalar"]

_FLOATS = {ir.FloatType(): ("f32", 32), ir.DoubleType(): ("f64", 64)}
_LONG = ir.IntType(64)
_FEATURES = llvm.get_host_cpu_features()
VECTOR = 512 if _FEATURES.get("avx512f") else 256 if _FEATURES.get("avx") else 128  # bits
# So many side by side that the CPU's adders and multipliers seldom wait; where a row has fewer, or
# at its end, the next of these.
VECTORS = 8, 4, 1
Formula = Callable[..., Any]


class Lanes:
    """A float or an integer, or a vector of them: one operation is one instruction."""

    __slots__ = ("_builder", "value")

    def __init__(self, builder: Any, value: Any) -> None:
        self._builder, self.value = builder, value

    def _of(self, other: Any) -> Any:
        """The LLVM value of a number or of `Lanes`, in as many lanes as here."""
        if isinstance(other, Lanes):
            return other.value
        kind = self.value.type
        if isinstance(kind, ir.VectorType):
            return ir.Constant(kind, [ir.Constant(kind.element, other)] * kind.count)
        return ir.Constant(kind, other)

    def _made(self, name: str, other: Any) -> Lanes:
        return Lanes(self._builder, getattr(self._builder, name)(self.value, self._of(other)))

    @property
    def _element(self) -> Any:
        return getattr(self.value.type, "element", self.value.type)

    def _is_float(self) -> bool:
        return self._element in _FLOATS

    def __add__(self, other: Any) -> Lanes:
        return self._made("fadd" if self._is_float() else "add", other)

    def __sub__(self, other: Any) -> Lanes:
        return self._made("fsub" if self._is_float() else "sub", other)

    def __mul__(self, other: Any) -> Lanes:
        return self._made("fmul", other)

    def __and__(self, other: Any) -> Lanes:
        return self._made("and_", other)

    def __lshift__(self, other: Any) -> Lanes:
        return self._made("shl", other)

    def __rshift__(self, other: Any) -> Lanes:
        return self._made("ashr", other)

    def __neg__(self) -> Lanes:
        return Lanes(self._builder, self._builder.neg(self.value))

    def compared(self, how: str, other: Any) -> Lanes:
        """Whether each number is ==, <, >= and so on another; of a NaN none is."""
        name = "fcmp_ordered" if self._is_float() else "icmp_signed"
        return Lanes(self._builder, getattr(self._builder, name)(how, self.value, self._of(other)))

    def is_nan(self) -> Lanes:
        return Lanes(self._builder, self._builder.fcmp_unordered("uno", self.value, self.value))

    def choose(self, yes: Any, no: Any) -> Lanes:
        """`yes` where this comparison holds, else `no`; one of them is `Lanes`."""
        some = yes if isinstance(yes, Lanes) else no
        chosen = self._builder.select(self.value, some._of(yes), some._of(no))
        return Lanes(self._builder, chosen)

    def times_plus(self, factor: Any, addend: Any) -> Lanes:
        """self * factor + addend with one rounding."""
        kind, builder = self.value.type, self._builder
        lanes = f"v{kind.count}" if hasattr(kind, "count") else ""
        name = f"llvm.fma.{lanes}{_FLOATS[self._element][0]}"
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, (kind, kind, kind)), name
        )
        return Lanes(builder, builder.call(fma, [self.value, self._of(factor), self._of(addend)]))

    def bits(self) -> Lanes:
        return self._seen_as(ir.IntType(_FLOATS[self._element][1]))

    def number(self) -> Lanes:
        return self._seen_as(
            next(kind for kind, (_, width) in _FLOATS.items() if width == self._element.width)
        )

    def _seen_as(self, element: Any) -> Lanes:
        kind = self.value.type
        target = ir.VectorType(element, kind.count) if hasattr(kind, "count") else element
        return Lanes(self._builder, self._builder.bitcast(self.value, target))

    def spread(self, count: int) -> Lanes:
        """One number in so many lanes."""
        if count == 1:
            return self
        kind = ir.VectorType(self.value.type, count)
        first = self._builder.insert_element(
            ir.Constant(kind, ir.Undefined), self.value, ir.Constant(ir.IntType(32), 0)
        )
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
        return Lanes(self._builder, self._builder.shuffle_vector(first, first, zeros))


def scalar(formula: Formula) -> Any:
    """A compiled function of one float, and of one number if the formula takes another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return formula(*(Lanes(builder, value) for value in arguments)).value

    def of_one(context: Any, x: Any) -> Any:  # noqa: ARG001
        return x(x), generate

    def of_two(context: Any, x: Any, number: Any) -> Any:  # noqa: ARG001
        return x(x, number), generate

    return intrinsic(of_one if len(inspect.signature(formula).parameters) == 1 else of_two)


def in_place(formula: Formula) -> Any:
    """A compiled function of (x, numbers) that puts the formula of each of `x` in its place.

    `x` [N] is contiguous, and `numbers` is a tuple.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x = make_array(signature.args[0])(context, builder, arguments[0])
        count = builder.extract_value(x.shape, 0)
        numbers = cgutils.unpack_tuple(builder, arguments[1])
        _each(builder, count, [x.data], lambda *of: [formula(*of)], numbers)
        return context.get_dummy_value()

    def along(context: Any, x: Any, numbers: Any) -> Any:  # noqa: ARG001
        return types.void(x, numbers), generate

    return intrinsic(along)


def along_row(formula: Formula) -> Any:
    """A compiled function of (S, r, y, numbers): the formula of each number of row `r` of S.

    It gives two: what is put in its place, and what `y` gets there. S and `y` are contiguous.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        S, y = (make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2))
        count = builder.extract_value(S.shape, 1)
        row = builder.gep(S.data, [builder.mul(arguments[1], count)])
        numbers = cgutils.unpack_tuple(builder, arguments[3])
        _each(builder, count, [row, y.data], formula, numbers)
        return context.get_dummy_value()

    def along(context: Any, S: Any, r: Any, y: Any, numbers: Any) -> Any:  # noqa: ARG001
        return types.void(S, r, y, numbers), generate

    return intrinsic(along)


def _each(builder: Any, count: Any, into: list[Any], formula: Formula, given: list[Any]) -> None:
    """The formula's results of each number in `into[0]`: one there, the others beside it."""
    start: Any = ir.Constant(_LONG, 0)
    one = VECTOR // _FLOATS[into[0].type.pointee][1]
    for width in (*(vectors * one for vectors in VECTORS), 1):
        numbers = [Lanes(builder, number).spread(width) for number in given]
        stop, step = builder.and_(count, ir.Constant(_LONG, -width)), ir.Constant(_LONG, width)
        with cgutils.for_range_slice(builder, start, stop, step, intp=_LONG) as (at, _):
            places = [_place(builder, data, at, width) for data in into]
            x = Lanes(builder, builder.load(places[0], align=4))
            for place, result in zip(places, formula(x, *numbers), strict=True):
                builder.store(result.value, place, align=4)
        start = stop


def _place(builder: Any, data: Any, at: Any, width: int) -> Any:
    place, element = builder.gep(data, [at]), data.type.pointee
    return (
        place if width == 1 else builder.bitcast(place, ir.VectorType(element, width).as_pointer())
    )
