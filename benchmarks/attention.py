"""How fast attention's engine and its golden are, beside the bare matrix products that they make.

    python benchmarks/attention.py [--repeats 9] [--threads 1,2] [--output FILE]

Every run of a row is preceded by its own products alone, at the same tiles and into given buffers,
and all rows take turns, so that a slow moment of the machine falls on both. The ratio is the
median of the pairs. Sampled golden over a million keys runs in a process of its own, whose
largest memory is read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Run, machine, timed
from torch import Tensor

from roundoff.formats import FORMATS, round_to
from roundoff.operators.attention._places import OUT, PRODUCT
from roundoff.operators.attention.api import golden
from roundoff.operators.attention.backward import attend_keeping, differentiate
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.engine import attend
from roundoff.operators.attention.masks import Mask
from roundoff.operators.attention.recipe import Tile
from roundoff.operators.attention.steps import Block

HEADS, LENGTH, DIM, TILE = 8, 4096, 64, 128
GOLDEN_LENGTH = 16384
SAMPLED = {"keys": 2**20, "dim": 128, "rows": 64}
BF16 = FORMATS["bf16"]
RECIPE_NAMES = ("fa2", "fa3-fp8-no-blocks", "paper-bf16", "paper-fp16")
LIBRARIES = ("roundoff", "torch", "numba", "numpy")
RESULTS = Path(__file__).parent / "results" / "attention.json"
PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"


@dataclass
class Row:
    """One thing that is timed, and the products that it cannot do without."""

    name: str
    products: str
    run: Run
    floor: Run
    threads: int
    seconds: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)

    def measure(self) -> None:
        torch.set_num_threads(self.threads)
        self.floors.append(timed(self.floor))
        self.seconds.append(timed(self.run))

    def summary(self) -> dict[str, object]:
        ratios = sorted(s / f for s, f in zip(self.seconds, self.floors, strict=True))
        return {
            "name": self.name,
            "products": self.products,
            "threads": self.threads,
            "repeats": len(ratios),
            "median_s": statistics.median(self.seconds),
            "products_median_s": statistics.median(self.floors),
            "ratio": statistics.median(ratios),
            "ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
            "ratio_of_least": min(self.seconds) / min(self.floors),
        }


def normal(length: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        round_to(torch.randn(1, heads, length, DIM, generator=generator), BF16) for _ in range(3)
    )
    return q, k, v


def forward_products(q: Tensor, k: Tensor, v: Tensor, rows: int, heads: int) -> None:
    """QK^T and PV of every tile, for blocks of `rows` rows of `heads` heads."""
    s, o = q.new_empty(heads, rows, TILE), q.new_empty(heads, rows, v.shape[-1])
    for h in range(0, q.shape[0], heads):
        for r in range(0, q.shape[1], rows):
            block = q[h : h + heads, r : r + rows]
            for t in range(0, k.shape[1], TILE):
                keys = slice(t, t + TILE)
                torch.bmm(block, k[h : h + heads, keys].transpose(1, 2), out=s)
                torch.bmm(s, v[h : h + heads, keys], out=o)


def backward_products(q: Tensor, k: Tensor, v: Tensor, rows: int, heads: int) -> None:
    """QK^T, dO V^T, P^T dO, dS^T Q and dS K of every pair of tiles, with q for dO."""
    s, dp = (q.new_empty(heads, rows, TILE) for _ in range(2))
    dq, dk = q.new_empty(heads, rows, DIM), q.new_empty(heads, TILE, DIM)
    for h in range(0, q.shape[0], heads):
        for r in range(0, q.shape[1], rows):
            block = q[h : h + heads, r : r + rows]
            for t in range(0, k.shape[1], TILE):
                key, value = (x[h : h + heads, t : t + TILE] for x in (k, v))
                torch.bmm(block, key.transpose(1, 2), out=s)
                torch.bmm(block, value.transpose(1, 2), out=dp)
                torch.bmm(s.transpose(1, 2), block, out=dk)
                torch.bmm(dp.transpose(1, 2), block, out=dk)
                torch.bmm(dp, key, out=dq)


def golden_products(q: Tensor, k: Tensor, v: Tensor, rows: int, tile: int) -> None:
    s, o = q.new_empty(rows, tile), q.new_empty(rows, v.shape[-1])
    for r in range(0, q.shape[0], rows):
        for t in range(0, k.shape[0], tile):
            torch.mm(q[r : r + rows], k[t : t + tile].T, out=s)
            o.addmm_(s, v[t : t + tile])


def recipe_rows(threads: int) -> list[Row]:
    q, k, v = normal(LENGTH, HEADS)
    call = Call(q, k, v, Mask(), DIM**-0.5, torch.arange(LENGTH))
    flat = q[0], k[0], v[0]

    def row(name: str) -> Row:
        recipe = replace(RECIPES[name], tile=Tile(TILE))
        return Row(
            f"{name} forward", "2 in fp32", lambda: attend(recipe, call, BF16),
            lambda: forward_products(*flat, rows=512, heads=2), threads,
        )  # fmt: skip

    return [row(name) for name in RECIPE_NAMES] + backward_rows(call, threads)


def backward_rows(call: Call, threads: int) -> list[Row]:
    recipe = replace(RECIPES["fa2"], tile=Tile(TILE, TILE))
    _, forward = attend_keeping(recipe, call, BF16)
    dout = call.q.clone()
    flat = call.q[0], call.k[0], call.v[0]
    return [
        Row(
            "fa2 backward", "5 in fp32", lambda: differentiate(recipe, call, forward, dout, BF16),
            lambda: backward_products(*flat, rows=512, heads=2), threads,
        )
    ]  # fmt: skip


def golden_row(threads: int) -> Row:
    q, k, v = normal(GOLDEN_LENGTH, 1)
    flat = [x[0, 0].double() for x in (q, k, v)]
    return Row(
        f"golden, {GOLDEN_LENGTH} tokens", "2 in fp64", lambda: golden(q, k, v),
        lambda: golden_products(*flat, rows=2048, tile=256), threads,
    )  # fmt: skip


def small_rows(repeats: int) -> list[dict[str, object]]:
    """Microseconds a tile of a small problem, as a search runs it thousands of times."""
    q, k, v = normal(2048, 2)
    call = Call(q[:, :, :64], k, v, Mask(), DIM**-0.5, torch.arange(64))
    torch.set_num_threads(1)
    found: list[dict[str, object]] = []
    for tile in (16, 64, 512):
        recipe = replace(RECIPES["fa2"], tile=Tile(tile))
        seconds = [timed(lambda r=recipe: attend(r, call, BF16)) for _ in range(3 * repeats)]
        each = statistics.median(seconds) / (2048 // tile)
        found.append({"tile": tile, "median_ms": 1e3 * statistics.median(seconds),
                      "us_per_tile": 1e6 * each})  # fmt: skip
    return found


def pieces(repeats: int) -> dict[str, dict[str, float]]:
    """Nanoseconds a score of a tile's parts in the fast path, one thread, 2 heads of 512 rows."""
    from roundoff.operators.attention import _product, fused  # noqa: PLC0415

    torch.set_num_threads(1)
    q, k, v = normal(LENGTH, 2)
    call = Call(q, k, v, Mask(), DIM**-0.5, torch.arange(LENGTH))
    rows, key, value = q[0, :, :512], k[0, :, :TILE].transpose(1, 2), v[0, :, :TILE]
    s, o, part = q.new_empty(2, 512, TILE), q.new_zeros(2, 512, DIM), q.new_zeros(2, 512, DIM)
    scores, out, product = (x.view(1024, -1).numpy() for x in (s, o, part))
    found: dict[str, dict[str, float]] = {}
    for name in ("fa2", "paper-bf16"):
        recipe = replace(RECIPES[name].forward, tile=Tile(TILE))
        block = Block(recipe.resolved(BF16, head_dim=DIM, causal=False), call, q, k, v, call.rows)
        plans, settings = fused.plans(block.recipe), fused.settings(block)
        state = np.zeros((5, 1024), np.float32)
        narrow = plans[PRODUCT : OUT + 1].any()
        tile = scores, out[:, : 0 if narrow else DIM], state, fused.EVERYWHERE, 0, (plans, settings)
        runs: dict[str, Run] = {
            "QK^T": lambda: torch.bmm(rows, key, out=s),
            "tile": lambda tile=tile: _product.take_in(*tile),
            "PV": lambda narrow=narrow: (
                torch.bmm(s, value, out=part) if narrow else o.baddbmm_(s, value)
            ),
        }
        if narrow:  # else it is in the product
            runs["onto O"] = lambda x=(state, plans): _product.add_up(
                out, product, x[0], False, False, x[1]
            )
        seconds = [[timed(run) for run in runs.values()] for _ in range(20 * repeats)]
        medians = (statistics.median(of) / s.numel() for of in zip(*seconds, strict=True))
        found[name] = {of: 1e9 * x for of, x in zip(runs, medians, strict=True)}
    return found


def extra_memory(run: Run) -> int:
    """Bytes of memory beyond what is held before, at the worst moment of `run` (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the largest so far is forgotten
    before = memory("VmRSS")
    run()
    return memory("VmHWM") - before


def memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def alone_job(job: str, of: str) -> dict[str, float]:
    """Run one job in a process of its own."""
    command = [sys.executable, __file__, "--alone", job, of]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


def sampled_golden(format: str) -> dict[str, float]:
    keys, dim, rows = SAMPLED.values()
    dtype = FORMATS[format].dtype
    golden(*(torch.randn(1, 1, 64, dim) for _ in range(3)))  # compiles
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.empty(1, 1, keys, dim, dtype=dtype) for _ in range(3))
    for x in (q, k, v):
        for part in x.split(2**16, dim=2):
            part.copy_(torch.randn(part.shape, generator=generator))
    some = torch.arange(0, keys, keys // rows)
    extra = extra_memory(lambda: golden(q, k, v, rows=some))
    return {"seconds": timed(lambda: golden(q, k, v, rows=some)), "extra_gib": extra / 2**30}


def forward_memory(length: str) -> dict[str, float]:
    recipe = replace(RECIPES["fa2"], tile=Tile(TILE))
    small = normal(64, 1)
    attend(recipe, Call(*small, Mask(), DIM**-0.5, torch.arange(64)), BF16)
    q, k, v = normal(int(length), 1)
    call = Call(q, k, v, Mask(), DIM**-0.5, torch.arange(int(length)))
    return {"extra_mib": extra_memory(lambda: attend(recipe, call, BF16)) / 2**20}


JOBS: dict[str, Callable[[str], dict[str, float]]] = {
    "golden": sampled_golden,
    "forward": forward_memory,
}


def table(results: dict[str, Any]) -> str:
    """The tables that docs/recipes.md shows."""
    rows, problem, cpu = results["rows"], results["problem"], results["machine"]
    counts = sorted({row["threads"] for row in rows})
    ratios: dict[str, dict[int, float]] = {}
    for row in rows:
        ratios.setdefault(row["name"], {})[row["threads"]] = row["ratio"]
    work = 4 * problem["heads"] * problem["length"] ** 2 * problem["head_dim"]
    speed = work / next(r["products_median_s"] for r in rows if r["threads"] == 1) / 1e9
    where = f"{cpu['cpu']}, {cpu['instructions']}, products at {speed:.0f} GFLOP/s a core"
    lines = [
        f"| {where} |" + "".join(f" {n} thread{'s' * (n > 1)} |" for n in counts),
        "|---|" + "---|" * len(counts),
    ]
    for name, of in ratios.items():
        lines.append(f"| {name} |" + "".join(f" {of[n]:.2f} |" for n in counts))
    found = results["pieces"]
    parts = list(dict.fromkeys(part for of in found.values() for part in of))
    lines += [
        "",
        "| ns a score |" + "".join(f" {part} |" for part in parts),
        "|---|" + "---|" * len(parts),
    ]
    for name, of in found.items():
        cells = (f" {of[part]:.2f} |" if part in of else "  |" for part in parts)
        lines.append(f"| {name} |" + "".join(cells))
    return "\n".join(lines) + "\n"


def keep_table(output: Path, results: dict[str, Any]) -> None:
    from record import put  # noqa: PLC0415 - which the child has no need of

    output.with_suffix(".md").write_text(table(results))
    if output == RESULTS:
        put(PAGE, "attention", table(results))


def show(results: dict[str, object]) -> None:
    print(f"{'':26} {'products':10} {'threads':>7} {'median s':>9} {'products s':>10} {'ratio':>6}")
    for row in results["rows"]:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['name']:26} {row['products']:10} {row['threads']:7} {row['median_s']:9.3f} "
            f"{row['products_median_s']:10.3f} {row['ratio']:6.2f}  ({low:.2f} to {high:.2f}; "
            f"of the least {row['ratio_of_least']:.2f})"
        )
    for row in results["small"]:
        print(f"64 rows x 2048 keys, tile {row['tile']}: {row['us_per_tile']:.0f} us a tile")
    for name, found in results["pieces"].items():
        print(f"{name}, ns a score:", ", ".join(f"{of} {x:.2f}" for of, x in found.items()))
    for name, found in results["sampled_golden"].items():
        print(f"golden of {SAMPLED['rows']} rows at {SAMPLED['keys']} keys of {name}: "
              f"{found['seconds']:.1f} s, {found['extra_gib']:.2f} GiB")  # fmt: skip
    for name, found in results["forward_memory"].items():
        print(f"fa2 forward of {name} tokens, one head: {found['extra_mib']:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only make the tables again")
    parser.add_argument("--alone", nargs=2, metavar=("JOB", "OF"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        torch.set_num_threads(1)
        print(json.dumps(JOBS[options.alone[0]](options.alone[1])))
        return
    if options.table:
        keep_table(options.output, json.loads(options.output.read_text()))
        return
    counts = [int(text) for text in options.threads.split(",")]
    rows = [row for n in counts for row in [*recipe_rows(n), golden_row(n)]]
    for turn in range(options.repeats + 1):
        for row in rows:
            row.measure()
            if not turn:  # compiles, and touches every page
                row.seconds.clear()
                row.floors.clear()
    results = {
        "schema": 1,
        "problem": {"heads": HEADS, "length": LENGTH, "head_dim": DIM, "tile": TILE},
        "machine": machine(LIBRARIES),
        "rows": [row.summary() for row in rows],
        "small": small_rows(options.repeats),
        "pieces": pieces(options.repeats),
        "sampled_golden": {name: alone_job("golden", name) for name in ("bf16", "fp32")},
        "forward_memory": {n: alone_job("forward", n) for n in ("4096", "16384")},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    keep_table(options.output, results)
    show(results)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
