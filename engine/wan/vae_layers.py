"""Layers that Wan2.1's VAE encoder and decoder share, on native weights, built for speed and little memory.

One frame [height, width, channels] at a time runs through all layers. The last three input frames of a causal
convolution lie in a ring, their channels side by side, so that one 2-D convolution over three times the channels is
the 3-D one, and nothing is joined, padded or moved: tensor cores run it up to twice as fast as the 3-D one.

Architecture and names: Wan2.1 wan/modules/vae.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from ..kernels.vae_ops import VaeOps, normalize

# Frames that a causal convolution sees: its own and the two before.
_SEEN = 3

Shape = tuple[int, ...]


class Ring:
    """The last three input frames of a causal convolution, [height, width, 3, channels]; zeros before the first."""

    def __init__(self, frame: torch.Tensor, channels: int) -> None:
        height, width, _ = frame.shape
        self.frames = frame.new_zeros(height, width, _SEEN, channels)
        self.count = 0
        """Frames that were written since the clip began."""

    @property
    def newest(self) -> int:
        return (self.count - 1) % _SEEN

    def advance(self) -> torch.Tensor:
        """Return where the next frame [height, width, channels] is to be written, over the oldest one."""
        self.count += 1
        return self.frames[:, :, self.newest]


class Rings:
    """The rings of one clip, by the names of their convolutions."""

    def __init__(self) -> None:
        self._rings: dict[str, Ring] = {}

    def of(self, name: str, frame: torch.Tensor, channels: int | None = None) -> Ring:
        """Return the ring of a convolution whose input frames are shaped like `frame`, or have so many channels."""
        if name not in self._rings:
            self._rings[name] = Ring(frame, channels or frame.shape[-1])
        return self._rings[name]


class CausalLayers:
    """Layers of one file by name.

    Args:
        tensors: by native name, on one device and of one float type.
        ops: vae_ops.select_ops of the same device.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], ops: VaeOps) -> None:
        self._tensors = {name: _arrange(name, tensor) for name, tensor in tensors.items()}
        self._ops = ops

    def _middle(self, name: str, x: torch.Tensor, rings: Rings) -> torch.Tensor:
        """Residual block, attention, residual block."""
        x = self._residual(f"{name}.0", x, rings)
        x = self._attention(f"{name}.1", x)
        return self._residual(f"{name}.2", x, rings)

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
        return conv2d(ring.frames.flatten(2), weight, self._tensors[f"{name}.bias"] if with_bias else None)

    def _attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Attend within the frame, with one head of all channels."""
        rows = normalize(x, self._tensors[f"{name}.norm.gamma"]).flatten(0, 1)[None, None]
        query, key, value = self._linear(f"{name}.to_qkv", rows).chunk(3, dim=-1)
        found = functional.scaled_dot_product_attention(query, key, value)
        return self._linear(f"{name}.proj", found).view_as(x).add_(x)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self._tensors[f"{name}.weight"]
        return functional.linear(x, weight.flatten(1), self._tensors[f"{name}.bias"])


def add_residual(found: dict[str, Shape], name: str, inputs: int, outputs: int) -> None:
    """Add the tensors of a residual block to `found`."""
    found[f"{name}.residual.0.gamma"] = (inputs, 1, 1, 1)
    add_layer(found, f"{name}.residual.2", (outputs, inputs, 3, 3, 3))
    found[f"{name}.residual.3.gamma"] = (outputs, 1, 1, 1)
    add_layer(found, f"{name}.residual.6", (outputs, outputs, 3, 3, 3))
    if inputs != outputs:
        add_layer(found, f"{name}.shortcut", (outputs, inputs, 1, 1, 1))


def add_middle(found: dict[str, Shape], name: str, width: int) -> None:
    """Add the tensors of residual block, attention and residual block to `found`."""
    add_residual(found, f"{name}.0", width, width)
    found[f"{name}.1.norm.gamma"] = (width, 1, 1)
    add_layer(found, f"{name}.1.to_qkv", (3 * width, width, 1, 1))
    add_layer(found, f"{name}.1.proj", (width, width, 1, 1))
    add_residual(found, f"{name}.2", width, width)


def add_layer(found: dict[str, Shape], name: str, weight: Shape) -> None:
    """Add weight and bias of a layer to `found`."""
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


def conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Convolve a frame [height, width, channels] with a weight [out, in, rows, columns], padded to keep its size."""
    padding = (weight.shape[-2] // 2, weight.shape[-1] // 2)
    found = functional.conv2d(x.permute(2, 0, 1)[None], weight, bias, padding=padding)
    return found[0].permute(1, 2, 0).contiguous()


def halving_conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve a frame [height, width, channels] with a 3x3 weight at every other pixel, from the first one on.

    Upstream pads a row and a column of zeros at the end only. Padded by two on every side, the first row and column of
    the result are too many, and all others are the same; so the frame needs no copy with zeros around it.
    """
    found = functional.conv2d(x.permute(2, 0, 1)[None], weight, bias, stride=2, padding=2)
    return found[0, :, 1:, 1:].permute(1, 2, 0).contiguous()
