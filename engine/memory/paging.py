"""A card that has begun to page: Windows puts VRAM into RAM where it is short, and nothing fails but the speed."""

from __future__ import annotations

import logging
import time
from typing import Any, cast

import torch

from .. import system
from ..constants import GIB
from ..interfaces import Transformer
from ..sentences.memory import Memory
from .plan import MemoryPlan

logger = logging.getLogger(__name__)

# A step that takes so many times as long as it should, while less VRAM is free than this: every plan leaves more.
_SLOW, _FULL_BYTES = 3.0, 300 * 2**20

# The fastest pass of this process, by kernels, placement and tokens.
_fastest: dict[Any, float] = {}


class StepWatch:
    """Looks at the seconds of every pass of a transformer, and at the free VRAM where one is slow."""

    def __init__(self, plan: MemoryPlan, tokens: int, device: torch.device) -> None:
        """Args: plan: that is followed; tokens: of a clip; device: that computes."""
        self.warnings: list[str] = []
        """In words; also logged."""
        self._key = (plan.backends.names, plan.placement, tokens)
        self._device = device
        attention, linears = plan.backends.attention_seconds(tokens), plan.backends.linear_seconds(tokens)
        # Other things come on top of both, but not twice as much.
        self._kernels = (attention + linears) * plan.num_blocks if attention and linears else None
        # The first pass of all compiles.
        self._is_warm = self._key in _fastest

    def watched(self, transformer: Transformer) -> Transformer:
        """Return the transformer, whose passes are looked at where the system pages."""
        if self._device.type != "cuda" or not system.lends_ram_to_gpu():
            return transformer
        return cast(Transformer, _Watched(transformer, self))

    def look(self, begun: float) -> None:
        """Look at a pass that began then, on the clock of `time.perf_counter`."""
        torch.cuda.synchronize(self._device)
        if self._is_warm:
            self._look(time.perf_counter() - begun)
        self._is_warm = True

    def _look(self, seconds: float) -> None:
        known = [each for each in (_fastest.get(self._key), self._kernels) if each]
        _fastest[self._key] = min(seconds, _fastest.get(self._key, seconds))
        if self.warnings or not known or seconds < _SLOW * min(known):
            return
        free, _ = torch.cuda.mem_get_info(self._device)
        if free >= _FULL_BYTES:
            return
        held = torch.cuda.memory_reserved(self._device) / GIB
        self.warnings.append(
            Memory.PAGING(budget=max(held - 1, 1), seconds=seconds, expected=min(known), free=free / GIB)
        )
        logger.warning("LightX2V: %s", self.warnings[-1])


class _Watched:
    """A transformer, and a look at each of its passes."""

    def __init__(self, transformer: Transformer, watch: StepWatch) -> None:
        self._transformer = transformer
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def predict_flow(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        begun = time.perf_counter()
        flow = self._transformer.predict_flow(*args, **kwargs)
        self._watch.look(begun)
        return flow
