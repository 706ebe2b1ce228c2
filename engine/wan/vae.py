"""The VAEs, in the engine's conventions: Wan2.1's, pruned LightVAEs included, and the tiny autoencoder TAE.

Encoder and decoder are loaded each by itself. Tiles, the result tensor and batches are stages/decode.py,
stages/encode_video.py and pipeline.py; the networks are vae_decoder.py, vae_encoder.py and tae.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from .. import system
from ..backends.trials import confirm_vae_ops
from ..checkpoints.companions import VaeFiles
from ..checkpoints.content import ContentCheck
from ..checkpoints.formats import VaeFormat
from ..checkpoints.header import Header
from ..checkpoints.tae import FRAMES_PER_LATENT
from ..checkpoints.weights import open_weights
from ..errors import CheckpointError
from ..interfaces import Hooks
from ..kernels.vae_ops import VaeOps
from ..latent_space import denormalize, normalize
from ..sentences.vae import Vae
from . import tae
from .vae_decoder import WanDecoder, decoder_shapes
from .vae_encoder import WanEncoder, encoder_shapes

Shape = tuple[int, ...]

# What tiles are cut from has seen the whole picture; after it a pixel sees 7 cells, and the far ones faintly. At the
# usual overlap of 8 a tile gives up the 3 cells next to its cut: random weights then differ from the whole decode by
# 0.0007 at most, blended over the whole overlap by 0.07. An encoder's tiles are put together before what sees the whole
# picture, and their cells see 4.5 cells far.
_BLEND_SHARE = 0.25
# Names of their tensors begin so.
_DECODER, _ENCODER = ("decoder.", "conv2."), ("encoder.", "conv1.")


class _Part:
    """Encoder or decoder of a file on a device: what both do."""

    def __init__(self, files: VaeFiles, device: torch.device) -> None:
        self._files = files
        self._device = device
        self._dtype = compute_dtype(device)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def blend_share(self) -> float:
        return _BLEND_SHARE if isinstance(self._files.format, VaeFormat) else 1.0

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "portable",
            "vae": self._files.path.name,
            "vae_dim": self._files.base_dim or "TAE",
            "dtype": str(self._dtype).removeprefix("torch."),
            "device": str(self._device),
        }

    @property
    def _is_lighttae(self) -> bool:
        # taew2_1 was trained on normalized latents, lighttaew2_1 on un-normalized ones; only the names differ.
        # Source: LightX2V lightx2v/pipeline.py, need_scaled.
        return "lighttae" in self._files.path.name.lower()

    def _read(self, beginnings: tuple[str, ...], hooks: Hooks) -> dict[str, torch.Tensor]:
        """Return the tensors whose names begin so, on the device."""
        weights = open_weights([self._files.path], _prefix_of(self._files))
        tensors, content = {}, ContentCheck()
        for name in _shapes_in(weights.header, beginnings):
            hooks.check_interrupt()
            stored = weights[name]
            content.look(name, self._files.path, stored, stored.dtype)
            tensors[name] = stored.to(self._device, self._dtype)
        weights.close()
        return tensors


class WanVideoDecoder(_Part):
    """Implements interfaces.VideoDecoder on any torch device."""

    _network: _WanDecoding | _TaeDecoding | None = None

    def load(self, hooks: Hooks) -> None:
        """Read the decoder's weights; does nothing when they are there already.

        Raises:
            CheckpointError: tensors of the decoder are missing or have wrong shapes.
        """
        if self._network is not None:
            return
        check_decoder(self._files)
        # Inside ComfyUI inference mode is on; weights made under it could not be used outside of it.
        with torch.inference_mode(False):
            layout = self._files.format
            if isinstance(layout, VaeFormat):
                operations = confirm_vae_ops(self._device, hooks)
                self._network = _WanDecoding(self._read(_DECODER, hooks), layout, operations)
            else:
                tensors = {name: tae.trim(layout, name, each) for name, each in self._read(_DECODER, hooks).items()}
                self._network = _TaeDecoding(tensors, is_normalized=not self._is_lighttae)

    def unload(self) -> None:
        self._network = None
        system.release_memory(self._device)

    def prepare(self, latents: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        """Return features [channels, T, h, w] on `device`: the part of the decode that needs the whole picture."""
        assert self._network is not None, "prepare before load"
        return self._network.prepare(latents.to(self._device), self._dtype, hooks)

    def decode_chunks(self, features: torch.Tensor, hooks: Hooks) -> Iterator[torch.Tensor]:
        """Decode features from `prepare`, or a part of their picture, one latent frame at a time.

        Yields:
            frames [1 or 4, H, W, 3] float32 on `device`, see interfaces.VideoDecoder.
        """
        assert self._network is not None, "decode_chunks before load"
        chunks = self._network.decode(features)
        for _ in range(features.shape[1]):
            hooks.check_interrupt()
            yield next(chunks)


class WanVideoEncoder(_Part):
    """Implements interfaces.VideoEncoder on any torch device."""

    _network: _WanEncoding | _TaeEncoding | None = None

    def load(self, hooks: Hooks) -> None:
        """Read the encoder's weights; does nothing when they are there already.

        Raises:
            CheckpointError: the file has no encoder, or tensors of it are missing or have wrong shapes.
        """
        if self._network is not None:
            return
        check_encoder(self._files)
        with torch.inference_mode(False):
            layout = self._files.format
            if isinstance(layout, VaeFormat):
                operations = confirm_vae_ops(self._device, hooks)
                self._network = _WanEncoding(self._read(_ENCODER, hooks), layout, operations)
            else:
                self._network = _TaeEncoding(self._read(_ENCODER, hooks), is_normalized=not self._is_lighttae)

    def unload(self) -> None:
        self._network = None
        system.release_memory(self._device)

    def encode_frames(self, frames: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Encode frames [H, W, 3] in [0, 1] on `device` of a clip, or of a part of its picture.

        Yields:
            features [h, w, channels] on `device`, of one latent frame at a time.
        """
        assert self._network is not None, "encode_frames before load"
        return self._network.encode(frames, self._dtype)

    def finish(self, features: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        """Do what needs the whole picture, with features [T, h, w, channels] of `encode_frames`.

        Returns:
            the mean [16, T, h, w] float32 on `device`, un-normalized.
        """
        assert self._network is not None, "finish before load"
        return self._network.finish(features, hooks)


def check_decoder(files: VaeFiles) -> None:
    """Look at the names and shapes of a decoder's tensors.

    Raises:
        CheckpointError: some are missing, superfluous or of another shape.
    """
    found, layout = _find_shapes(files, _DECODER), files.format
    expected = decoder_shapes(layout) if isinstance(layout, VaeFormat) else tae.expected_shapes(layout, found)
    _check_shapes("decoder", files.path, found, expected)


def check_encoder(files: VaeFiles) -> None:
    """Look at the names and shapes of an encoder's tensors.

    Raises:
        CheckpointError: there is no encoder, or its tensors are missing, superfluous or of another shape.
    """
    if not files.has_encoder:
        raise CheckpointError(Vae.NO_ENCODER(path=files.path))
    layout = files.format
    expected = encoder_shapes(layout) if isinstance(layout, VaeFormat) else layout.encoder_shapes()
    _check_shapes("encoder", files.path, _find_shapes(files, _ENCODER), expected)


def _prefix_of(files: VaeFiles) -> str:
    return files.format.prefix if isinstance(files.format, VaeFormat) else ""


class _WanDecoding:
    """Latents and frames of Wan2.1's decoder in the engine's conventions."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], sizes: VaeFormat, operations: VaeOps) -> None:
        self._decoder = WanDecoder(tensors, sizes, operations)

    def prepare(self, latents: torch.Tensor, dtype: torch.dtype, hooks: Hooks) -> torch.Tensor:
        features = []
        for frame in self._decoder.prepare(latents.float().permute(1, 2, 3, 0).to(dtype)):
            features.append(frame)
            hooks.check_interrupt()
        return torch.stack(features).permute(3, 0, 1, 2)

    def decode(self, features: torch.Tensor) -> Iterator[torch.Tensor]:
        for frames in self._decoder.decode(features.permute(1, 2, 3, 0)):
            yield torch.stack(frames).float().add_(1).div_(2)


class _TaeDecoding:
    """Latents and frames of the tiny autoencoder's decoder in the engine's conventions."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], *, is_normalized: bool) -> None:
        self._decoder = tae.TaeDecoder(tensors)
        self._is_normalized = is_normalized

    def prepare(self, latents: torch.Tensor, dtype: torch.dtype, hooks: Hooks) -> torch.Tensor:
        return (normalize(latents) if self._is_normalized else latents).to(dtype)

    def decode(self, features: torch.Tensor) -> Iterator[torch.Tensor]:
        memory: tae.Memory = {}
        for index, latent in enumerate(features.unbind(1)):
            frames = self._decoder.decode(latent[None], memory).permute(0, 2, 3, 1).float()
            # The first latent frame stands for one frame; the three before it are made for the memory only.
            yield frames if index else frames[FRAMES_PER_LATENT - 1 :]


class _WanEncoding:
    """Frames and latents of Wan2.1's encoder in the engine's conventions."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], sizes: VaeFormat, operations: VaeOps) -> None:
        self._encoder = WanEncoder(tensors, sizes, operations)

    def encode(self, frames: Iterable[torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        return self._encoder.encode(frame.float().mul(2).sub_(1).to(dtype) for frame in frames)

    def finish(self, features: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        means = []
        for mean in self._encoder.finish(features):
            means.append(mean.float())
            hooks.check_interrupt()
        return torch.stack(means).permute(3, 0, 1, 2)


class _TaeEncoding:
    """Frames and latents of the tiny autoencoder's encoder in the engine's conventions."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], *, is_normalized: bool) -> None:
        self._encoder = tae.TaeEncoder(tensors)
        self._is_normalized = is_normalized

    def encode(self, frames: Iterable[torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        memory: tae.Memory = {}
        frames = iter(frames)
        while chunk := [frame.to(dtype, copy=True) for frame in islice(frames, FRAMES_PER_LATENT)]:
            # The encoder looks three frames ahead; behind its end a clip stands still, as upstream has it.
            chunk += chunk[-1:] * (FRAMES_PER_LATENT - len(chunk))
            yield self._encoder.encode(torch.stack(chunk).permute(0, 3, 1, 2), memory)[0].permute(1, 2, 0)

    def finish(self, features: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        latents = features.permute(3, 0, 1, 2).float()
        return denormalize(latents) if self._is_normalized else latents


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the type to compute in.

    GPU: 16 bits run on tensor cores and halve the activations, nearly all of a decode's memory. bfloat16 is
    what LightX2V and ComfyUI compute in; cards before Ampere have no bfloat16 convolutions, there ComfyUI takes
    float16. CPU: float32, since a processor without bfloat16 instructions took 500 times as long for a bfloat16
    Conv3d (oneDNN limited to AVX2: 27 s against 0.05 s).
    """
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def _find_shapes(files: VaeFiles, beginnings: tuple[str, ...]) -> dict[str, Shape]:
    weights = open_weights([files.path], _prefix_of(files))
    found = _shapes_in(weights.header, beginnings)
    weights.close()
    return found


def _shapes_in(header: Header, beginnings: tuple[str, ...]) -> dict[str, Shape]:
    return {name: info.shape for name, info in header.items() if name.startswith(beginnings)}


def _check_shapes(part: str, path: Path, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Raise unless the file holds exactly the expected tensors of its encoder or decoder."""
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            Vae.OTHER_TENSORS(
                part=part,
                path=path,
                num_wrong=len(wrong),
                name=name,
                found=found.get(name) or Vae.NOTHING(),
                expected=expected.get(name) or Vae.NOTHING(),
            )
        )
