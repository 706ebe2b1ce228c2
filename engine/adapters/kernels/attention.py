"""Attention functions over the back ends of logic/support.py: q, k, v [B, S, H, D] -> [B, S, H, D].

All are launched on the current stream, except SageAttention's CUDA kernels, which launch on the default
stream whatever is current. Compute therefore stays on the default stream in every engine of this pack;
only copies may have a stream of their own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...logic.support import ATTENTION_BACKENDS
from .probe import select_kernel

logger = logging.getLogger(__name__)

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend with torch's own choice of kernel; runs everywhere, and the best for few keys."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _sdpa_cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q, k, v)


def _sage_attn2(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from sageattention import sageattn

    out: torch.Tensor = sageattn(q.contiguous(), k.contiguous(), v.contiguous(), tensor_layout="NHD")
    return out


def _sage_triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    import sageattention

    # SageAttention 1 has the Triton kernel only, under its short name.
    kernel = getattr(sageattention, "sageattn_qk_int8_pv_fp16_triton", sageattention.sageattn)
    out: torch.Tensor = kernel(q.contiguous(), k.contiguous(), v.contiguous(), tensor_layout="NHD")
    return out


def _flash_attn2(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from flash_attn import flash_attn_func

    out: torch.Tensor = flash_attn_func(q, k, v)
    return out


def _flash_attn3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from flash_attn_interface import flash_attn_func

    out: torch.Tensor | tuple[torch.Tensor, ...] = flash_attn_func(q, k, v)
    # Early versions return the log-sum-exp too.
    return out[0] if isinstance(out, tuple) else out


_PLAIN: dict[str, Attention] = {"sdpa": sdpa, "sdpa_cudnn": _sdpa_cudnn}
_PACKAGES: dict[str, Attention] = {
    "sage_attn2": _sage_attn2,
    "sage_triton": _sage_triton,
    "flash_attn2": _flash_attn2,
    "flash_attn3": _flash_attn3,
}


@functools.cache
def _kernels() -> dict[str, Attention]:
    """Return all functions; a package's kernel is one opaque operator to torch.compile, not a graph break."""
    opaque: dict[str, Attention] = {}
    for name, function in _PACKAGES.items():
        operator = torch.library.custom_op(
            f"lightx2v_nodes::{name}", function, mutates_args=(), schema="(Tensor q, Tensor k, Tensor v) -> Tensor"
        )
        operator.register_fake(lambda q, k, v: torch.empty_like(q))
        opaque[name] = operator
    return {**_PLAIN, **opaque}


def select_attention(requested: str, device: torch.device, dtype: str = "bf16") -> tuple[str, Attention]:
    """Return name and function of the attention back end to use on `device`.

    `auto` takes the fastest that works and logs one line: what, and why not the better ones.

    Raises:
        ValueError: the name is unknown.
        MissingDependencyError, UnsupportedHardwareError: a named back end cannot run here.
    """
    choice, kernel = select_kernel(
        "attention",
        ATTENTION_BACKENDS,
        requested,
        device,
        dtype=dtype,
        kernels=_kernels(),
        reference="sdpa",
        trial=_trial,
    )
    logger.info("LightX2V: %s.", choice)
    return choice.name, kernel


def _trial(attention: Attention, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 256, 2, 128, generator=generator).to(device, torch.bfloat16) for _ in range(3))
    return attention(q, k, v)
