"""ONNX Runtime's `Attention` on the CPU: a model of one node.

The proof: `Attention` is a function of the ONNX standard, and where ONNX Runtime has no kernel
for it (fp64) it is taken apart into some sixty nodes. The session writes down the graph that it
will run; that must still be the one node, on the one provider that the event names.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roundoff.errors import KernelError
from roundoff.kernels.announced import announced
from roundoff.kernels.kernel import Call, Kernel, needs, stored_inputs
from roundoff.kernels.limits import Limits
from roundoff.operators.attention.call import Call as Attention
from roundoff.operators.attention.operator import call_of
from roundoff.operators.protocol import Outputs, Problem
from roundoff.registry import require

__all__ = ["CPU"]

_OPSET = 23
_PROVIDER = "CPUExecutionProvider"
_EVENT = "onnxruntime::Attention"
_LIMITS = Limits(("fp16", "fp32"), device="cpu", gradients=())


def _bind(problem: Problem) -> Call:
    attention = call_of(problem)
    tensors = {name: x.contiguous() for name, x in _tensors(problem, attention).items()}
    session = _session(tensors, attention)
    feeds = {name: x.numpy() for name, x in tensors.items()}

    def call() -> Outputs:
        return {"out": torch.as_tensor(session.run(None, feeds)[0])}

    return announced(f"{_EVENT} {_PROVIDER}", call)


def _tensors(problem: Problem, attention: Attention) -> dict[str, Tensor]:
    """q, k, v and a dense mask; `is_causal` aligns at the upper left, as our `causal` does."""
    stored = stored_inputs(problem)
    tensors = {name: stored[name] for name in "qkv"}
    if attention.mask.kind in ("none", "causal"):
        return tensors
    dense = attention.mask.dense(attention.lengths, torch.device("cpu"))
    assert dense is not None
    return tensors | {"mask": dense if dense.dtype == torch.bool else dense.to(stored["q"].dtype)}


def _session(tensors: dict[str, Tensor], attention: Attention) -> Any:
    runtime = require("onnxruntime", extra="onnx", purpose="kernel onnx-cpu")
    onnx = require("onnx", extra="onnx", purpose="kernel onnx-cpu")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(written)
        model = _model(onnx, tensors, attention).SerializeToString()
        session = runtime.InferenceSession(model, options, providers=[_PROVIDER])
        ran = [node.op_type for node in onnx.load(str(written)).graph.node]
    if ran != ["Attention"] or session.get_providers() != [_PROVIDER]:
        raise KernelError(
            f"kernel 'onnx-cpu': ONNX Runtime would run {', '.join(ran)} on "
            f"{', '.join(session.get_providers())}; expected Attention on {_PROVIDER}"
        )
    return session


def _model(onnx: Any, tensors: dict[str, Tensor], attention: Attention) -> Any:
    helper, types = onnx.helper, onnx.TensorProto
    kinds = {
        torch.float64: types.DOUBLE,
        torch.float32: types.FLOAT,
        torch.float16: types.FLOAT16,
        torch.bool: types.BOOL,
    }
    inputs = [
        helper.make_tensor_value_info(name, kinds[x.dtype], None) for name, x in tensors.items()
    ]
    node = helper.make_node(
        "Attention", list(tensors), ["out"],
        is_causal=int(attention.mask.kind == "causal"), scale=float(attention.scale),
    )  # fmt: skip
    out = helper.make_tensor_value_info("out", kinds[tensors["q"].dtype], None)
    graph = helper.make_graph([node], "attention", inputs, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)


def _refuses(problem: Problem) -> str | None:
    scale = call_of(problem).scale
    if not scale > 0:
        return f"scale {scale} (takes positive ones)"
    return _LIMITS.refuse(problem)


CPU = Kernel(
    name="onnx-cpu",
    operator="attention",
    doc="ONNX Runtime's Attention (opset 23) on the CPU",
    bind=_bind,
    missing=needs("onnxruntime", "onnx", extra="onnx"),
    refuses=_refuses,
    expects=(_EVENT,),
)
