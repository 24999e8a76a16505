"""The space of attention's recipes that `explain` searches: questions, and their answers.

An answer to a question that another answer makes meaningless (where log2(e) goes, in base e)
changes no bit, and is then undecidable.
"""

from __future__ import annotations

from roundoff.formats import FORMATS, Format
from roundoff.operators.protocol import Question, ask
from roundoff.sites import Quantizer

__all__ = ["questions"]

TILES = (16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256, 320, 384, 512, 640, 1024)
FP32, FP64, E4M3 = FORMATS["fp32"], FORMATS["fp64"], FORMATS["e4m3fn"]
SIXTEEN = FORMATS["bf16"], FORMATS["fp16"]


def questions(format: Format) -> tuple[Question, ...]:
    """The questions for inputs of `format`, those that are seen most easily first."""
    wide = FP64 if format.bits > 32 else FP32
    formats = dict.fromkeys((wide, format, *SIXTEEN))
    plain = {f.name: f for f in formats}
    return (
        ask("probs", "the format of P as it enters PV", "weights",
             {name: {"probabilities": f} for name, f in plain.items()}
             | {f"e4m3fn x{n}": {"probabilities": Quantizer(E4M3, "fixed", float(n))}
                for n in (1, 256, 448)}),
        ask("row_sum", "whether l adds P before or after that cast", "weights",
             {side: {"row_sum.adds": side} for side in ("before", "after")}),
        ask("normalise", "l is divided out of O at the end, or of P in every block", "weights",
             {when: {"normalise.when": when} for when in ("end", "block")}),
        ask("divide", "by a division or by the rounded reciprocal of l", "weights",
             {by: {"normalise.by": by} for by in ("division", "reciprocal")}),
        ask("scale", "where the scale is put in", "exponent",
             {place: {"logits.scale": place, "prescale.operands": "none"}
              for place in ("after", "fma", "argument")}
             | {side: {"logits.scale": "before", "prescale.operands": side}
                for side in ("q", "qk")}),
        ask("prescale", "the format of Q (and K) times the scale", "exponent",
             {f.name: {"prescale.format": f} for f in dict.fromkeys((wide, format))}),
        ask("exp_base", "the base of the exponential", "exponent",
             {base: {"exponential.base": base} for base in ("e", "2")}),
        ask("log2e", "in base 2, log2(e) goes onto the argument or into the scale", "exponent",
             {place: {"exponential.log2e": place} for place in ("argument", "scale")}),
        ask("kv_tile", "keys of a tile", "tile",
             {"row": {"tile.keys": None}} | {n: {"tile.keys": n} for n in TILES}),
        ask("direction", "tiles from the first key or from the last", "tile",
             {way: {"tile.direction": way} for way in ("forward", "backward")}),
        ask("maximum", "the rule of the running maximum", "maximum",
             {"always": {"maximum.rule": "always"}, "row": {"maximum.rule": "row"},
              "lazy": {"maximum.rule": "lazy", "maximum.threshold": 8.0}}),
        ask("accumulator", "the format of the running O", "accumulator",
             {name: {"pv.format": f} for name, f in plain.items()}),
        ask("accumulator_rounds", "a narrow O is rounded after every operation or every update",
             "accumulator", {how: {"pv.rounds": how} for how in ("operation", "update")}),
        ask("sum", "the format of the running l", "sum",
             {name: {"row_sum.accumulator.format": f} for name, f in plain.items()}),
        ask("sum_rounds", "a narrow l is rounded after every operation or every update", "sum",
             {how: {"row_sum.accumulator.rounds": how} for how in ("operation", "update")}),
        ask("scores", "the format in which S is stored", "scores",
             {name: {"scores": f, "qk.format": f} for name, f in plain.items()}),
        ask("logits", "the format of S after scale and mask", "scores",
             {f.name: {"logits.format": f} for f in dict.fromkeys((wide, format))}),
        ask("exp", "the format of the result of exp", "exp",
             {name: {"exponential.format": f} for name, f in plain.items()}),
        ask("state", "the format of the running maximum and of its factor", "exp",
             {name: {"maximum.format": f, "maximum.factor": f} for name, f in plain.items()}),
        ask("argument", "the format of the argument of exp", "exp",
             {f.name: {"exponential.argument": f} for f in dict.fromkeys((wide, format))}),
        ask("quotient", "the format of O (or P) over l", "sum",
             {name: {"normalise.format": f} for name, f in plain.items()}),
        ask("approximation", "how exp is computed", "approximation",
             {name: {"exponential.approximation": name}
              for name in ("exact", "fexp_u20", "exp_u20")}),
        ask("tail", "the last (row length mod tail) columns take the exact exp", "approximation",
             {"none": {"exponential.tail": None}, 8: {"exponential.tail": 8},
              16: {"exponential.tail": 16}}),
    )  # fmt: skip
