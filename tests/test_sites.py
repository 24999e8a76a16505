"""Sites and recipes as data: what is put in, read off, replaced and fingerprinted."""

import dataclasses
import json
from typing import ClassVar

import pytest

from roundoff.errors import UnknownNameError
from roundoff.formats import FORMATS, Format
from roundoff.operators import OPERATORS
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.recipe import Tile
from roundoff.sites import (
    INPUT,
    OPMATH,
    Accumulator,
    ByStorage,
    Exponential,
    Place,
    Quantizer,
    Sited,
    deciding_fields,
    reordered,
    resolve,
    rewritten,
    wire,
)

BF16, FP32, FP64 = FORMATS["bf16"], FORMATS["fp32"], FORMATS["fp64"]
ALL = [(o, r) for o in OPERATORS for r in OPERATORS[o].recipes]
SITES = [(o, r, s.name) for o, r in ALL for s in OPERATORS[o].recipes[r].sites()]


@dataclasses.dataclass(frozen=True, slots=True)
class Toy(Sited):
    name: str = "toy"
    total: Accumulator = Accumulator(INPUT, order="lanes")  # noqa: RUF009 - frozen
    exp: Exponential = Exponential()  # noqa: RUF009 - frozen

    SITES: ClassVar = {
        "total": Place("total", "a sum"),
        "argument": Place("exp.argument", "an argument"),
        "approximation": Place("exp.approximation", "an exponential", ("exact", "fexp_u20")),
    }


def leaves(value):
    """Every value inside nested dataclasses, formats taken whole."""
    if dataclasses.is_dataclass(value) and not isinstance(value, Format):
        return [x for f in dataclasses.fields(value) for x in leaves(getattr(value, f.name))]
    return [value]


def test_resolve_puts_the_storage_format_in():
    assert resolve(INPUT, BF16) is BF16
    assert resolve(Quantizer(INPUT, "tensor"), BF16) == Quantizer(BF16, "tensor")
    assert resolve(Toy(), BF16).total.format is BF16
    assert resolve(None, BF16) is None
    assert resolve("exact", BF16) == "exact"


@pytest.mark.parametrize(
    ("storage", "taken"),
    [("e4m3fn", 1), ("fp16", 1), ("bf16", 1), ("tf32", 2), ("fp32", 2), ("fp64", 3)],
)
def test_a_choice_by_storage(storage, taken):
    assert resolve(ByStorage(1, 2, 3), FORMATS[storage]) == taken


def test_opmath_is_as_wide_as_the_inputs_beyond_fp32():
    assert [resolve(OPMATH, FORMATS[f]).name for f in ("bf16", "fp32", "fp64")] == [
        "fp32",
        "fp32",
        "fp64",
    ]


def test_sites_read_the_choices_off_the_table():
    total, argument, approximation = Toy().sites()
    assert total.choice == Accumulator(INPUT, order="lanes")
    assert total.alternatives[0] == Accumulator(FP64)
    assert argument.choice == OPMATH
    assert argument.alternatives[0] is FP64
    assert approximation.alternatives == ("exact", "fexp_u20")


def test_wide_looks_at_formats_accumulators_and_quantisers():
    toy = resolve(Toy(), BF16)
    assert not toy.wide
    assert toy.choose({"argument": FP64}).wide
    assert toy.choose({"total": Accumulator(FP64)}).wide
    assert toy.choose({"argument": Quantizer(FORMATS["fp64"])}).wide
    assert toy.choose({"argument": Format("far", 11, 7, 1023)}).wide


def test_reordered_reverses_every_sum_and_says_so():
    other = reordered(Toy())
    assert other.name == "toy~reordered"
    assert other.total == Accumulator(INPUT, order="reversed")
    assert other.exp == Toy().exp


def test_an_unknown_site_suggests_a_near_one():
    with pytest.raises(UnknownNameError, match="did you mean 'total'"):
        Toy().choose({"totl": FP64})


def test_wire_is_strict_json_and_tells_values_apart():
    assert wire(ByStorage(1, (2, None), {"a": FP64}))["single"] == [2, None]
    assert wire({"a": Accumulator()})["a"]["kind"] == "Accumulator"
    sums = [Accumulator(f, c) for f in (BF16, INPUT) for c in (None, 8)]
    assert len({json.dumps(wire(total), allow_nan=False) for total in sums}) == 4


@pytest.mark.parametrize(("operator", "name"), ALL)
def test_every_recipe_resolves_and_has_a_fingerprint_of_its_own(operator, name):
    recipes = OPERATORS[operator].recipes
    fields = {n: OPERATORS[operator].fields(r) for n, r in recipes.items()}
    assert not {"name", "doc", "source", "known"} & fields[name].keys()
    texts = {n: json.dumps(wire(f), sort_keys=True, allow_nan=False) for n, f in fields.items()}
    alike = [n for n in texts if texts[n] == texts[name]]
    assert alike == [name], "two rows of the catalogue that differ in words only"
    words = dataclasses.replace(recipes[name], name="other", doc="other")
    assert deciding_fields(words) == fields[name]
    assert not [x for x in leaves(resolve(recipes[name], BF16)) if x == INPUT]
    assert not [x for x in leaves(resolve(recipes[name], BF16)) if isinstance(x, ByStorage)]


@pytest.mark.parametrize(("operator", "name", "site"), SITES)
def test_choosing_at_a_site_changes_that_site_alone(operator, name, site):
    recipe = OPERATORS[operator].recipes[name]
    before = {s.name: s for s in recipe.sites()}
    assert recipe.choose({site: before[site].choice}) == recipe
    assert before[site].doc
    for choice in before[site].alternatives:
        after = {s.name: s.choice for s in recipe.choose({site: choice}).sites()}
        assert after[site] == choice
        assert {n: c for n, c in after.items() if n != site} == {
            n: s.choice for n, s in before.items() if n != site
        }


def test_fields_of_one_value_are_exchanged_at_once():
    """`Recipe` refuses a scale that is put in twice, so the two fields must change together."""
    other = rewritten(
        RECIPES["fa2"], {"prescale.operands": "q", "logits.scale": "before", "tile.keys": 32}
        | {"tile": Tile(16, direction="backward")}
    )  # fmt: skip
    assert (other.prescale.operands, other.logits.scale) == ("q", "before")
    assert other.tile == Tile(32, direction="backward")
