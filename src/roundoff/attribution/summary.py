"""From the values of all seeds to shares with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roundoff.attribution.ablation import OutputShares, SiteShare
from roundoff.attribution.coalitions import ERROR, GAIN
from roundoff.attribution.measured import Measured
from roundoff.formats import Format
from roundoff.metrics import Interval, t_interval
from roundoff.sites import (
    Accumulator,
    ByStorage,
    Choice,
    Quantizer,
    Site,
    resolve,
)

__all__ = ["output_shares", "spelled"]

Array = NDArray[np.float64]
NOTHING = Interval(0.0, 0.0, 0.0, 0)


def output_shares(
    name: str, recipe: Any, storage: Format, found: Sequence[Measured], at: int, elements: int
) -> OutputShares:
    """One output, number `at` of the values, taken apart over all seeds."""
    own = [_of_subject(m, name, at) for m in found]
    totals = [float(values[ERROR]) for values in own]

    def share(part: Callable[[Measured], Array | float]) -> Interval:
        return t_interval(_over(_error(part(m), at), t) for m, t in zip(found, totals, strict=True))

    sites = tuple(_site(site, storage, found, totals, at, share) for site in recipe.sites())
    kernels = [m.against for m in found if m.against is not None and name in m.against.figures]
    return OutputShares(
        name=name, recipe=recipe.name,
        rmse=t_interval(math.sqrt(total / elements) for total in totals),
        gain=t_interval(float(values[GAIN]) for values in own),
        sites=sites,
        carrier=share(lambda m: m.own - m.everyone),
        unexplained=t_interval(
            _over(t - _error(m.own, at), t) for m, t in zip(found, totals, strict=True)
        ) if kernels else None,
        apart=t_interval(
            _over(k.apart[name], t) for k, t in zip(kernels, totals, strict=True)
        ) if kernels else None,
        rest=share(lambda m: m.everyone - _sum(m.shapley.values(), m)),
        interaction=share(lambda m: m.everyone - m.nobody - _sum(m.alone.values(), m)),
        pairs={pair: share(lambda m, p=pair: m.pairs[p]) for pair in found[0].pairs},
    )  # fmt: skip


def _of_subject(measured: Measured, name: str, at: int) -> Array:
    """The values of the subject itself: of the kernel, where there is one."""
    kernel = measured.against
    return kernel.figures[name] if kernel and name in kernel.figures else measured.own[at]


def _sum(parts: Iterable[Array], measured: Measured) -> Array:
    return sum(parts, np.zeros_like(measured.own))


def _error(value: Array | float, at: int) -> float:
    return float(value[at, ERROR]) if isinstance(value, np.ndarray) else value


def _over(part: float, total: float) -> float:
    return part / total if total else math.nan


def _site(
    site: Site,
    storage: Format,
    found: Sequence[Measured],
    totals: Sequence[float],
    at: int,
    share: Callable[[Callable[[Measured], Array | float]], Interval],
) -> SiteShare:
    name, choice = site.name, spelled(site.choice, storage)
    if name not in found[0].alone:
        none = (NOTHING,) * 5
        return SiteShare(name, site.doc, choice, False, *none)
    draws = _draws(found, totals, name, at)
    return SiteShare(
        name, site.doc, choice, True,
        share=t_interval(error for error, _ in draws),
        alone=share(lambda m: m.alone[name]),
        restored=share(lambda m: m.restored[name]),
        left=share(lambda m: m.left[name]),
        gain=t_interval(gain for _, gain in draws),
    )  # fmt: skip


def _draws(
    found: Sequence[Measured], totals: Sequence[float], name: str, at: int
) -> list[tuple[float, float]]:
    """The site's share and gain in each independent unit: a seed, or a pair of permutations."""
    if len(found) > 1:
        values = [(m.shapley[name][at], t) for m, t in zip(found, totals, strict=True)]
    else:
        values = [(draw[name][at], totals[0]) for draw in found[0].draws]
    return [(_over(float(v[ERROR]), total), float(v[GAIN])) for v, total in values]


def spelled(choice: Choice, storage: Format) -> str:
    """A choice in words, for inputs stored in `storage`.

    >>> from roundoff.formats import get_format
    >>> spelled(Accumulator("input", chunk=32), get_format("bf16"))
    'bf16 every 32'
    """
    if isinstance(choice, ByStorage):
        return spelled(choice.at(storage), storage)
    choice = resolve(choice, storage)
    if isinstance(choice, Accumulator):
        words = [spelled(choice.format, storage)]
        words += [f"every {choice.chunk}"] if choice.chunk else []
        words += ["truncated"] if choice.rounding != "nearest" else []
        return " ".join(words)
    if isinstance(choice, Quantizer):
        scale = f"block {choice.block}" if choice.scale == "block" else choice.scale
        return f"{spelled(choice.element, storage)}, scale {scale}"
    return choice.name if isinstance(choice, Format) else str(choice)
