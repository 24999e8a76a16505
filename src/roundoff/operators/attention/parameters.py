"""The parameters of attention's cells: what the command line and a plan can vary. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from roundoff.errors import UsageError
from roundoff.operators.parsing import distribution, number, positive
from roundoff.operators.protocol import Parameter, Value, normalise

__all__ = [
    "DEFAULT_NUMBERS",
    "DISTRIBUTIONS",
    "PARAMETERS",
    "lengths",
    "parse_gradients",
    "parse_inputs",
    "parse_mask",
    "settle",
]

MASKS = ("none", "causal", "causal-lower-right", "window:<keys>", "boolean", "additive")

DISTRIBUTIONS: Mapping[str, str] = {
    "normal": "Q, K, V ~ N(0, 1); normal:4 draws N(0, 4^2)",
    "outliers": "N(0, 1) + N(0, 100) * Bernoulli(0.001), the mixture of FlashAttention-3",
    "peaked": "each query is close to one key, so one logit of a row stands out; peaked:30 by 30",
    "tied": "every key comes twice, so the largest score of a row is always tied",
    "one-signed": "V is positive, so that rounding errors of PV cannot cancel",
    "tied-peak": "peaked:22 with every key twice in a row: tied maxima; tied-peak:3 thrice",
    "tied-one-signed": "tied-peak with V negative, as where bf16 training fails (arXiv 2510.04212)",
    "offset": "a constant that grows along the sequence is added to Q, K, V; offset:8 up to 8",
    "file:<path>": "tensors q, k, v (mask, dout) of a .safetensors file, as they are",
}


DEFAULT_NUMBERS = {
    "normal": 1.0, "peaked": 20.0, "offset": 4.0, "tied-peak": 2.0, "tied-one-signed": 2.0,
}  # fmt: skip
"""The distributions that take a number, and what it is where none is given."""


def parse_mask(text: str) -> str:
    """Check a mask's spelling: none, causal, causal-lower-right, window:64, boolean, additive.

    >>> parse_mask("window:064")
    'window:64'
    """
    kind, _, width = text.partition(":")
    if kind == "window" and width.isdecimal() and int(width) > 0:
        return f"window:{int(width)}"
    if text not in MASKS or kind == "window":
        raise ValueError(f"expected one of {', '.join(MASKS)}")
    return kind


def parse_inputs(text: str) -> str:
    """Check the spelling of a distribution, and write its number in one way.

    >>> parse_inputs("normal:4.0"), parse_inputs("peaked:20")
    ('normal:4', 'peaked')
    """
    return distribution(text, DISTRIBUTIONS, DEFAULT_NUMBERS)


def parse_gradients(text: str) -> str:
    """Check whether gradients are asked for: no or yes."""
    if text not in ("no", "yes"):
        raise ValueError("expected no or yes")
    return text


_ROWS = "query rows to look at, drawn by seed (default: all); golden then costs rows x kv_len"
_GRADIENTS = "no, yes: also dq, dk, dv for a drawn upstream gradient (of the sampled rows alone)"

PARAMETERS: Mapping[str, Parameter] = {
    p.name: p
    for p in (
        Parameter("batch", 1, "batch size", positive),
        Parameter("heads", 4, "query heads", positive),
        Parameter("kv_heads", None, "key and value heads (default: as many as heads)", positive),
        Parameter("seq_len", 1024, "number of queries", positive),
        Parameter("kv_len", None, "number of keys (default: seq_len)", positive),
        Parameter("head_dim", 64, "head dim of Q and K", positive),
        Parameter("v_dim", None, "head dim of V (default: head_dim)", positive),
        Parameter("mask", "none", ", ".join(MASKS), parse_mask),
        Parameter("scale", None, "factor of QK^T (default: 1 / sqrt(head_dim))", number),
        Parameter("inputs", "normal", ", ".join(DISTRIBUTIONS), parse_inputs),
        Parameter("rows", None, _ROWS, positive),
        Parameter("gradients", "no", _GRADIENTS, parse_gradients),
        Parameter("tile", None, "keys a tile (default: the recipe's)", positive, recipe_only=True),
        Parameter("q_tile", None, "queries a tile, for gradients", positive, recipe_only=True),
    )
}


def lengths(parameters: Mapping[str, Value]) -> tuple[int, int, int, int, int, int]:
    """(heads, kv_heads, seq_len, kv_len, head_dim, v_dim) with defaults put in."""

    def get(name: str, otherwise: str) -> int:
        value = parameters[name] if parameters[name] is not None else parameters[otherwise]
        assert isinstance(value, int)
        return value

    return (
        get("heads", "heads"), get("kv_heads", "heads"), get("seq_len", "seq_len"),
        get("kv_len", "seq_len"), get("head_dim", "head_dim"), get("v_dim", "head_dim"),
    )  # fmt: skip


def settle(given: Mapping[str, Value]) -> dict[str, Value]:
    """All parameters in one spelling, or a `UsageError` where they do not go together.

    >>> settle({"kv_len": 1024}) == settle({"seq_len": 1024, "rows": 5000})
    True
    """
    parameters = normalise(PARAMETERS, given)
    heads, kv_heads, seq_len, kv_len, head_dim, v_dim = lengths(parameters)
    if heads % kv_heads:
        raise UsageError(
            f"heads {heads} is no multiple of kv_heads {kv_heads}; "
            "each key head serves the same number of query heads"
        )
    rows = parameters["rows"]
    said_twice = {
        "kv_heads": kv_heads == heads,
        "kv_len": kv_len == seq_len,
        "v_dim": v_dim == head_dim,
        "scale": parameters["scale"] == head_dim**-0.5,
        "rows": isinstance(rows, int) and rows >= seq_len,
    }
    return {n: None if said_twice.get(n) else value for n, value in parameters.items()}
