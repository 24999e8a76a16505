"""Users' kernels: found, imported without a trace, and called as their signature asks."""

import re
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from roundoff.errors import KernelError, UnknownNameError, UsageError
from roundoff.formats import get_format
from roundoff.kernels.user import user_kernel
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import normalise

SOURCE = """
import torch
import roundoff
from torch.nn.functional import scaled_dot_product_attention as sdpa

def plain(q, k, v):
    return sdpa(q, k, v)

def causal(q, k, v, causal=False):
    return sdpa(q, k, v, is_causal=causal)

def is_causal(q, k, v, is_causal=False):
    return sdpa(q, k, v, is_causal=is_causal)

def masked(q, k, v, attn_mask=None):
    return sdpa(q, k, v, attn_mask=attn_mask)

def scaled(q, k, v, softmax_scale=None):
    return sdpa(q, k, v, scale=softmax_scale)

def with_lse(q, k, v):
    return sdpa(q, k, v), None

@roundoff.kernel(layout="bshd", formats=("bf16", "fp32"), head_dims=(16,), masks=("none",),
                 seq_multiple=8)
def turned(q, k, v):
    "Lengths before heads."
    assert q.shape[1:] == (16, 2, 16), q.shape
    return sdpa(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

def bshd(q, k, v):
    return turned(q, k, v)

def overwrites(q, k, v):
    out = sdpa(q, k, v)
    for x in (q, k, v):
        x.zero_()
    return out

def nothing(q, k, v):
    return None

def double(x):
    return torch.softmax(x, -1)

NUMBER = 3
print("noise")
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "mine.py"
    path.write_text(SOURCE)
    return str(path)


def problem(format="fp32", operator="attention", **given):
    sizes = {"heads": 2, "seq_len": 16, "head_dim": 16} if operator == "attention" else {}
    chosen = OPERATORS[operator]
    parameters = normalise(chosen.parameters, sizes | given)
    return chosen.draw(parameters, get_format(format), 0)


def expected(drawn, **options):
    return sdpa(*(drawn.inputs[name].to(drawn.format.dtype) for name in "qkv"), **options)


def result(kernel, drawn):
    assert kernel.refuses(drawn) is None
    return kernel.run(drawn)["out"]


class TestCalls:
    @pytest.mark.parametrize("name", ["plain", "with_lse", "turned", "overwrites"])
    def test_the_inputs_alone(self, file, name):
        drawn = problem()
        before = {n: x.clone() for n, x in drawn.inputs.items()}
        out = result(user_kernel(f"{file}:{name}", "attention"), drawn)
        assert torch.equal(out, expected(drawn))
        assert all(torch.equal(drawn.inputs[n], x) for n, x in before.items())

    @pytest.mark.parametrize("name", ["causal", "is_causal", "masked"])
    def test_a_causal_mask_by_the_parameter_that_is_there(self, file, name):
        drawn = problem("bf16", mask="causal")
        out = result(user_kernel(f"{file}:{name}", "attention"), drawn)
        torch.testing.assert_close(out, expected(drawn, is_causal=True))

    @pytest.mark.parametrize("mask", ["window:4", "boolean", "additive", "causal-lower-right"])
    def test_a_mask_as_a_tensor(self, file, mask):
        drawn = problem(mask=mask)
        kernel = user_kernel(f"{file}:masked", "attention")
        golden = OPERATORS["attention"].golden(drawn)[0]["out"]
        torch.testing.assert_close(result(kernel, drawn), golden.float())

    def test_a_scale(self, file):
        drawn = problem(scale=0.5)
        out = result(user_kernel(f"{file}:scaled", "attention"), drawn)
        assert torch.equal(out, expected(drawn, scale=0.5))

    def test_the_layout_can_be_said_by_the_command(self, file):
        kernel = user_kernel(f"{file}:bshd", "attention", layout="bshd")
        drawn = problem()
        assert torch.equal(result(kernel, drawn), expected(drawn))

    def test_another_operator(self, file):
        drawn = problem(operator="softmax", rows=4, length=8)
        kernel = user_kernel(f"{file}:double", "softmax")
        assert kernel.refuses(drawn) is None
        assert torch.equal(kernel.run(drawn)["y"], drawn.inputs["x"].softmax(-1))

    def test_what_is_no_tensor_is_named(self, file):
        kernel = user_kernel(f"{file}:nothing", "attention")
        with pytest.raises(KernelError, match="returned a NoneType; expected a tensor"):
            kernel.run(problem())


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "given", "reason"),
        [
            ("plain", {"mask": "causal"}, "mask causal .*no parameter 'causal' or 'attn_mask'"),
            ("causal", {"mask": "window:4"}, "mask window .*no parameter 'attn_mask'"),
            ("plain", {"scale": 0.5}, "scale of its own"),
            ("turned", {"format": "fp16"}, r"format fp16 \(takes bf16, fp32\)"),
            ("turned", {"head_dim": 32}, r"head_dim 32 \(takes 16\)"),
            ("turned", {"mask": "causal"}, r"mask causal \(takes none\)"),
            ("turned", {"seq_len": 12}, r"lengths \(12, 12\) \(takes multiples of 8\)"),
            ("plain", {"format": "fp64"}, "format fp64"),
        ],
    )
    def test_it_says_what_it_does_not_take(self, file, name, given, reason):
        refused = user_kernel(f"{file}:{name}", "attention").refuses(problem(**given))
        assert refused is not None
        assert re.search(reason, refused)

    def test_multiples_can_be_said_by_the_command(self, file):
        kernel = user_kernel(f"{file}:plain", "attention", seq_multiple=64)
        assert kernel.refuses(problem()) == "lengths (16, 16) (takes multiples of 64)"


class TestImports:
    def test_a_missing_function_has_near_names(self, file):
        with pytest.raises(UnknownNameError, match="'plane'; did you mean 'plain'"):
            user_kernel(f"{file}:plane", "attention")

    def test_what_is_no_function(self, file):
        with pytest.raises(UsageError, match="is a int; expected a function"):
            user_kernel(f"{file}:NUMBER", "attention")

    @pytest.mark.parametrize("place", ["mine.py", ":f", "mine.py:", ""])
    def test_what_names_no_kernel(self, place):
        with pytest.raises(UsageError, match=r"expected module:function or file\.py:function"):
            user_kernel(place, "attention")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("import nothing_of_the_kind", "ModuleNotFoundError: No module named"),
            ("def f(:", "SyntaxError"),
            ("1 / 0", "ZeroDivisionError"),
            ("raise SystemExit(3)", "SystemExit: 3"),
        ],
    )
    def test_an_error_of_the_import_is_one_error(self, tmp_path, text, message):
        path = tmp_path / "broken.py"
        path.write_text(text)
        with pytest.raises(UsageError, match=f"cannot import .*{message}"):
            user_kernel(f"{path}:f", "attention")

    def test_missing_files_and_modules(self):
        with pytest.raises(UsageError, match="no file"):
            user_kernel("nowhere.py:f", "attention")
        with pytest.raises(UsageError, match="No module named"):
            user_kernel("no_such_module:f", "attention")

    def test_importing_leaves_no_trace(self, tmp_path, capsys):
        path = tmp_path / "loud.py"
        path.write_text(
            "import torch\nprint('noise')\ntorch.set_float32_matmul_precision('medium')\n"
            "def f(q, k, v):\n    assert torch.get_float32_matmul_precision() == 'medium'\n"
        )
        before = list(sys.path)
        kernel = user_kernel(f"{path}:f", "attention")
        assert torch.get_float32_matmul_precision() == "highest"
        assert kernel.settings["float32_matmul_precision"] == "medium"
        assert capsys.readouterr() == ("", "noise\n")
        assert sys.path == [*before, str(tmp_path)]
        sys.path.remove(str(tmp_path))

    def test_a_module_by_name_from_the_working_folder(self, tmp_path, monkeypatch):
        (tmp_path / "by_name_kernel.py").write_text("def f(q, k, v):\n    return q\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        drawn = problem()
        kernel = user_kernel("by_name_kernel:f", "attention")
        assert torch.equal(kernel.run(drawn)["out"], drawn.inputs["q"])

    def test_imports_inside_the_function_find_what_lies_beside(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "path", list(sys.path))
        (tmp_path / "lazy_helper.py").write_text("def g(q):\n    return q\n")
        path = tmp_path / "lazy.py"
        path.write_text("def f(q, k, v):\n    from lazy_helper import g\n    return g(q)\n")
        drawn = problem()
        out = user_kernel(f"{path}:f", "attention").run(drawn)["out"]
        assert torch.equal(out, drawn.inputs["q"])

    def test_a_helper_of_another_folder_is_not_taken_on_the_quiet(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "path", list(sys.path))
        places = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "namesake.py").write_text(f"X = '{name}'\n")
            path = tmp_path / name / "k.py"
            path.write_text("import namesake\ndef f(q, k, v):\n    return q\n")
            places.append(f"{path}:f")
        user_kernel(places[0], "attention")
        with pytest.raises(UsageError, match=r"imports 'namesake' from .* is loaded already"):
            user_kernel(places[1], "attention")
