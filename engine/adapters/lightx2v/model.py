"""LightX2V's WanDistillModel, with weights from our own reader and streamer instead of its loader and offload.

Imports LightX2V: import this module after bootstrap.import_lightx2v(). Reference cycles of LightX2V are cut here,
so that GPU memory goes with the last reference and does not wait for the garbage collector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightx2v.models.networks.wan.distill_model import WanDistillModel
from lightx2v.models.networks.wan.infer.offload.transformer_infer import WanOffloadTransformerInfer
from lightx2v.models.networks.wan.infer.transformer_infer import WanTransformerInfer
from lightx2v.models.schedulers.wan.step_distill.scheduler import WanStepDistillScheduler
from lightx2v.utils.set_config import get_default_config

from ...interfaces import Conditioning
from ...offload import ExpertUnits, Unit
from .config import USE_IMAGE_ENCODER


class WanModel(WanDistillModel):  # type: ignore[misc]
    """The transformer; its loop over the blocks, `transformer_infer`, is one of those below.

    Args:
        config: keys of config.build_config.
        tensors: everything outside the blocks, on the compute device, under native names.
        device: the compute device.
        loop: class of the loop.
    """

    def __init__(
        self, config: Mapping[str, Any], tensors: dict[str, torch.Tensor], device: torch.device, loop: type[Any]
    ) -> None:
        self._tensors = tensors
        self._positions = tensors.get("img_emb.emb_pos")
        self._loop = loop
        config = {**get_default_config(), **config}
        super().__init__("", config, device)
        scheduler = WanStepDistillScheduler(config)
        self.set_scheduler(scheduler)
        scheduler.transformer_infer = None

    def predict(self, latents: torch.Tensor, timestep: float, clip: Conditioning) -> torch.Tensor:
        """Return the flow [16, T, h, w] float32 for latents [16, T, h, w].

        Args: clip: what it is made from, in bfloat16 on the compute device.
        """
        inputs = {
            "text_encoder_output": {"context": clip.text[None]},
            "image_encoder_output": {
                "clip_encoder_out": self._placed(clip.image_tokens),
                "vae_encoder_out": clip.image_latents,
            },
        }
        self._attend_to_image(0 if clip.image_tokens is None else len(clip.image_tokens))
        scheduler = self.scheduler
        scheduler.latents = latents
        scheduler.timesteps = torch.full((1,), timestep, dtype=torch.float32, device=latents.device)
        scheduler.step_pre(0)
        try:
            flow: torch.Tensor = self._infer_cond_uncond(inputs, infer_condition=True)
        finally:
            scheduler.clear()
        return flow

    def _placed(self, rows: torch.Tensor | None) -> torch.Tensor | None:
        """Return rows of CLIP Vision [n, image_dim] with their learned positions, where there are any.

        As the task "flf2v" does (infer/pre_infer.py), which takes no fewer rows than there are positions.
        """
        if rows is None or self._positions is None:
            return rows
        return rows + self._positions[0, : len(rows)]

    def _attend_to_image(self, num_rows: int) -> None:
        """Say for the next pass how many rows of CLIP Vision there are; a model may go without, as with none."""
        loop = self.transformer_infer
        loop.num_image_rows = num_rows
        self.config[USE_IMAGE_ENCODER] = loop.has_image_context = num_rows > 0

    def release_workspace(self) -> None:
        """Drop what only a pass needs."""
        self.pre_infer.cos_sin = self.transformer_infer.cos_sin = None
        self.transformer_infer.release_workspace()

    def _check_dit_quantized(self) -> None:
        """Allow the ops that we registered."""

    def _init_infer_class(self) -> None:
        super()._init_infer_class()
        self.transformer_infer_class = self._loop

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


class _Loop:
    """LightX2V's own compute on the units of a streamer."""

    streamer: ExpertUnits
    units: Sequence[Unit]
    """To be set before the first pass."""
    num_image_rows: int
    """Of CLIP Vision, before those of the text. To be set before each pass."""
    has_image_context: bool
    infer_func: Any

    def _set_up(self) -> None:
        # A bound method of this very object: a reference cycle.
        del self.infer_func

    def release_workspace(self) -> None:
        """Nothing is kept between passes."""

    def infer_cross_attn(self, phase: Any, x: torch.Tensor, context: torch.Tensor, *others: Any) -> Any:
        """Attend to an image of any number of rows."""
        rows = _Rows(context, self.num_image_rows) if self.has_image_context else context
        return super().infer_cross_attn(phase, x, rows, *others)  # type: ignore[misc]


class _Rows:
    """Rows of an image and of the text after them, [n + m, D], which come apart where the image's end.

    LightX2V cuts them after 257 rows (infer/transformer_infer.py, infer_cross_attn), which is right for one image: the
    rows of a last frame would count as text.
    """

    def __init__(self, context: torch.Tensor, num_image_rows: int) -> None:
        self._image, self._text = context[:num_image_rows], context[num_image_rows:]

    def __getitem__(self, part: slice) -> torch.Tensor:
        return self._image if part.start is None else self._text


class BlockLoop(_Loop, WanTransformerInfer):  # type: ignore[misc]
    """A unit is a block."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self._set_up()

    def infer_main_blocks(self, blocks: Any, pre_infer_out: Any) -> torch.Tensor:
        x: torch.Tensor = pre_infer_out.x
        for number, unit in enumerate(self.units):
            self.block_idx = unit.block
            block = blocks[unit.block]
            with self.streamer.unit(number) as tensors:
                _fill(block, unit.block, tensors)
                x = self.run_block(unit.block, block, x, pre_infer_out)
        return x


class PhaseLoop(_Loop, WanOffloadTransformerInfer):  # type: ignore[misc]
    """A unit is a phase: self-attention, cross-attention or feed-forward."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self._set_up()
        self.phase_params: dict[str, torch.Tensor | None] = {}

    def release_workspace(self) -> None:
        self.phase_params = {}

    def infer_main_blocks(self, blocks: Any, pre_infer_out: Any) -> torch.Tensor:
        x: torch.Tensor = pre_infer_out.x
        for number, unit in enumerate(self.units):
            (phase,) = unit.phases
            module = blocks[unit.block].compute_phases[phase]
            with self.streamer.unit(number) as tensors:
                _fill(module, unit.block, tensors)
                x = self.run_phase(unit.block, phase, module, x, pre_infer_out)
            if phase == self.phases_num - 1:
                # What the phases hand on is as large as the activations; let it go between blocks.
                self.phase_params = dict.fromkeys(self.phase_params)
        return x


def _fill(module: Any, block: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a block or phase of LightX2V its weights, named as under `blocks.<i>.`."""
    module.load({f"blocks.{block}.{name}": tensor for name, tensor in tensors.items()})
