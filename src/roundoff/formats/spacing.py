"""Questions about a tensor and a format: the spacing, whether it fits, its torch dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from roundoff.errors import UnsupportedError, UsageError
from roundoff.formats.catalogue import get_format
from roundoff.formats.format import Format
from roundoff.formats.rounding import round_to

__all__ = ["format_of", "is_representable", "to_dtype", "ulp"]

_INFINITY = 0x7FF << 52


def ulp(x: Tensor, format: str | Format) -> Tensor:
    """The spacing of `format` at the magnitude of each element of `x`, in float64.

    At a power of two it is the spacing above. Zero and subnormals have the smallest subnormal,
    finite values beyond `format.max` the spacing of the largest numbers, NaN and infinity have
    NaN. `x` is of any floating dtype. Raises `UsageError` for integers.

    >>> ulp(torch.tensor([1.0, -1.5, 2.0, 0.0]), "bf16")
    tensor([7.8125e-03, 7.8125e-03, 1.5625e-02, 9.1835e-41], dtype=torch.float64)
    """
    format = get_format(format)
    magnitude = _float64(x).view(torch.int64) & torch.iinfo(torch.int64).max
    exponent = ((magnitude >> 52) - 1023).clamp(format.emin, format.emax) - format.mantissa_bits
    # Written as bits, since ldexp may flush subnormals.
    normal = (exponent + 1023) << 52
    subnormal = torch.ones_like(exponent) << (exponent + 1074).clamp(0, 52)
    bits = torch.where(exponent < -1022, subnormal, normal)
    return torch.where(magnitude >= _INFINITY, _INFINITY + 1, bits).view(torch.float64)


def is_representable(x: Tensor, format: str | Format) -> Tensor:
    """Whether each element of `x` is a number of `format`, as a tensor of bool.

    NaN, infinity and -0 are, if the format has them. `x` is of any floating dtype. Raises
    `UsageError` for integers.

    >>> is_representable(torch.tensor([1.0, 1.001, float("inf"), -0.0]), "e4m3fnuz")
    tensor([ True, False, False, False])
    """
    format = get_format(format)
    x = _float64(x)
    same = round_to(x, format).view(torch.int64) == x.view(torch.int64)
    return torch.where(torch.isnan(x), format.nans, same)


def to_dtype(x: Tensor, format: str | Format) -> Tensor:
    """`x` in the torch dtype of `format`, without any rounding.

    Raises `UsageError` if an element is not a number of the format (round first), and
    `UnsupportedError` if torch has no such dtype.

    >>> to_dtype(torch.tensor([0.5, 448.0]), "e4m3fn").dtype
    torch.float8_e4m3fn
    """
    format = get_format(format)
    if format.dtype is None:
        raise UnsupportedError(f"torch has no dtype for {format.name}")
    if x.dtype == format.dtype:
        return x
    fits = is_representable(x, format)
    if not bool(fits.all()):
        first = x[~fits][0].item()
        raise UsageError(f"{first} is not a number of {format.name}; use round_to first")
    return x.to(format.dtype)


def _float64(x: Tensor) -> Tensor:
    """`x` in float64, also where the CPU flushes float32's subnormals on conversion."""
    if not x.is_floating_point():
        raise UsageError(f"expected a floating-point tensor, not {x.dtype}")
    x = x.detach()
    if x.dtype is torch.float64:
        return x
    x = x.to(torch.float32)
    bits = x.view(torch.int32)
    mantissa = (bits & 0x7FFFFF).to(torch.float64).view(torch.int64)
    scaled = torch.where(mantissa == 0, 0, mantissa - (149 << 52))
    signed = torch.where(bits < 0, scaled | torch.iinfo(torch.int64).min, scaled)
    subnormal = (bits & 0x7F800000) == 0
    return torch.where(subnormal, signed, x.to(torch.float64).view(torch.int64)).view(torch.float64)


def format_of(x: Tensor) -> Format:
    """The format in which the numbers of `x` are stored; `UnknownNameError` for integers.

    >>> format_of(torch.ones(1, dtype=torch.bfloat16)).name
    'bf16'
    """
    return get_format(str(x.dtype).removeprefix("torch."))
