"""What both twins need to know of a rounding, as integers of the tensor's own bits.

The *carrier* is the tensor's dtype (float32 or float64): the values of the format are
carried in it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, get_args

from roundoff.errors import UsageError
from roundoff.formats.format import Format

__all__ = ["FLOAT32", "FLOAT64", "Carrier", "Mode", "Overflow", "Plan", "make_plan"]

Mode = Literal["nearest", "nearest-away", "toward-zero", "up", "down", "stochastic"]
Overflow = Literal["inf", "saturate"]


@dataclass(frozen=True, slots=True)
class Carrier:
    """The dtype that holds the values: its name, mantissa bits and exponent bias."""

    name: str
    mantissa: int
    bias: int

    @property
    def infinity(self) -> int:
        """Bits of infinity; larger magnitudes are NaN."""
        return (2 * self.bias + 1) << self.mantissa

    @property
    def nan(self) -> int:
        """Bits of the NaN that an overflow makes."""
        return self.infinity | 1 << (self.mantissa - 1)

    def magnitude(self, value: float) -> int:
        """Bits of a non-negative finite value that the carrier can hold."""
        pack, unpack = ("<f", "<i") if self.mantissa == 23 else ("<d", "<q")
        return struct.unpack(unpack, struct.pack(pack, value))[0]


FLOAT32 = Carrier("float32", 23, 127)
FLOAT64 = Carrier("float64", 52, 1023)


@dataclass(frozen=True, slots=True, eq=False)  # looked up by identity, for speed
class Plan:
    """One rounding, in bits of the carrier's magnitudes.

    A value with exponent field `f` and significand `sig` (implicit bit included) loses its
    lowest `max(drop, reach - f)` bits: `drop` where the format is normal, more where it is
    subnormal.
    """

    carrier: Carrier
    mode: Mode
    drop: int
    reach: int
    tiny: int  # smallest subnormal of the format
    top: int  # largest finite number of the format
    over_positive: int  # what a finite value beyond `top` becomes
    over_negative: int
    infinite: int  # what an infinite value becomes
    negative_zero: bool


def make_plan(format: Format, carrier: Carrier, mode: Mode, overflow: Overflow) -> Plan | None:
    """The plan of a rounding, or None if the format holds every value of the carrier.

    Raises `UsageError` for an unknown mode or overflow, and if neither of format and carrier
    holds the values of the other.
    """
    _one_of("mode", mode, get_args(Mode))
    _one_of("overflow", overflow, get_args(Overflow))
    emin, emax, m = 1 - carrier.bias, carrier.bias, carrier.mantissa
    wider = format.emin <= emin and format.emax >= emax and format.mantissa_bits >= m
    same = (format.emin, format.emax, format.mantissa_bits) == (emin, emax, m)
    if wider and format.infinities and not same:
        return None
    if format.emin < emin or format.emax > emax or format.mantissa_bits > m:
        raise UsageError(
            f"{carrier.name} cannot hold the values of {format.name} "
            f"(exponents {format.emin} to {format.emax}, {format.mantissa_bits} mantissa bits); "
            "give a float64 tensor"
        )
    positive, negative, infinite = _beyond(format, carrier, mode, overflow)
    return Plan(
        carrier=carrier,
        mode=mode,
        drop=m - format.mantissa_bits,
        reach=format.emin + carrier.bias + m - format.mantissa_bits,
        tiny=carrier.magnitude(format.smallest_subnormal),
        top=carrier.magnitude(format.max),
        over_positive=positive,
        over_negative=negative,
        infinite=infinite,
        negative_zero=format.negative_zero,
    )


def _beyond(
    format: Format, carrier: Carrier, mode: Mode, overflow: Overflow
) -> tuple[int, int, int]:
    """What positive and negative overflow and infinity become."""
    top = carrier.magnitude(format.max)
    if overflow == "saturate" or not format.nans:
        return top, top, top
    infinite = carrier.infinity if format.infinities else carrier.nan
    positive = top if mode in ("toward-zero", "down") else infinite
    negative = top if mode in ("toward-zero", "up") else infinite
    return positive, negative, infinite


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{what} {value!r} is not one of {', '.join(known)}")
