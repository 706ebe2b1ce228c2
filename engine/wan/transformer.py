"""Wan's transformer in plain torch: any checkpoint layout, any device, weights in their stored precision.

Activations are BF16; norms, modulation and the embedding of the time are computed in fp32 as in native Wan.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..backends.choose import Backends
from ..checkpoints.source import TransformerCheckpoint, list_specs
from ..checkpoints.transformers import TransformerFiles
from ..interfaces import Conditioning, Hooks
from ..kernels.implementations import load_requantize
from ..kernels.ops import Rotary
from ..kernels.requantize import requantize_all
from ..lora.changes import Stack
from ..lora.placed import PlacedLoras, place_loras
from ..memory.placement import Placement
from ..offload import ExpertUnits, Finish, OnceUnits, Unit, WeightStreamer, load_tensors, make_units, place_weights
from ..offload.shared import SharedHome
from ..system import release_memory
from . import embeddings
from .block import Blocks
from .kernels import build_kernels
from .layout import FLOAT32, IMAGE_KEYS, PHASES
from .parallel import Exchange
from .patches import Grid, embed_patches, grid_of, join_patches
from .workspace import ClipMemory


@dataclass
class _Loaded:
    """Everything that takes memory."""

    checkpoint: TransformerCheckpoint
    weights: dict[str, torch.Tensor]
    """What is not in a block."""
    blocks: Blocks

    @property
    def moved_bytes(self) -> int:
        """Copied to the device so far."""
        others = 0 if self.blocks.device.type == "cpu" else sum(each.nbytes for each in self.weights.values())
        return others + self.blocks.moved_bytes

    def rotary_of(self, grid: Grid, head_dim: int, device: torch.device) -> Rotary:
        memory = self.blocks.memory
        if memory.rotary is None or memory.rotary[0] != grid:
            memory.rotary = None
            memory.rotary = (grid, embeddings.rotary_of(grid, head_dim, device))
        return memory.rotary[1]


@dataclass(frozen=True, kw_only=True)
class OpenedTransformer:
    """A transformer whose blocks have no place yet."""

    checkpoint: TransformerCheckpoint
    weights: dict[str, torch.Tensor]
    """What is not in a block."""
    units: Sequence[Unit]
    finish: Finish | None
    """What is to be done to units on the device."""


class WanTransformer:
    """The denoiser; see interfaces.Transformer. Two experts of it are wan/experts.py.

    Computes on the current CUDA stream, which must be the default one where SageAttention is used.
    """

    def __init__(
        self,
        files: TransformerFiles,
        backends: Backends,
        placement: Placement,
        device: torch.device,
        exchange: Exchange | None = None,
        memory: SharedHome | None = None,
    ) -> None:
        """Args:
        backends: confirmed by backends/trials.py.
        exchange: with the ranks that compute a part of each clip; None where this object computes all of it.
        memory: of several processes, for weights that are streamed from RAM; None is memory of its own.
        """
        self._files = files
        self._backends = backends
        self._placement = placement
        self._device = device
        self._exchange = exchange
        self._memory = memory
        self._loaded: _Loaded | None = None

    @property
    def euler_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def moved_bytes(self) -> int:
        return self._loaded.moved_bytes if self._loaded else 0

    def load(self, hooks: Hooks) -> None:
        if self._loaded is None:
            # Inside ComfyUI inference mode is on; weights made under it could not be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                self._load(hooks)

    def use_loras(self, stack: Stack, hooks: Hooks, expert: int = 0) -> None:
        assert self._loaded is not None, "use_loras before load"
        loaded, blocks = self._loaded, self._loaded.blocks
        if blocks.loras.stack.key == stack.key:
            return
        blocks.loras.close()
        blocks.loras = PlacedLoras()
        release_memory(self._device)
        if stack:
            # As the file has them: a checkpoint that is requantized reads the bytes of FP8 as INT8.
            base, inputs = tuple(list_specs(self._files, FLOAT32)), self._backends.inputs
            with torch.inference_mode(False), torch.no_grad():
                blocks.loras = place_loras(
                    stack, base, loaded.checkpoint, blocks.units, PHASES, IMAGE_KEYS, inputs, self._placement,
                    self._device, hooks,
                )  # fmt: skip

    def unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        loaded.blocks.close()
        loaded.checkpoint.close()
        del loaded
        gc.collect()
        release_memory(self._device)

    def release_workspace(self) -> None:
        if self._loaded is not None:
            self._loaded.blocks.release_workspace()
            release_memory(self._device)

    def forget_text(self) -> None:
        """Drop what is kept of the text."""
        if self._loaded is not None:
            self._loaded.blocks.forget_text()

    @torch.no_grad()
    def predict_flow(
        self,
        latents: torch.Tensor,
        timestep: float,
        conditioning: Conditioning,
        hooks: Hooks,
        expert: int = 0,
        then: int = 0,
    ) -> torch.Tensor:
        assert self._loaded is not None, "predict_flow before load"
        blocks = self._loaded.blocks
        weights = {**self._loaded.weights, **blocks.loras.others}
        blocks.streamer.start_pass(hooks, blocks.units)
        grid, exchange = grid_of(latents), self._exchange
        tokens = grid[0] * grid[1] * grid[2]
        rows = exchange.rows(tokens) if exchange else slice(0, tokens)
        work = blocks.workspace(rows.stop - rows.start)
        patch = (weights["patch_embedding.weight"], weights["patch_embedding.bias"])
        given = conditioning.image_latents
        parts = [latents] if given is None else [latents, given]
        embed_patches(torch.cat([part.to(self._device) for part in parts]), *patch, work.hidden, rows)
        embedding, time = embeddings.embed_time(timestep, weights)
        sizes = self._files.format.architecture
        rotary = self._loaded.rotary_of(grid, sizes.dim // sizes.num_heads, self._device)
        text = blocks.text(conditioning, lambda rows: embeddings.embed_text(rows, weights))
        image = blocks.image(conditioning.image_tokens, lambda tokens: embeddings.embed_image(tokens, weights))
        blocks.run(work, rotary, time, text, image)
        patches = embeddings.project_head(work.hidden, embedding, weights, blocks.kernels.ops, work.parts[0])
        if exchange:
            patches = exchange.gather(patches, tokens)
        return join_patches(patches, grid).to(latents.device)

    def describe(self) -> dict[str, Any]:
        return {
            **self._backends.as_facts(),
            "offload": self._placement.mode,
            "resident_blocks": self._placement.resident_blocks,
            "weight_bytes": self._loaded.checkpoint.num_bytes if self._loaded else self._files.num_bytes,
            "moved_bytes": self.moved_bytes,
            "device": str(self._device),
            "loras": self._loaded.blocks.loras.stack.as_facts() if self._loaded else [],
        }

    def open(self, hooks: Hooks, name: str = "") -> OpenedTransformer:
        """Load what is not in a block, and say what is to be placed.

        Args:
            name: of the checkpoint among several sources, see offload Joined.
        """
        finish, eight_bit = self._requantize()
        checkpoint = TransformerCheckpoint(self._files, float32=FLOAT32, eight_bit=eight_bit)
        weights = load_tensors(checkpoint.others, checkpoint, self._device, hooks)
        num_layers, by_phase = self._files.format.architecture.num_layers, self._placement.mode == "phase"
        units = make_units(checkpoint.specs, num_layers, PHASES, by_phase, name)
        return OpenedTransformer(checkpoint=checkpoint, weights=weights, units=units, finish=finish)

    def start(
        self, opened: OpenedTransformer, streamer: WeightStreamer | ExpertUnits, clip_memory: ClipMemory | None = None
    ) -> None:
        """Compute with what was opened, and was placed by then.

        Args:
            clip_memory: that other experts use too.
        """
        architecture, kernels, image = self._files.format.architecture, build_kernels(self._backends), None
        if self._exchange:
            kernels = kernels.shared_by(self._exchange)
            streamer.check_unit = self._exchange.check_block
        if architecture.image_dim:
            specs = opened.checkpoint.specs
            image_units = make_units(specs, architecture.num_layers, (IMAGE_KEYS,), by_phase=False)
            image = OnceUnits(image_units, opened.checkpoint, self._placement, self._device, opened.finish)
        blocks = Blocks(opened.units, streamer, architecture, kernels, self._device, image, clip_memory)
        self._loaded = _Loaded(opened.checkpoint, opened.weights, blocks)

    def _load(self, hooks: Hooks) -> None:
        opened = self.open(hooks)
        streamer = place_weights(
            opened.units, opened.checkpoint, self._placement, self._device, hooks, opened.finish, self._memory
        )
        self.start(opened, streamer)

    def _requantize(self) -> tuple[Finish | None, torch.dtype | None]:
        """Return what is done to a unit's weights on the device, and what they are then."""
        if not self._backends.requantizes:
            return None, None
        requantize = load_requantize(self._backends.matmul.backend.package or "torch")
        return functools.partial(requantize_all, requantize), torch.int8
