"""Cells and kernels to measure in a moment."""

from dataclasses import replace

import pytest

from roundoff.operators import OPERATORS
from roundoff.operators.protocol import normalise
from roundoff.records import Cell, SubjectName

SMALL = {"heads": 2, "seq_len": 16, "head_dim": 8}

KERNELS = """
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

def good(q, k, v):
    return sdpa(q, k, v)

def raises(q, k, v):
    raise ValueError("no luck [/today]")

def leaves(q, k, v):
    raise SystemExit(3)

def nan(q, k, v):
    return sdpa(q, k, v) * float("nan")

def shape(q, k, v):
    return sdpa(q, k, v)[:, :, 1:]

def dtype(q, k, v):
    return sdpa(q, k, v).double()

def spoils(q, k, v):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    for x in (q, k, v):
        x.zero_()
    return q
"""


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """The path of a file of users' kernels."""
    path = tmp_path_factory.mktemp("users") / "kernels.py"
    path.write_text(KERNELS)
    return path


@pytest.fixture(scope="session")
def make_cell():
    """A small cell of attention, the baseline's unless something else is said."""

    def make(candidate="kernel:torch-math", *, baseline="kernel:torch-math", **changes):
        given = {**SMALL, **changes.pop("given", {})}
        plain = Cell(
            "attention", SubjectName.parse(baseline), SubjectName.parse(candidate), "bf16",
            normalise(OPERATORS["attention"].parameters, given), 0,
        )  # fmt: skip
        return replace(plain, **changes)

    return make
