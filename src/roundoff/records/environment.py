"""`Environment`: what numbers depend on besides the cell: versions, processor, threads, flags."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import roundoff
from roundoff.errors import UnsupportedError

__all__ = ["Environment", "source_of"]

_LIBRARIES = (
    "torch", "numpy", "numba", "llvmlite", "safetensors", "mpmath", "triton", "jax", "jaxlib",
    "onnxruntime", "flash-attn",
)  # fmt: skip
# Read by the libraries when they are loaded or called, so that no setting of theirs shows them.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE",
    "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DYNAMIC",
    "OMP_DYNAMIC", "KMP_DETERMINISTIC_REDUCTION", "OPENBLAS_CORETYPE", "GLIBC_TUNABLES",
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT",
    "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE", "DISABLE_ADDMM_CUDA_LT",
    "PYTORCH_TUNABLEOP_ENABLED", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_DISABLE_JIT",
    "NUMBA_DISABLE_INTEL_SVML", "NUMBA_ENABLE_AVX", "NUMBA_OPT", "TORCH_COMPILE_DISABLE",
    "TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_MAX_AUTOTUNE", "TORCHINDUCTOR_EMULATE_PRECISION_CASTS",
    "TRITON_INTERPRET", "TRITON_DEFAULT_FP_FUSION", "TRITON_F32_DEFAULT", "CXX", "XLA_FLAGS",
    "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_PLATFORMS", "JAX_DISABLE_JIT",
)  # fmt: skip
# `registry.py` says which libraries are here, and so whether their fast twins compute. Plans
# and sweeps decide which cells there are, and no number of any.
_NUMERIC_ROOMS = (
    "formats", "sites.py", "metrics", "operators", "kernels", "intercept", "registry.py",
    "bench/identity.py", "bench/measure.py", "bench/timing.py", "subjects.py",
)  # fmt: skip


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
            source=source_of(_NUMERIC_ROOMS),
            python=platform.python_version(),
            libraries={**_versions(), **_compiler(os.environ.get("CXX"))},
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

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Environment:
        """The environment that `to_record` wrote."""
        return cls(**record)


@cache
def source_of(rooms: tuple[str, ...]) -> str:
    """The digest of roundoff's own source in some rooms, which are folders or files."""
    root = Path(roundoff.__file__).parent
    digest = hashlib.sha256()
    for room in rooms:
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
def _compiler(chosen: str | None) -> dict[str, str]:
    """The C++ compiler that torch compiles its own kernels with, if one is here."""
    for name in (chosen,) if chosen else ("g++", "clang++"):
        try:
            told = subprocess.run(
                [name, "--version"], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            continue
        if lines := told.stdout.splitlines():
            return {"c++": lines[0].strip()}
    return {}


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

    index = int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise UnsupportedError(
            f"device {device!r} is not here; torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    cuda: Any = torch.cuda  # whose properties have no type
    properties = cuda.get_device_properties(device)
    return f"{properties.name} sm{properties.major}{properties.minor}"


def _flags(device: str) -> dict[str, Any]:
    """torch's settings that change numbers, and which libraries it was built with."""
    import torch  # noqa: PLC0415

    from roundoff.kernels import settings  # noqa: PLC0415

    flags: dict[str, Any] = {
        **settings.read(),
        "build": hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:16],
        "git": torch.version.git_version,
    }
    if device.startswith("cuda"):
        flags |= {
            "cuda": torch.version.cuda,
            "cudnn_version": torch.backends.cudnn.version(),
            "blas": str(torch.backends.cuda.preferred_blas_library()),
        }
    return flags
