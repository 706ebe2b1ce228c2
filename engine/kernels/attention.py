"""Attention functions over the back ends of backends/table.py: q, k, v [B, S, H, D] -> [B, S, H, D].

Where the pack can prepare a back end's inputs itself, in place, there is a function for the whole self-attention too.

All are launched on the current stream, except SageAttention's CUDA kernels, which launch on the default
stream whatever is current. Compute therefore stays on the default stream in every engine of this pack;
only copies may have a stream of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..backends.table import ATTENTION_BACKENDS, Capability, attention_backends
from ..backends.trials import TOLERANCE, find_machine, has_failed, remember_failure, select_kernel, trial_problem

logger = logging.getLogger(__name__)

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


_Pair = tuple[torch.Tensor, torch.Tensor]
SelfAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, _Pair, float, _Pair], torch.Tensor]
"""Normalises and rotates q and k, and attends.

Args: q, k, v [N, H, D] BF16 as their linears left them, which it may overwrite; the weights [H * D] of q's and of k's
RMS norm over the row, and the norms' epsilon; cosines and sines fp32 [N, D / 2] of the angles by which pairs
(2i, 2i + 1) turn. Returns [N, H, D], maybe in the memory of v.
"""


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


def _triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from .attention_inputs import prepare
    from .attention_triton import attend

    # With so large an epsilon a norm is a constant factor, which its weights undo. Nothing is rotated.
    eps, weights = 2.0**100, q.new_full((q.shape[2] * q.shape[3],), 2.0**50)
    angles = torch.zeros(q.shape[1], q.shape[3] // 2, device=q.device)
    q, k = (part.clone(memory_format=torch.contiguous_format) for part in (q, k))
    v = v.contiguous()
    out = torch.empty_like(v)
    for index in range(len(v)):
        parts = (q[index], k[index], v[index])
        attend(prepare(*parts, (weights, weights), eps, (angles.cos(), angles), key_groups=1), out[index])
    return out


def _sage_in_place(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    norms: _Pair,
    eps: float,
    rotary: _Pair,
) -> torch.Tensor:
    from . import sage_sm90
    from .attention_inputs import prepare

    sage_sm90.attend(prepare(q, k, v, norms, eps, rotary, key_groups=sage_sm90.KEY_GROUPS), out=v)
    return v


def _triton_in_place(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    norms: _Pair,
    eps: float,
    rotary: _Pair,
) -> torch.Tensor:
    from . import attention_triton
    from .attention_inputs import prepare

    attention_triton.attend(prepare(q, k, v, norms, eps, rotary, key_groups=1), out=v)
    return v


_KERNELS: dict[str, Attention] = {
    "sdpa": sdpa,
    "sdpa_cudnn": _sdpa_cudnn,
    "sage_attn2": _sage_attn2,
    "sage_triton": _sage_triton,
    "flash_attn2": _flash_attn2,
    "flash_attn3": _flash_attn3,
    "triton": _triton,
}


class _InPlace(NamedTuple):
    """A back end whose inputs the pack's Triton kernels prepare in q's, k's and v's memory."""

    attend: SelfAttention
    capabilities: frozenset[Capability]


_IN_PLACE = {
    "sage_attn2": _InPlace(_sage_in_place, frozenset({(9, 0)})),
    "triton": _InPlace(_triton_in_place, frozenset({(8, 9), (9, 0)})),
}
_IN_PLACE_TASK = "attention in place"
_ROWS = {row.name: row for row in ATTENTION_BACKENDS}


def select_attention(
    requested: str, device: torch.device, dtype: str = "bf16", *, is_fused: bool = False
) -> tuple[str, Attention]:
    """Return name and function of the attention back end to use on `device`.

    `auto` takes the fastest that works and logs one line: what, and why not the better ones.

    Args:
        is_fused: `auto` may take the pack's own Triton kernel, see support.attention_backends.

    Raises:
        ValueError: the name is unknown.
        MissingDependencyError, UnsupportedHardwareError: a named back end cannot run here.
    """
    choice, kernel = select_kernel(
        "attention",
        attention_backends(requested, is_fused=is_fused),
        requested,
        device,
        dtype=dtype,
        kernels=_KERNELS,
        reference="sdpa",
        trial=_trial,
    )
    logger.info("LightX2V: %s.", choice)
    return choice.name, kernel


def select_in_place(name: str, device: torch.device, reference: SelfAttention) -> SelfAttention | None:
    """Return the function of a back end that prepares its inputs in q's, k's and v's memory, or None if it cannot.

    Args:
        reference: what a trial run is compared with.
    """
    if not may_run_in_place(name, device):
        return None
    kernel = _IN_PLACE[name].attend
    problem = trial_problem(kernel, reference, _self_attention_trial, device, TOLERANCE)
    if problem is not None:
        remember_failure(_IN_PLACE_TASK, _ROWS[name], device, problem)
        logger.info("LightX2V: %s prepares its inputs itself: %s.", name, problem)
        return None
    logger.info("LightX2V: %s runs in place.", name)
    return kernel


def may_run_in_place(name: str, device: torch.device) -> bool:
    """Say whether a back end can overwrite q, k and v beside fused kernels: expected until a trial run says no."""
    machine = find_machine(device)
    return (
        name in _IN_PLACE
        and machine.capability in _IN_PLACE[name].capabilities
        and "triton" in machine.packages
        and not has_failed(_IN_PLACE_TASK, _ROWS[name], device)
    )


def fits_in_place(q: torch.Tensor) -> bool:
    """Tell whether q [N, H, D] has the form that functions in place take: their kernels' offsets are 32-bit."""
    return q.shape[2] == 128 and 2 * q.shape[0] * q.stride(0) < 2**31


def _trial(attention: Attention, device: torch.device) -> torch.Tensor:
    return attention(*(part[None] for part in _random_parts(device)))


def _self_attention_trial(attention: SelfAttention, device: torch.device) -> torch.Tensor:
    q, k, v = _random_parts(device)
    generator = torch.Generator().manual_seed(1)
    norms = (1 + torch.randn(2, q[0].numel(), generator=generator) / 4).to(device, torch.bfloat16)
    angles = torch.randn(len(q), q.shape[2] // 2, generator=generator).to(device)
    return attention(q, k + 1, v, (norms[0], norms[1]), 1e-6, (angles.cos(), angles.sin()))


def _random_parts(device: torch.device) -> list[torch.Tensor]:
    """Return q, k and v [N, H, D] of several heads; N is not a multiple of any kernel's block."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(300, 3, 128, generator=generator).to(device, torch.bfloat16) for _ in range(3)]
