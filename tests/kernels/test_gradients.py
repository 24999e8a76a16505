"""Gradients of kernels: torch's own, a user's, those that have none, and the table of a sweep."""

import pytest
import torch

from roundoff.cli import main
from roundoff.errors import KernelError
from roundoff.formats import get_format
from roundoff.kernels import KERNELS
from roundoff.kernels.user import user_kernel
from roundoff.operators.attention.operator import ATTENTION
from roundoff.records import SubjectName
from roundoff.subjects import KernelSubject, resolve_subject

SOURCE = """
import torch
from roundoff.kernels.user import kernel

def plain(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)

@kernel(layout="bshd")
def turned(q, k, v):
    out = plain(*(x.transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2), "and more"

def cut(q, k, v):
    with torch.no_grad():
        return plain(q, k, v)

@kernel(gradients=False)
def forward_only(q, k, v):
    return plain(q, k, v)
"""


def problem(format="fp32", **given):
    parameters = ATTENTION.settle({"gradients": "yes", "seq_len": 40, "head_dim": 16, **given})
    return ATTENTION.draw(parameters, get_format(format), 0)


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    return lambda name: user_kernel(f"{file}:{name}", "attention")


@pytest.mark.parametrize(
    "given",
    [{}, {"rows": 5}, {"kv_heads": 2}, {"mask": "additive"}, {"mask": "causal", "kv_len": 50}],
    ids=str,
)
@pytest.mark.parametrize("name", ["torch-math", "torch-cpu-flash"])
def test_torchs_gradients_are_golden_up_to_rounding(name, given):
    drawn = problem(**given)
    golden, _ = ATTENTION.golden(drawn)
    result = KernelSubject(ATTENTION, KERNELS[name]).run(drawn, golden)
    assert {"out", "dq", "dk", "dv"} <= set(result.outputs)
    for output, x in result.outputs.items():
        assert x.shape == golden[output].shape
        assert (x - golden[output]).norm() < 1e-5 * golden[output].norm(), output


def test_the_upstream_gradient_is_zero_outside_the_sampled_rows():
    whole, some = problem(), problem(rows=5)
    assert whole.inputs["dout"].shape == (1, 4, 40, 16)
    others = [i for i in range(40) if i not in some.rows.tolist()]
    assert (some.inputs["dout"][:, :, others] == 0).all()
    rows = some.rows
    assert torch.equal(some.inputs["dout"][:, :, rows], whole.inputs["dout"][:, :, rows])
    without = ATTENTION.draw(ATTENTION.settle({"seq_len": 40, "head_dim": 16}), some.format, 0)
    assert all(torch.equal(without.inputs[n], whole.inputs[n]) for n in "qkv")
    assert "dout" not in without.inputs


@pytest.mark.parametrize("name", ["plain", "turned"])
def test_a_users_function_is_derived_by_autograd(name, mine):
    drawn = problem()
    golden, _ = ATTENTION.golden(drawn)
    result = KernelSubject(ATTENTION, mine(name)).run(drawn, golden)
    for output in ("out", "dq", "dk", "dv"):
        x = result.outputs[output]
        assert not x.requires_grad
        assert (x - golden[output]).norm() < 1e-5 * golden[output].norm(), output


def test_a_function_without_gradients_is_an_error_and_a_declared_one_is_refused(mine):
    drawn = problem()
    with pytest.raises(KernelError, match="no gradient flows through"):
        mine("cut").run(drawn)
    assert "gradients on cpu" in mine("forward_only").refuses(drawn)
    assert "gradients on cpu" in KERNELS["torch-flex"].refuses(drawn)


def test_gradients_cost_five_products_more():
    none, all_ = (ATTENTION.settle({"gradients": g}) for g in ("no", "yes"))
    assert ATTENTION.cost(all_) == 3.5 * ATTENTION.cost(none)


def test_recipes_give_gradients_at_the_problems_rows():
    drawn = problem("bf16", rows=5, kv_heads=2)
    golden, _ = ATTENTION.golden(drawn)
    subject = resolve_subject(ATTENTION, SubjectName.parse("recipe:fa2"))
    result = subject.run(drawn, golden)
    assert list(result.outputs) == list(golden) == ["out", "lse", "dq", "dk", "dv"]
    for output, x in result.outputs.items():
        assert x.shape == golden[output].shape
        assert (x - golden[output]).norm() < 0.02 * golden[output].norm()


def test_a_sweep_shows_every_gradient(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["bench", "--gradients", "yes", "--kernel", "torch-cpu-flash", "--recipe",
              "fa2,fa3", "--seq-len", "64", "--seeds", "1"])  # fmt: skip
    shown = capsys.readouterr()
    assert left.value.code == 0
    for output in ("fa2 out", " dq ", " dk ", " dv "):
        assert output in shown.out
    assert "no backward pass" in shown.out + shown.err
