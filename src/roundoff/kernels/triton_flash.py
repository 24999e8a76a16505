"""A flash-attention kernel for Triton, written the way Triton's tutorial writes it.

One program a block of queries of one head; keys from the first to the last, a tile at a time.
Scores and state are fp32; the scale (with log2(e)) goes into the multiply-add of exp2's
argument; the maximum is kept in scaled scores; l sums P before its cast to the format of the
product with V (fp16, also for bf16).

    Q [B,H,N,D], K, V [B,Hk,M,D], O [B,H,N,D] contiguous; LSE [B,H,N] in powers of two

Python's own subset: Triton compiles or interprets the body, so types are Triton's, and only
built-ins are called (`tl.max` and `tl.sum` are compiled functions, which the interpreter cannot
call unless all of Triton was imported for it; their reductions it can).
"""

# pyright: basic, reportArgumentType=false
import triton.language as tl
from triton.language.standard import _elementwise_max as larger
from triton.language.standard import _sum_combine as added

__all__ = ["attention_forward"]


def attention_forward(  # noqa: PLR0913, PLR0917 - a kernel has no other way in
    Q, K, V, O, LSE, q_heads, kv_heads, q_len, kv_len, scale, shift,  # noqa: E741
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
    WEIGHTS: tl.constexpr,
):  # fmt: skip
    """O and LSE of one block of ROWS queries; a row sees keys up to its number plus `shift`."""
    block, head = tl.program_id(0), tl.program_id(1)
    shared = head // q_heads * kv_heads + head % q_heads // (q_heads // kv_heads)
    rows = block * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    here = (head * q_len + rows[:, None]) * D + dims[None, :]
    q = tl.load(Q + here, mask=rows[:, None] < q_len, other=0.0)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    l = tl.full([ROWS], 0.0, tl.float32)  # noqa: E741
    acc = tl.full([ROWS, D], 0.0, tl.float32)
    for start in range(0, kv_len, KEYS):
        keys = start + tl.arange(0, KEYS)
        there = (shared * kv_len + keys[:, None]) * D + dims[None, :]
        k = tl.load(K + there, mask=keys[:, None] < kv_len, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        visible = keys[None, :] < kv_len
        if CAUSAL:
            visible = visible & (keys[None, :] <= rows[:, None] + shift)
        s = tl.where(visible, s, float("-inf"))
        m_new = tl.maximum(m, tl.reduce(s, 1, larger) * scale)
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(tl.fma(s, scale, -base[:, None]))
        factor = tl.exp2(m - base)
        l = l * factor + tl.reduce(p, 1, added)  # noqa: E741
        v = tl.load(V + there, mask=keys[:, None] < kv_len, other=0.0)
        v = v.to(WEIGHTS)
        acc = tl.dot(p.to(WEIGHTS), v, acc * factor[:, None], input_precision="ieee")
        m = m_new
    total = tl.where(l == 0.0, 1.0, l)
    tl.store(O + here, (acc / total[:, None]).to(O.dtype.element_ty), mask=rows[:, None] < q_len)
    tl.store(LSE + head * q_len + rows, m + tl.log2(total), mask=rows < q_len)
