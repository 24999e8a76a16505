"""How fast two large checkpoints are compared, beside reading their bytes, and in how much memory.

    python benchmarks/diff.py [--gib 4] [--folder DIR] [--output FILE]

Writes two checkpoints of that size a format into a new folder of DIR, compares them in a process
of its own, and deletes them. Memory is the peak of RssAnon of it, sampled from /proc; what is
mapped from files is the page cache's. Reading is by blocks of 8 MiB into one buffer. Both files are
in the page cache where the machine has the memory for it.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from measuring import machine

RESULTS = Path(__file__).parent / "results" / "diff.json"
PAGE = Path(__file__).parents[1] / "docs" / "diff.md"
DTYPES = {"bf16": (torch.bfloat16, "BF16"), "fp32": (torch.float32, "F32")}
GIB, BLOCK = 1 << 30, 8 << 20
LAYERS, THREADS = 32, 2

LIBRARIES = ("roundoff", "torch", "numba", "safetensors")


def shapes(elements: int) -> dict[str, tuple[int, int]]:
    """A model's tensors of so many elements in all: an embedding, and layers of four matrices."""
    width = 1 << (max(6, round(math.log2(elements / (4 * LAYERS + 16)) / 2)))
    found = {"embed.weight": (elements // 16 // width, width)}
    rest = elements - math.prod(found["embed.weight"])
    rows = rest // (4 * LAYERS) // width
    for layer in range(LAYERS):
        for name in ("attn.qkv", "attn.out", "mlp.up", "mlp.down"):
            found[f"layers.{layer}.{name}.weight"] = (rows, width)
    return found


def write(path: Path, names: dict[str, tuple[int, int]], dtype: str, *, moved: bool) -> None:
    """A safetensors file, block by block: weights, or the same, each moved a little."""
    kind, word = DTYPES[dtype]
    header, place = {}, 0
    for name, shape in names.items():
        size = math.prod(shape) * kind.itemsize
        header[name] = {"dtype": word, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    step = BLOCK // kind.itemsize
    base, noise = (torch.randn(step, generator=generator) for _ in range(2))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for at, shape in enumerate(names.values()):
            values = base * (0.02 + 0.001 * at)
            values = values * (1 + 1e-3 * noise) if moved else values
            raw = values.to(kind).view(torch.uint8).numpy()
            left = math.prod(shape) * kind.itemsize
            while left:
                file.write(raw[: min(left, raw.size)].data)
                left -= min(left, raw.size)


def read(*paths: Path) -> float:
    """Seconds to read all bytes."""
    buffer, start = bytearray(BLOCK), time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


class Peak(threading.Thread):
    """The largest RssAnon of this process, sampled, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.over = 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.01):
            status = Path("/proc/self/status").read_text()
            self.bytes = max(self.bytes, 1024 * int(status.partition("RssAnon:")[2].split()[0]))


def child(a: str, b: str, threads: int) -> None:
    """Compare, and print what it took."""
    peak = Peak()
    peak.start()
    from roundoff import diff  # noqa: PLC0415 - its memory counts

    torch.set_num_threads(threads)
    small = {"w": torch.randn(1 << 18)}
    for kind, _ in DTYPES.values():  # compiles
        diff({"w": small["w"].to(kind)}, {"w": (small["w"] * 1.01).to(kind)})
    wall, processor = time.perf_counter(), time.process_time()
    found = diff(a, b)
    seconds = time.perf_counter() - wall, time.process_time() - processor
    peak.over.set()
    print(json.dumps({
        "seconds": seconds[0], "processor_s": seconds[1], "rss_anon_bytes": peak.bytes,
        "rel_l2": found.overall.distance.rel_l2, "notes": list(found.notes),
        "wasserstein_pooled": found.overall.wasserstein_pooled,
        "wasserstein_per_tensor": found.overall.wasserstein_per_tensor,
    }))  # fmt: skip


def measure(folder: Path, dtype: str, gib: float) -> dict[str, object]:
    names = shapes(int(gib * GIB) // DTYPES[dtype][0].itemsize)
    paths = folder / "a.safetensors", folder / "b.safetensors"
    for path, moved in zip(paths, (False, True), strict=True):
        write(path, names, dtype, moved=moved)
    size = sum(path.stat().st_size for path in paths)
    before = read(*paths)
    command = [sys.executable, __file__, "--child", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = read(*paths)
    found = json.loads(done.stdout)
    for path in paths:
        path.unlink()
    reading = min(before, after)
    return {
        "format": dtype, "bytes": size, "tensors": len(names), "read_s": reading, **found,
        "gb_per_s": size / found["seconds"] / 1e9, "times_reading": found["seconds"] / reading,
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """The table that docs/diff.md shows."""
    lines = [
        f"| two checkpoints of {results['gib']:g} GiB, {results['machine']['cpu']}, {THREADS} "
        "threads | s | GB/s | times reading the bytes | RssAnon, MB | pooled W1 |",
        "|---|---|---|---|---|---|",
    ]
    for r in results["rows"]:
        pooled = "left out" if r["wasserstein_pooled"] is None else "given"
        lines.append(
            f"| {r['format']} | {r['seconds']:.1f} | {r['gb_per_s']:.2f} | "
            f"{r['times_reading']:.1f} | {r['rss_anon_bytes'] / 1e6:.0f} | {pooled} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, THREADS)
        return
    from record import put  # noqa: PLC0415 - which the child has no need of

    needed, free = 2.2 * options.gib * GIB, shutil.disk_usage(options.folder).free
    if free < needed:
        sys.exit(f"{options.folder} has {free / GIB:.1f} GiB free; {needed / GIB:.1f} are needed")
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        rows = [measure(Path(place), dtype, options.gib) for dtype in DTYPES]
    results = {"schema": 1, "gib": options.gib, "machine": machine(LIBRARIES), "rows": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    options.output.with_suffix(".md").write_text(table(results))
    put(PAGE, "diff", table(results))
    for r in rows:
        print(
            f"{r['format']}: {r['seconds']:.1f} s, {r['gb_per_s']:.2f} GB/s, "
            f"{r['times_reading']:.1f} times reading; RssAnon {r['rss_anon_bytes'] / 1e6:.0f} MB"
        )
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
