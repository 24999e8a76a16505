"""One cell, one id: however it is spelled; and another id for whatever changes a number."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from roundoff.bench import identity
from roundoff.bench.identity import cell_id
from roundoff.bench.plan import make_plan
from roundoff.operators import OPERATORS
from roundoff.records import SubjectName

BASE = {
    "baseline": "torch-math", "kernels": "torch-cpu-flash", "recipes": "fa2", "seeds": 1,
    "axes": {"seq_len": "16", "heads": 2, "head_dim": 8},
}  # fmt: skip


def ids(**changes):
    axes = {**BASE["axes"], **changes.pop("axes", {})}
    return {cell_id(c) for c in make_plan({"sweep": [{**BASE, "axes": axes, **changes}]}).cells()}


@pytest.fixture
def fresh(monkeypatch):
    """Forget what is remembered of subjects and environments, before and after."""

    def forget():
        for remembered in ("_fingerprint", "_environment", "_environment_digest"):
            getattr(identity, remembered).cache_clear()

    forget()
    yield forget
    monkeypatch.undo()
    forget()


class TestTheSameCell:
    @pytest.mark.parametrize(
        "changes",
        [
            {"axes": {"batch": 1}},
            {"axes": {"mask": "none", "inputs": "normal:1.0"}},
            {"axes": {"seq_len": ["16", "16"]}},
            {"formats": "bfloat16"},
            {"formats": ["e8m7", "bf16"]},
            {"kernels": "kernel:torch-cpu-flash"},
            {"baseline": "kernel:torch-math"},
            {"recipes": [], "kernels": ["recipe:fa2", "torch-cpu-flash"]},
            {"kernels": "torch-cpu-flash,torch-cpu-flash"},
            {"layout": "bshd", "seq_multiple": 8},
        ],
    )
    def test_spellings(self, changes):
        assert ids(**changes) == ids()

    def test_numbers(self):
        assert ids(axes={"scale": 2}) == ids(axes={"scale": "2.0"}) == ids(axes={"scale": "2e0"})

    def test_order(self):
        axes = {"head_dim": 8, "mask": "none,causal", "heads": 2, "seq_len": "32,16"}
        other = {"heads": 2, "seq_len": "16,32", "head_dim": 8, "mask": "causal,none"}
        assert ids(axes=axes) == ids(axes=other)

    def test_more_seeds_keep_the_first(self):
        assert ids() < ids(seeds=3)
        assert ids(seeds=1, first_seed=2) < ids(seeds=3)

    def test_a_cell_by_hand(self, make_cell):
        cell = make_cell()
        short = replace(cell, parameters={"seq_len": 16, "head_dim": 8, "heads": "2"})
        assert cell_id(short) == cell_id(cell)

    def test_what_only_recipes_see_says_nothing_of_a_kernel(self, make_cell):
        tiled = {"given": {"tile": 4}}
        assert cell_id(make_cell(**tiled)) == cell_id(make_cell())
        assert cell_id(make_cell("recipe:fa2", **tiled)) != cell_id(make_cell("recipe:fa2"))

    def test_a_kernel_wherever_it_lies(self, kernels, tmp_path, monkeypatch, make_cell):
        shutil.copy(kernels, tmp_path / kernels.name)
        expected = cell_id(make_cell(f"{kernels}:good"))
        assert cell_id(make_cell(f"{tmp_path / kernels.name}:good")) == expected
        monkeypatch.chdir(kernels.parent)
        for spelling in ("kernels.py:good", "./kernels.py:good"):
            assert cell_id(make_cell(spelling)) == expected

    def test_how_a_kernel_is_called(self, kernels, make_cell):
        def called(**options):
            name = SubjectName("kernel", f"{kernels}:good", **options)
            return cell_id(replace(make_cell(), candidate=name))

        assert called(layout="bhsd") == called(seq_multiple=8) == called()
        assert called(layout="bshd") != called()

    def test_inputs_by_content(self, tmp_path, make_cell):
        tensors = {n: torch.randn(1, 2, 16, 8) for n in "qkv"}
        for name in ("a", "b"):
            save_file(tensors, tmp_path / f"{name}.safetensors")
        made = [make_cell(given={"inputs": f"file:{tmp_path}/{n}.safetensors"}) for n in "ab"]
        first, second = map(cell_id, made)
        assert first == second
        save_file({**tensors, "q": tensors["q"] + 1}, tmp_path / "b.safetensors")
        assert cell_id(made[1]) != first


class TestAnotherCell:
    @pytest.mark.parametrize(
        "changes",
        [
            {"axes": {"seq_len": 17}}, {"axes": {"mask": "causal"}}, {"axes": {"scale": 0.5}},
            {"formats": "fp16"}, {"baseline": "recipe:torch-math"}, {"first_seed": 1},
            {"threads": 2},
        ],
    )  # fmt: skip
    def test_of_another_problem(self, changes):
        assert not ids() & ids(**changes)

    def test_timing_is_another(self, make_cell):
        assert cell_id(make_cell(kind="timing")) != cell_id(make_cell())

    @pytest.mark.parametrize("edit", ["# a comment\n", "def other(): ...\n"])
    def test_an_edited_kernel(self, kernels, tmp_path, edit, make_cell):
        path = tmp_path / kernels.name
        path.write_text(kernels.read_text() + edit)
        assert cell_id(make_cell(f"{path}:good")) != cell_id(make_cell(f"{kernels}:good"))

    def test_another_function_of_the_same_file(self, kernels, make_cell):
        assert cell_id(make_cell(f"{kernels}:nan")) != cell_id(make_cell(f"{kernels}:good"))

    def test_a_changed_recipe(self, make_cell, fresh, monkeypatch):
        recipes = OPERATORS["attention"].recipes
        before = cell_id(make_cell("recipe:fa2"))
        changed = replace(recipes["fa2"], doc="Other words.", known="run")
        monkeypatch.setitem(recipes._values, "fa2", changed)
        fresh()
        assert cell_id(make_cell("recipe:fa2")) == before
        changed = replace(changed, tile=recipes["fa3-fp8"].tile)
        monkeypatch.setitem(recipes._values, "fa2", changed)
        fresh()
        assert cell_id(make_cell("recipe:fa2")) != before

    def test_another_environment(self, make_cell, fresh, monkeypatch):
        before = cell_id(make_cell())
        fresh()
        monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
        assert cell_id(make_cell()) != before
