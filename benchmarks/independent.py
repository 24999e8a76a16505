"""What `explain` makes of kernels that were written independently of the engine.

    python benchmarks/independent.py [--kernels 20] [--first 0]

The kernels are plain loops (`tests/attribution/plain.py`), composed of choices drawn by seed: tile,
format of P, l before or after the cast, base of exp, place of the scale, accumulator, direction,
normalisation. A place is decidable if another choice there changes a bit on some probe, by the
kernels alone. `results/independent.json` has what was said of every kernel, `docs/explain.md` the
sums; a run that was stopped is completed by the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measuring import machine
from record import put

from roundoff import explain

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "attribution"))

from plain import attention_of, drawn, truth, undecidable  # noqa: E402

RESULTS, PAGE = HERE / "results" / "independent.json", HERE.parent / "docs" / "explain.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(RESULTS.read_text("utf-8"))["kernels"] if RESULTS.exists() else {}
    for seed in range(options.first, options.first + options.kernels):
        if str(seed) not in known:
            known[str(seed)] = seen_through(seed)
            write(known)
        print(seed, known[str(seed)], flush=True)
    RESULTS.with_suffix(".md").write_text(table(total(known)), "utf-8")
    put(PAGE, "independent", table(total(known)))
    print(table(total(known)), end="")


def seen_through(seed: int) -> dict[str, Any]:
    begin, choices = time.perf_counter(), drawn(seed)
    found, said, open_ = explain(attention_of(choices)), truth(choices), undecidable(choices)
    decidable = [name for name in said if name not in open_]
    right = [name for name in decidable if found.sites[name].choice == said[name]]
    certain = [n for n, site in found.sites.items() if site.confidence == "certain" and n in said]
    return {
        "verdict": found.verdict, "decidable": len(decidable), "right": len(right),
        "certain of what cannot be decided": sum(name in open_ for name in certain),
        "certain and wrong": sum(
            name in decidable and found.sites[name].choice != said[name] for name in certain
        ),
        "seconds": round(time.perf_counter() - begin),
    }  # fmt: skip


def total(known: dict[str, Any]) -> dict[str, Any]:
    counts = ("decidable", "right", "certain of what cannot be decided", "certain and wrong")
    sums = {name: sum(one[name] for one in known.values()) for name in counts}
    return {"kernels": len(known), **sums, "share": sums["right"] / sums["decidable"]}


def table(sums: dict[str, Any]) -> str:
    return "\n".join([
        "| kernels | decidable places | named rightly | of the rest called certain "
        "| undecidable places called certain |",
        "|---|---|---|---|---|",
        f"| {sums['kernels']} | {sums['decidable']} | {sums['right']} ({sums['share']:.1%}) "
        f"| {sums['certain and wrong']} | {sums['certain of what cannot be decided']} |",
        "",
    ])  # fmt: skip


def write(known: dict[str, Any]) -> None:
    document = {"machine": machine(("torch", "numba")), "total": total(known), "kernels": known}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
