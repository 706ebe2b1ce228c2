"""A card that has begun to page: Windows puts VRAM into RAM where it is short, and nothing fails but the speed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .. import system
from ..constants import GIB
from ..interfaces import Hooks
from .plan import MemoryPlan

logger = logging.getLogger(__name__)

# A step that takes so many times as long as it should, while less VRAM is free than this: every plan leaves more.
_SLOW, _FULL_BYTES = 3.0, 300 * 2**20

# The fastest step of this process, by kernels, placement and tokens.
_fastest: dict[Any, float] = {}


class StepWatch:
    """Looks at the seconds of every step of a sampling, and at the free VRAM where one is slow."""

    def __init__(self, plan: MemoryPlan, tokens: int, device: torch.device) -> None:
        """Args: plan: that the steps follow; tokens: of a clip; device: that computes."""
        self.warnings: list[str] = []
        """In words; also logged."""
        self._key = (plan.backends.names, plan.placement, tokens)
        self._device = device
        self._watches = device.type == "cuda" and system.lends_ram_to_gpu()
        attention, linears = plan.backends.attention_seconds(tokens), plan.backends.linear_seconds(tokens)
        # Other things come on top of both, but not twice as much.
        self._kernels = (attention + linears) * plan.num_blocks if attention and linears else None
        self._is_warm = self._key in _fastest

    def hooks(self, hooks: Hooks) -> Hooks:
        """Return hooks through which the watch sees the steps."""
        return replace(hooks, on_step=self._timed(hooks.on_step))

    @property
    def facts(self) -> dict[str, Any]:
        """What the report gains."""
        return {"warnings": self.warnings} if self.warnings else {}

    def _timed(self, on_step: Callable[[int, int, torch.Tensor], None]) -> Callable[[int, int, torch.Tensor], None]:
        last = time.perf_counter()

        def timed(step: int, steps: int, clean: torch.Tensor) -> None:
            nonlocal last
            seconds = time.perf_counter() - last
            # The first step of all compiles.
            if self._is_warm:
                self._look(step, seconds)
            self._is_warm = True
            on_step(step, steps, clean)
            last = time.perf_counter()

        return timed

    def _look(self, step: int, seconds: float) -> None:
        known = [each for each in (_fastest.get(self._key), self._kernels) if each]
        _fastest[self._key] = min(seconds, _fastest.get(self._key, seconds))
        if not self._watches or self.warnings or not known or seconds < _SLOW * min(known):
            return
        free, _ = torch.cuda.mem_get_info(self._device)
        if free >= _FULL_BYTES:
            return
        held = torch.cuda.memory_reserved(self._device) / GIB
        self.warnings.append(
            f"Close other programs that use the GPU; else set vram_budget_gib of 'LightX2V Offload' to "
            f"{max(held - 1, 1):.0f}, or start ComfyUI with --reserve-vram 2: step {step} took {seconds:.0f} s where "
            f"{min(known):.1f} s are to be expected, and {free / GIB:.1f} GiB of VRAM are free, so that Windows puts "
            "VRAM into RAM. With 'CUDA - Sysmem Fallback Policy' on 'Prefer No Sysmem Fallback' in the NVIDIA "
            "Control Panel such a run ends in a lack of memory instead, and is tried again with less."
        )
        logger.warning("LightX2V: %s", self.warnings[-1])
