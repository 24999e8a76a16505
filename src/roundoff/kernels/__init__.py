"""Real kernels: adapters that call what people train with, each imported only when used.

    kernel.py         Kernel, and what it may say of itself
    limits.py         what an attention kernel supports, as data
    gradients.py      an attention kernel's gradients, through autograd
    torch_sdpa.py     torch's scaled_dot_product_attention, one row a back-end
    torch_flex.py     compiled FlexAttention
    torch_softmax.py  torch.softmax
    jax_attention.py  JAX on XLA
    onnx_attention.py ONNX Runtime
    triton_attention.py  our kernel in `triton_flash` (its gradients in `triton_flash_backward`),
                      compiled or interpreted
    flash_attn.py     the flash-attn package
    announced.py      the proof of what ran, for libraries that torch's profiler does not see
    user.py           any `module:function`: `loading` imports it, `source` says what it is made
                      of, `declared` what its author says, `user_attention` how attention is called
    settings.py       torch's global settings

`KERNELS` knows the names without importing anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from roundoff.registry import Registry

if TYPE_CHECKING:
    from roundoff.kernels.kernel import Kernel

__all__ = ["KERNELS", "kernels_of"]

KERNELS: Registry[Kernel] = Registry("kernel")

_PLACES = {
    "torch_sdpa": {
        "torch-math": "MATH",
        "torch-math-reduced": "MATH_REDUCED",
        "torch-cpu-flash": "CPU_FLASH",
        "torch-cuda-flash": "CUDA_FLASH",
        "torch-cuda-efficient": "CUDA_EFFICIENT",
        "torch-cuda-cudnn": "CUDA_CUDNN",
    },
    "torch_flex": {"torch-flex": "FLEX"},
    "torch_softmax": {"torch-softmax": "SOFTMAX"},
    "jax_attention": {"jax-xla": "XLA"},
    "onnx_attention": {"onnx-cpu": "CPU"},
    "triton_attention": {"triton-tutorial": "TUTORIAL"},
    "flash_attn": {"flash-attn": "FLASH_ATTN"},
}
for _file, _rows in _PLACES.items():
    for _name, _attribute in _rows.items():
        KERNELS.add_place(_name, f"roundoff.kernels.{_file}:{_attribute}")


def kernels_of(operator: str) -> list[Kernel]:
    """The kernels that compute `operator`, whether or not they run here."""
    return [kernel for kernel in KERNELS.values() if kernel.operator == operator]
