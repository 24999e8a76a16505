"""The gradients of `triton_flash`, the way Triton's tutorial writes them: two kernels.

One makes dK and dV of a block of keys from all queries, the other dQ of a block of queries from
all keys; both make P again as exp2(S - LSE) from a K that was stored times the scale and log2(e),
and take D from the stored O. P and dS are cast to the format of the products (fp16, also for bf16).

    Q, O, dO, dQ [B,H,N,D], K, V [B,Hk,M,D], dK, dV [B,H,M,D] contiguous; LSE [B,H,N] base 2
"""

# pyright: basic, reportArgumentType=false
import triton.language as tl
from triton.language.standard import _sum_combine as added

__all__ = ["gradients_of_keys", "gradients_of_queries"]


def gradients_of_keys(  # noqa: PLR0913, PLR0917 - a kernel has no other way in
    Q, K, V, O, DO, LSE, DK, DV, q_heads, kv_heads, q_len, kv_len, scale, shift,  # noqa: E741
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
    WEIGHTS: tl.constexpr,
):  # fmt: skip
    """dK and dV, as one query head sees them, of one block of KEYS keys."""
    block, head = tl.program_id(0), tl.program_id(1)
    shared = head // q_heads * kv_heads + head % q_heads // (q_heads // kv_heads)
    keys = block * KEYS + tl.arange(0, KEYS)
    dims = tl.arange(0, D)
    there = (shared * kv_len + keys[:, None]) * D + dims[None, :]
    k = tl.load(K + there, mask=keys[:, None] < kv_len, other=0.0)
    v = tl.load(V + there, mask=keys[:, None] < kv_len, other=0.0)
    dk = tl.full([KEYS, D], 0.0, tl.float32)
    dv = tl.full([KEYS, D], 0.0, tl.float32)
    for start in range(0, q_len, ROWS):
        rows = start + tl.arange(0, ROWS)
        here = (head * q_len + rows[:, None]) * D + dims[None, :]
        q = tl.load(Q + here, mask=rows[:, None] < q_len, other=0.0)
        o = tl.load(O + here, mask=rows[:, None] < q_len, other=0.0)
        do = tl.load(DO + here, mask=rows[:, None] < q_len, other=0.0)
        delta = tl.reduce(o.to(tl.float32) * do.to(tl.float32), 1, added)
        lse = tl.load(LSE + head * q_len + rows, mask=rows < q_len, other=0.0)
        lse = tl.where(lse == float("-inf"), 0.0, lse)
        s = tl.dot(k, tl.trans(q), input_precision="ieee")
        visible = (keys[:, None] < kv_len) & (rows[None, :] < q_len)
        if CAUSAL:
            visible = visible & (keys[:, None] <= rows[None, :] + shift)
        p = tl.exp2(tl.where(visible, s - lse[None, :], float("-inf")))
        dv = tl.dot(p.to(WEIGHTS), do.to(WEIGHTS), dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(WEIGHTS), q.to(WEIGHTS), dk, input_precision="ieee")
    own = (head * kv_len + keys[:, None]) * D + dims[None, :]
    tl.store(DK + own, (dk * scale).to(DK.dtype.element_ty), mask=keys[:, None] < kv_len)
    tl.store(DV + own, dv.to(DV.dtype.element_ty), mask=keys[:, None] < kv_len)


def gradients_of_queries(  # noqa: PLR0913, PLR0917
    Q, K, V, O, DO, LSE, DQ, q_heads, kv_heads, q_len, kv_len, scale, shift,  # noqa: E741
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
    WEIGHTS: tl.constexpr,
):  # fmt: skip
    """dQ of one block of ROWS queries; `scale` is ln(2), which K does not carry."""
    block, head = tl.program_id(0), tl.program_id(1)
    shared = head // q_heads * kv_heads + head % q_heads // (q_heads // kv_heads)
    rows = block * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    here = (head * q_len + rows[:, None]) * D + dims[None, :]
    q = tl.load(Q + here, mask=rows[:, None] < q_len, other=0.0)
    o = tl.load(O + here, mask=rows[:, None] < q_len, other=0.0)
    do = tl.load(DO + here, mask=rows[:, None] < q_len, other=0.0)
    delta = tl.reduce(o.to(tl.float32) * do.to(tl.float32), 1, added)
    lse = tl.load(LSE + head * q_len + rows, mask=rows < q_len, other=0.0)
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    dq = tl.full([ROWS, D], 0.0, tl.float32)
    for start in range(0, kv_len, KEYS):
        keys = start + tl.arange(0, KEYS)
        there = (shared * kv_len + keys[:, None]) * D + dims[None, :]
        k = tl.load(K + there, mask=keys[:, None] < kv_len, other=0.0)
        v = tl.load(V + there, mask=keys[:, None] < kv_len, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        visible = keys[None, :] < kv_len
        if CAUSAL:
            visible = visible & (keys[None, :] <= rows[:, None] + shift)
        p = tl.exp2(tl.where(visible, s - lse[:, None], float("-inf")))
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(WEIGHTS), k.to(WEIGHTS), dq, input_precision="ieee")
    tl.store(DQ + here, (dq * scale).to(DQ.dtype.element_ty), mask=rows[:, None] < q_len)
