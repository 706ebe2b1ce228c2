"""The denoiser of the LightX2V engine: its compute, on weights that our own reader and streamer bring.

Embeddings and head are LightX2V's. So are the blocks when `compile` is off; else they are those of engine/wan.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from ...checkpoints.files import TransformerFiles
from ...checkpoints.source import TransformerCheckpoint
from ...interfaces import Hooks
from ...memory.plan import Placement
from ...offload import Conveyor, load_tensors, make_units, settle
from ...settings import EngineSettings
from ...system import compute_device, release_memory
from ...wan.block import Blocks
from ...wan.kernels import Kernels, select_kernels
from . import bootstrap
from .config import build_config

# What our blocks take in fp32; LightX2V takes everything in bfloat16.
_FLOAT32 = r"^blocks\.\d+\.(modulation$|norm3\.)"


@dataclass(frozen=True)
class _Choice:
    """Whose blocks are run, and with what."""

    loop: type[Any]
    attention_op: str
    matmul_op: str
    kernels: Kernels | None
    """Of our blocks; None for LightX2V's."""
    facts: dict[str, Any]


@dataclass
class _Loaded:
    """Everything that takes memory."""

    model: Any
    checkpoint: TransformerCheckpoint
    conveyor: Conveyor
    facts: dict[str, Any]
    context: tuple[torch.Tensor, torch.Tensor] | None = None
    """Text rows as they were given last, and the same in bfloat16 on the compute device."""


class LightX2VTransformer:
    """See interfaces.Transformer.

    Args:
        files: any layout; the precision is the checkpoint's.
        settings: attention back end by its name in backends/table.py; compile "off" is LightX2V's own blocks.
        placement: where the weights rest.
        matmul: of LightX2V's own blocks: name of a row of config.MATMUL_BACKENDS, or auto.

    Computes on the current CUDA stream, which must be the default one where SageAttention is used.

    Raises:
        ValueError: matmul is named, and the blocks are not LightX2V's.
    """

    def __init__(
        self, files: TransformerFiles, settings: EngineSettings, placement: Placement, *, matmul: str = "auto"
    ) -> None:
        if matmul != "auto" and settings.compile != "off":
            raise ValueError(
                f"matmul is {matmul!r} and compile is {settings.compile!r}; a named matmul is one of LightX2V's own "
                "blocks, which run when compile is 'off'."
            )
        self._files = files
        self._settings = settings
        self._placement = placement
        self._matmul = matmul
        self._device = compute_device()
        self._loaded: _Loaded | None = None

    @property
    def euler_dtype(self) -> torch.dtype:
        """LightX2V's scheduler keeps latents in BF16 (schedulers/wan/scheduler.py, step_pre)."""
        return torch.bfloat16

    @property
    def device(self) -> torch.device:
        return self._device

    def load(self, latent_shape: tuple[int, int, int, int], hooks: Hooks) -> None:
        """Make the weights ready; does nothing when they are already.

        Raises:
            MissingDependencyError, UnsupportedHardwareError: LightX2V or a named back end cannot run here.
            LightX2VError: the installed LightX2V is another version.
        """
        if self._loaded is None:
            bootstrap.import_lightx2v()
            # Inside ComfyUI inference mode is on; weights made under it could not be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                self._loaded = self._load(hooks)

    def unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        loaded.conveyor.close()
        loaded.checkpoint.close()
        del loaded
        gc.collect()
        release_memory(self._device)

    def rest(self) -> None:
        if self._loaded is not None:
            self._loaded.model.rest()
            self._loaded.context = None
            release_memory(self._device)

    @torch.no_grad()
    def predict_flow(self, latents: torch.Tensor, timestep: float, context: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        assert self._loaded is not None, "predict_flow before load"
        loaded = self._loaded
        loaded.conveyor.check_interrupt = hooks.check_interrupt
        if loaded.context is None or loaded.context[0] is not context:
            loaded.context = (context, context.to(self._device, torch.bfloat16))
        flow = loaded.model.predict(latents.to(self._device), timestep, loaded.context[1])
        result: torch.Tensor = flow.to(latents.device, torch.float32)
        return result

    def describe(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "engine": "lightx2v",
            "precision": self._files.format.scheme,
            "attention": self._settings.attention,
            "compile": False,
            "offload": self._placement.mode,
            "resident_blocks": self._placement.resident_blocks,
            "device": str(self._device),
            "moved_bytes": 0,
        }
        if self._loaded:
            facts |= self._loaded.facts
            facts["moved_bytes"] += self._loaded.conveyor.moved_bytes
        return facts

    def _load(self, hooks: Hooks) -> _Loaded:
        from .model import WanModel  # imports LightX2V, which only now can be

        sizes, by_phase = self._files.format.architecture, self._placement.mode == "phase"
        is_upstream = self._settings.compile == "off"
        choice = self._choose_upstream(by_phase) if is_upstream else self._choose_ours()
        config = build_config(
            sizes,
            attention_op=choice.attention_op,
            matmul_op=choice.matmul_op,
            use_triton=self._device.type == "cuda",
        )
        checkpoint = TransformerCheckpoint(self._files, float32=None if is_upstream else _FLOAT32)
        others = load_tensors(checkpoint.others, checkpoint, self._device, hooks)
        facts = {
            **choice.facts,
            "weight_bytes": checkpoint.num_bytes,
            "moved_bytes": 0 if self._device.type == "cpu" else sum(each.nbytes for each in others.values()),
        }
        model = WanModel(config, others, self._device, choice.loop)
        units = make_units(checkpoint.specs, sizes.num_layers, by_phase)
        conveyor = settle(units, checkpoint, self._placement, self._device, hooks)
        if choice.kernels is None:
            model.transformer_infer.units, model.transformer_infer.conveyor = units, conveyor
        else:
            model.use_blocks(Blocks(units, conveyor, sizes, choice.kernels, self._device), others)
        return _Loaded(model, checkpoint, conveyor, facts)

    def _choose_ours(self) -> _Choice:
        from .model import OurLoop

        layout = self._files.format
        kernels = select_kernels(layout.scheme, layout.architecture, self._settings, self._device)
        # LightX2V's own ops for the blocks are made and never run.
        return _Choice(OurLoop, "torch_sdpa", "Default", kernels, dict(kernels.facts))

    def _choose_upstream(self, by_phase: bool) -> _Choice:
        from .model import BlockLoop, PhaseLoop
        from .ops import select_attention, select_matmul

        attention, attention_op = select_attention(self._settings.attention, self._device)
        matmul, matmul_op = select_matmul(self._files.format.scheme, self._matmul, self._device)
        facts = {
            "attention": attention,
            "attention_in_place": False,
            "matmul": matmul,
            "ops": "lightx2v",
            "compile": False,
        }
        return _Choice(PhaseLoop if by_phase else BlockLoop, attention_op, matmul_op, None, facts)
