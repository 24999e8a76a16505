"""What both fast paths are held to: calls of every kind, and the same bits."""

import torch

CALLS = [
    {"n": 70},
    {"n": 1},
    {"n": 300, "d": 64, "mask": "causal"},
    {"n": 100, "m": 257, "mask": "window:40"},
    {"n": 60, "m": 30, "mask": "causal-lower-right"},
    {"n": 130, "mask": "boolean", "batch": 2},
    {"n": 40, "spread": 20.0},
    {"n": 33, "d": 8, "dv": 24, "heads": 4, "kv_heads": 2},
]


def same_bits(a, b):
    """NaN is NaN; all else bit for bit."""
    bits = torch.int32 if a.dtype == torch.float32 else torch.int64
    equal = a.view(bits) == b.view(bits)
    return bool((equal | (a.isnan() & b.isnan())).all())
