"""Attention functions over the back ends of logic/support.py: q, k, v [B, S, H, D] -> [B, S, H, D].

All are launched on the current stream, except SageAttention's CUDA kernels, which launch on the default
stream whatever is current. Compute therefore stays on the default stream in every engine of this pack;
only copies may have a stream of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...logic.support import ATTENTION_BACKENDS
from .probe import TOLERANCE, find_machine, select_kernel, trial_problem

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


_KERNELS: dict[str, Attention] = {
    "sdpa": sdpa,
    "sdpa_cudnn": _sdpa_cudnn,
    "sage_attn2": _sage_attn2,
    "sage_triton": _sage_triton,
    "flash_attn2": _flash_attn2,
    "flash_attn3": _flash_attn3,
}


# Where the trial of `_sage_in_place` failed in this process.
_not_in_place: set[torch.device] = set()


def select_attention(
    requested: str, device: torch.device, dtype: str = "bf16", *, is_fused: bool = False
) -> tuple[str, Attention]:
    """Return name and function of the attention back end to use on `device`.

    `auto` takes the fastest that works and logs one line: what, and why not the better ones.

    Args:
        is_fused: the function may overwrite q, k and v and return its result in their place, which saves a back end's
            copies of them where the pack's own Triton kernels can prepare its inputs.

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
        kernels=_KERNELS,
        reference="sdpa",
        trial=_trial,
    )
    if is_fused and may_run_in_place(choice.name, device) and _runs_in_place(device):
        kernel = _sage_in_place
    logger.info("LightX2V: %s%s.", choice, ", in place" if is_in_place(kernel) else "")
    return choice.name, kernel


def may_run_in_place(name: str, device: torch.device) -> bool:
    """Say whether a back end can overwrite q, k and v beside fused kernels: expected until a trial run says no."""
    machine = find_machine(device)
    is_able = name == "sage_attn2" and machine.capability == (9, 0) and "triton" in machine.packages
    return is_able and device not in _not_in_place


def is_in_place(attention: Attention) -> bool:
    """Say whether what `select_attention` returned overwrites q, k and v."""
    return attention is _sage_in_place


def _runs_in_place(device: torch.device) -> bool:
    problem = trial_problem(_sage_in_place, sdpa, _trial, device, TOLERANCE)
    if problem is not None:
        _not_in_place.add(device)
        logger.info("LightX2V: sage_attn2 prepares its inputs itself: %s.", problem)
    return problem is None


def _sage_in_place(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from .sage_fused import attend, can_attend

    return attend(q, k, v) if all(can_attend(part) for part in (q, k, v)) else _sage_attn2(q, k, v)


def _trial(attention: Attention, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    # Not a multiple of any kernel's block.
    q, k, v = (torch.randn(1, 300, 2, 128, generator=generator).to(device, torch.bfloat16) for _ in range(3))
    return attention(q, k, v)
