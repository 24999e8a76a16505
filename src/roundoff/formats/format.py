"""A number format as a value: five fields, and everything else follows from them.

Imports no torch, so that formats can be listed and compared for free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from roundoff.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["Format", "Specials"]

Specials = Literal["ieee", "fn", "fnuz", "none"]

# Torch names a dtype by its numbers, so a user's "e8m7" is bfloat16 too.
_TORCH_DTYPES: dict[tuple[int, int, int, Specials], str] = {
    (11, 52, 1023, "ieee"): "float64",
    (8, 23, 127, "ieee"): "float32",
    (8, 7, 127, "ieee"): "bfloat16",
    (5, 10, 15, "ieee"): "float16",
    (4, 3, 7, "fn"): "float8_e4m3fn",
    (5, 2, 15, "ieee"): "float8_e5m2",
    (4, 3, 8, "fnuz"): "float8_e4m3fnuz",
    (5, 2, 16, "fnuz"): "float8_e5m2fnuz",
}


@dataclass(frozen=True, slots=True)
class Format:
    """A signed binary floating-point format with subnormals, no wider than float64.

    A code is a sign bit, `exponent_bits` and `mantissa_bits`; exponent field 0 holds zero
    and the subnormals. `specials` says which codes are not numbers:

    - `"ieee"`: the top exponent field holds infinity (mantissa 0) and NaN (the rest);
    - `"fn"`: no infinities, and NaN is only the code of all ones (OCP's e4m3fn);
    - `"fnuz"`: no infinities and no negative zero, whose code is the only NaN;
    - `"none"`: every code is a finite number (OCP's e2m1, e2m3, e3m2).

    Two formats are equal when the name and all numbers are. Raises `UsageError` for a
    format that cannot exist or that float64 cannot hold.

    >>> bf16 = Format("bf16", exponent_bits=8, mantissa_bits=7, bias=127)
    >>> bf16.eps, bf16.max
    (0.0078125, 3.3895313892515355e+38)
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials = "ieee"

    def __post_init__(self) -> None:
        e, m = self.exponent_bits, self.mantissa_bits
        if self.specials not in get_args(Specials):
            raise UsageError(
                f"format {self.name!r}: specials {self.specials!r} is not one of "
                f"{', '.join(get_args(Specials))}"
            )
        least = 2 if self.specials == "ieee" else 1
        if e < least or m < 1:
            raise UsageError(
                f"format {self.name!r} has {e} exponent and {m} mantissa bits; "
                f"{self.specials} formats need at least {least} and 1"
            )
        if e > 11 or m > 52 or self.emin < -1022 or self.emax > 1023:
            raise UsageError(
                f"format {self.name!r} (exponents {self.emin} to {self.emax}, {m} mantissa bits) "
                "does not fit in float64 (-1022 to 1023, 52)"
            )

    @property
    def bits(self) -> int:
        """Bits of one code, sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def codes(self) -> int:
        """How many codes there are, those of NaN and infinity included."""
        return 1 << self.bits

    @property
    def infinities(self) -> bool:
        """Whether there are infinities."""
        return self.specials == "ieee"

    @property
    def nans(self) -> bool:
        """Whether there is a NaN."""
        return self.specials != "none"

    @property
    def negative_zero(self) -> bool:
        """Whether -0 differs from +0."""
        return self.specials != "fnuz"

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal number."""
        return 1 - self.bias

    @property
    def emax(self) -> int:
        """Exponent of the largest number."""
        return (1 << self.exponent_bits) - (2 if self.infinities else 1) - self.bias

    @property
    def eps(self) -> float:
        """Spacing of the numbers from 1 to 2, `2**-mantissa_bits`."""
        return math.ldexp(1.0, -self.mantissa_bits)

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of rounding to nearest in the normal range, `eps / 2`."""
        return self.eps / 2

    @property
    def max(self) -> float:
        """Largest finite number."""
        lost = 2 if self.specials == "fn" else 1
        return math.ldexp(2.0 - lost * self.eps, self.emax)

    @property
    def smallest_normal(self) -> float:
        """Smallest positive number with full precision."""
        return math.ldexp(1.0, self.emin)

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive number, and the spacing below `smallest_normal`."""
        return math.ldexp(1.0, self.emin - self.mantissa_bits)

    @property
    def dtype(self) -> torch.dtype | None:
        """The torch dtype with exactly these numbers, or None (tf32, the 4- and 6-bit formats)."""
        import torch  # noqa: PLC0415 - a format costs no torch until somebody asks

        key = (self.exponent_bits, self.mantissa_bits, self.bias, self.specials)
        name = _TORCH_DTYPES.get(key)
        return None if name is None else getattr(torch, name)

    def value(self, code: int) -> float:
        """The number that `code` stands for.

        >>> Format("e2m1", 2, 1, 1, "none").value(0b0111)
        6.0
        """
        if not 0 <= code < self.codes:
            raise UsageError(f"code {code} is not in 0..{self.codes - 1} of {self.name}")
        magnitude = code & (self.codes // 2 - 1)
        sign = -1.0 if code != magnitude else 1.0
        field, mantissa = divmod(magnitude, 1 << self.mantissa_bits)
        if self.specials == "fnuz" and code == self.codes // 2:
            return math.nan
        if self.specials == "fn" and magnitude == self.codes // 2 - 1:
            return math.nan
        if self.specials == "ieee" and field == (1 << self.exponent_bits) - 1:
            return math.nan if mantissa else sign * math.inf
        whole = mantissa + (1 << self.mantissa_bits if field else 0)
        return sign * math.ldexp(whole, max(field, 1) - self.bias - self.mantissa_bits)

    def values(self) -> tuple[float, ...]:
        """Every code's number in the order of the codes, for formats up to 20 bits.

        >>> Format("e2m1", 2, 1, 1, "none").values()[:8]
        (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
        """
        if self.bits > 20:
            raise UsageError(f"{self.name} has 2**{self.bits} codes; values() lists at most 2**20")
        return tuple(self.value(code) for code in range(self.codes))
