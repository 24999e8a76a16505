"""How fast the exact Wasserstein distance is, beside scipy, POT and one pass over the numbers.

    python benchmarks/wasserstein.py [--elements 10000000] [--repeats 9] [--output FILE]

Every run of ours is preceded by a pass (`sum` of both sides), and scipy's runs stand between them,
so that a slow moment of the machine falls on all. Seconds are of the clock, medians. Seconds of the
processor, all threads together, are beside them: they last where others use the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import machine
from record import put
from scipy.stats import wasserstein_distance

from roundoff import wasserstein

RESULTS = Path(__file__).parent / "results" / "wasserstein.json"
PAGE = Path(__file__).parents[1] / "docs" / "diff.md"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
THREADS = 2


class Clock:
    """Seconds of the clock and of the processor."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    def run(self, function: Callable[[], object]) -> object:
        wall, processor = time.perf_counter(), time.process_time()
        found = function()
        self.processor.append(time.process_time() - processor)
        self.wall.append(time.perf_counter() - wall)
        return found

    def summary(self) -> dict[str, float]:
        return {
            "median_s": statistics.median(self.wall),
            "least_s": min(self.wall),
            "processor_s": statistics.median(self.processor),
        }


LIBRARIES = ("roundoff", "torch", "numba", "numpy", "scipy", "pot")


def by_pot(x: torch.Tensor, y: torch.Tensor) -> Callable[[], object] | None:
    try:
        import ot  # noqa: PLC0415
    except ImportError:
        return None
    return lambda: float(ot.wasserstein_1d(x.numpy(), y.numpy()))


def row(name: str, elements: int, repeats: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(elements, generator=generator).to(DTYPES[name]) for _ in range(2))
    x, y = a.double(), b.double()
    ours, passes, scipy, pot = Clock(), Clock(), Clock(), Clock()
    expected = scipy.run(lambda: wasserstein_distance(x.numpy(), y.numpy()))
    wasserstein(a, b)  # compiles
    for turn in range(repeats):
        passes.run(lambda: (a.sum(), b.sum()))
        found = ours.run(lambda: wasserstein(a, b))
        if turn == repeats // 2:
            scipy.run(lambda: wasserstein_distance(x.numpy(), y.numpy()))
    run_pot = by_pot(x, y)
    values = {"ours": found, "scipy": float(expected)}
    if run_pot is not None:
        values["pot"] = pot.run(run_pot)
    result = {"ours": ours.summary(), "pass": passes.summary(), "scipy": scipy.summary()}
    result |= {"pot": pot.summary()} if pot.wall else {}
    ratios = {
        "over_scipy": result["scipy"]["median_s"] / result["ours"]["median_s"],
        "over_scipy_best": result["scipy"]["least_s"] / result["ours"]["least_s"],
        "passes": result["ours"]["median_s"] / result["pass"]["median_s"],
        "passes_best": result["ours"]["least_s"] / result["pass"]["least_s"],
    }
    off = abs(values["ours"] - values["scipy"]) / values["scipy"]
    return {"format": name, "values": values, "off_by": off, **ratios, "seconds": result}


def table(results: dict[str, Any]) -> str:
    """The table that docs/diff.md shows."""
    n, cpu = results["elements"], results["machine"]["cpu"]
    lines = [
        f"| {n:,} numbers a side, {cpu}, {THREADS} threads | ms | times as fast as scipy "
        "| as POT | passes over the numbers |",
        "|---|---|---|---|---|",
    ]
    for r in results["rows"]:
        seconds = r["seconds"]
        ours = seconds["ours"]["median_s"]
        pot = f"{seconds['pot']['median_s'] / ours:.0f}" if "pot" in seconds else ""
        lines.append(
            f"| {r['format']} | {1e3 * ours:.1f} | {r['over_scipy']:.0f} | {pot} | "
            f"{r['passes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    rows = [row(name, options.elements, options.repeats) for name in DTYPES]
    results = {
        "schema": 1,
        "elements": options.elements,
        "machine": machine(LIBRARIES),
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    options.output.with_suffix(".md").write_text(table(results))
    put(PAGE, "wasserstein", table(results))
    for r in rows:
        seconds = r["seconds"]
        print(
            f"{r['format']}: {1e3 * seconds['ours']['median_s']:.1f} ms, {r['over_scipy']:.0f} "
            f"times as fast as scipy ({seconds['scipy']['median_s']:.1f} s; at best "
            f"{r['over_scipy_best']:.0f} times), {r['passes']:.1f} passes over the numbers, "
            f"off by {r['off_by']:.0e}"
        )
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
