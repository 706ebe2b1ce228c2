"""The denoiser of the LightX2V engine: its compute, on weights that our own reader and streamer bring."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...interfaces import Hooks
from ...logic.checkpoint_files import TransformerFiles
from ...settings import EngineSettings
from ..streaming import Conveyor, FileHome, RamHome, Residence, Resident, Streamed, TensorSpec, Unit, report_load
from ..system import compute_device
from . import bootstrap
from .checkpoint import TransformerCheckpoint
from .config import PHASES, build_config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Loaded:
    """Everything that takes memory."""

    model: Any
    checkpoint: TransformerCheckpoint
    facts: dict[str, Any]
    streamed_bytes: int
    """Copied to the GPU for every call; 0 where the weights stay there."""


class LightX2VTransformer:
    """See interfaces.Transformer.

    Args:
        files: any layout; the precision is the checkpoint's.
        settings: attention back end by its name in logic/support.py; compile "auto" is off, as one clip does not
            earn back the time it takes.
        mode: none (weights stay on the GPU) | block | phase (a third of a block) | disk (read when needed).
        matmul: name of a row of config.MATMUL_BACKENDS, or auto.
        pinned_limit_bytes: RAM to page-lock at most in modes block and phase; None is no limit of our own.

    Computes on the current CUDA stream, which must be the default one where SageAttention is used.
    """

    def __init__(
        self,
        files: TransformerFiles,
        settings: EngineSettings,
        mode: str,
        *,
        matmul: str = "auto",
        pinned_limit_bytes: int | None = None,
    ) -> None:
        self._files = files
        self._settings = settings
        self._mode = mode
        self._matmul = matmul
        self._pinned_limit_bytes = pinned_limit_bytes
        self._device = compute_device()
        self._moved_bytes = 0
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
        loaded.model.conveyor.residence.close()
        loaded.checkpoint.close()
        del loaded
        # Compiled blocks refer to themselves.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def predict_flow(self, latents: torch.Tensor, timestep: float, context: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        assert self._loaded is not None, "predict_flow before load"
        model = self._loaded.model
        model.conveyor.check_interrupt = hooks.check_interrupt
        flow = model.predict(latents.to(self._device), timestep, context.to(self._device, torch.bfloat16))
        self._moved_bytes += self._loaded.streamed_bytes
        result: torch.Tensor = flow.to(latents.device, torch.float32)
        return result

    def describe(self) -> dict[str, Any]:
        facts = {
            "engine": "lightx2v",
            "precision": self._files.format.scheme,
            "attention": self._settings.attention,
            "compile": self._settings.compile == "on",
            "offload": self._mode,
            "device": str(self._device),
            "moved_bytes": self._moved_bytes,
        }
        return facts | (self._loaded.facts if self._loaded else {})

    def _load(self, hooks: Hooks) -> _Loaded:
        # These import LightX2V, which only now can be.
        from .model import WanModel, fill
        from .ops import select_attention, select_matmul

        layout = self._files.format
        attention, attention_op = select_attention(self._settings.attention, self._device)
        matmul, matmul_op = select_matmul(layout.scheme, self._matmul, self._device)
        config = build_config(
            layout.architecture,
            attention_op=attention_op,
            matmul_op=matmul_op,
            use_compile=self._settings.compile == "on",
            use_triton=self._device.type == "cuda",
        )
        checkpoint = TransformerCheckpoint(self._files)
        others = [spec for spec in checkpoint.specs if not spec.name.startswith("blocks.")]
        model = WanModel(
            config,
            {spec.name: checkpoint.read(spec).to(self._device) for spec in others},
            self._device,
            is_phased=self._mode == "phase",
        )
        units = _units(checkpoint.specs, layout.architecture.num_layers, by_phase=self._mode == "phase")
        if self._mode == "none":
            for index, unit in enumerate(units):
                report_load(hooks, index, len(units))
                fill(model.blocks[index], index, _on_device(unit, checkpoint, self._device))
        model.conveyor = Conveyor(self._residence(units, checkpoint, hooks), self._device)
        checkpoint.close()
        num_bytes = sum(spec.num_bytes for spec in checkpoint.specs)
        streamed_bytes = 0 if self._mode == "none" else sum(unit.num_bytes for unit in units)
        self._moved_bytes += num_bytes - streamed_bytes
        facts = {"attention": attention, "matmul": matmul, "weight_bytes": num_bytes}
        return _Loaded(model, checkpoint, facts, streamed_bytes)

    def _residence(self, units: Sequence[Unit], checkpoint: TransformerCheckpoint, hooks: Hooks) -> Residence:
        if self._mode == "none":
            return Resident()
        if self._mode == "disk":
            return Streamed(units, FileHome(units, checkpoint), self._device)
        return Streamed(units, RamHome(units, checkpoint, self._pinned_limit_bytes, hooks), self._device)


def _units(specs: Sequence[TensorSpec], num_layers: int, *, by_phase: bool) -> list[Unit]:
    """Return the blocks' tensors in the order of compute: a unit a block, or one a phase."""
    units = []
    parts = PHASES if by_phase else (("",),)
    for index in range(num_layers):
        path = f"blocks.{index}"
        for starts in parts:
            prefixes = tuple(f"{path}.{start}" for start in starts)
            units.append(Unit(path, [spec for spec in specs if spec.name.startswith(prefixes)]))
    return units


def _on_device(unit: Unit, checkpoint: TransformerCheckpoint, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: checkpoint.read(spec).to(device) for name, spec in unit.specs.items()}
