"""The public function around the twins: shapes, memory, errors, and hostile surroundings."""

import logging
import multiprocessing
import threading

import pytest
import torch

from roundoff.errors import UsageError
from roundoff.formats import FORMATS, get_format, round_to, rounding

GRID = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
BF16 = GRID.bfloat16().float()


@pytest.mark.usefixtures("twin")
class TestMemory:
    def test_x_is_left_alone(self):
        x = GRID.clone()
        assert torch.equal(round_to(x, "bf16"), BF16)
        assert torch.equal(x, GRID)

    def test_out_is_filled_and_returned(self):
        out = torch.empty_like(GRID)
        assert round_to(GRID, "bf16", out=out) is out
        assert torch.equal(out, BF16)

    def test_out_may_be_x(self):
        x = GRID.clone()
        assert round_to(x, "bf16", out=x) is x
        assert torch.equal(x, BF16)

    def test_out_may_overlap_x(self):
        memory = torch.cat([GRID.flatten(), torch.zeros(5)])
        round_to(memory[:-5], "bf16", out=memory[5:])
        assert torch.equal(memory[5:], BF16.flatten())

    def test_strides(self):
        assert torch.equal(round_to(GRID.t(), "bf16"), BF16.t())
        assert torch.equal(round_to(GRID[::2, ::3], "bf16"), BF16[::2, ::3])
        out = torch.empty(48, 64).t()
        assert torch.equal(round_to(GRID, "bf16", out=out), BF16)
        x = GRID.t().clone().t()
        assert torch.equal(round_to(x, "bf16", out=x), BF16)

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)])
    def test_small_shapes(self, shape):
        assert torch.equal(round_to(torch.full(shape, 1.001), "bf16"), torch.ones(shape))

    def test_the_result_has_no_gradient(self):
        x = torch.nn.Parameter(GRID.clone())
        assert not round_to(x, "bf16").requires_grad
        assert not round_to(x.double(), "bf16").requires_grad

    def test_a_wider_format_copies(self):
        result = round_to(GRID, "fp64")
        assert torch.equal(result, GRID)
        assert result.data_ptr() != GRID.data_ptr()
        out = torch.empty_like(GRID)
        assert round_to(GRID, "fp64", out=out) is out
        assert torch.equal(out, GRID)

    def test_flushed_subnormals_change_nothing(self):
        x = torch.tensor([1e-40, -3e-45, 2.0**-133, 1.5 * 2.0**-133, 2.0**-127])
        usual = {name: round_to(x, name).view(torch.int32) for name in ("bf16", "tf32", "e8m1")}
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormals")
        try:
            assert (x * 1.0)[0] == 0
            for name, bits in usual.items():
                assert torch.equal(round_to(x, name).view(torch.int32), bits)
        finally:
            torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.complex64])
def test_another_dtype_is_refused(dtype):
    with pytest.raises(UsageError, match="float32 or float64"):
        round_to(torch.zeros(2, dtype=dtype), "bf16")


@pytest.mark.parametrize("out", [torch.empty(3), torch.empty(2, dtype=torch.float64)])
def test_a_wrong_out_is_refused(out):
    with pytest.raises(UsageError, match="out is"):
        round_to(torch.zeros(2), "bf16", out=out)


@pytest.mark.parametrize("name", ["e11m7", "e5m30", "e8m10b140", "e8m7fn"])
def test_a_format_that_float32_cannot_carry_is_refused(name):
    with pytest.raises(UsageError, match="give a float64 tensor"):
        round_to(torch.zeros(2), name)
    assert round_to(torch.ones(2, dtype=torch.float64), name).sum() == 2


def test_unknown_words_are_refused():
    with pytest.raises(UsageError, match="mode 'even' is not one of nearest"):
        round_to(torch.zeros(2), "bf16", mode="even")
    with pytest.raises(UsageError, match="overflow 'clip'"):
        round_to(torch.zeros(2), "bf16", overflow="clip")


@pytest.mark.parametrize("name", FORMATS)
def test_a_subclass_is_left_to_torch(name):
    class Mine(torch.Tensor):
        pass

    x = GRID.double()
    assert torch.equal(
        round_to(x.as_subclass(Mine), name).as_subclass(torch.Tensor), round_to(x, name)
    )


def test_two_threads_at_once():
    pytest.importorskip("numba")
    torch.set_num_threads(2)
    x = torch.randn(1 << 17, generator=torch.Generator().manual_seed(0))
    want, got = x.bfloat16().float(), []
    workers = [
        threading.Thread(target=lambda: got.extend(round_to(x, "bf16") for _ in range(20)))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(got) == 60
    assert all(torch.equal(one, want) for one in got)


def _in_child(x, queue):
    out = torch.empty_like(x)
    queue.put(round_to(x, "bf16", out=out)[-5:].tolist())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning")
def test_a_forked_child_can_round():
    pytest.importorskip("numba")
    torch.set_num_threads(2)
    x = torch.randn(1 << 17)
    want = round_to(x, "bf16")[-5:].tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(x, queue), daemon=True)
    child.start()
    try:
        assert queue.get(timeout=30) == want
    finally:
        child.kill()


def test_without_numba_the_bits_are_the_same_and_it_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(rounding, "_fast", [])
    monkeypatch.setattr(rounding, "is_installed", lambda library: False)
    with caplog.at_level(logging.WARNING, logger="roundoff"):
        assert torch.equal(round_to(GRID, "bf16"), BF16)
        round_to(GRID, "fp16")
    assert len(caplog.records) == 1
    assert "roundoff[fast]" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "e4m3fn"])
def test_rounding_survives_torch_compile(name):
    def ours(x):
        return round_to(x * 2, name) + 0

    def cast(x):
        return (x * 2).to(get_format(name).dtype).to(torch.float32) + 0

    compiled = torch.compile(ours, fullgraph=True)(GRID)
    assert torch.equal(compiled, ours(GRID))
    if name == "bf16":  # the reason for this test: the compiler deletes the casts
        assert not torch.equal(torch.compile(cast)(GRID), cast(GRID))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "mode", ["nearest", "nearest-away", "toward-zero", "up", "down", "stochastic"]
)
@pytest.mark.parametrize("name", FORMATS)
def test_cuda_gives_the_same_bits(oracle, name, mode):
    for dtype in ("float32", "float64"):
        x = torch.from_numpy(oracle.probes("bf16", dtype, 20_000))
        key = {"generator": torch.Generator().manual_seed(1)} if mode == "stochastic" else {}
        here = round_to(x, name, mode=mode, **key)
        if key:
            key["generator"].manual_seed(1)
        there = round_to(x.cuda(), name, mode=mode, **key).cpu()
        assert torch.equal(here.nan_to_num(nan=7e33), there.nan_to_num(nan=7e33))


def test_numbas_cache_tells_the_kernels_apart():
    """It looks at a function's constants, not at the options that it is compiled with."""
    kernels = pytest.importorskip("roundoff.formats._kernels")
    constants = {
        tuple(str(cell.cell_contents) for cell in kernel.py_func.__closure__)
        for parallel in (False, True)
        for signed_zero in (False, True)
        for kernel in [kernels.kernel("up", signed_zero, 23, False, parallel)]
    }
    assert len(constants) == 4
