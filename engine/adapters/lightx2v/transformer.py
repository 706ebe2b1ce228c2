"""The denoiser of the LightX2V engine: its components and compute, on weights that our reader and streamer bring."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from ...backends.choose import Backends
from ...checkpoints.source import TransformerCheckpoint
from ...checkpoints.transformers import TransformerFiles
from ...errors import LightX2VError
from ...interfaces import Conditioning, Hooks
from ...lora.changes import Stack
from ...memory.placement import Placement
from ...offload import WeightStreamer, load_tensors, make_units, place_weights
from ...system import release_memory
from ...wan.layout import PHASES
from . import bootstrap
from .config import build_config

# Facts: lightx2v/common/ops/mm/mm_weight.py and models/networks/wan at the commit of bootstrap.py.
NO_LORAS = (
    "Set engine to 'auto' for LoRAs: engine is 'lightx2v', whose own LoRA support cannot apply them as a whole. It "
    "takes one file, leaves out embeddings and head, and merges into unquantized weights only."
)


@dataclass
class _Loaded:
    """Everything that takes memory."""

    model: Any
    checkpoint: TransformerCheckpoint
    streamer: WeightStreamer
    others_bytes: int
    """Of what is in no block."""
    context: tuple[Conditioning, torch.Tensor] | None = None
    """The last conditioning, and its text in bfloat16 on the compute device."""


class LightX2VTransformer:
    """See interfaces.Transformer.

    Computes on the current CUDA stream, which must be the default one where SageAttention is used.
    """

    def __init__(self, files: TransformerFiles, backends: Backends, placement: Placement, device: torch.device) -> None:
        """Args: backends: confirmed by backends/trials.py."""
        self._files = files
        self._backends = backends
        self._placement = placement
        self._device = device
        self._loaded: _Loaded | None = None

    @property
    def euler_dtype(self) -> torch.dtype:
        """LightX2V's scheduler keeps latents in BF16 (schedulers/wan/scheduler.py, step_pre)."""
        return torch.bfloat16

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def moved_bytes(self) -> int:
        if self._loaded is None:
            return 0
        return self._loaded.others_bytes * (self._device.type != "cpu") + self._loaded.streamer.moved_bytes

    def load(self, hooks: Hooks) -> None:
        """Make the weights ready; does nothing when they are already.

        Raises:
            MissingDependencyError: LightX2V cannot run here.
            LightX2VError: the installed LightX2V is another version.
        """
        if self._loaded is None:
            bootstrap.import_lightx2v()
            # Inside ComfyUI inference mode is on; weights made under it could not be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                self._loaded = self._load(hooks)

    def use_loras(self, stack: Stack, hooks: Hooks, expert: int = 0) -> None:
        if stack:
            raise LightX2VError(NO_LORAS)

    def unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        loaded.streamer.close()
        loaded.checkpoint.close()
        del loaded
        gc.collect()
        release_memory(self._device)

    def release_workspace(self) -> None:
        if self._loaded is not None:
            self._loaded.model.release_workspace()
            self._loaded.context = None
            release_memory(self._device)

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
        loaded = self._loaded
        loaded.streamer.start_pass(hooks, loaded.model.transformer_infer.units)
        if loaded.context is None or loaded.context[0] is not conditioning:
            loaded.context = (conditioning, conditioning.text.to(self._device, torch.bfloat16))
        flow = loaded.model.predict(latents.to(self._device), timestep, loaded.context[1])
        result: torch.Tensor = flow.to(latents.device, torch.float32)
        return result

    def describe(self) -> dict[str, Any]:
        return {
            **self._backends.as_facts(),
            "offload": self._placement.mode,
            "resident_blocks": self._placement.resident_blocks,
            "weight_bytes": self._loaded.checkpoint.num_bytes if self._loaded else self._files.num_bytes,
            "moved_bytes": self.moved_bytes,
            "device": str(self._device),
        }

    def _load(self, hooks: Hooks) -> _Loaded:
        from . import ops  # these import LightX2V, which only now can be
        from .model import BlockLoop, PhaseLoop, WanModel

        sizes, by_phase = self._files.format.architecture, self._placement.mode == "phase"
        config = build_config(
            sizes,
            attention_op=ops.attention_op(self._backends.attention.name),
            matmul_op=ops.matmul_op(self._backends.precision, self._backends.matmul.name),
            use_triton=self._device.type == "cuda",
        )
        # LightX2V takes everything but 8-bit weights and their scales in bfloat16.
        checkpoint = TransformerCheckpoint(self._files)
        others = load_tensors(checkpoint.others, checkpoint, self._device, hooks)
        others_bytes = sum(each.nbytes for each in others.values())
        model = WanModel(config, others, self._device, PhaseLoop if by_phase else BlockLoop)
        units = make_units(checkpoint.specs, sizes.num_layers, PHASES, by_phase)
        streamer = place_weights(units, checkpoint, self._placement, self._device, hooks)
        model.transformer_infer.units, model.transformer_infer.streamer = units, streamer
        return _Loaded(model, checkpoint, streamer, others_bytes)
