"""Wan2.1's VAE decoder on native weights, built for speed and little memory.

One frame [height, width, channels] at a time runs through all layers. The last three input frames of a causal
convolution lie in a ring, their channels side by side, so that one 2-D convolution over three times the channels is
the 3-D one, and nothing is joined, padded or moved: tensor cores run it up to twice as fast as the 3-D one.

The decoder has two parts: `prepare` runs what needs the whole picture (the attention) or is small, at the latents'
size; `decode` the rest, whose pixels see 6.25 cells far, so that it may be given a part of the picture.

Architecture and names: Wan2.1 wan/modules/vae.py, Decoder3d.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch.nn import functional

from ..checkpoints.formats import VaeFormat
from ..kernels.vae_ops import VaeOps, normalize

# Frames that a causal convolution sees: its own and the two before.
_SEEN = 3

Shape = tuple[int, ...]


class Ring:
    """The last three input frames of a causal convolution, [height, width, 3, channels]; zeros before the first."""

    def __init__(self, frame: torch.Tensor) -> None:
        height, width, channels = frame.shape
        self.frames = frame.new_zeros(height, width, _SEEN, channels)
        self.newest = _SEEN - 1

    def advance(self) -> torch.Tensor:
        """Return where the next frame [height, width, channels] is to be written, over the oldest one."""
        self.newest = (self.newest + 1) % _SEEN
        return self.frames[:, :, self.newest]


class Rings:
    """The rings of one clip, by the names of their convolutions."""

    def __init__(self) -> None:
        self._rings: dict[str, Ring] = {}

    def of(self, name: str, frame: torch.Tensor) -> Ring:
        """Return the ring of a convolution whose input frames are shaped like `frame`."""
        if name not in self._rings:
            self._rings[name] = Ring(frame)
        return self._rings[name]


class WanDecoder:
    """The decoder of one file.

    Args:
        tensors: as decoder_shapes names them, on one device and of one float type.
        sizes: of the same file.
        ops: vae_ops.select_ops of the same device.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], sizes: VaeFormat, ops: VaeOps) -> None:
        self._tensors = {name: _arrange(name, tensor) for name, tensor in tensors.items()}
        self._ops = ops
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
            x = self._residual("decoder.middle.0", x, rings)
            x = self._attention("decoder.middle.1", x)
            x = self._residual("decoder.middle.2", x, rings)
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
            yield _conv2d(repeated, weight, bias)

    def _residual(self, name: str, x: torch.Tensor, rings: Rings) -> torch.Tensor:
        """Norm, SiLU and convolution, twice; the first bias is added by what comes after its convolution."""
        first, second = f"{name}.residual.2", f"{name}.residual.6"
        y = self._convolve(first, self._activate(first, x, None, f"{name}.residual.0.gamma", rings))
        bias = self._tensors[f"{first}.bias"]
        y = self._convolve(second, self._activate(second, y, bias, f"{name}.residual.3.gamma", rings))
        shortcut = self._linear(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in self._tensors else x
        self._ops.add(y, self._tensors[f"{second}.bias"], shortcut)
        return y

    def _activate(self, name: str, x: torch.Tensor, bias: torch.Tensor | None, gamma: str, rings: Rings) -> Ring:
        """Write norm and SiLU of a frame to the ring of the convolution `name`."""
        ring = rings.of(name, x)
        self._ops.norm_silu(x, bias, self._tensors[gamma], ring.advance())
        return ring

    def _remember(self, name: str, x: torch.Tensor, rings: Rings) -> torch.Tensor:
        """Convolve a frame as it is, with those before it."""
        ring = rings.of(name, x)
        ring.advance().copy_(x)
        return self._convolve(name, ring, with_bias=True)

    def _convolve(self, name: str, ring: Ring, *, with_bias: bool = False) -> torch.Tensor:
        # The oldest frame lies behind the newest one, so the weights are turned to where the frames are.
        weight = self._tensors[f"{name}.weight"].roll(ring.newest + 1, dims=3).flatten(3).permute(0, 3, 1, 2)
        return _conv2d(ring.frames.flatten(2), weight, self._tensors[f"{name}.bias"] if with_bias else None)

    def _attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Attend within the frame, with one head of all channels."""
        rows = normalize(x, self._tensors[f"{name}.norm.gamma"]).flatten(0, 1)[None, None]
        query, key, value = self._linear(f"{name}.to_qkv", rows).chunk(3, dim=-1)
        found = functional.scaled_dot_product_attention(query, key, value)
        return self._linear(f"{name}.proj", found).view_as(x).add_(x)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self._tensors[f"{name}.weight"]
        return functional.linear(x, weight.flatten(1), self._tensors[f"{name}.bias"])


def decoder_shapes(sizes: VaeFormat) -> dict[str, Shape]:
    """Return the decoder's tensors by native name."""
    widths = [sizes.base_dim * factor for factor in reversed(sizes.dim_mult)]
    top, latent = widths[0], sizes.z_dim
    found: dict[str, Shape] = {"decoder.head.0.gamma": (widths[-1], 1, 1, 1)}
    _add_layer(found, "conv2", (latent, latent, 1, 1, 1))
    _add_layer(found, "decoder.conv1", (top, latent, 3, 3, 3))
    _add_residual(found, "decoder.middle.0", top, top)
    found["decoder.middle.1.norm.gamma"] = (top, 1, 1)
    _add_layer(found, "decoder.middle.1.to_qkv", (3 * top, top, 1, 1))
    _add_layer(found, "decoder.middle.1.proj", (top, top, 1, 1))
    _add_residual(found, "decoder.middle.2", top, top)
    inputs, doubles = top, reversed(sizes.temporal_downsample)
    for (upsampler, blocks), width in zip(_stages(sizes), widths, strict=True):
        if upsampler:
            # The upsampler belongs to the stage before, and halves its width.
            before, inputs = inputs, inputs // 2
            _add_layer(found, f"{upsampler}.resample.1", (inputs, before, 3, 3))
            if next(doubles):
                _add_layer(found, f"{upsampler}.time_conv", (2 * before, before, 3, 1, 1))
        for name in blocks:
            _add_residual(found, name, inputs, width)
            inputs = width
    _add_layer(found, "decoder.head.2", (3, widths[-1], 3, 3, 3))
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


def _add_residual(found: dict[str, Shape], name: str, inputs: int, outputs: int) -> None:
    found[f"{name}.residual.0.gamma"] = (inputs, 1, 1, 1)
    _add_layer(found, f"{name}.residual.2", (outputs, inputs, 3, 3, 3))
    found[f"{name}.residual.3.gamma"] = (outputs, 1, 1, 1)
    _add_layer(found, f"{name}.residual.6", (outputs, outputs, 3, 3, 3))
    if inputs != outputs:
        _add_layer(found, f"{name}.shortcut", (outputs, inputs, 1, 1, 1))


def _add_layer(found: dict[str, Shape], name: str, weight: Shape) -> None:
    found[f"{name}.weight"], found[f"{name}.bias"] = weight, weight[:1]


def _arrange(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a norm's gamma as a vector and a convolution's weight with its input channels last.

    Of a weight over three frames these lie in front of the channels: [out, rows, columns, 3, in], as in a ring.
    """
    if name.endswith(".gamma"):
        return tensor.flatten()
    if tensor.dim() == 5 and tensor.shape[2] == _SEEN:
        return tensor.permute(0, 3, 4, 2, 1).contiguous()
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Convolve a frame [height, width, channels] with a weight [out, in, rows, columns], padded to keep its size."""
    padding = (weight.shape[-2] // 2, weight.shape[-1] // 2)
    found = functional.conv2d(x.permute(2, 0, 1)[None], weight, bias, padding=padding)
    return found[0].permute(1, 2, 0).contiguous()
