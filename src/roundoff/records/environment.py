"""`Environment`: what numbers depend on besides the cell: versions, processor, threads, flags."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import roundoff

__all__ = ["Environment"]

_LIBRARIES = ("torch", "numpy", "numba", "llvmlite", "safetensors", "mpmath", "triton")
_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES",
)  # fmt: skip
_NUMERIC_ROOMS = ("formats", "sites.py", "metrics", "operators", "kernels", "bench")


@dataclass(frozen=True, slots=True)
class Environment:
    """What a number depends on besides its cell.

    All fields but `host` and `memory_gib` are numerics: where one of them differs, a cell is
    another cell. `source` is the digest of roundoff's own numeric source, because the
    measuring code is part of what is measured.
    """

    roundoff: str
    source: str
    python: str
    libraries: Mapping[str, str]
    device: str
    processor: str
    instruction_set: str
    threads: int
    flags: Mapping[str, Any]
    variables: Mapping[str, str]
    host: str = ""
    memory_gib: float = 0.0

    @classmethod
    def here(cls, *, device: str = "cpu", threads: int = 1) -> Environment:
        """The environment of this process, for cells on `device` with `threads` threads."""
        return cls(
            roundoff=roundoff.__version__,
            source=_source(),
            python=platform.python_version(),
            libraries=_versions(),
            device=_device_name(device),
            processor=_processor(),
            instruction_set=_instruction_set(),
            threads=threads,
            flags=_flags(device),
            variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
            host=platform.node(),
            memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        )

    def numerics(self) -> dict[str, Any]:
        """The part that decides numbers: what a cell's identity is made of."""
        record = asdict(self)
        return {k: v for k, v in record.items() if k not in ("host", "memory_gib")}

    def to_record(self) -> dict[str, Any]:
        """The environment as plain JSON data."""
        return asdict(self)


@cache
def _source() -> str:
    root = Path(roundoff.__file__).parent
    digest = hashlib.sha256()
    for room in _NUMERIC_ROOMS:
        place = root / room
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _instruction_set() -> str:
    import torch  # noqa: PLC0415 - records must be importable without torch

    return torch.backends.cpu.get_cpu_capability()


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch  # noqa: PLC0415

    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} sm{properties.major}{properties.minor}"


def _flags(device: str) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    cuda = torch.backends.cuda
    flags: dict[str, Any] = {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": str(torch.get_default_dtype()),
        "mkldnn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "mkl": torch.backends.mkl.is_available(),
    }
    if device.startswith("cuda"):
        flags |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "fp16_reduction": cuda.matmul.allow_fp16_reduced_precision_reduction,
            "bf16_reduction": cuda.matmul.allow_bf16_reduced_precision_reduction,
        }
    return flags
