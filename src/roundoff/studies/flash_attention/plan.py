"""What the flash-attention study measures: one sweep for each question, three sizes."""

from __future__ import annotations

from roundoff.bench.plan import Plan, Sweep

__all__ = ["FORMATS", "PAPER_TILE", "SWAPPED_TILE", "TILES", "full", "gpu", "quick"]

HEAD_DIM = 64
SRAM_ELEMENTS = 98_304
"""An A100's 192 KiB of shared memory and cache a multiprocessor, in 16-bit elements."""
PAPER_TILE = -(-SRAM_ELEMENTS // (4 * HEAD_DIM))
"""Bc = ceil(M / 4d), the key tile of FlashAttention-1: 384."""
SWAPPED_TILE = min(PAPER_TILE, HEAD_DIM)
"""Br = min(ceil(M / 4d), d), which C5's swap makes the key tile: 64."""

TILES = ("16", "64", "256")
FORMATS = ("bf16", "fp16", "fp32", "fp64")
TILED = ("paper-bf16", "fa2-bf16-state", "fa2")
LARGE = {"heads": ("4",), "rows": ("512",)}
LONG = ("512:16384:x2",)
PARTS = ("fa2-bf16-maximum", "fa2-bf16-sum", "fa2-bf16-output")


def quick() -> Plan:
    """Lengths to 4096, sampled rows, 6 seeds: some minutes on two cores."""
    shape = {"heads": ("2",), "rows": ("128",)}
    return _plan(shape, lengths=("512:4096:x2",), fp16_lengths=("1024", "2048"), seeds=6)


def full() -> Plan:
    """Lengths to 16384 and 10 seeds."""
    return _plan(LARGE, lengths=LONG, fp16_lengths=LONG, seeds=10)


def gpu() -> Plan:
    """The full preset with CUDA's kernels, on a GPU."""
    cuda = ("torch-cuda-flash", "torch-cuda-efficient", "torch-cuda-cudnn", "torch-math-reduced")
    return _plan(LARGE, lengths=LONG, fp16_lengths=LONG, seeds=10, kernels=cuda, device="cuda")


def _plan(
    shape: dict[str, tuple[str, ...]],
    *,
    lengths: tuple[str, ...],
    fp16_lengths: tuple[str, ...],
    seeds: int,
    kernels: tuple[str, ...] = ("torch-cpu-flash", "torch-math-reduced"),
    device: str = "cpu",
) -> Plan:
    shape = shape | {"head_dim": (str(HEAD_DIM),)}
    inputs = {"inputs": ("normal", "outliers")}

    def sweep(baseline: str, axes: dict[str, tuple[str, ...]], **rest: object) -> Sweep:
        return Sweep.model_validate(
            {"baseline": baseline, "axes": shape | axes, "seeds": seeds, "device": device} | rest
        )

    grid = inputs | {"seq_len": lengths}
    sweeps = [
        # C1, C3, C4: every tiled recipe over tiles and lengths, and the kernels that run here.
        sweep("torch-math", grid | {"tile": TILES}, recipes=TILED),
        sweep("torch-math", grid, recipes=("baseline-bf16",), kernels=kernels),
        # Which part of the state it is.
        sweep("torch-math", inputs | {"seq_len": ("2048",), "tile": ("16", "64")}, recipes=PARTS),
        # C5: the paper's key tile, and the one that the swap of the block's sides gives.
        sweep("torch-math", {"inputs": ("normal",), "seq_len": ("2048",),
              "tile": (str(PAPER_TILE), str(SWAPPED_TILE)),
              "q_tile": (str(PAPER_TILE), str(SWAPPED_TILE))},
              recipes=("paper-bf16",)),
        # The FlashAttention-3 table, 16 bit and 8 bit.
        sweep("torch-math", inputs | {"seq_len": fp16_lengths}, formats=("fp16",), kernels=kernels,
              recipes=("baseline-fp16", "fa2", "fp8-per-tensor", "fa3-fp8", "fa3-fp8-no-blocks",
                       "fa3-fp8-no-rotation")),
        # Compiled FlexAttention at one shape, since every shape compiles for seconds.
        sweep("torch-math", {"inputs": ("normal",), "seq_len": ("1024",)}, kernels=("torch-flex",)),
    ]  # fmt: skip
    # C2: baseline and flash with every operation in one format, from bf16 to fp64.
    sweeps += [
        sweep(f"recipe:baseline-{f}", inputs | {"seq_len": ("1024",)}, formats=(f,),
              recipes=(f"paper-{f}",))
        for f in FORMATS
    ]  # fmt: skip
    return Plan(sweep=tuple(sweeps))
