"""A call of attention in a running model, on sampled rows: its logits, and how far it is off.

    H query heads    R rows    M keys    D head dim    q [1,H,N,D]    k, v [1,Hk,M,D]
    out, dout [1,H,R,D]    states [H, columns], see `metrics.probes`

Golden and a recipe compute the same rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from roundoff.formats import Format, ulp
from roundoff.metrics.probes import Probe
from roundoff.operators.arithmetic import plain_arithmetic
from roundoff.operators.attention.backward import Gradients, attend_keeping, differentiate
from roundoff.operators.attention.call import Attention, Call
from roundoff.operators.attention.engine import attend
from roundoff.operators.attention.golden import golden
from roundoff.operators.attention.golden_gradients import golden_gradients
from roundoff.operators.attention.gradient_noise import gradient_noise
from roundoff.operators.attention.operands import shared_heads
from roundoff.operators.attention.recipe import Recipe
from roundoff.operators.attention.ties import at_one

__all__ = ["ROW_PROBES", "ObservedCall"]


@dataclass(frozen=True, eq=False)
class ObservedCall:
    """One call as it ran, and what its kernel gave at the rows of `call`.

    `out` [1,H,R,Dv]; `dout` is the upstream gradient of these rows, and `gradients` what the
    kernel makes of it where it is 0 at all other rows (None: there is none). `recipe` is what the
    kernel is expected to follow (None: no prediction). `call` holds q, k and v in a carrying dtype.
    """

    call: Call
    storage: Format
    out: Tensor | None
    dout: Tensor | None = None
    gradients: Gradients | None = None
    recipe: Recipe | None = None

    @cached_property
    def golden(self) -> Attention:
        """Output and LSE of the rows in float64."""
        return golden(self.call, condition=False)[0]

    @cached_property
    def predicted(self) -> Tensor | None:
        """The output of the rows as the recipe computes it."""
        return self.recipe and attend(self.recipe, self.call, self.storage).out

    @cached_property
    def golden_gradients(self) -> Gradients | None:
        """The gradients in float64."""
        return None if self.dout is None else golden_gradients(self.call, self.dout)

    @cached_property
    def noise(self) -> Gradients | None:
        """The squared error that rounding alone may make in each gradient."""
        if self.dout is None:
            return None
        return gradient_noise(self.call, self.golden.lse, self.dout, self.storage)

    @cached_property
    def predicted_gradients(self) -> Gradients | None:
        """The gradients as the recipe computes them; None where it says nothing of them."""
        if self.recipe is None or self.recipe.backward is None or self.dout is None:
            return None
        forward = attend_keeping(self.recipe, self.call, self.storage)[1]
        return differentiate(self.recipe, self.call, forward, self.dout, self.storage)


def _logits(seen: ObservedCall) -> Tensor:
    """Sums: rows that see a key, entropy, tied rows, visible keys, weights at 1; and peaks."""
    call, lse = seen.call, seen.golden.lse[0]
    with plain_arithmetic(call.q.device):
        k = shared_heads(call.k.double(), call.q.shape[1])
        s = call.q[..., call.rows, :].double() @ k.transpose(-1, -2) * call.scale
        s = call.mask.apply(s, call.rows, slice(0, k.shape[-2]), call.lengths)[0]
        largest = s.amax(-1, keepdim=True)
        visible, sees = s != -math.inf, largest != -math.inf
        # 0, and NaN in a head with a logit that is not finite.
        taint = (largest * 0).masked_fill(~sees, 0.0).sum((-1, -2))
        log_p = (s - lse[..., None]).masked_fill(~visible, 0.0)
        entropy = -(log_p.exp() * log_p).masked_fill(~visible, 0.0).sum((-1, -2))
        ones = at_one(s, largest, seen.storage) & visible
        lowest = lse.masked_fill(~sees[..., 0], math.inf).amin(-1)
        columns = (
            sees.sum((-1, -2)), entropy, (ones.sum(-1) > 1).sum(-1) + taint, visible.sum((-1, -2)),
            ones.sum((-1, -2)) + taint, largest.amax((-1, -2)), lse.amax(-1), -lowest,
        )  # fmt: skip
        return torch.stack([column.double() for column in columns], -1)


def _values_of_logits(state: Tensor) -> dict[str, Tensor]:
    rows, entropy, tied, visible, ones, logit_max, lse_max, lse_min = state.unbind(-1)
    return {
        "logit_max": logit_max, "lse_min": -lse_min, "lse_max": lse_max,
        "entropy": entropy / rows, "tied": tied / rows, "at_one": ones / visible,
    }  # fmt: skip


def _errors(
    golden: Tensor, x: Tensor, predicted: Tensor | None, noise: Tensor | None, format: Format
) -> Tensor:
    """Sums over one output [H,...].

    Elements, e^2, e g, g^2, |e| in ulps, e^2 as predicted, e^2 that rounding alone may make.
    """
    g = golden.double().flatten(1)
    e = x.double().flatten(1) - g
    off = torch.full_like(g, math.nan) if predicted is None else predicted.double().flatten(1) - g
    alone = torch.zeros_like(g) if noise is None else noise.flatten(1)
    columns = torch.ones_like(g), e * e, e * g, g * g, e.abs() / ulp(g, format), off * off, alone
    return torch.stack([column.sum(1) for column in columns], -1)


SUMS = 7


def _values_of_errors(state: Tensor) -> dict[str, Tensor]:
    n, ee, eg, gg, ulps, predicted, noise = state.unbind(-1)
    # Of two errors below what rounding alone may make, none is told to be the larger.
    ratio = (torch.maximum(ee, noise) / torch.maximum(predicted, noise)).sqrt()
    return {"rmse": (ee / n).sqrt(), "ulp": ulps / n, "gain": eg / gg, "ratio": ratio}


def _deviation(seen: ObservedCall) -> Tensor:
    heads, width = seen.call.q.shape[1], seen.call.v.shape[-1]
    if seen.out is None:
        return seen.golden.out.new_zeros(heads, SUMS)
    predicted = None if seen.predicted is None else seen.predicted[0, ..., :width]
    return _errors(seen.golden.out[0], seen.out[0], predicted, None, seen.storage)


_GRADIENTS = ("dq", "dk", "dv")


def _gradients(seen: ObservedCall) -> Tensor:
    """The sums of dQ, dK and dV side by side; a group of heads shares those of dK and dV."""
    heads, golden, noise = seen.call.q.shape[1], seen.golden_gradients, seen.noise
    if golden is None or noise is None or seen.gradients is None:
        return torch.zeros(heads, 3 * SUMS, dtype=torch.float64, device=seen.call.q.device)
    of, parts = seen.predicted_gradients, list[Tensor]()
    for name in _GRADIENTS:
        g, x = getattr(golden, name)[0], getattr(seen.gradients, name)[0]
        predicted = None if of is None else getattr(of, name)[0]
        sums = _errors(g, x, predicted, getattr(noise, name)[0], seen.storage)
        parts.append(shared_heads(sums[None], heads)[0])
    return torch.cat(parts, -1)


def _values_of_gradients(state: Tensor) -> dict[str, Tensor]:
    return {
        f"{gradient}_{name}": value
        for i, gradient in enumerate(_GRADIENTS)
        for name, value in _values_of_errors(state[..., SUMS * i : SUMS * (i + 1)]).items()
        if name != "ulp"  # many are 0 in golden, where an ulp is as good as nothing
    }


ROW_PROBES: dict[str, Probe[ObservedCall]] = {
    probe.name: probe
    for probe in (
        Probe[ObservedCall](
            "logits", "largest logit, range of LSE, entropy, ties of the maximum, weights at 1",
            _logits, _values_of_logits, peaks=3,
        ),
        Probe[ObservedCall](
            "deviation", "of the output from golden: rmse, ulp, gain, ratio to the recipe's rmse",
            _deviation, _values_of_errors,
        ),
        Probe[ObservedCall](
            "gradients", "rmse, gain, ratio of dQ, dK, dV, for the upstream gradient of the rows",
            _gradients, _values_of_gradients,
        ),
    )
}  # fmt: skip
"""What can be seen of attention; a row a probe."""
