"""How fast rounding float32 is, beside a plain copy and beside other libraries.

    python benchmarks/rounding.py [--repeats 15] [--peer-repeats 2] [--output FILE]

Every run of a row is preceded by a timed `copy_` of the same tensor, and all rows take turns, so
that a slow moment of the machine falls on both. The share of copy_ is the median of the pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from measuring import Run, machine, timed

from roundoff.formats import FORMATS, round_to

ELEMENTS = 16 * 2**20
SMALL = 4096
THREADS = 2
FORMAT_NAMES = ("bf16", "fp16", "tf32", "e4m3fn", "e5m2")
EXACT_MODES = ("nearest", "nearest-away", "toward-zero", "up", "down")
LIBRARIES = ("roundoff", "torch", "numba", "gfloat", "pychop", "qtorch", "ml_dtypes", "numpy")
RESULTS = Path(__file__).parent / "results" / "rounding.json"


@dataclass
class Row:
    """One thing that is timed."""

    library: str
    format: str
    mode: str
    run: Run
    seconds: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)

    def measure(self, copy: Run) -> None:
        self.copies.append(timed(copy))
        self.seconds.append(timed(self.run))

    def summary(self, elements: int) -> dict[str, object]:
        median = statistics.median(self.seconds)
        pairs = zip(self.copies, self.seconds, strict=True)
        return {
            "library": self.library,
            "format": self.format,
            "mode": self.mode,
            "repeats": len(self.seconds),
            "median_s": median,
            "least_s": min(self.seconds),
            "gb_per_s": 8 * elements / median / 1e9,
            "share_of_copy": statistics.median(c / s for c, s in pairs),
        }


def ours(x: torch.Tensor, out: torch.Tensor) -> Iterator[Row]:
    for mode in EXACT_MODES:
        for name in FORMAT_NAMES:
            yield Row(
                "roundoff", name, mode, lambda n=name, m=mode: round_to(x, n, mode=m, out=out)
            )
    draws = torch.Generator().manual_seed(0)
    for name in FORMAT_NAMES:
        yield Row(
            "roundoff",
            name,
            "stochastic",
            lambda n=name: round_to(x, n, mode="stochastic", generator=draws, out=out),
        )


def torch_casts(x: torch.Tensor, out: torch.Tensor) -> Iterator[Row]:
    for name in FORMAT_NAMES:
        dtype = FORMATS[name].dtype
        if dtype is not None:
            narrow = torch.empty_like(x, dtype=dtype)
            yield Row("torch", name, "nearest", lambda b=narrow: out.copy_(b.copy_(x)))


def by_gfloat(x: torch.Tensor) -> Iterator[Row]:
    import gfloat  # noqa: PLC0415
    from gfloat import formats as gf  # noqa: PLC0415

    infos = {
        "bf16": gf.format_info_bfloat16,
        "fp16": gf.format_info_binary16,
        "e4m3fn": gf.format_info_ocp_e4m3,
        "e5m2": gf.format_info_ocp_e5m2,
    }
    for name, info in infos.items():
        yield Row("gfloat", name, "nearest", lambda i=info: gfloat.round_ndarray(i, x))


def by_pychop(x: torch.Tensor) -> Iterator[Row]:
    import pychop  # noqa: PLC0415

    pychop.backend("torch")
    for name in ieee_like():
        chop = pychop.Chop(FORMATS[name].exponent_bits, FORMATS[name].mantissa_bits, rmode=1)
        yield Row("pychop", name, "nearest", lambda c=chop: c(x))


def by_qtorch(x: torch.Tensor) -> Iterator[Row]:
    from qtorch.quant import float_quantize  # noqa: PLC0415

    for name in ieee_like():
        e, m = FORMATS[name].exponent_bits, FORMATS[name].mantissa_bits
        yield Row("qtorch", name, "nearest", lambda e=e, m=m: float_quantize(x, e, m, "nearest"))


def by_ml_dtypes(x: torch.Tensor) -> Iterator[Row]:
    import ml_dtypes  # noqa: PLC0415

    array = x.numpy()
    dtypes = {
        "bf16": ml_dtypes.bfloat16,
        "e4m3fn": ml_dtypes.float8_e4m3fn,
        "e5m2": ml_dtypes.float8_e5m2,
    }
    for name, dtype in dtypes.items():
        yield Row("ml_dtypes", name, "nearest", lambda d=dtype: array.astype(d).astype(np.float32))


def ieee_like() -> list[str]:
    return [name for name in FORMAT_NAMES if FORMATS[name].infinities]


def peers(x: torch.Tensor) -> tuple[list[Row], dict[str, str]]:
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for library, make in (
        ("gfloat", by_gfloat),
        ("pychop", by_pychop),
        ("qtorch", by_qtorch),
        ("ml_dtypes", by_ml_dtypes),
    ):
        try:
            rows += make(x)
        except ImportError as error:
            missing[library] = str(error)
    return rows, missing


def measure(rows: list[Row], slow: list[Row], copy: Run, repeats: int, peer_repeats: int) -> None:
    for row in rows + slow:
        row.run()  # compiles, and touches every page
    for turn in range(repeats):
        for row in rows + (slow if turn < peer_repeats else []):
            row.measure(copy)


def small_rows(repeats: int) -> list[dict[str, object]]:
    """Microseconds of one call on a small tensor."""
    x = torch.randn(SMALL)
    out, narrow, calls = torch.empty_like(x), torch.empty_like(x, dtype=torch.bfloat16), 500
    runs: dict[str, Run] = {
        "copy_": lambda: out.copy_(x),
        "roundoff, out given": lambda: round_to(x, "bf16", out=out),
        "roundoff, out allocated": lambda: round_to(x, "bf16"),
        "torch, buffers given": lambda: out.copy_(narrow.copy_(x)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(timed(lambda r=run: [r() for _ in range(calls)]) / calls)
    return [
        {"what": name, "elements": SMALL, "median_us": 1e6 * statistics.median(found)}
        for name, found in seconds.items()
    ]


def show(results: dict[str, object], summaries: list[dict[str, object]]) -> None:
    print(f"{'library':10} {'mode':13} {'format':8} {'median ms':>10} {'GB/s':>7} {'of copy_':>9}")
    for s in summaries:
        print(
            f"{s['library']:10} {s['mode']:13} {s['format']:8} {1e3 * s['median_s']:10.2f} "
            f"{s['gb_per_s']:7.2f} {s['share_of_copy']:9.3f}"
        )
    for library, why in results["missing"].items():
        print(f"{library}: missing ({why})")
    for row in results["small"]:
        print(f"{row['elements']} elements, {row['what']}: {row['median_us']:.1f} microseconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peer-repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    x = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(x)
    rows = [*ours(x, out), *torch_casts(x, out)]
    slow, missing = peers(x)
    measure(rows, slow, lambda: out.copy_(x), options.repeats, options.peer_repeats)
    summaries = [row.summary(ELEMENTS) for row in rows + slow]
    copies = [seconds for row in rows for seconds in row.copies]
    results = {
        "schema": 1,
        "elements": ELEMENTS,
        "machine": machine(LIBRARIES) | {"threads": THREADS},
        "copy_median_s": statistics.median(copies),
        "rows": summaries,
        "small": small_rows(options.repeats),
        "missing": missing,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    show(results, summaries)
    print(f"copy_: {1e3 * statistics.median(copies):.2f} ms; written to {options.output}")


if __name__ == "__main__":
    main()
