"""Keep what the studies gave: results/<study>-<preset>.json and .md, and the README's tables.

    .venv/bin/python benchmarks/record.py flash-attention quick
    .venv/bin/python benchmarks/record.py recipes full
    .venv/bin/python benchmarks/record.py evidence [RECIPE ...]
    .venv/bin/python benchmarks/record.py training text-to-image

Runs the study (or completes it), stores the verdicts with the environment and the command, and
puts the table between the README's and docs' markers of that name. A test holds the two equal.
`evidence` runs attention's recipes beside those kernels that run here, and writes the package's
evidence.toml and its table.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import processor

from roundoff.bench.sweep import identified, run_cells
from roundoff.kernels import KERNELS
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.evidence import EVIDENCE, cut, percent
from roundoff.store import Run
from roundoff.studies.recipes import evidence as recipe_evidence
from roundoff.studies.recipes import evidence_plan

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
PAGES = (
    "README.md", "docs/study.md", "docs/recipes.md", "docs/training.md", "docs/workloads.md",
)  # fmt: skip
OUTPUTS = ("out", "dq", "dk", "dv")
FIELDS = {
    "match": "match", "worst": "worst", "null": "null", "lift": "lift", "r2": "r2",
    "order floor": "floor", "cells": "cells",
}  # fmt: skip
LIBRARIES = {"onnx-cpu": "onnxruntime"}
YARDSTICKS = "ulp,rerun,data-order,seed,bf16,fp16"
TRAININGS = {
    "text-to-image": (
        "--baseline", "torch-math", "--candidate", "torch-cpu-flash", "--yardsticks", YARDSTICKS,
        "--repeats", "6", "--long", "4000", "--timing", "-o", "runs/training-text-to-image",
    ),
    "text": (
        "--baseline", "torch-math", "--candidate", "torch-cpu-flash,fa2@bf16",
        "--yardsticks", f"{YARDSTICKS},ulp@100", "--repeats", "6", "--timing",
        "-o", "runs/training-text",
    ),
}  # fmt: skip
PICTURES = {
    "flash-attention-quick": {
        "ratio-torch-math-format-bf16.png": "docs/images/flash-attention.png",
        "training-1-distance.png": "docs/images/training.png",
    }
}


def carried_out(*arguments: str) -> tuple[Run, dict[str, Any], dict[str, Any]]:
    """Run a command: its run, its document, and where and how that came about."""
    binary = Path(sys.executable).with_name("roundoff")
    done = subprocess.run(
        [str(binary), *arguments, "--json"], check=True, stdout=subprocess.PIPE, cwd=ROOT
    )
    document = json.loads(done.stdout)
    run = Run.open(ROOT / document["run"])
    environments = list(run.documents("environments").values())
    return (
        run,
        document,
        {"command": shlex.join(["roundoff", *arguments]), "environments": environments},
    )


def write(name: str, kept: dict[str, Any], table: str) -> None:
    """Keep what was measured under results/, and its table in the pages that show it."""
    text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(table, encoding="utf-8")
    for page in PAGES:
        put(ROOT / page, name, table)


def main(study: str, preset: str) -> None:
    run, document, how = carried_out("study", study, "--preset", preset)
    name = f"{study}-{preset}"
    claims = [{k: v for k, v in c.items() if k != "evidence"} for c in document["claims"]]
    write(name, how | {"cells": len(run.rows()), "claims": claims}, markdown(claims))
    for source, target in PICTURES.get(name, {}).items():
        (ROOT / target).parent.mkdir(exist_ok=True)
        shutil.copy(run.path / "figures" / source, ROOT / target)


def training(workload: str) -> None:
    """The full preset of `roundoff train` on a workload."""
    started = time.monotonic()
    _, document, how = carried_out("train", "--workload", workload, *TRAININGS[workload])
    minutes = round((time.monotonic() - started) / 60, 1)
    found = {k: v for k, v in document.items() if k not in ("run", "report", "schema", "kind")}
    write(f"training-{workload}", how | {"minutes": minutes} | found, training_table(found))


def training_table(kept: dict[str, Any]) -> str:
    """Distances by arm and step, the candidates in yardsticks, and noise or bias."""
    steps = sorted({d["step"] for d in kept["distances"]})
    lines = [
        "| arm | " + " | ".join(f"step {s}" for s in steps) + " |",
        "|---" * (len(steps) + 1) + "|",
    ]
    at = {(d["arm"], d["step"]): short(d["estimate"]) for d in kept["distances"] if d["n"]}
    for arm in dict.fromkeys(d["arm"] for d in kept["distances"]):
        lines.append(f"| {arm} | " + " | ".join(at.get((arm, s), "") for s in steps) + " |")
    shown = (steps[0], steps[len(steps) // 2], steps[-1])
    lines += [
        "",
        "| candidate | in units of | " + " | ".join(f"step {s}" for s in shown) + " |",
        "|---" * 5 + "|",
    ]
    ratios = {(u["candidate"], u["yardstick"], u["step"]): unit(u) for u in kept["units"]}
    for candidate, yardstick in dict.fromkeys(
        (u["candidate"], u["yardstick"]) for u in kept["units"]
    ):
        cells = " | ".join(ratios[candidate, yardstick, s] for s in shown)
        lines.append(f"| {candidate} | {yardstick} | {cells} |")
    lines += [
        "",
        "| candidate | direct error of | verdicts of repeats | size | largest gain | detectable |",
        "|---" * 6 + "|",
    ]
    for d in kept["direct"]:
        counts = ", ".join(f"{n} {word}" for word, n in d["counts"].items())
        numbers = " | ".join(
            f"{x:.1e}" for x in (d["size"]["estimate"], d["gain"], d["detectable"])
        )
        lines.append(f"| {d['candidate']} | {d['of']} | {counts} | {numbers} |")
    return "\n".join(lines) + "\n"


def short(value: float | str) -> str:
    """A number; NaN and infinity are words in a document."""
    return value if isinstance(value, str) else f"{value:.1e}"


def unit(found: dict[str, Any]) -> str:
    ratio = found["ratio"]
    if ratio is None:
        return found["why"]
    return f"{ratio['estimate']:.2g} [{ratio['low']:.2g}, {ratio['high']:.2g}]"


def markdown(claims: list[dict[str, Any]]) -> str:
    lines = ["| | claim | paper | measured | verdict |", "|---|---|---|---|---|"]
    for claim in claims:
        outcome = f"**{claim['outcome']}**"
        if claim["condition"]:
            link = "" if claim["outcome"] == "holds only if" else ": "
            outcome += f"{link} {claim['condition']}".replace(":  ", ": ")
        cells = (claim["claim"], claim["text"], claim["claimed"], claim["measured"], outcome)
        lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def put(page: Path, name: str, table: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`, if the page has them."""
    if not page.exists():
        return
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if begin in text and end in text:
        head, _, rest = text.partition(begin)
        page.write_text(head + begin + table + end + rest.partition(end)[2], encoding="utf-8")


def evidence(*names: str) -> None:
    """Hold recipes to the kernels of their names; those not named keep what they have."""
    path = ROOT / "src/roundoff/operators/attention" / EVIDENCE
    entries = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    here = [n for n in RECIPES if n in KERNELS and KERNELS[n].missing() is None]
    for name in names or here:
        found = held(name)
        entries[name] = where(name) | found
        print(name, found, flush=True)
        keep(path, entries)


def keep(path: Path, entries: dict[str, Any]) -> None:
    path.write_text(toml(entries), encoding="utf-8")
    table = evidence_table(entries)
    (RESULTS / "recipes-evidence.md").write_text(table, encoding="utf-8")
    put(ROOT / "docs/recipes.md", "recipes-evidence", table)


def held(name: str) -> dict[str, dict[str, dict[str, float]]]:
    """What `recipes.evidence` says of one recipe, by output and format."""
    with tempfile.TemporaryDirectory() as place:
        run = Run.create_or_open(Path(place) / "run", manifest={})
        cells = identified(evidence_plan(name).cells())
        with ThreadPoolExecutor(1) as executor:
            run_cells(run, cells, executor, in_flight=1)
        rows = run.frame()
    rows = rows[rows["status"] != "skipped"]  # what the kernel does not take
    found = {o: recipe_evidence(rows, name, o).to_dict("records") for o in OUTPUTS}
    return {
        output: {
            line["format"]: {FIELDS[k]: v for k, v in line.items() if k in FIELDS}
            for line in lines
        }
        for output, lines in found.items() if lines
    }  # fmt: skip


def where(name: str) -> dict[str, str]:
    """Version of the library, instruction set, processor and day."""
    capability = torch.backends.cpu.get_cpu_capability().replace("AVX5", "AVX-5")
    library = LIBRARIES.get(name, name.partition("-")[0])
    version = torch.__version__ if library == "torch" else importlib.metadata.version(library)
    short = ".".join(version.split("+")[0].split(".")[:2])
    return {
        "version": f"{library} {short}", "instructions": capability, "processor": processor(),
        "date": f"{datetime.date.today()}",
    }  # fmt: skip


def toml(entries: dict[str, Any]) -> str:
    lines = ["# Written by `python benchmarks/record.py evidence`; reviewed like code."]
    for name, entry in sorted(entries.items()):
        lines += ["", f'["{name}"]']
        lines += [f"{k} = {json.dumps(v)}" for k, v in entry.items() if isinstance(v, str)]
        for output in OUTPUTS:
            for format, numbers in (entry.get(output) or {}).items():
                lines += ["", f'["{name}".{output}.{format}]']
                lines += [f"{k} = {v}" for k, v in numbers.items()]
    return "\n".join(lines) + "\n"


def evidence_table(entries: dict[str, Any]) -> str:
    head = "recipe", "output", "match", "worst cell", "null", "lift", "order floor", "r²", "where"
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, entry in sorted(entries.items()):
        for output in OUTPUTS:
            for format, n in (entry.get(output) or {}).items():
                shares = [percent(n[k]) for k in ("match", "worst", "null", "lift", "floor")]
                place = f"{entry['version']}, {entry['instructions']}"
                cells = f"`{name}`", f"{output} {format}", *shares, cut(n["r2"]), place
                lines.append("| " + " | ".join(cells) + " |")
    for name in sorted(RECIPES.keys() - entries.keys()):
        recipe = RECIPES[name]
        outputs = "out" if recipe.backward is None else "out, dq, dk, dv"
        known = "read, not run" if recipe.known == "read" else "defined, no kernel"
        source = recipe.source.replace("|", "\\|")
        lines.append(f"| `{name}` | {outputs} | {known} | | | | | | {source} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    {"evidence": evidence, "training": training}.get(sys.argv[1], partial(main, sys.argv[1]))(
        *sys.argv[2:]
    )
