"""LightX2V's WanDistillModel, with weights from our own reader and streamer instead of its loader and offload.

Imports LightX2V: import this module after bootstrap.import_lightx2v(). Reference cycles of LightX2V are cut here,
so that GPU memory goes with the last reference and does not wait for the garbage collector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightx2v.models.networks.wan.distill_model import WanDistillModel
from lightx2v.models.networks.wan.infer.offload.transformer_infer import WanOffloadTransformerInfer
from lightx2v.models.networks.wan.infer.transformer_infer import WanTransformerInfer
from lightx2v.models.schedulers.wan.step_distill.scheduler import WanStepDistillScheduler
from lightx2v.utils.set_config import get_default_config

from ..streaming import Conveyor, Resident


class WanModel(WanDistillModel):  # type: ignore[misc]
    """The transformer; its blocks get their weights through `fill`, or from `conveyor` when they run.

    Args:
        config: keys of config.build_config.
        tensors: everything outside the blocks, on the compute device, under native names.
        device: the compute device.
        is_phased: the units of the conveyor are phases, three a block.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: dict[str, torch.Tensor],
        device: torch.device,
        *,
        is_phased: bool,
    ) -> None:
        self._tensors = tensors
        self._is_phased = is_phased
        config = {**get_default_config(), **config}
        super().__init__("", config, device)
        scheduler = WanStepDistillScheduler(config)
        self.set_scheduler(scheduler)
        scheduler.transformer_infer = None

    @property
    def blocks(self) -> Any:
        """The blocks: modules with three `compute_phases` each."""
        return self.transformer_weights.blocks

    @property
    def conveyor(self) -> Conveyor:
        conveyor: Conveyor = self.transformer_infer.conveyor
        return conveyor

    @conveyor.setter
    def conveyor(self, conveyor: Conveyor) -> None:
        self.transformer_infer.conveyor = conveyor

    def predict(self, latents: torch.Tensor, timestep: float, context: torch.Tensor) -> torch.Tensor:
        """Return the flow [16, T, h, w] float32 for latents [16, T, h, w] and context [512, text_dim]."""
        scheduler = self.scheduler
        scheduler.latents = latents
        scheduler.timesteps = torch.tensor([timestep], dtype=torch.float32, device=latents.device)
        scheduler.step_pre(0)
        inputs = {"text_encoder_output": {"context": context[None]}, "image_encoder_output": None}
        try:
            flow: torch.Tensor = self._infer_cond_uncond(inputs, infer_condition=True)
        finally:
            scheduler.clear()
        return flow

    def _check_dit_quantized(self) -> None:
        """Allow the ops that we registered."""

    def _init_infer_class(self) -> None:
        super()._init_infer_class()
        self.transformer_infer_class = PhaseLoop if self._is_phased else BlockLoop

    def _load_ckpt(self, unified_dtype: bool, sensitive_layer: object) -> dict[str, torch.Tensor]:
        return {}

    def _load_quant_ckpt(self, unified_dtype: bool, sensitive_layer: object) -> dict[str, torch.Tensor]:
        return {}

    def _apply_weights(self, weight_dict: object = None) -> None:
        """Give everything but the blocks its weights."""
        weights = self.transformer_weights
        for module in (self.pre_weight, weights.head, weights.head_modulation, weights.norm):
            module.load(self._tensors)
        self._tensors = {}


def fill(module: Any, block_index: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a block or phase of LightX2V its weights, named as under `blocks.<i>.`."""
    module.load({f"blocks.{block_index}.{name}": tensor for name, tensor in tensors.items()})


class _UnitLoop:
    """Runs the units of a conveyor."""

    conveyor: Conveyor
    infer_func: Any

    def _set_up(self) -> None:
        self.conveyor = Conveyor(Resident(), torch.device("cpu"))
        # A bound method of this very object: a reference cycle.
        del self.infer_func

    @contextmanager
    def _unit(self, number: int, module: Any, block_index: int) -> Iterator[None]:
        """Give a block or phase its weights for the compute that the `with` launches."""
        with self.conveyor.unit(number) as tensors:
            if tensors:
                fill(module, block_index, tensors)
            yield


class BlockLoop(_UnitLoop, WanTransformerInfer):  # type: ignore[misc]
    """A unit is a block."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self._set_up()

    def infer_main_blocks(self, blocks: Any, pre_infer_out: Any) -> torch.Tensor:
        x: torch.Tensor = pre_infer_out.x
        for index, block in enumerate(blocks):
            self.block_idx = index
            with self._unit(index, block, index):
                x = self.run_block(index, block, x, pre_infer_out)
        return x


class PhaseLoop(_UnitLoop, WanOffloadTransformerInfer):  # type: ignore[misc]
    """A unit is a phase: self-attention, cross-attention or feed-forward."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self._set_up()
        self.phase_params: dict[str, torch.Tensor | None] = {}
        self.compiled_phases: dict[Any, Any] = {}

    def infer_main_blocks(self, blocks: Any, pre_infer_out: Any) -> torch.Tensor:
        x: torch.Tensor = pre_infer_out.x
        for index, block in enumerate(blocks):
            for phase_index, phase in enumerate(block.compute_phases):
                with self._unit(index * self.phases_num + phase_index, phase, index):
                    x = self.run_phase(index, phase_index, phase, x, pre_infer_out)
            # What the phases hand on is as large as the activations; let it go between blocks.
            self.phase_params = dict.fromkeys(self.phase_params)
        return x
