"""README and docs show what benchmarks/results/ holds, to the letter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import roundoff
from roundoff.cli.list import _LISTS
from roundoff.operators.attention.catalogue import RECIPES

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


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"auto(?:class|function):: roundoff\.(\w+)", page))
    assert shown == set(roundoff.__all__) - {"RoundoffError"}  # a whole section: roundoff.errors


def test_every_recipe_is_told_in_the_catalogue_with_what_is_known_of_it() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = page.partition("## The catalogue")[2].partition("\n## ")[0]
    told: dict[str, str] = {}
    for names, known in re.findall(r"^\| (`.*?`) \| .* \| (\w+).* \|$", table, flags=re.MULTILINE):
        told |= dict.fromkeys(re.findall(r"`([\w-]+)`", names), known)
    family = {f"{kind}-F": told.pop(f"{kind}-F") for kind in ("baseline", "paper")}
    assert set(family.values()) == {"defined"}
    one_a_format = {n for n in RECIPES if re.fullmatch(r"(baseline|paper)-[a-z]+\d+\w*", n)}
    assert told == {n: RECIPES[n].known for n in RECIPES if n not in one_a_format}


def test_every_probe_is_told_in_its_own_words() -> None:
    page = (ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")
    table = page.partition("## What readings mean")[2].partition("\n### ")[0]
    told = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", table, flags=re.MULTILINE)
    listed = [(r["name"], r["of"], r["what it is"]) for r in _LISTS["probes"](None)]
    assert told == listed
