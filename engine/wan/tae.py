"""The tiny autoencoder (taew2_1, lighttaew2_1): a fiftieth of the work of Wan2.1's, for previews.

Each of its blocks sees the frame before through a memory of one frame, so that a clip can be decoded and encoded a
latent frame at a time. Layers and names are those of checkpoints/tae.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from ..checkpoints.tae import (
    ENCODER_INPUT_LAYER,
    ENCODER_OUTPUT_LAYER,
    ENCODER_STAGES,
    INPUT_LAYER,
    OUTPUT_LAYER,
    STAGES,
    TaeFormat,
)

Memory = dict[int, torch.Tensor]


class _Layers:
    """Layers of one file by name.

    Args:
        tensors: by name, on one device and of one float type.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = {
            name: tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
            for name, tensor in tensors.items()
        }

    def _block(self, part: str, index: int, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        before = memory[index] if index in memory else torch.zeros_like(x[:1])
        past = torch.cat([before, x[:-1]])
        memory[index] = x[-1:].clone()
        y = self._conv(f"{part}.{index}.conv.0", torch.cat([x, past], dim=1)).relu_()
        y = self._conv(f"{part}.{index}.conv.2", y).relu_()
        return self._conv(f"{part}.{index}.conv.4", y).add_(x).relu_()

    def _conv(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = self._tensors[f"{name}.weight"]
        bias = self._tensors.get(f"{name}.bias")
        return functional.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)


class TaeDecoder(_Layers):
    """Decodes latents [n, 16, h, w] to frames [4n, 3, 8h, 8w], and remembers in `memory` what the next ones need.

    Its tensors are those of TaeFormat.shapes.
    """

    def decode(self, latents: torch.Tensor, memory: Memory) -> torch.Tensor:
        """Decode some latent frames; a new clip starts with an empty `memory`."""
        x = torch.tanh(latents / 3) * 3
        x = self._conv(f"decoder.{INPUT_LAYER}", x).relu_()
        for stage in STAGES:
            for block in stage.blocks:
                x = self._block("decoder", block, x, memory)
            # Upstream enlarges first; for a 1x1 convolution the order makes no difference but a quarter of the work.
            grown = self._conv(f"decoder.{stage.grow}.conv", x).reshape(-1, *x.shape[1:])
            x = functional.interpolate(grown, scale_factor=2, mode="nearest")
            x = self._conv(f"decoder.{stage.shrink}", x)
        return self._conv(f"decoder.{OUTPUT_LAYER}", x.relu_())


class TaeEncoder(_Layers):
    """Encodes frames [4n, 3, 8h, 8w] to latents [n, 16, h, w], and remembers in `memory` what the next ones need.

    Its tensors are those of TaeFormat.encoder_shapes.
    """

    def encode(self, frames: torch.Tensor, memory: Memory) -> torch.Tensor:
        """Encode the frames in [0, 1] of some latent frames; a new clip starts with an empty `memory`."""
        x = self._conv(f"encoder.{ENCODER_INPUT_LAYER}", frames).relu_()
        for stage in ENCODER_STAGES:
            x = x.reshape(-1, stage.frames * x.shape[1], *x.shape[2:])
            x = self._conv(f"encoder.{stage.pool}.conv", x)
            x = self._conv(f"encoder.{stage.shrink}", x, stride=2)
            for block in stage.blocks:
                x = self._block("encoder", block, x, memory)
        return self._conv(f"encoder.{ENCODER_OUTPUT_LAYER}", x)


def expected_shapes(sizes: TaeFormat, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the tensors to expect in a file; those that make frames may be of more frames than are used."""
    expected = sizes.shapes()
    for stage in STAGES:
        name = f"decoder.{stage.grow}.conv.weight"
        outputs, inputs, *kernel = expected[name]
        stored = found.get(name, (0,))[0]
        if stored > outputs and stored % inputs == 0:
            expected[name] = (stored, inputs, *kernel)
    return expected


def trim(sizes: TaeFormat, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Keep of a tensor that makes more frames than are used the last ones, as upstream does."""
    return tensor[-sizes.shapes()[name][0] :]
