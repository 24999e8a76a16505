"""Keep what the studies gave: results/<study>-<preset>.json and .md, and the README's tables.

    .venv/bin/python benchmarks/record.py flash-attention quick
    .venv/bin/python benchmarks/record.py recipes full
    .venv/bin/python benchmarks/record.py evidence [RECIPE ...]

Runs the study (or completes it), stores the verdicts with the environment and the command, and
puts the table between the README's and docs' markers of that name. A test holds the two equal.
`evidence` runs attention's recipes beside those kernels that run here, and writes the package's
evidence.toml and its table.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
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
PAGES = ("README.md", "docs/study.md", "docs/recipes.md")
OUTPUTS = ("out", "dq", "dk", "dv")
FIELDS = {
    "match": "match", "worst": "worst", "null": "null", "lift": "lift", "r2": "r2",
    "order floor": "floor", "cells": "cells",
}  # fmt: skip
LIBRARIES = {"onnx-cpu": "onnxruntime"}
PICTURES = {
    "flash-attention-quick": {
        "ratio-torch-math-format-bf16.png": "docs/images/flash-attention.png",
        "training-1-distance.png": "docs/images/training.png",
    }
}


def main(study: str, preset: str) -> None:
    command = ["roundoff", "study", study, "--preset", preset]
    binary = Path(sys.executable).with_name("roundoff")
    done = subprocess.run(
        [str(binary), *command[1:], "--json"], check=True, stdout=subprocess.PIPE, cwd=ROOT
    )
    document = json.loads(done.stdout)
    run = Run.open(ROOT / document["run"])
    name = f"{study}-{preset}"
    kept = {
        "command": " ".join(command),
        "cells": len(run.rows()),
        "environments": list(run.documents("environments").values()),
        "claims": [{k: v for k, v in c.items() if k != "evidence"} for c in document["claims"]],
    }
    text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    table = markdown(kept["claims"])
    (RESULTS / f"{name}.md").write_text(table, encoding="utf-8")
    for page in PAGES:
        put(ROOT / page, name, table)
    for source, target in PICTURES.get(name, {}).items():
        (ROOT / target).parent.mkdir(exist_ok=True)
        shutil.copy(run.path / "figures" / source, ROOT / target)


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
    if sys.argv[1] == "evidence":
        evidence(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
