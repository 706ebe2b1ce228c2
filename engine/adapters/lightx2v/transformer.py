"""The denoiser of the LightX2V engine: its components and compute, on weights that our reader and streamer bring."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...backends.choose import Backends
from ...checkpoints.source import TransformerCheckpoint
from ...checkpoints.transformers import TransformerFiles
from ...errors import LightX2VError
from ...interfaces import Conditioning, Hooks
from ...lora.changes import Stack
from ...memory.placement import Placement
from ...offload import ExpertUnits, Joined, Source, Unit, WeightStreamer, load_tensors, make_units, place_weights
from ...sentences.lightx2v import LightX2V
from ...system import release_memory
from ...wan.layout import PHASES_WITH_IMAGE
from . import bootstrap
from .config import build_config


@dataclass(frozen=True, kw_only=True)
class _Expert:
    """What one transformer has of its own; Wan2.2 is two."""

    model: Any
    checkpoint: TransformerCheckpoint
    units: Sequence[Unit]
    others_bytes: int
    """Of what is in no block."""


@dataclass
class _Loaded:
    """Everything that takes memory."""

    experts: Sequence[_Expert]
    streamer: WeightStreamer
    """Of the blocks of all experts."""
    clip: tuple[Conditioning, Conditioning] | None = None
    """The last conditioning, and the same in bfloat16 on the compute device."""


class LightX2VTransformer:
    """See interfaces.Transformer. Two experts are two of LightX2V's models, as its own Wan22MoeDistillRunner has them.

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
        others = 0 if self._device.type == "cpu" else sum(each.others_bytes for each in self._loaded.experts)
        return others + self._loaded.streamer.moved_bytes

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
            # Source: lightx2v/common/ops/mm/mm_weight.py and models/networks/wan at the commit of bootstrap.py.
            raise LightX2VError(LightX2V.NO_LORAS())

    def unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        loaded.streamer.close()
        for each in loaded.experts:
            each.checkpoint.close()
        # Names of a loop hold what they stand for.
        del each
        del loaded
        gc.collect()
        release_memory(self._device)

    def release_workspace(self) -> None:
        if self._loaded is not None:
            for each in self._loaded.experts:
                each.model.release_workspace()
            self._loaded.clip = None
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
        loaded, own = self._loaded, self._loaded.experts[expert]
        loaded.streamer.course.then = then
        own.model.transformer_infer.streamer.start_pass(hooks, own.units)
        if loaded.clip is None or loaded.clip[0] is not conditioning:
            loaded.clip = (conditioning, self._on_device(conditioning))
        flow = own.model.predict(latents.to(self._device), timestep, loaded.clip[1])
        result: torch.Tensor = flow.to(latents.device, torch.float32)
        return result

    def _on_device(self, conditioning: Conditioning) -> Conditioning:
        """Return it as LightX2V's runner makes it of its encoders' outputs: in bfloat16 (runners/wan/wan_runner.py)."""

        def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(self._device, torch.bfloat16)

        return replace(
            conditioning,
            text=conditioning.text.to(self._device, torch.bfloat16),
            image_tokens=moved(conditioning.image_tokens),
            image_latents=moved(conditioning.image_latents),
        )

    def describe(self) -> dict[str, Any]:
        return {
            **self._backends.as_facts(),
            "offload": self._placement.mode,
            "resident_blocks": self._placement.resident_blocks,
            "weight_bytes": self._weight_bytes,
            "moved_bytes": self.moved_bytes,
            "device": str(self._device),
        }

    @property
    def _weight_bytes(self) -> int:
        if self._loaded is None:
            return self._files.total_bytes
        return sum(each.checkpoint.num_bytes for each in self._loaded.experts)

    def _load(self, hooks: Hooks) -> _Loaded:
        names = self._files.names if self._files.second is not None else ("",)
        experts = [self._open(files, name, hooks) for files, name in zip(self._files.experts, names, strict=True)]
        source: Source = experts[0].checkpoint
        if len(experts) > 1:
            source = Joined({name: each.checkpoint for name, each in zip(names, experts, strict=True)})
        units = [unit for each in experts for unit in each.units]
        streamer = place_weights(units, source, self._placement, self._device, hooks, num_experts=len(experts))
        for number, each in enumerate(experts):
            loop = each.model.transformer_infer
            loop.units, loop.streamer = each.units, ExpertUnits(streamer, number * len(each.units))
        return _Loaded(experts, streamer)

    def _open(self, files: TransformerFiles, name: str, hooks: Hooks) -> _Expert:
        """Return LightX2V's model with what is in no block. Args: name: among several, see offload Joined."""
        from . import ops  # these import LightX2V, which only now can be
        from .model import BlockLoop, PhaseLoop, WanModel

        sizes, by_phase = files.format.architecture, self._placement.mode == "phase"
        config = build_config(
            sizes,
            attention_op=ops.attention_op(self._backends.attention.name),
            matmul_op=ops.matmul_op(self._backends.precision, self._backends.matmul.name),
            use_triton=self._device.type == "cuda",
        )
        # LightX2V takes everything but 8-bit weights and their scales in bfloat16.
        checkpoint = TransformerCheckpoint(files)
        others = load_tensors(checkpoint.others, checkpoint, self._device, hooks)
        others_bytes = sum(each.nbytes for each in others.values())
        model = WanModel(config, others, self._device, PhaseLoop if by_phase else BlockLoop)
        units = make_units(checkpoint.specs, sizes.num_layers, PHASES_WITH_IMAGE, by_phase, name)
        return _Expert(model=model, checkpoint=checkpoint, units=units, others_bytes=others_bytes)
