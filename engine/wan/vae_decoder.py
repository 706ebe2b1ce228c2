"""Wan2.1's VAE decoder, of the layers of vae_layers.py.

It has two parts: `prepare` runs what needs the whole picture (the attention) or is small, at the latents' size;
`decode` the rest, whose pixels see 6.25 cells far, so that it may be given a part of the picture.

Architecture and names: Wan2.1 wan/modules/vae.py, Decoder3d.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from ..checkpoints.formats import VaeFormat
from ..kernels.vae_ops import VaeOps
from .vae_layers import CausalLayers, Rings, Shape, add_layer, add_middle, add_residual, conv2d


class WanDecoder(CausalLayers):
    """The decoder of one file.

    Args:
        tensors: as decoder_shapes names them, on one device and of one float type.
        sizes: of the same file.
        ops: vae_ops.select_ops of the same device.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], sizes: VaeFormat, ops: VaeOps) -> None:
        super().__init__(tensors, ops)
        self._stages = _stages(sizes)

    def prepare(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Run what sees the whole picture.

        Args:
            latents: [T, h, w, 16] un-normalized.

        Yields:
            features [h, w, channels] of each latent frame.
        """
        rings = Rings()
        _, blocks = self._stages[0]
        for latent in latents:
            x = self._remember("decoder.conv1", self._linear("conv2", latent), rings)
            x = self._middle("decoder.middle", x, rings)
            for name in blocks:
                x = self._residual(name, x, rings)
            yield x

    def decode(self, features: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        """Decode features [h, w, channels] of each latent frame of a clip, or of a part of its picture.

        Yields:
            for each latent frame its frames [8h, 8w, 3] in [-1, 1], not clipped: one for the first, then four.
        """
        rings = Rings()
        for index, x in enumerate(features):
            yield list(self._finish(x.contiguous(), 1, rings, is_first=index == 0))

    def _finish(self, x: torch.Tensor, stage: int, rings: Rings, *, is_first: bool) -> Iterator[torch.Tensor]:
        """Run a frame through all stages from `stage` on; of the frames it becomes one at a time is in work."""
        if stage == len(self._stages):
            ring = self._activate("decoder.head.2", x, None, "decoder.head.0.gamma", rings)
            yield self._convolve("decoder.head.2", ring, with_bias=True)
            return
        upsampler, blocks = self._stages[stage]
        for y in self._enlarge(upsampler, x, rings, is_first=is_first):
            for name in blocks:
                y = self._residual(name, y, rings)
            yield from self._finish(y, stage + 1, rings, is_first=is_first)

    def _enlarge(self, name: str, x: torch.Tensor, rings: Rings, *, is_first: bool) -> Iterator[torch.Tensor]:
        """Double height and width and, where the stage does, the frames; the clip's first frame stays one."""
        frames = [x]
        if f"{name}.time_conv.weight" in self._tensors and not is_first:
            # Its ring starts after the clip's first frame.
            frames = list(self._remember(f"{name}.time_conv", x, rings).chunk(2, dim=-1))
        weight, bias = self._tensors[f"{name}.resample.1.weight"], self._tensors[f"{name}.resample.1.bias"]
        for frame in frames:
            height, width, channels = frame.shape
            repeated = frame[:, None, :, None].expand(-1, 2, -1, 2, -1).reshape(2 * height, 2 * width, channels)
            yield conv2d(repeated, weight, bias)


def decoder_shapes(sizes: VaeFormat) -> dict[str, Shape]:
    """Return the decoder's tensors by native name."""
    widths = [sizes.base_dim * factor for factor in reversed(sizes.dim_mult)]
    top, latent = widths[0], sizes.z_dim
    found: dict[str, Shape] = {"decoder.head.0.gamma": (widths[-1], 1, 1, 1)}
    add_layer(found, "conv2", (latent, latent, 1, 1, 1))
    add_layer(found, "decoder.conv1", (top, latent, 3, 3, 3))
    add_middle(found, "decoder.middle", top)
    inputs, doubles = top, reversed(sizes.temporal_downsample)
    for (upsampler, blocks), width in zip(_stages(sizes), widths, strict=True):
        if upsampler:
            # The upsampler belongs to the stage before, and halves its width.
            before, inputs = inputs, inputs // 2
            add_layer(found, f"{upsampler}.resample.1", (inputs, before, 3, 3))
            if next(doubles):
                add_layer(found, f"{upsampler}.time_conv", (2 * before, before, 3, 1, 1))
        for name in blocks:
            add_residual(found, name, inputs, width)
            inputs = width
    add_layer(found, "decoder.head.2", (3, widths[-1], 3, 3, 3))
    return found


def _stages(sizes: VaeFormat) -> list[tuple[str, list[str]]]:
    """Return the upsampler in front of each stage ("" for the first) and the stage's residual blocks."""
    blocks = sizes.num_res_blocks + 1
    firsts = [stage * (blocks + 1) for stage in range(len(sizes.dim_mult))]
    return [
        (
            f"decoder.upsamples.{first - 1}" if first else "",
            [f"decoder.upsamples.{index}" for index in range(first, first + blocks)],
        )
        for first in firsts
    ]
