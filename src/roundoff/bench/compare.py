"""`compare`: two callables on the same tensors, each held to golden."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from roundoff.errors import GoldenError, KernelError, UsageError
from roundoff.formats import Format, format_of, is_representable
from roundoff.kernels.settings import kept
from roundoff.metrics import GOLDEN_MARGIN, METRICS, Deviation, floor, measure_deviation

__all__ = ["Comparison", "compare"]

NUDGE = 2.0**-40
"""A relative change of an input that float64 shows and no narrower dtype does."""
SHOWN = (
    "rmse", "max_abs_err", "rel_l2", "cosine", "ulp_mean", "ulp_p99", "gain", "sign_bias",
    "nan_count", "nonfinite_new",
)  # fmt: skip

Function = Callable[..., Any]


@dataclass(frozen=True)
class Comparison:
    """How far a baseline and a candidate lie from golden, and how far anything must.

    `floor` is golden rounded once to the candidate's format: no output stored in it can have
    a smaller rmse. `baseline` and `candidate` are what `measure_deviation` gives; print the
    comparison for a table of the most telling metrics.
    """

    baseline: Deviation
    candidate: Deviation
    floor: Deviation
    format: Format

    @property
    def err_ratio(self) -> float:
        """The candidate's rmse over the baseline's: NaN where both are exact."""
        ratio = self.candidate.err_ratio
        assert ratio is not None
        return ratio

    def __rich__(self) -> Table:
        """A table for the terminal."""
        table = Table(title=f"against golden, in {self.format.name}", title_justify="left")
        table.add_column("metric")
        for column in ("baseline", "candidate", "floor"):
            table.add_column(column, justify="right")
        table.add_column("what it means")
        for name in SHOWN:
            values = (getattr(d, name) for d in (self.baseline, self.candidate, self.floor))
            table.add_row(name, *(f"{value:.3g}" for value in values), METRICS[name].meaning)
        same = 1.0 - (self.candidate.mismatch_rate or 0.0)
        table.caption = f"rmse x{self.err_ratio:.3g} the baseline's, {same:.2%} of bits equal"
        table.caption_justify = "left"
        return table

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=100, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def compare(
    baseline: Function,
    candidate: Function,
    *inputs: Any,
    golden: Function | Tensor | None = None,
    cluster_dims: int = 1,
) -> Comparison:
    """Call two functions on the same inputs and compare both with golden.

    `inputs` are tensors and whatever else the functions take. Each call gets copies of the
    tensors and starts from the same random state; neither gradients, nor torch's settings,
    nor the random state are changed. Where a function returns a tuple, its first element
    counts. `golden` is the true output, or a function that is called on the inputs in
    float64; by default that is the baseline. The leading `cluster_dims` axes of the output
    number independent clusters, for standard errors.

    NaN and infinities in an output are counted, not dropped (see `measure_deviation`).
    Errors: `UsageError` for what is no function; `KernelError` for an output that is no
    floating-point tensor or has another shape than the baseline's; `GoldenError` where golden
    has another shape, or is not much finer than the candidate's format: it then cannot judge it.

    >>> import torch
    >>> x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    >>> def careless(x):
    ...     p = x.exp()
    ...     return p / p.sum(-1, keepdim=True)
    >>> found = compare(lambda x: x.softmax(-1), careless, x)
    >>> found.err_ratio > 1.5, found.baseline.rmse == found.floor.rmse
    (True, True)
    """
    for role, function in (("baseline", baseline), ("candidate", candidate)):
        if not callable(function):
            raise UsageError(f"the {role} is {function!r}; expected a function of the inputs")
    if golden is not None and not isinstance(golden, Tensor) and not callable(golden):
        raise UsageError(f"golden is {golden!r}; expected a function, a tensor or None")
    if not any(_is_float(x) for x in inputs):
        raise UsageError("compare needs a floating-point tensor among its inputs")
    base = _output("baseline", baseline, inputs)
    x = _output("candidate", candidate, inputs)
    if x.shape != base.shape:
        raise KernelError(
            f"the candidate returned shape {tuple(x.shape)}; "
            f"expected {tuple(base.shape)}, the baseline's"
        )
    true = _golden(baseline if golden is None else golden, inputs, x)
    format, own = format_of(x), format_of(base)
    return Comparison(
        measure_deviation(true, base, format=own, cluster_dims=cluster_dims),
        measure_deviation(true, x, format=format, baseline=base, cluster_dims=cluster_dims),
        floor(true, format, cluster_dims=cluster_dims),
        format,
    )


def _is_float(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _output(role: str, function: Function, inputs: tuple[Any, ...]) -> Tensor:
    own = [x.detach().clone() if isinstance(x, Tensor) else x for x in inputs]
    with torch.no_grad(), kept():
        first: Any = function(*own)
    if isinstance(first, tuple | list) and first:
        first = cast("list[Any]", first)[0]
    result = cast("object", first)
    if not isinstance(result, Tensor) or not result.is_floating_point():
        found = str(result.dtype) if isinstance(result, Tensor) else type(result).__name__
        raise KernelError(
            f"the {role} returned {found}; expected a floating-point tensor, "
            "or a tuple that begins with one"
        )
    return result.detach()


def _golden(golden: Function | Tensor, inputs: tuple[Any, ...], candidate: Tensor) -> Tensor:
    """Golden, if it is good enough to judge `candidate`."""
    if isinstance(golden, Tensor):
        true = golden.detach()
    else:
        true = _output("golden", golden, tuple(_wide(inputs)))
    if true.shape != candidate.shape:
        raise GoldenError(
            f"golden has shape {tuple(true.shape)}; expected {tuple(candidate.shape)}, the outputs'"
        )
    if torch.finfo(candidate.dtype).eps < GOLDEN_MARGIN * torch.finfo(true.dtype).eps:
        raise GoldenError(
            f"golden is {true.dtype} and cannot judge a candidate of {candidate.dtype}; "
            "pass golden= with a function or a tensor in a wider dtype, such as float64"
        )
    if not isinstance(golden, Tensor) and _is_narrow(true, candidate):
        nudged = [x * (1.0 + NUDGE) if _is_float(x) else x for x in _wide(inputs)]
        if _is_narrow(_output("golden", golden, tuple(nudged)), candidate):
            raise GoldenError(
                f"golden computes in {candidate.dtype} inside, no finer than the candidate that it "
                "would judge; pass golden= with a function that keeps float64"
            )
    return true


def _wide(inputs: tuple[Any, ...]) -> Iterator[Any]:
    return (x.double() if _is_float(x) else x for x in inputs)


def _is_narrow(true: Tensor, candidate: Tensor) -> bool:
    """Whether golden holds nothing that the candidate's own dtype could not hold."""
    return bool(is_representable(true, format_of(candidate)).all())
