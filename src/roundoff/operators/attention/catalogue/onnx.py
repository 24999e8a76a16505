"""What ONNX Runtime's CPU kernel of the operator `Attention` does."""

from __future__ import annotations

from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Logits, Normalise, Recipe, RowSum
from roundoff.sites import INPUT, Accumulator

__all__: list[str] = []

# In fp16 all is fp32 between four casts: of S after the scale, P, and the output, each once a
# product or a softmax. What remains: MLAS's own exponential; the last step of its row sum (16
# lanes, of which neighbours are added where we add halves); its product takes 128 terms at a
# time for head dims of V from 128 on, 256 at 64 (as here), 512 at 32.
add(
    Recipe(
        name="onnx-cpu",
        doc="ONNX Runtime's Attention on a CPU: whole rows, S and P stored in the input's format",
        source="onnxruntime core/providers/cpu/llm/attention.cc and core/mlas, 1.32, x86-64",
        known="run",
        logits=Logits("after", INPUT, mask="fma"),
        row_sum=RowSum("before", Accumulator(order="vector", lanes=16)),
        pv=Accumulator(chunk=256),
        normalise=Normalise("block", "reciprocal"),
    )
)
