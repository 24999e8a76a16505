"""Kernels that need a CUDA device: each against golden, over formats, masks and lengths."""

import dataclasses

import pytest
import torch

from roundoff.kernels import KERNELS
from roundoff.operators import OPERATORS
from roundoff.subjects import KernelSubject

NAMES = [
    "torch-cuda-flash", "torch-cuda-efficient", "torch-cuda-cudnn", "triton-tutorial", "flash-attn"
]  # fmt: skip
ROUNDINGS = {"bf16": 2**-7, "fp16": 2**-10, "fp32": 2**-18}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mask", ["none", "causal", "causal-lower-right"])
@pytest.mark.parametrize("length", [64, 257, 1024])
@pytest.mark.parametrize("format", ROUNDINGS)
@pytest.mark.parametrize("name", NAMES)
def test_it_computes_attention_on_cuda(name, format, length, mask, draw):
    kernel, operator = KERNELS[name], OPERATORS["attention"]
    if reason := kernel.missing():
        pytest.skip(reason)
    problem = draw(format, seq_len=length, head_dim=64, mask=mask)
    there = {key: x.cuda() for key, x in problem.inputs.items()}
    problem = dataclasses.replace(problem, inputs=there)
    if reason := kernel.refuses(problem):
        pytest.skip(reason)
    golden = operator.golden(problem)[0]
    result = KernelSubject(operator, kernel).run(problem, golden)
    assert result.ran
    error = (result.outputs["out"].double() - golden["out"]).abs().max()
    assert error < 4 * ROUNDINGS[format] * golden["out"].abs().max()
