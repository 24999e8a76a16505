"""What an ablation found, as values: shares with intervals, and the sum that they make."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roundoff.attribution.sweep import Swept
from roundoff.metrics import Interval

__all__ = ["Ablation", "OutputShares", "SiteShare", "percent"]


@dataclass(frozen=True, slots=True)
class SiteShare:
    """What one site causes. All but the gain are shares of the output's squared error.

    - `share`: its Shapley value, the mean of what it adds when sites begin to round one after
      another in a random order;
    - `alone`: the error where it rounds and all others are exact;
    - `restored`: what goes away where it is exact and all others round (negative: the error
      grows, since roundings cancelled);
    - `left`: what is left once it and all sites before it, in the order of the data, are exact;
    - `gain`: its Shapley value in <e, g> / <g, g>, in units of the output.

    `rounds` is False for a site that changes no bit alone, neither among all others nor among
    none: its numbers are 0 then.
    """

    name: str
    doc: str
    choice: str
    rounds: bool
    share: Interval
    alone: Interval
    restored: Interval
    left: Interval
    gain: Interval


@dataclass(frozen=True, slots=True)
class OutputShares:
    """The squared error of one output, taken apart. Shares are of the subject's squared error.

    The sites' shares, `carrier`, `unexplained` and `rest` add up to 1 for every seed. `carrier`
    is what float32 as a carrier adds to float64 with the same sites: the order of sums, and what
    is rounded inside them. `unexplained` is a kernel's squared error less that of its recipe,
    and `apart` the squared distance of the two outputs; both None for a recipe. `rest` is the
    error that is left when all sites are exact, and what idle sites do together; about 0.

    `interaction` is the error of all sites less the sum of each alone: positive where roundings
    add up, negative where two of them are one or cancel; `pairs` are the same for two sites.
    """

    name: str
    recipe: str
    rmse: Interval
    gain: Interval
    sites: tuple[SiteShare, ...]
    carrier: Interval
    unexplained: Interval | None
    apart: Interval | None
    rest: Interval
    interaction: Interval
    pairs: Mapping[tuple[str, str], Interval]

    @property
    def shares(self) -> dict[str, Interval]:
        """The share of each site, the largest first."""
        found = sorted(self.sites, key=lambda site: -site.share.estimate)
        return {site.name: site.share for site in found}

    @property
    def gain_shares(self) -> dict[str, float]:
        """The share of the gain that each site causes; NaN where the gain may be 0."""
        certain = not self.gain.low <= 0 <= self.gain.high
        return {
            site.name: site.gain.estimate / self.gain.estimate if certain else math.nan
            for site in self.sites
        }

    @property
    def verdict(self) -> str:
        """One sentence: the site that causes most, with its interval.

        What the recipe does not explain of a kernel comes first where it is more.
        """
        return _sentence(self)

    @property
    def total(self) -> float:
        """What the parts add up to: 1, up to the error of floating-point sums."""
        parts = [site.share for site in self.sites]
        parts += [part for part in (self.carrier, self.unexplained, self.rest) if part is not None]
        return math.fsum(part.estimate for part in parts)

    @property
    def closes(self) -> float:
        """How far the total is from 1."""
        return abs(self.total - 1.0)


@dataclass(frozen=True, slots=True)
class Ablation:
    """Which site causes which share of the deviation, for each output.

    Intervals are Student's over `units`: `seeds` (each a draw of the inputs with permutations of
    its own, so that its spread holds both), or, of a single seed, its pairs of `permutations`,
    which then say nothing about other inputs. `permutations` is 0 where all coalitions were run.
    """

    subject: str
    recipe: str
    operator: str
    format: str
    parameters: Mapping[str, Any]
    seeds: tuple[int, ...]
    permutations: int
    coalitions: int
    units: str
    outputs: Mapping[str, OutputShares]
    swept: tuple[Swept, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shares(self) -> dict[str, Interval]:
        """The share of each site in the squared error of the first output, the largest first."""
        return next(iter(self.outputs.values())).shares

    @property
    def verdict(self) -> str:
        """One sentence for each output: the site that causes most of it."""
        return "; ".join(found.verdict for found in self.outputs.values())

    def to_record(self) -> dict[str, Any]:
        """All of it as plain data for strict JSON; an interval is [estimate, low, high]."""
        plain = {
            f.name: _plain(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name not in ("outputs", "swept")
        }
        outputs = {name: _output(found) for name, found in self.outputs.items()}
        return plain | {
            "verdict": self.verdict,
            "outputs": outputs,
            "swept": [_plain(swept) for swept in self.swept],
        }


def _output(found: OutputShares) -> dict[str, Any]:
    record: dict[str, Any] = _plain(found)
    shares = found.gain_shares
    for site in record["sites"]:
        site["gain_share"] = shares[site["name"]]
    record["pairs"] = [
        {"sites": list(pair), "interaction": _plain(value)} for pair, value in found.pairs.items()
    ]
    return record | {"closes": found.closes}


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return [value.estimate, value.low, value.high]
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}  # type: ignore[misc]
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]  # type: ignore[misc]
    return value


def percent(share: Interval) -> str:
    """A share with its interval: `71 % [66, 75]`, without one where it is unknown.

    >>> percent(Interval(0.712, 0.66, 0.75, 4)), percent(Interval(0.5, -math.inf, math.inf, 1))
    ('71 % [66, 75]', '50 %')
    """
    estimate = f"{_rounded(share.estimate)} %"
    if not math.isfinite(share.low) or not math.isfinite(share.high):
        return estimate
    return f"{estimate} [{_rounded(share.low)}, {_rounded(share.high)}]"


def _rounded(share: float) -> str:
    """A share in percent: whole numbers from 10 on, one decimal below.

    >>> _rounded(0.712), _rounded(0.0123), _rounded(-0.00001)
    ('71', '1.2', '0.0')
    """
    if math.isnan(share):
        return "nan"
    value = 100.0 * share
    text = f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.1f}"
    return "0.0" if text == "-0.0" else text


def _unexplained(found: OutputShares, rest: Interval) -> str:
    if rest.estimate > 0:
        whole = f"{percent(rest)} of the squared error of {found.name}"
        return f"{whole} is not explained by {found.recipe}"
    return (
        f"{found.recipe} has {1.0 - rest.estimate:.3g} times the squared error of {found.name}, "
        "and does not explain it"
    )


def _sentence(found: OutputShares) -> str:
    first = max(found.sites, key=lambda site: site.share.estimate, default=None)
    if first is None or not first.rounds:
        return f"no site of the recipe rounds {found.name}"
    words = (
        f"{first.name} ({first.doc}) in {first.choice} causes {percent(first.share)} "
        f"of the squared error of {found.name}"
    )
    rest = found.unexplained
    if rest is not None and abs(rest.estimate) > first.share.estimate:
        return f"{_unexplained(found, rest)}; {first.name} causes {percent(first.share)}"
    share = found.gain_shares[first.name]
    if math.isnan(share):
        return f"{words}, whose gain cannot be told from 0"
    return f"{words}, and {_rounded(share)} % of its gain of {found.gain.estimate:+.1e}"
