"""LightX2V's VAE decoders: Wan2.1's (pruned LightVAEs included) and the tiny autoencoder TAE.

Only decoders are built, and from the file's own sizes. Tiles, the result tensor and batches are stages/decode.py
and pipeline.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...checkpoints.companions import VaeFiles
from ...checkpoints.formats import VaeFormat
from ...checkpoints.weights import open_weights
from ...errors import CheckpointError
from ...interfaces import Hooks
from ...latent_space import normalize
from ...sentences.lightx2v import LightX2V
from ...system import release_memory
from . import bootstrap


class LightX2VVideoDecoder:
    """Implements interfaces.VideoDecoder."""

    def __init__(self, files: VaeFiles, device: torch.device) -> None:
        self._files = files
        self._format = files.format if isinstance(files.format, VaeFormat) else None
        self._device = device
        # bfloat16 as upstream; on a CPU most processors emulate its convolutions, several hundred times slower.
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._vae: Any = None

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def blend_share(self) -> float:
        # Attention over a tile is not attention over the picture: tiles differ everywhere.
        return 1.0

    def load(self, hooks: Hooks) -> None:
        """Make the weights ready; does nothing when they are already.

        Raises:
            MissingDependencyError, LightX2VError: LightX2V cannot run here, or is another version.
            CheckpointError: tensors of the decoder are missing or have wrong shapes.
        """
        if self._vae is None:
            bootstrap.import_lightx2v()
            hooks.check_interrupt()
            # Inside ComfyUI inference mode is on; weights made under it could not be used outside of it.
            with torch.inference_mode(False):
                vae = _build_tae() if self._format is None else _build_on_meta(self._format)
                self._fill(vae)
            self._vae = vae

    def unload(self) -> None:
        self._vae = None
        release_memory(self._device)

    def prepare(self, latents: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        """Return the latents [16, T, h, w]: LightX2V's decoders have no part of their own for the whole picture."""
        return latents.to(self._device)

    def decode_chunks(self, latents: torch.Tensor, hooks: Hooks) -> Iterator[torch.Tensor]:
        """Decode latents [16, T, h, w]: Wan2.1's decoder a latent frame at a time, TAE all at once.

        Yields:
            frames [f, H, W, 3] float32 on `device`, see interfaces.VideoDecoder.
        """
        assert self._vae is not None, "decode_chunks before load"
        if self._format is None:
            return self._decode_tae(latents, hooks)
        return self._decode_frames(latents, hooks)

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "lightx2v",
            "vae": self._files.path.name,
            "vae_dim": self._files.base_dim or "TAE",
            "dtype": str(self._dtype).removeprefix("torch."),
            "device": str(self._device),
        }

    def _decode_frames(self, latents: torch.Tensor, hooks: Hooks) -> Iterator[torch.Tensor]:
        """Keep the causal convolutions' last two input frames from chunk to chunk, and nothing else."""
        # Un-normalized in fp32 and only then rounded; upstream computes this in bfloat16.
        scaled = latents.to(self._device, self._dtype)
        stream = self._vae.decode_stream(scaled[None], (0.0, 1.0))
        try:
            for _ in range(latents.shape[1]):
                hooks.check_interrupt()
                with torch.no_grad():
                    decoded = next(stream)
                yield (decoded[0].permute(1, 2, 3, 0).float() + 1) / 2
        finally:
            self._vae.clear_decode_cache()

    def _decode_tae(self, latents: torch.Tensor, hooks: Hooks) -> Iterator[torch.Tensor]:
        hooks.check_interrupt()
        # taew2_1 was trained on normalized latents, lighttaew2_1 on un-normalized ones; only the names differ.
        # Source: lightx2v/pipeline.py, need_scaled.
        if "lighttae" not in self._files.path.name.lower():
            latents = normalize(latents.to(self._device))
        frames_first = latents.to(self._device, self._dtype).transpose(0, 1)
        with torch.no_grad():
            decoded = self._vae.decode_video(frames_first[None], parallel=False, show_progress_bar=False)
        yield decoded[0].permute(0, 2, 3, 1).float()

    def _fill(self, vae: Any) -> None:
        prefix = "" if self._format is None else self._format.prefix
        weights = open_weights([self._files.path], prefix)
        missing = [name for name in vae.state_dict() if name not in weights]
        if missing:
            raise CheckpointError(
                LightX2V.DECODER_INCOMPLETE(path=self._files.path, name=missing[0], num_missing=len(missing))
            )
        state = {name: weights[name] for name in vae.state_dict()}
        if self._format is None:
            state = vae.patch_tgrow_layers(state)
        state = {name: tensor.to(self._device, self._dtype) for name, tensor in state.items()}
        weights.close()
        try:
            vae.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise CheckpointError(LightX2V.DECODER_MISFIT(path=self._files.path, error=error)) from error
        vae.eval().requires_grad_(False)


def _build_on_meta(sizes: VaeFormat) -> Any:
    """Return Wan2.1's autoencoder without its encoder and without bytes."""
    from lightx2v.models.video_encoders.hf.wan.vae import WanVAE_

    with torch.device("meta"):
        vae = WanVAE_(
            dim=sizes.base_dim,
            z_dim=sizes.z_dim,
            dim_mult=list(sizes.dim_mult),
            num_res_blocks=sizes.num_res_blocks,
            temperal_downsample=list(sizes.temporal_downsample),
        )
    del vae.encoder, vae.conv1
    return vae


def _build_tae() -> Any:
    """Return the tiny autoencoder without its encoder and without bytes."""
    from lightx2v.models.video_encoders.hf.tae import TAEHV

    with torch.device("meta"):
        tae = TAEHV(checkpoint_path=None)
    del tae.encoder
    return tae
