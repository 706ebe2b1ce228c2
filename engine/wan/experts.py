"""Wan2.2's two transformers of one model: an expert for high noise and one for low noise, which take turns.

Their blocks rest and travel together: the first block of the one that comes next is on its way while the last one of
the other computes, so that changing over costs nothing. Workspace, rotary table and buffers on the device are shared;
what is in no block, LoRAs and what is kept of the text each has of its own, the last only while it computes.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from ..backends.choose import Backends
from ..checkpoints.transformers import TransformerFiles
from ..interfaces import Conditioning, Hooks
from ..lora.changes import Stack
from ..lora.experts import loras_of_experts
from ..memory.placement import Placement
from ..offload import ExpertUnits, Joined, WeightStreamer, place_weights
from ..offload.shared import SharedHome
from ..system import release_memory
from .parallel import Exchange
from .transformer import WanTransformer
from .workspace import ClipMemory


def build_denoiser(
    files: TransformerFiles,
    backends: Backends,
    placement: Placement,
    device: torch.device,
    exchange: Exchange | None = None,
    memory: SharedHome | None = None,
) -> WanTransformer | WanExperts:
    """Return the unloaded denoiser of a checkpoint; see WanTransformer."""
    kind = WanTransformer if files.second is None else WanExperts
    return kind(files, backends, placement, device, exchange, memory)


class WanExperts:
    """Several denoisers as one; see interfaces.Transformer."""

    def __init__(
        self,
        files: TransformerFiles,
        backends: Backends,
        placement: Placement,
        device: torch.device,
        exchange: Exchange | None = None,
        memory: SharedHome | None = None,
    ) -> None:
        """Args: files: of a pair; the others as in WanTransformer."""
        self._files = files
        self._placement = placement
        self._device = device
        self._memory = memory
        self._experts = [WanTransformer(each, backends, placement, device, exchange) for each in files.experts]
        self._streamer: WeightStreamer | None = None

    @property
    def euler_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def moved_bytes(self) -> int:
        return sum(each.moved_bytes for each in self._experts)

    def load(self, hooks: Hooks) -> None:
        if self._streamer is None:
            # Inside ComfyUI inference mode is on; weights made under it could not be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                self._load(hooks)

    def use_loras(self, stack: Stack, hooks: Hooks, expert: int = 0) -> None:
        self._experts[expert].use_loras(stack, hooks)

    def unload(self) -> None:
        streamer, self._streamer = self._streamer, None
        for each in self._experts:
            each.unload()
        if streamer is not None:
            streamer.close()
            del streamer
            gc.collect()
            release_memory(self._device)

    def release_workspace(self) -> None:
        for each in self._experts:
            each.release_workspace()

    def predict_flow(
        self,
        latents: torch.Tensor,
        timestep: float,
        conditioning: Conditioning,
        hooks: Hooks,
        expert: int = 0,
        then: int = 0,
    ) -> torch.Tensor:
        assert self._streamer is not None, "predict_flow before load"
        self._streamer.course.then = then
        for index, each in enumerate(self._experts):
            if index != expert:
                each.forget_text()
        return self._experts[expert].predict_flow(latents, timestep, conditioning, hooks)

    def describe(self) -> dict[str, Any]:
        each = [expert.describe() for expert in self._experts]
        return {
            **each[0],
            "weight_bytes": sum(facts["weight_bytes"] for facts in each),
            "moved_bytes": self.moved_bytes,
            "loras": loras_of_experts(self._files.names, [facts["loras"] for facts in each]),
        }

    def _load(self, hooks: Hooks) -> None:
        names, num_experts = self._files.names, len(self._experts)
        opened = [each.open(hooks, name) for name, each in zip(names, self._experts, strict=True)]
        source = Joined({name: each.checkpoint for name, each in zip(names, opened, strict=True)})
        units = [unit for each in opened for unit in each.units]
        streamer = place_weights(
            units, source, self._placement, self._device, hooks, opened[0].finish, self._memory, num_experts
        )
        memory, length = ClipMemory(), len(units) // num_experts
        for index, (each, part) in enumerate(zip(self._experts, opened, strict=True)):
            each.start(part, ExpertUnits(streamer, index * length), memory)
        self._streamer = streamer
