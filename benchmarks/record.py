"""Keep what the studies gave: results/<study>-<preset>.json and .md, and the README's tables.

    .venv/bin/python benchmarks/record.py flash-attention quick
    .venv/bin/python benchmarks/record.py recipes full

Runs the study (or completes it), stores the verdicts with the environment and the command, and
puts the table between the README's and docs' markers of that name. A test holds the two equal.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from roundoff.store import Run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
PAGES = ("README.md", "docs/study.md", "docs/recipes.md")
PICTURES = {
    "flash-attention-quick": ("ratio-torch-math-format-bf16.png", "docs/images/flash-attention.png")
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
    if name in PICTURES:
        source, target = PICTURES[name]
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


if __name__ == "__main__":
    main(*sys.argv[1:])
