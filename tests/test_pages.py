"""README and docs show what benchmarks/results/ holds, to the letter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = re.compile(r"<!-- (?P<name>[\w-]+) -->\n(?P<table>.*?)<!-- /(?P=name) -->", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tables_are_the_recorded_ones(page: Path) -> None:
    for found in MARKED.finditer(page.read_text(encoding="utf-8")):
        recorded = ROOT / "benchmarks" / "results" / f"{found['name']}.md"
        assert found["table"] == recorded.read_text(encoding="utf-8")


def test_the_readme_shows_both_studies() -> None:
    names = {m["name"] for m in MARKED.finditer((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {"flash-attention-quick", "recipes-full"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_local_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
