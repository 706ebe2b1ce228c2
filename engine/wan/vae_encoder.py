"""Wan2.1's VAE encoder, of the layers of vae_layers.py.

It has two parts: `encode` runs all that is larger than the latents, each of whose cells sees 4.5 cells far, so that
it may be given a part of the picture; `finish` the rest, which needs the whole picture (the attention) or is small.

Architecture and names: Wan2.1 wan/modules/vae.py, Encoder3d.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch.nn import functional

from ..checkpoints.formats import VaeFormat
from ..kernels.vae_ops import VaeOps
from .vae_layers import CausalLayers, Rings, Shape, add_layer, add_middle, add_residual, halving_conv2d

_COLOURS = 3
# Channels of a frame where the first convolution reads it: the colours, and zeros. Tensor cores take eight at once.
_PADDED_COLOURS = 8
_FIRST, _HEAD = "encoder.conv1", "encoder.head.2"


class WanEncoder(CausalLayers):
    """The encoder of one file.

    Args:
        tensors: as encoder_shapes names them, on one device and of one float type.
        sizes: of the same file.
        ops: vae_ops.select_ops of the same device.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], sizes: VaeFormat, ops: VaeOps) -> None:
        super().__init__(tensors, ops)
        first = f"{_FIRST}.weight"
        self._tensors[first] = functional.pad(self._tensors[first], (0, _PADDED_COLOURS - _COLOURS))
        self._stages = _stages(sizes)

    def encode(self, frames: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Encode frames [8h, 8w, 3] in [-1, 1], of the tensors' type, of a clip or of a part of its picture.

        Yields:
            features [h, w, channels] of each latent frame: with the first frame, and with every fourth after it.
        """
        rings = Rings()
        for frame in frames:
            features = self._descend(frame, rings)
            if features is not None:
                yield features

    def finish(self, features: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Run what sees the whole picture, on features [h, w, channels] of each latent frame of a clip.

        Yields:
            the mean [h, w, 16] of each latent frame, un-normalized.
        """
        rings = Rings()
        blocks, _ = self._stages[-1]
        for x in features:
            x = x.contiguous()
            for name in blocks:
                x = self._residual(name, x, rings)
            x = self._middle("encoder.middle", x, rings)
            x = self._convolve(_HEAD, self._activate(_HEAD, x, None, "encoder.head.0.gamma", rings), with_bias=True)
            # The second half is the logarithm of the variance.
            mean, _ = self._linear("conv1", x).chunk(2, dim=-1)
            yield mean

    def _descend(self, frame: torch.Tensor, rings: Rings) -> torch.Tensor | None:
        """Run a frame through all stages but the last; None where its latent frame needs later frames."""
        ring = rings.of(_FIRST, frame, _PADDED_COLOURS)
        ring.advance()[..., :_COLOURS].copy_(frame)
        x = self._convolve(_FIRST, ring, with_bias=True)
        for blocks, downsampler in self._stages[:-1]:
            for name in blocks:
                x = self._residual(name, x, rings)
            reduced = self._reduce(downsampler, x, rings)
            if reduced is None:
                return None
            x = reduced
        return x

    def _reduce(self, name: str, x: torch.Tensor, rings: Rings) -> torch.Tensor | None:
        """Halve height and width and, where the stage does, the frames; None for a frame that waits for the next one.

        The clip's first frame stays one.
        """
        x = halving_conv2d(x, self._tensors[f"{name}.resample.1.weight"], self._tensors[f"{name}.resample.1.bias"])
        if f"{name}.time_conv.weight" not in self._tensors:
            return x
        ring = rings.of(f"{name}.time_conv", x)
        ring.advance().copy_(x)
        if ring.count == 1:
            return x
        return self._convolve(f"{name}.time_conv", ring, with_bias=True) if ring.count % 2 else None


def encoder_shapes(sizes: VaeFormat) -> dict[str, Shape]:
    """Return the encoder's tensors by native name."""
    widths = [sizes.base_dim * factor for factor in sizes.dim_mult]
    moments = 2 * sizes.z_dim
    found: dict[str, Shape] = {"encoder.head.0.gamma": (widths[-1], 1, 1, 1)}
    add_layer(found, _FIRST, (sizes.base_dim, _COLOURS, 3, 3, 3))
    inputs, halves = sizes.base_dim, iter(sizes.temporal_downsample)
    for (blocks, downsampler), width in zip(_stages(sizes), widths, strict=True):
        for name in blocks:
            add_residual(found, name, inputs, width)
            inputs = width
        if downsampler:
            add_layer(found, f"{downsampler}.resample.1", (width, width, 3, 3))
            if next(halves):
                add_layer(found, f"{downsampler}.time_conv", (width, width, 3, 1, 1))
    add_middle(found, "encoder.middle", widths[-1])
    add_layer(found, _HEAD, (moments, widths[-1], 3, 3, 3))
    add_layer(found, "conv1", (moments, moments, 1, 1, 1))
    return found


def _stages(sizes: VaeFormat) -> list[tuple[list[str], str]]:
    """Return each stage's residual blocks and the downsampler behind them ("" for the last)."""
    blocks, last = sizes.num_res_blocks, len(sizes.dim_mult) - 1
    firsts = [stage * (blocks + 1) for stage in range(last + 1)]
    return [
        (
            [f"encoder.downsamples.{index}" for index in range(first, first + blocks)],
            f"encoder.downsamples.{first + blocks}" if stage < last else "",
        )
        for stage, first in enumerate(firsts)
    ]
