"""Wan2.1's transformer in plain torch: any checkpoint layout, any device, weights in their stored precision.

Activations are BF16; norms, modulation and the embedding of the time are computed in fp32 as in native Wan.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoints.files import TransformerFiles
from ..checkpoints.source import TransformerCheckpoint
from ..interfaces import Hooks
from ..kernels.ops import Rotary
from ..memory.plan import Placement
from ..offload import load_tensors, make_units, settle
from ..settings import EngineSettings
from ..system import compute_device, release_memory
from . import embeddings
from .block import Blocks
from .kernels import select_kernels
from .patches import Grid, embed_patches, grid_of


@dataclass
class _Loaded:
    """Everything that takes memory."""

    checkpoint: TransformerCheckpoint
    weights: dict[str, torch.Tensor]
    """What is not in a block."""
    blocks: Blocks
    facts: dict[str, Any]
    rotary: tuple[Grid, Rotary] | None = None
    """Of the last clip's size."""

    def rotary_of(self, grid: Grid, head_dim: int, device: torch.device) -> Rotary:
        if self.rotary is None or self.rotary[0] != grid:
            self.rotary = None
            self.rotary = (grid, embeddings.rotary_of(grid, head_dim, device))
        return self.rotary[1]


class PortableTransformer:
    """The denoiser of the portable engine; see interfaces.Transformer.

    Computes on the current CUDA stream, which must be the default one where SageAttention is used.
    """

    def __init__(
        self,
        files: TransformerFiles,
        settings: EngineSettings,
        placement: Placement,
        *,
        device: torch.device | None = None,
    ) -> None:
        self._files = files
        self._settings = settings
        self._placement = placement
        self._device = device or compute_device()
        self._loaded: _Loaded | None = None

    @property
    def euler_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self._device

    def load(self, latent_shape: tuple[int, int, int, int], hooks: Hooks) -> None:
        """Make the weights ready.

        Raises:
            MissingDependencyError, UnsupportedHardwareError: the settings name a back end that cannot run here.
        """
        if self._loaded is None:
            # Inside ComfyUI inference mode is on; weights made under it could not be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                self._loaded = self._load(hooks)

    def unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        loaded.blocks.conveyor.close()
        loaded.checkpoint.close()
        del loaded
        gc.collect()
        release_memory(self._device)

    def rest(self) -> None:
        if self._loaded is not None:
            self._loaded.blocks.rest()
            self._loaded.rotary = None
            release_memory(self._device)

    @torch.no_grad()
    def predict_flow(self, latents: torch.Tensor, timestep: float, context: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        assert self._loaded is not None, "predict_flow before load"
        blocks, weights = self._loaded.blocks, self._loaded.weights
        blocks.conveyor.check_interrupt = hooks.check_interrupt
        grid = grid_of(latents)
        work = blocks.workspace(grid[0] * grid[1] * grid[2])
        patch = (weights["patch_embedding.weight"], weights["patch_embedding.bias"])
        embed_patches(latents.to(self._device), *patch, work.hidden)
        embedding, time = embeddings.embed_time(timestep, weights)
        sizes = self._files.format.architecture
        rotary = self._loaded.rotary_of(grid, sizes.dim // sizes.num_heads, self._device)
        text = blocks.text(context, lambda rows: embeddings.embed_text(rows, weights))
        blocks.run(work, rotary, time, text)
        flow = embeddings.project_head(work.hidden, embedding, weights, grid, blocks.kernels.ops, work.parts[0])
        return flow.to(latents.device)

    def describe(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "engine": "portable",
            "precision": self._files.format.scheme,
            "attention": self._settings.attention,
            "compile": False,
            "offload": self._placement.mode,
            "resident_blocks": self._placement.resident_blocks,
            "weight_bytes": self._files.num_bytes,
            "moved_bytes": 0,
            "device": str(self._device),
        }
        if self._loaded:
            facts |= self._loaded.facts
            facts["moved_bytes"] += self._loaded.blocks.conveyor.moved_bytes
        return facts

    def _load(self, hooks: Hooks) -> _Loaded:
        layout = self._files.format
        kernels = select_kernels(layout.scheme, layout.architecture, self._settings, self._device)
        checkpoint = TransformerCheckpoint(self._files, float32=embeddings.FLOAT32)
        weights = load_tensors(checkpoint.others, checkpoint, self._device, hooks)
        units = make_units(checkpoint.specs, layout.architecture.num_layers, self._placement.mode == "phase")
        conveyor = settle(units, checkpoint, self._placement, self._device, hooks)
        facts = {
            **kernels.facts,
            "weight_bytes": checkpoint.num_bytes,
            "moved_bytes": 0 if self._device.type == "cpu" else sum(each.nbytes for each in weights.values()),
        }
        blocks = Blocks(units, conveyor, layout.architecture, kernels, self._device)
        return _Loaded(checkpoint, weights, blocks, facts)
