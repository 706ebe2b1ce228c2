"""The portable VAE decoder: diffusers' WanDecoder3d with native Wan2.1 weights, one latent frame at a time.

Only the decoder: the encoder's weights are never read. Tiles, the result tensor and batches are
stages/decode.py and pipeline.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError
from ...interfaces import Hooks
from ...latent_space import denormalise
from ...logic.checkpoint_formats import VaeFormat, detect_vae
from ...logic.safetensors_header import Header
from .. import system
from ..weights import open_weights

# diffusers' names and the native ones, without the decoder's stages.
_MODULES = {
    "post_quant_conv.": "conv2.",
    "decoder.conv_in.": "decoder.conv1.",
    "decoder.mid_block.resnets.0.": "decoder.middle.0.",
    "decoder.mid_block.attentions.0.": "decoder.middle.1.",
    "decoder.mid_block.resnets.1.": "decoder.middle.2.",
    "decoder.norm_out.": "decoder.head.0.",
    "decoder.conv_out.": "decoder.head.2.",
}
_RESIDUAL_PARTS = {
    "norm1.": "residual.0.",
    "conv1.": "residual.2.",
    "norm2.": "residual.3.",
    "conv2.": "residual.6.",
    "conv_shortcut.": "shortcut.",
}


class PortableVideoDecoder:
    """Implements interfaces.VideoDecoder on any torch device.

    Args:
        path: Wan2.1_VAE.pth, a LightVAE, or a safetensors file with the same names.
        device: where to compute; by default the GPU in use, else the CPU.

    Raises:
        CheckpointError: the file is damaged or is not a Wan2.1 VAE.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        self._path = path
        self._device = device or system.compute_device()
        self._dtype = _compute_dtype(self._device)
        self._vae: Any = None
        weights = open_weights([path])
        self._format = detect_vae(weights.header, str(path))
        weights.close()

    @property
    def device(self) -> torch.device:
        return self._device

    def load(self, hooks: Hooks) -> None:
        """Read the decoder's weights; does nothing when they are there already.

        Raises:
            CheckpointError: tensors of the decoder are missing or have wrong shapes.
        """
        if self._vae is not None:
            return
        vae = _build_on_meta(self._format)
        modules = _MODULES | _stage_modules(self._format)
        shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
        native = {name: _native_name(name, modules) for name in shapes}
        weights = open_weights([self._path], self._format.prefix)
        _check_shapes(self._path, weights.header, {native[name]: shape for name, shape in shapes.items()})
        state = {}
        for name in shapes:
            hooks.check_interrupt()
            state[name] = weights[native[name]].to(self._device, self._dtype)
        weights.close()
        vae.load_state_dict(state, assign=True)
        self._vae = vae

    def unload(self) -> None:
        self._vae = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def decode_chunks(self, latents: torch.Tensor, hooks: Hooks) -> Iterator[torch.Tensor]:
        """Decode normalised latents [16, T, h, w] one latent frame at a time.

        The causal convolutions keep their last two input frames from chunk to chunk, which is all that the next
        one needs of the past. diffusers' own decode does the same but joins all frames on the device.

        Yields:
            frames [1 or 4, H, W, 3] float32 in [0, 1] on `device`.
        """
        assert self._vae is not None, "decode_chunks before load"
        decoder = self._vae.decoder
        # At least one entry a causal convolution; there are fewer of those than modules.
        cache: list[Any] = [None] * sum(1 for _ in decoder.modules())
        num_chunks = latents.shape[1]
        for index in range(num_chunks):
            hooks.check_interrupt()
            latent = denormalise(latents[:, index : index + 1].to(self._device))
            hidden = self._vae.post_quant_conv(latent[None].to(self._dtype))
            decoded = decoder(hidden, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)
            yield ((decoded[0].permute(1, 2, 3, 0).float() + 1) / 2).clamp_(0, 1)
            hooks.on_progress(index + 1, num_chunks, "decoding frames")

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "portable",
            "vae": self._path.name,
            "vae_dim": self._format.base_dim,
            "dtype": str(self._dtype).removeprefix("torch."),
            "device": str(self._device),
        }


def _compute_dtype(device: torch.device) -> torch.dtype:
    """Return the type to decode in.

    GPU: 16 bits run on tensor cores and halve the activations, nearly all of the decode's memory. bfloat16 is
    what LightX2V and ComfyUI decode in; cards before Ampere have no bfloat16 convolutions, there ComfyUI takes
    float16. CPU: float32, since a processor without bfloat16 instructions took 500 times as long for a bfloat16
    Conv3d (oneDNN limited to AVX2: 27 s against 0.05 s).
    """
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def _build_on_meta(sizes: VaeFormat) -> Any:
    """Return diffusers' autoencoder without its encoder and without bytes."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan(
            base_dim=sizes.base_dim,
            z_dim=sizes.z_dim,
            dim_mult=list(sizes.dim_mult),
            num_res_blocks=sizes.num_res_blocks,
            temperal_downsample=list(sizes.temporal_downsample),
        )
    del vae.encoder, vae.quant_conv
    return vae.requires_grad_(False).eval()


def _stage_modules(sizes: VaeFormat) -> dict[str, str]:
    """Name the decoder's stages, each some residual blocks and an upsampler: nested in diffusers, else in one row."""
    parts = [*(f"resnets.{index}" for index in range(sizes.num_res_blocks + 1)), "upsamplers.0"]
    return {
        f"decoder.up_blocks.{stage}.{part}.": f"decoder.upsamples.{stage * len(parts) + index}."
        for stage in range(len(sizes.dim_mult))
        for index, part in enumerate(parts)
    }


def _native_name(name: str, modules: Mapping[str, str]) -> str:
    """Return the name in the file of a tensor of diffusers' autoencoder."""
    module = next(module for module in modules if name.startswith(module))
    rest = name.removeprefix(module)
    part = next((part for part in _RESIDUAL_PARTS if rest.startswith(part)), "")
    return modules[module] + _RESIDUAL_PARTS.get(part, "") + rest.removeprefix(part)


def _check_shapes(path: Path, header: Header, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless the file holds exactly the expected tensors of a decoder."""
    found = {name: info.shape for name, info in header.items() if name.startswith(("decoder.", "conv2."))}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"The decoder in {path} is not that of a Wan2.1 VAE: {len(wrong)} tensors are missing, superfluous or of "
            f"another shape, first {name}: found {found.get(name, 'nothing')}, expected "
            f"{expected.get(name, 'nothing')}. Download Wan2.1_VAE.pth or wan_2.1_vae.safetensors again."
        )
