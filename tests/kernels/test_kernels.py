"""The contract of every registered kernel, and the proof of what ran."""

import itertools
import shutil

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from roundoff.errors import KernelError, UnsupportedError, UsageError
from roundoff.formats import get_format
from roundoff.kernels import KERNELS, kernels_of
from roundoff.kernels.kernel import Kernel, check_outputs
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import normalise
from roundoff.records import SubjectName
from roundoff.subjects import KernelSubject, resolve_subject

MASKS = ["none", "causal", "causal-lower-right", "window:5", "boolean", "additive"]
SLOW = {"torch-flex"}
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
FLEX = pytest.mark.skipif(
    not AVX512,
    reason="FlexAttention of torch 2.13 gives wrong values of 40 keys in bf16 without AVX-512",
)
NAMES = [pytest.param(n, marks=[pytest.mark.slow, FLEX]) if n in SLOW else n for n in KERNELS]
ULPS = {"bf16": 2**-7, "fp16": 2**-10, "fp32": 2**-21, "fp64": 2**-50}


def draw(operator="attention", format="bf16", **given):
    sizes = {
        "attention": {"heads": 4, "kv_heads": 2, "seq_len": 24, "kv_len": 40, "head_dim": 16},
        "softmax": {"rows": 4, "length": 40},
    }
    parameters = normalise(OPERATORS[operator].parameters, sizes[operator] | given)
    return OPERATORS[operator].draw(parameters, get_format(format), 3)


@pytest.fixture
def here():
    """A registered kernel, if it runs on this machine."""

    def get(name):
        if reason := KERNELS[name].missing():
            pytest.skip(reason)
        return KERNELS[name]

    return get


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_it_is_named_described_and_provable(self, name):
        kernel = KERNELS[name]
        assert kernel.name == name
        assert kernel in kernels_of(kernel.operator)
        assert kernel.doc
        assert kernel.expects
        assert kernel.source == ""

    def test_what_it_takes_it_computes(self, name, here):
        kernel = here(name)
        operator = OPERATORS[kernel.operator]
        given = [{"mask": m} for m in MASKS] if kernel.operator == "attention" else [{}]
        taken = 0
        for format, extra in itertools.product(ULPS, given):
            drawn = draw(kernel.operator, format, **extra)
            if kernel.refuses(drawn):
                continue
            taken += 1
            golden = operator.golden(drawn)[0]
            result = KernelSubject(operator, kernel).run(drawn, golden)
            assert result.ran
            for key, x in result.outputs.items():
                error = ((x.double() - golden[key]).abs() / (1 + golden[key].abs())).max()
                assert error < 8 * ULPS[format], (key, format, extra)
        assert taken

    def test_running_it_changes_nothing(self, name, here):
        kernel = here(name)
        drawn = next(d for f in ULPS if kernel.refuses(d := draw(kernel.operator, f)) is None)
        before = {n: x.clone() for n, x in drawn.inputs.items()}
        reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
        call = kernel.bind(drawn)
        first, second = call(), call()
        assert all(torch.equal(first[n], second[n]) for n in first)
        assert all(torch.equal(drawn.inputs[n], x) for n, x in before.items())
        assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == reduced

    def test_other_formats_are_refused(self, name, here):
        kernel = here(name)
        assert "format tf32" in (kernel.refuses(draw(kernel.operator, "tf32")) or "")


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("torch-cpu-flash", {"v_dim": 8}, "v_dim 8 beside head_dim 16 (takes equal ones)"),
        ("torch-math-reduced", {"format": "fp32"}, "format fp32 (takes bf16, fp16)"),
        ("torch-flex", {"mask": "boolean"}, "mask boolean (takes none, causal,"),
        ("torch-cuda-flash", {}, "device cpu (takes cuda)"),
    ],
)
def test_refusals_say_why(name, given, reason):
    assert reason in (KERNELS[name].refuses(draw(**given)) or "")


class TestMissing:
    def test_no_cuda_device(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "no CUDA device" in (KERNELS["torch-cuda-flash"].missing() or "")
        with pytest.raises(UnsupportedError, match="cannot run here: no CUDA device"):
            resolve_subject(OPERATORS["attention"], SubjectName("kernel", "torch-cuda-flash"))

    def test_no_compiler(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(shutil, "which", lambda name: None)
        assert KERNELS["torch-flex"].missing() == "no C++ compiler; install g++"

    def test_a_kernel_of_another_operator(self):
        with pytest.raises(UsageError, match="'torch-softmax' computes softmax, not attention"):
            resolve_subject(OPERATORS["attention"], SubjectName("kernel", "torch-softmax"))


class TestProof:
    def test_a_fallback_is_found_out(self):
        """SDPA asked for flash with other head dims of V falls back to math without a word."""

        def bind(problem):
            q, k, v = (problem.inputs[name].bfloat16() for name in "qkv")

            def call():
                with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
                    return {"out": sdpa(q, k, v, enable_gqa=True)}

            return call

        event = "aten::_scaled_dot_product_flash_attention_for_cpu"
        fake = Kernel(name="fake", operator="attention", doc="", bind=bind, expects=(event,))
        drawn = draw(v_dim=8)
        operator = OPERATORS["attention"]
        golden = operator.golden(drawn)[0]
        with pytest.raises(KernelError, match=f"'fake' was asked .* expected {event}, saw .*math"):
            KernelSubject(operator, fake).run(drawn, golden)


class TestOutputs:
    @pytest.mark.parametrize(
        ("outputs", "message"),
        [
            ({"o": torch.zeros(1)}, "returned no 'out'"),
            (
                {"out": torch.zeros(1, 4, 24, 8)},
                r"shape \(1, 4, 24, 8\); expected \(1, 4, 24, 16\)",
            ),
            ({"out": torch.zeros(1, 24, 4, 16)}, "is --layout right"),
            ({"out": torch.zeros(1, 4, 24, 16)}, "as torch.float32; expected torch.bfloat16"),
            ({"out": torch.zeros(1, 4, 24, 16).bfloat16(), "p": torch.zeros(1)}, "returned 'p'"),
        ],
    )
    @pytest.mark.parametrize("rows", [None, 5])
    def test_a_broken_contract_is_named(self, outputs, message, rows):
        drawn = draw(rows=rows)
        golden = OPERATORS["attention"].golden(drawn)[0]
        with pytest.raises(KernelError, match=message):
            check_outputs(KERNELS["torch-math"], outputs, golden, drawn)

    def test_rows_are_those_of_the_whole_output(self):
        drawn = draw(rows=5)
        golden = OPERATORS["attention"].golden(drawn)[0]
        short = {"out": torch.zeros(1, 4, 23, 16).bfloat16()}
        with pytest.raises(KernelError, match="23, 16"):
            check_outputs(KERNELS["torch-math"], short, golden, drawn)

    def test_what_a_kernel_raises_is_one_line(self):
        def bind(problem):
            def call():
                raise ValueError("first\nsecond")

            return call

        drawn, operator = draw(), OPERATORS["attention"]
        subject = KernelSubject(
            operator, Kernel(name="mine", operator="attention", doc="", bind=bind)
        )
        with pytest.raises(KernelError, match=r"^kernel 'mine' raised ValueError: first$"):
            subject.run(drawn, operator.golden(drawn)[0])
