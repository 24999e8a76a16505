"""Attention in plain loops, written without the engine: what `explain` has to see through.

Each function of `Choices` does what a kernel's author would write down for it.
"""

import math
import random
from dataclasses import dataclass, fields, replace

import torch

from roundoff.formats import get_format
from roundoff.operators import OPERATORS

ATTENTION = OPERATORS["attention"]
NAMES = {None: "fp32", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
F32 = torch.float32


@dataclass(frozen=True)
class Choices:
    kv_tile: int | None = 64
    probs: torch.dtype | None = None  # None: stays in fp32
    row_sum: str = "before"
    exp_base: str = "e"
    log2e: str = "argument"
    scale: str = "after"
    accumulator: torch.dtype = F32
    direction: str = "forward"
    normalise: str = "end"
    divide: str = "division"


SPACE = {
    "kv_tile": [32, 64, 96, 128, 256, 512, None],
    "probs": [None, torch.bfloat16, torch.float16],
    "row_sum": ["before", "after"],
    "exp_base": ["e", "2"],
    "log2e": ["argument", "scale"],
    "scale": ["after", "fma", "argument", "q", "q rounded"],
    "accumulator": [F32, torch.bfloat16],
    "direction": ["forward", "backward"],
    "normalise": ["end", "block"],
    "divide": ["division", "reciprocal"],
}


def drawn(seed):
    generator = random.Random(seed)
    return Choices(**{name: generator.choice(values) for name, values in SPACE.items()})


def others(choices):
    """Every kernel that differs in one place, by the name of the place."""
    for field in fields(choices):
        for value in SPACE[field.name]:
            if value != getattr(choices, field.name):
                yield field.name, replace(choices, **{field.name: value})


def attention_of(c):
    """The kernel as a function of q, k, v [batch, heads, length, head_dim]."""

    def attention(q, k, v):
        dtype, scale = q.dtype, q.shape[-1] ** -0.5
        exp, factor = torch.exp, 1.0
        if c.exp_base == "2":
            exp = torch.exp2
            factor = math.log2(math.e)
            if c.log2e == "scale":
                scale, factor = scale * factor, 1.0
        scale = torch.tensor(scale, dtype=F32)
        q, k, v = q.float(), k.float(), v.float()
        if c.scale.startswith("q"):
            q = q * scale
            q = q.to(dtype).float() if "rounded" in c.scale else q
        keys = k.shape[2]
        tile = c.kv_tile or keys
        starts = range(0, keys, tile)
        column = (*q.shape[:3], 1)
        m, l = torch.full(column, -math.inf), torch.zeros(column)  # noqa: E741
        acc = torch.zeros(*q.shape[:3], v.shape[3])
        for start in starts if c.direction == "forward" else reversed(starts):
            s = q @ k[:, :, start : start + tile].mT
            if c.scale == "after":
                s = s * scale
            new = torch.maximum(m, s.amax(-1, keepdim=True))
            if c.scale == "fma":  # one rounding; the product of two floats is exact in doubles
                x = (s.double() * scale.double() - (new * scale).double()).float()
                rise = (m - new) * scale
            elif c.scale == "argument":
                x, rise = (s - new) * scale, (m - new) * scale
            else:
                x, rise = s - new, m - new
            p, alpha = exp(x * factor), exp(rise * factor)
            narrow = p if c.probs is None else p.to(c.probs).float()
            added = narrow if c.row_sum == "after" and c.normalise == "end" else p
            old = l * alpha
            l = old + added.sum(-1, keepdim=True)  # noqa: E741
            if c.normalise == "block":
                narrow = divided(c, p, l)
                narrow = narrow if c.probs is None else narrow.to(c.probs).float()
                alpha = divided(c, old, l)
            acc = (acc * alpha + narrow @ v[:, :, start : start + tile]).to(c.accumulator).float()
            m = new
        return (acc if c.normalise == "block" else divided(c, acc, l)).to(dtype)

    return attention


def divided(c, x, l):  # noqa: E741
    return x / l if c.divide == "division" else x * (1.0 / l)


def truth(choices):
    """What `explain` should say of each place."""
    said = {name: getattr(choices, name) for name in SPACE}
    said |= {name: NAMES[said[name]] for name in ("probs", "accumulator")}
    return said | {"kv_tile": said["kv_tile"] or "row", "scale": said["scale"].split()[0]}


def bits(choices, problems):
    function = attention_of(choices)
    return [
        function(*(p.inputs[n].to(torch.bfloat16) for n in "qkv"))[:, :, p.rows] for p in problems
    ]


def undecidable(choices):
    """The places at which some other choice changes no bit on any probe, by the kernels alone."""
    problems = [p.problems[0]() for p in ATTENTION.probes(get_format("bf16"), 0)]
    ours = bits(choices, problems)
    return {
        name
        for name, other in others(choices)
        if all(map(torch.equal, ours, bits(other, problems)))
    }
