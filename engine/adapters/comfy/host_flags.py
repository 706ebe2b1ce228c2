"""What ComfyUI's launch flags ask of a memory plan.

Source: ComfyUI's comfy/cli_args.py and comfy/model_management.py, 0.3.64 to 0.39.
"""

from __future__ import annotations

from ...constants import GIB
from ...settings import HostPolicy

# By the name of ComfyUI's VRAM state: --lowvram and --novram; --highvram and --gpu-only keep what fits on the GPU, as
# a plan does without flags.
_PREFER = {"LOW_VRAM": "streaming", "NO_VRAM": "least"}


def policy_of(
    vram_state: str,
    *,
    reserve_vram_gib: float | None = None,
    is_pinning_disabled: bool = False,
    max_pinned_bytes: float = -1,
) -> HostPolicy:
    """Return the policy of a host.

    Args:
        vram_state: name of ComfyUI's VRAMState.
        reserve_vram_gib: what --reserve-vram says; None without it, where a plan's own reserve is enough.
        is_pinning_disabled: --disable-pinned-memory.
        max_pinned_bytes: RAM that ComfyUI lets be page-locked; not positive where it sets no limit.
    """
    limit = int(max_pinned_bytes) if max_pinned_bytes > 0 else None
    return HostPolicy(
        prefer=_PREFER.get(vram_state, "speed"),
        reserved_vram_bytes=None if reserve_vram_gib is None else int(reserve_vram_gib * GIB),
        pinned_limit_bytes=0 if is_pinning_disabled else limit,
    )
