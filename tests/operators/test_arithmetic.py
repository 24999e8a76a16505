"""Rounding, quantising and summing as sites say it."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from roundoff.errors import UnsupportedError
from roundoff.formats import FORMATS, Format, round_to
from roundoff.operators import arithmetic
from roundoff.operators.arithmetic import carrier, divide, magnitude, matmul, put, row_sum, settled
from roundoff.sites import INPUT, Accumulator, Quantizer

BF16, FP16, FP32, FP64, E4M3 = (FORMATS[n] for n in ("bf16", "fp16", "fp32", "fp64", "e4m3fn"))
X = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("format", FORMATS)
def test_a_carrier_holds_its_format(format):
    expected = torch.float64 if format == "fp64" else torch.float32
    assert carrier(FORMATS[format]) == expected
    assert carrier(Format("far", 11, 7, 1023)) == torch.float64


def test_put_rounds_and_leaves_wide_formats_alone():
    assert torch.equal(put(X, BF16), round_to(X, BF16))
    assert put(X, FP32) is X
    assert put(X, FP64) is X
    assert torch.equal(put(X.double(), FP32), X.double())
    assert torch.equal(put(X, BF16, mode="toward-zero"), round_to(X, BF16, mode="toward-zero"))
    with pytest.raises(TypeError, match="resolve the recipe"):
        settled(INPUT)


@pytest.mark.parametrize("format", ["e4m3fn", "e2m1", "e4m3fnuz"])
def test_formats_without_infinities_saturate_but_keep_infinity(format):
    x = torch.tensor([1e6, -1e6, math.inf, -math.inf, math.nan, 0.5])
    top = FORMATS[format].max
    y = put(x, FORMATS[format])
    assert y[[0, 1, 2, 3, 5]].tolist() == [top, -top, math.inf, -math.inf, 0.5]
    assert y[4].isnan()
    fixed = put(x, Quantizer(FORMATS[format], "fixed", factor=0.5))
    assert fixed[:4].tolist() == [2 * top, -2 * top, math.inf, -math.inf]


def test_a_fixed_scale_is_multiplied_and_divided():
    y = put(X.abs().clamp(max=1), Quantizer(E4M3, "fixed", factor=256.0))
    assert torch.equal(y, round_to(X.abs().clamp(max=1) * 256, E4M3) / 256)


def test_one_scale_a_tensor_is_one_scale():
    x = torch.randn(2, 3, 8, 4)
    x[0, 0, 0, 0] = 100.0
    y = put(x, Quantizer(E4M3, "tensor"))
    factor = x.abs().max() / E4M3.max
    assert torch.equal(y, round_to(x / factor, E4M3) * factor)
    assert y.abs().max().item() == pytest.approx(100.0)


def test_one_scale_a_block_keeps_an_outlier_to_its_block():
    x = torch.randn(2, 3, 10, 4)
    y = put(x, Quantizer(E4M3, "block", block=4))
    x2 = x.clone()
    x2[0, 1, 5, 2] = 1000.0
    y2 = put(x2, Quantizer(E4M3, "block", block=4))
    changed = (y != y2).any(-1)
    assert changed[0, 1, 4:8].any()
    changed[0, 1, 4:8] = False
    assert not changed.any()
    with pytest.raises(UnsupportedError, match="block's length"):
        put(x, Quantizer(E4M3, "block"))


@pytest.mark.parametrize("scale", ["tensor", "block"])
@pytest.mark.parametrize("value", [0.0, 1e-45, 3e38, math.nan, math.inf])
def test_odd_tensors_quantise(scale, value):
    x = torch.full((1, 1, 4, 2), value)
    y = put(x, Quantizer(E4M3, scale, block=2))
    if value in (0.0, 3e38):
        assert torch.allclose(x, y)
    if not math.isfinite(value):
        assert not y.isfinite().any()
    assert put(x[:, :, :0], Quantizer(E4M3, scale, block=2)).shape == (1, 1, 0, 2)


@pytest.mark.parametrize("order", ["library", "reversed", "fused"])
@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
@pytest.mark.parametrize("start", [True, False])
def test_products_are_products(start, chunk, order):
    a, b = torch.randn(2, 3, 5, 50).double(), torch.randn(2, 3, 50, 4).double()
    onto = torch.randn(2, 3, 5, 4).double() if start else None
    total = Accumulator(FP64, chunk, order)
    exact = a @ b if onto is None else onto + a @ b
    assert (matmul(a, b, total, onto=onto) - exact).abs().max() < 1e-13
    narrow = matmul(a.float(), b.float(), Accumulator(BF16, chunk, order), onto=None)
    assert torch.equal(narrow, round_to(narrow, BF16))


def test_chunks_round_in_between():
    a, b = torch.ones(1, 300), torch.ones(300, 1)
    assert matmul(a, b, Accumulator(BF16)).item() == 300
    assert matmul(a, b, Accumulator(BF16, chunk=1)).item() == 256  # 256 + 1 rounds to even
    assert row_sum(a, Accumulator(BF16, chunk=1)).item() == 256
    assert row_sum(a, Accumulator(BF16, chunk=100)).item() == 300
    thirds = torch.full((1, 300), 1 / 3)
    cut = row_sum(thirds, Accumulator(BF16, chunk=1, rounding="toward-zero")).item()
    assert cut < row_sum(thirds, Accumulator(BF16, chunk=1)).item()


@pytest.mark.parametrize("format", ["bf16", "fp16"])
def test_native_is_torchs_own_gemm(format):
    dtype = FORMATS[format].dtype
    a, b = torch.randn(40, 70).to(dtype), torch.randn(70, 30).to(dtype)
    ours = matmul(a.float(), b.float(), Accumulator(FORMATS[format], order="native"))
    assert torch.equal(ours, (a @ b).float())


@pytest.mark.parametrize("order", ["library", "reversed", "lanes", "vector", "softmax"])
@pytest.mark.parametrize("length", [0, 1, 5, 16, 17, 40])
def test_sums_are_sums(length, order):
    x = torch.randn(4, length, dtype=torch.float64)
    total = row_sum(x, Accumulator(FP64, order=order))
    assert total.shape == (4, 1)
    assert (total - x.sum(-1, keepdim=True)).abs().max() < 1e-13


def test_lanes_and_vector_take_their_tails_elsewhere():
    """With 1 lost beside 2^24 in float32, the order can be read off the sum."""
    x = torch.zeros(1, 18)
    x[0, 0], x[0, 16], x[0, 17] = 2.0**24, 1.0, 1.0
    assert row_sum(x, Accumulator(order="lanes", format=FP32)).item() == 2**24
    assert row_sum(x, Accumulator(order="vector", format=FP32)).item() == 2**24
    x[0, 0], x[0, 1], x[0, 17] = 2.0**24, 1.0, 1.0
    x[0, 16] = 0.0
    assert row_sum(x, Accumulator(order="lanes", format=FP32)).item() == 2**24
    assert row_sum(x, Accumulator(order="vector", format=FP32)).item() == 2**24 + 2


def test_division_and_reciprocal():
    x, total = X.abs(), torch.tensor([[3.0], [7.0], [0.0]])
    assert torch.equal(divide(x, total, "division", FP32)[:2], (x / total)[:2])
    by = divide(x, total, "reciprocal", BF16)
    assert torch.equal(by[:2], round_to(x * round_to(1 / total, BF16), BF16)[:2])
    assert (by[2] == 0).all()


def summed_by_hand(row):
    """`Accumulator`'s order `library` on a list of numpy's float32, one addition at a time."""
    groups = [row[at : at + 64] for at in range(0, len(row), 64)]
    while len(groups) > 1:
        kept = (len(groups) + 1) // 2
        for at, group in enumerate(groups[kept:]):
            groups[at] = [a + b for a, b in zip(groups[at], group, strict=False)] + groups[at][
                len(group) :
            ]
        groups = groups[:kept]
    lanes = groups[0]
    for half in (32, 16, 8, 4, 2, 1):
        pairs = zip(lanes, lanes[half:], strict=False)
        lanes = [a + b for a, b in pairs] + lanes[max(0, len(lanes) - half) : half]
    return lanes[0]


@pytest.mark.parametrize("width", [1, 2, 3, 16, 63, 64, 65, 100, 128, 176, 192, 500, 1000])
def test_a_row_is_added_up_in_the_order_that_is_told(width):
    p = torch.rand(5, width, generator=torch.Generator().manual_seed(width)) - 0.3
    expected = [summed_by_hand([np.float32(x) for x in row]) for row in p.tolist()]
    assert row_sum(p, Accumulator(FP32)).flatten().tolist() == expected
    backward = row_sum(p.flip(-1), Accumulator(FP32, order="reversed"))
    assert backward.flatten().tolist() == expected


def test_a_sum_of_negative_zeros_is_one():
    for width in (1, 5, 64, 100):
        assert row_sum(torch.full((1, width), -0.0), Accumulator(FP32)).signbit().item()
    assert not row_sum(torch.zeros(1, 0), Accumulator(FP32)).signbit().item()


MX = [
    (Quantizer(element, "line", block=32, axis=-1, scales=scales), element, scales)
    for element in (E4M3, FORMATS["e5m2"], FORMATS["e2m1"])
    for scales in ("power", "power-up")
]


@pytest.mark.parametrize(("how", "element", "scales"), MX, ids=lambda x: str(x)[:12])
def test_microscaled_blocks_are_those_of_ml_dtypes(how, element, scales):
    """Scales in e8m0 and elements by ml_dtypes, blocks in plain loops."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    import numpy as np

    names = {"e4m3fn": "float8_e4m3fn", "e5m2": "float8_e5m2", "e2m1": "float4_e2m1fn"}
    narrow = getattr(ml_dtypes, names[element.name])
    x = torch.randn(6, 70, generator=torch.Generator().manual_seed(1)) * torch.logspace(-9, 9, 70)
    x[0, :32] = 0.0
    ours = put(x, how)
    for row in range(6):
        for start in (0, 32, 64):
            block = x[row, start : start + 32].numpy()
            largest = float(np.abs(block).max())
            if largest == 0:
                assert not ours[row, start : start + 32].any()
                continue
            if scales == "power":
                scale = 2.0 ** (math.floor(math.log2(largest)) - element.emax)
            else:
                scale = 2.0 ** math.ceil(math.log2(largest / element.max))
            assert float(np.float32(scale).astype(ml_dtypes.float8_e8m0fnu)) == scale
            clipped = np.clip(block / np.float32(scale), -element.max, element.max)
            theirs = clipped.astype(narrow).astype(np.float32) * np.float32(scale)
            assert np.array_equal(ours[row, start : start + 32].numpy(), theirs)


def test_microscaled_blocks_are_those_of_gfloat():
    gfloat = pytest.importorskip("gfloat")
    formats = pytest.importorskip("gfloat.formats")
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(2)) * 3
    how = Quantizer(FORMATS["e2m1"], "line", block=32, axis=-1, scales="power")
    info = formats.format_info_ocp_e2m1
    for row, ours in zip(x.double(), put(x.double(), how), strict=True):
        largest = row.abs().max().item()
        scale = 2.0 ** (math.floor(math.log2(largest)) - 2)
        theirs = [scale * gfloat.round_float(info, v / scale, sat=True) for v in row.tolist()]
        assert ours.tolist() == theirs


def test_two_levels_of_scales_fill_the_format_of_the_scales():
    """NVFP4 by ml_dtypes: e4m3 scales of 16 under one fp32 scale of the tensor."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    import numpy as np

    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(3)) * 1e-3
    x[0, 0] = 7.0
    how = Quantizer(FORMATS["e2m1"], "line", block=16, axis=-1, scales=E4M3, two_level=True)
    level = np.float32(np.float32(7.0) / np.float32(6 * 448))
    blocks = x.numpy().reshape(5, 2, 16)
    wanted = np.abs(blocks).max(-1, keepdims=True) / np.float32(6) / level
    scale = wanted.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * level
    scale = np.where(scale > 0, scale, np.float32(1))
    theirs = np.clip(blocks / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(put(x, how).numpy(), (theirs * scale).reshape(5, 32))
    with pytest.raises(UnsupportedError, match="second level"):
        put(x, Quantizer(E4M3, "line", scales="power", two_level=True))


def test_a_format_of_one_exponent_is_an_integer_grid():
    from roundoff.operators.attention.catalogue.sage import INT8

    assert sorted({abs(v) for v in INT8.values()}) == list(range(128))
    x = torch.linspace(-127.49, 127.49, 3001)
    assert torch.equal(put(x, INT8), x.round())
    y = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(4))
    scale = y.abs().max() / 127
    assert torch.equal(put(y, Quantizer(INT8, "tensor")), (y / scale).round() * scale)


def test_a_line_has_a_scale_of_its_own():
    x = torch.randn(2, 3, 10, 4)
    y = put(x, Quantizer(E4M3, "line"))
    factor = x.abs().amax(-2, keepdim=True) / 448
    assert torch.equal(y, put(x / factor, E4M3) * factor)


def test_flush_turns_subnormals_into_zeros():
    x = torch.tensor([2.0**-14, 2.0**-15, -(2.0**-15), 2.0**-24, 1.0, math.nan, math.inf])
    y = put(x, Quantizer(FP16, flush=True))
    assert y[:5].tolist() == [2.0**-14, 0.0, 0.0, 0.0, 1.0]
    assert math.copysign(1, y[2].item()) == -1
    assert y[5].isnan()
    assert y[6] == math.inf


def cut(value, unit):
    """An exact number cut off at a multiple of a unit."""
    return Fraction(int(value / unit)) * unit


def by_fractions(a, b, bits, chunk):
    """The aligned sum of one output in exact arithmetic."""
    running = Fraction(0)
    for start in range(0, len(a), chunk):
        pairs = zip(a[start : start + chunk], b[start : start + chunk], strict=True)
        terms = [Fraction(x) * Fraction(y) for x, y in pairs] + [running]
        largest = max(abs(t) for t in terms)
        if largest == 0:
            continue
        unit = Fraction(2) ** (math.frexp(float(largest))[1] - 1 - bits)
        total = sum(cut(t, unit) for t in terms)
        if total:
            last = Fraction(2) ** (math.frexp(float(total))[1] - 1 - bits)
            total = cut(total, last)
        running = total
    return float(running)


@pytest.mark.parametrize("chunk", [4, 32])
@pytest.mark.parametrize("bits", [3, 13])
def test_aligned_sums_are_those_of_exact_arithmetic(bits, chunk):
    generator = torch.Generator().manual_seed(5)
    a = put(torch.randn(6, 70, generator=generator) * 4, E4M3)
    b = put(torch.randn(70, 5, generator=generator) * 4, E4M3)
    total = Accumulator(
        Format(f"e8m{bits}", 8, bits, 127), chunk, rounding="toward-zero", aligned=True
    )
    ours = matmul(a, b, total)
    exact = [[by_fractions(r, c, bits, chunk) for c in b.T.tolist()] for r in a.tolist()]
    assert ours.tolist() == exact
    assert not torch.equal(ours, a @ b)
    whole = matmul(a, b, Accumulator(FP64, chunk, aligned=True, rounding="toward-zero"))
    assert torch.allclose(whole, a @ b, atol=1e-5)


def test_aligned_sums_are_the_same_in_pieces(monkeypatch):
    a, b = torch.randn(2, 9, 40), torch.randn(2, 40, 3)
    total = Accumulator(BF16, 16, rounding="toward-zero", aligned=True)
    onto = torch.randn(2, 9, 3)
    once = matmul(a, b, total, onto=onto)
    monkeypatch.setattr(arithmetic, "ALIGNED", 250)
    assert torch.equal(matmul(a, b, total, onto=onto), once)


def test_a_flushed_accumulator_rounds_a_tile_and_then_its_sum():
    a, b, onto = torch.rand(4, 40), torch.rand(40, 3), 100 * torch.rand(4, 3)
    tile = matmul(a, b, Accumulator(BF16, 8))
    flushed = matmul(a, b, Accumulator(BF16, 8, flushed=FP16), onto=onto)
    assert torch.equal(flushed, round_to(onto + tile, FP16))
    assert Accumulator(BF16, 8, flushed=FP16).inner == Accumulator(FP16)


def test_magnitude(monkeypatch):
    monkeypatch.setattr(arithmetic, "MOST_COMPARED", 2)
    x = torch.tensor([[1.0, -2.0], [0.0, 0.5], [3.0, -4.0]])
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert magnitude(x.to(dtype)) == 4.0
    assert magnitude(torch.zeros(0, 3)) == 0.0
    assert magnitude(torch.tensor([[1.0], [-math.inf]])) == math.inf
    for at in range(3):
        spoilt = x.clone()
        spoilt[at, 0] = math.nan
        assert math.isnan(magnitude(spoilt))
