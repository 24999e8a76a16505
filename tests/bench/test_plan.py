"""Plans: which cells come of them, and everything that is wrong with one at once."""

import pytest
import torch
from safetensors.torch import save_file

from roundoff import bench
from roundoff.bench.plan import Plan, Sweep, groups, make_plan, read_plan, seconds
from roundoff.errors import UsageError


def sweep(**changes):
    return Sweep.model_validate({"baseline": "torch-math", "seeds": 2, **changes})


def cells(**changes):
    return Plan(sweep=(sweep(**changes),)).cells()


class TestCells:
    def test_every_combination_and_the_baseline(self):
        made = cells(kernels="torch-cpu-flash", recipes="fa2", formats="bf16,fp16",
                     axes={"seq_len": "16:64:x2"})  # fmt: skip
        assert len(made) == 3 * 2 * 3 * 2
        assert {str(c.candidate) for c in made} == {
            "kernel:torch-math", "kernel:torch-cpu-flash", "recipe:fa2"}  # fmt: skip

    def test_what_only_recipes_have_does_not_multiply_kernels(self):
        made = cells(kernels="torch-cpu-flash", recipes="fa2", axes={"tile": "16,32"}, seeds=1)
        tiles = [(c.candidate.name, c.parameters["tile"]) for c in made]
        assert sorted(tiles, key=str) == [
            ("fa2", 16), ("fa2", 32), ("torch-cpu-flash", None), ("torch-math", None)]  # fmt: skip

    def test_timing_only_of_kernels_and_one_seed(self):
        made = [c for c in cells(recipes="fa2", timing=True) if c.kind == "timing"]
        assert [(c.candidate.name, c.seed) for c in made] == [("torch-math", 0)]

    def test_seeds_do_not_multiply_what_is_not_drawn(self, tmp_path):
        path = tmp_path / "x.safetensors"
        save_file({n: torch.zeros(1) for n in "qkv"}, path)
        axes = {"inputs": f"normal,file:{path}", "seq_len": 16}

        def seeds(**more):
            found = {}
            for cell in cells(axes=axes | more, seeds=3, first_seed=4):
                found.setdefault(cell.parameters["inputs"], []).append(cell.seed)
            return list(found.values())

        assert seeds() == [[4, 5, 6], [4]]
        assert seeds(rows=16) == [[4, 5, 6], [4]]  # all rows
        assert seeds(rows=8) == [[4, 5, 6], [4, 5, 6]]  # each seed sees others

    def test_sweeps_that_overlap_give_a_cell_once(self):
        one, two = sweep(axes={"seq_len": "16,32"}), sweep(axes={"seq_len": "32,64"})
        assert len(Plan(sweep=(one, two)).cells()) == 3 * 2

    def test_cells_of_one_problem_are_together(self):
        made = cells(recipes="fa2,jax-xla", axes={"seq_len": "16,32", "tile": "4,8"}, seeds=1)
        assert [len(group) for group in groups(made)] == [5, 5]

    def test_options_of_users_kernels_go_to_no_others(self):
        made = cells(kernels="mine.py:f", layout="bshd", seq_multiple=8, seeds=1)
        assert [c.candidate.layout for c in made] == [None, "bshd"]

    def test_cost_counts_golden_once_a_problem(self):
        alone = Plan(sweep=(sweep(seeds=1),)).cost()
        assert Plan(sweep=(sweep(seeds=1, recipes="fa2"),)).cost() == alone * 3 / 2

    def test_seconds_grow_with_what_is_asked(self):
        alone = seconds(Plan(sweep=(sweep(seeds=1),)))
        assert 0 < alone < seconds(Plan(sweep=(sweep(seeds=2),)))
        assert seconds(Plan(sweep=(sweep(seeds=1, timing=True),))) > alone + 0.9


BAD = """
[[sweep]]
operator = "attention"
baseline = "torch-mth"
kernels = ["torch-cpu-flsh", "mine.py:f"]
recipes = "fa22, fa2"
formats = ["bf15", "fp17", "bf16"]
seeds = 0
color = "red"
device = "gpu"
[sweep.axes]
seq_len = "abc"
head_dim = 0
sq_len = 3
mask = ["causl"]

[[sweep]]
operator = "attentoin"
baseline = "torch-math"
"""


class TestReading:
    def test_a_plan(self, tmp_path):
        path = tmp_path / "plan.toml"
        path.write_text(
            '[[sweep]]\nbaseline = "torch-math"\nrecipes = "fa2, jax-xla"\nseeds = 1\n'
            '[sweep.axes]\nseq_len = [16, "32:64:x2"]\nscale = 1e-3\n'
        )
        made = read_plan(path).cells()
        assert sorted({c.parameters["seq_len"] for c in made}) == [16, 32, 64]
        assert {c.parameters["scale"] for c in made} == {1e-3}
        assert len(made) == 9

    def test_all_that_is_wrong_at_once_with_its_place(self, tmp_path):
        path = tmp_path / "bad.toml"
        path.write_text(BAD)
        with pytest.raises(UsageError) as caught:
            read_plan(path)
        text = str(caught.value)
        assert text.startswith(f"{path} is no plan: ")
        for part in (
            "sweep.0.baseline: unknown kernel 'torch-mth'; did you mean 'torch-math'",
            "sweep.0.kernels: unknown kernel 'torch-cpu-flsh'; did you mean 'torch-cpu-flash'",
            "sweep.0.recipes: unknown recipe 'fa22'; did you mean 'fa2'",
            "sweep.0.formats: unknown format 'bf15'; did you mean 'bf16'",
            "unknown format 'fp17'",
            "sweep.0.seeds: Input should be greater than or equal to 1",
            "sweep.0.color: Extra inputs are not permitted",
            "sweep.0.device: unknown device 'gpu'",
            "sweep.0.axes: --seq-len 'abc': expected a whole number",
            "--head-dim '0': expected a whole number of at least 1",
            "unknown parameter 'sq_len'; did you mean 'seq_len'",
            "--mask 'causl': expected one of",
            "sweep.1.operator: unknown operator 'attentoin'; did you mean 'attention'",
        ):
            assert part in text
        assert "\n" not in text

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ({}, "sweep: Field required"),
            ({"sweep": []}, "sweep: Tuple should have at least 1 item"),
            ({"sweep": [{}]}, "sweep.0.baseline: Field required"),
            ({"sweep": [{"baseline": ""}]}, "sweep.0.baseline: an empty name"),
            ({"sweep": [{"baseline": "torch-math", "formats": ""}]}, "sweep.0.formats: "),
            ({"sweep": [{"baseline": "torch-math", "axes": {"mask": ""}}]}, "at least one value"),
        ],
    )
    def test_what_is_missing(self, document, message):
        with pytest.raises(UsageError, match=message):
            make_plan(document)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"[[sweep", "is no TOML: "),
            (b"\xff\xfe", "is no TOML: "),
            (None, "cannot read the plan"),
        ],
    )
    def test_what_is_no_file_or_no_toml(self, tmp_path, data, message):
        path = tmp_path / "plan.toml"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(UsageError, match=message):
            read_plan(path)


def test_the_names_of_the_room():
    assert bench.__all__ == sorted(bench.__all__, key=lambda n: (not n[0].isupper(), n))
    assert set(bench._PLACES) == set(bench.__all__) == set(dir(bench))
    assert all(getattr(bench, name) is not None for name in bench.__all__)
