"""The space of softmax recipes that `explain` searches."""

from __future__ import annotations

from roundoff.formats import FORMATS, Format
from roundoff.operators.protocol import Question, ask

__all__ = ["questions"]

TILES = (16, 32, 64, 128, 256, 512, 1024)


def questions(format: Format) -> tuple[Question, ...]:
    """The questions for inputs of `format`, those that are seen most easily first."""
    wide = FORMATS["fp64" if format.bits > 32 else "fp32"]
    formats = {f.name: f for f in (wide, format, FORMATS["bf16"], FORMATS["fp16"])}
    return (
        ask("exp_base", "the base of the exponential", "exp",
            {base: {"exponential.base": base} for base in ("e", "2")}),
        ask("argument", "the format of the argument of exp", "exp",
            {f.name: {"exponential.argument": f} for f in dict.fromkeys((wide, format))}),
        ask("exp", "the format of the result of exp", "exp",
            {name: {"exponential.format": f} for name, f in formats.items()}),
        ask("approximation", "how exp is computed", "exp",
            {name: {"exponential.approximation": name}
             for name in ("exact", "sleef_u10", "fexp_u20", "exp_u20")}),
        ask("tile", "columns of a tile", "sum",
            {"row": {"tile": None}} | {n: {"tile": n} for n in TILES}),
        ask("sum", "the format of the running l", "sum",
            {name: {"row_sum.format": f} for name, f in formats.items()}),
        ask("state", "the format of the running maximum and of its factor", "sum",
            {name: {"maximum": f, "factor": f} for name, f in formats.items()}),
        ask("divide", "by a division or by the rounded reciprocal of l", "quotient",
            {by: {"normalise.by": by} for by in ("division", "reciprocal")}),
        ask("quotient", "the format of P over l", "quotient",
            {name: {"normalise.format": f} for name, f in formats.items()}),
    )  # fmt: skip
