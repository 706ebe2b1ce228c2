"""The engine's VAE as ComfyUI's type VAE: for every node that decodes or encodes with one.

Only what nodes ask of a VAE is here; planning, tiles and the retry are pipeline.py. ComfyUI's class is the base so that
what newer versions ask of one is answered, but its __init__, which loads weights, is never called.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management as mm
import comfy.sd
import torch

from ... import inputs, pipeline
from ...checkpoints.companions import VaeFiles
from ...constants import LATENT_CHANNELS, VAE_STRIDE
from ...errors import LightX2VError
from ...handles import VaeHandle
from ...memory.clip import Clip
from ...memory.needs import vae_bytes
from ...memory.tiles import Tile
from ...report import attach, records_of
from ...sentences.tensors import Tensors
from ...sentences.vae import Vae
from ...shapes import decoding_problem
from ...wan.vae import compute_dtype
from . import memory, progress
from .host import find_host

logger = logging.getLogger(__name__)

_FRAMES, _ROWS, _COLUMNS = VAE_STRIDE
# A tile has to be four overlaps long, and to overlap by a cell, see memory/tiles.py.
_OVERLAPS_IN_TILE = 4


class LightX2VVAE(comfy.sd.VAE):  # type: ignore[misc]
    """A VAE of Wan2.1's latents that computes through the engine, as planned for the memory that is there.

    Videos of any length take the memory of a few frames, so nothing is ever tiled in time: `tile_t` and `overlap_t`
    have no effect. `tile_x`, `tile_y` and `overlap` have; tiles are square, of the smaller of both.
    """

    def __init__(self, handle: VaeHandle) -> None:
        """Args: handle: files of the VAE; nothing is read of them before the first use."""
        self.lightx2v_handle = handle
        """What the pack's own nodes take."""
        if handle.owner.patcher is None:
            handle.owner.patcher = memory.EnginePatcher(handle.owner)
        self.patcher = handle.owner.patcher
        self.first_stage_model = _Engine()
        self.device = mm.get_torch_device()
        self.output_device = mm.intermediate_device()
        self.vae_dtype = compute_dtype(self.device)
        self.working_dtypes = [self.vae_dtype]
        self.latent_dim, self.latent_channels, self.output_channels = 3, LATENT_CHANNELS, 3
        self.upscale_ratio = _Ratio((lambda frames: max(0, (frames - 1) * _FRAMES + 1), _ROWS, _COLUMNS))
        self.downscale_ratio = _Ratio((lambda frames: max(0, (frames - 1) // _FRAMES + 1), _ROWS, _COLUMNS))
        self.upscale_index_formula = self.downscale_index_formula = VAE_STRIDE
        self.process_input = lambda image: image * 2 - 1
        self.process_output = lambda image: torch.clamp((image + 1) / 2, 0, 1)
        self.memory_used_encode = self._encode_bytes
        self.memory_used_decode = self._decode_bytes
        self.crop_input = True
        self.not_video = self.disable_offload = self.handles_tiling = False
        self.extra_1d_channel = self.pad_channel_value = self.size = self.format_encoded = None
        self.conv_out_channels, self.audio_sample_rate = 3, 44100

    def model_size(self) -> int:
        """Return the bytes that the weights take on the device, or are going to."""
        return int(self.patcher.model_size())

    def decode(self, samples_in: torch.Tensor, vae_options: dict[str, Any] | None = None) -> torch.Tensor:
        """Decode latents [B, 16, T, h, w], un-normalized as in a LATENT, in tiles only where whole does not fit.

        Returns:
            frames [B, F, H, W, 3] in [0, 1] on `output_device`.

        Raises:
            ValueError: the latents are not those of a Wan2.1 video, or there are `vae_options`.
        """
        if vae_options:
            raise ValueError(Vae.NO_OPTIONS(options=", ".join(map(str, vae_options))))
        return self._decode(samples_in, None)

    def decode_tiled(
        self,
        samples: torch.Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> torch.Tensor:
        """Decode in tiles of so many latent cells (8 pixels each), see the class; see `decode`."""
        return self._decode(samples, _tile(tile_x, tile_y, overlap, 1))

    def encode(self, pixel_samples: torch.Tensor, not_video: bool | None = None) -> torch.Tensor:
        """Encode frames [F, H, W, 3] of a clip, or [B, F, H, W, 3], in [0, 1]; in tiles only where whole does not fit.

        Args:
            pixel_samples: the frames.
            not_video: they are pictures, each of which becomes a clip; None is what the attribute says.

        Returns:
            latents [B, 16, T, h, w] on `output_device`: the mean, un-normalized as in a LATENT, of the first 4n+1
            frames and of the middle whose height and width are multiples of 8.

        Raises:
            CheckpointError: the VAE's file holds a decoder only.
            ValueError: these are no frames, or their values are far from 0 to 1.
        """
        return self._encode(pixel_samples, None, not_video)

    def encode_tiled(
        self,
        pixel_samples: torch.Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
        not_video: bool | None = None,
    ) -> torch.Tensor:
        """Encode in tiles of so many pixels, see the class; see `encode`."""
        return self._encode(pixel_samples, _tile(tile_x, tile_y, overlap, _ROWS), not_video)

    def get_sd(self) -> dict[str, Any]:
        """Refuse to be saved.

        Raises:
            LightX2VError: always.
        """
        raise LightX2VError(Vae.NO_SAVING(path=self._files.path))

    @property
    def _files(self) -> VaeFiles:
        return self.lightx2v_handle.files

    def _decode(self, samples: torch.Tensor, tile: Tile | None) -> torch.Tensor:
        if getattr(samples, "is_nested", False):
            raise ValueError(Vae.NESTED_LATENT())
        inputs.check_floats(samples, Tensors.SAMPLES(), Tensors.CONNECT_LATENT())
        problem = decoding_problem(samples.shape)
        if problem:
            raise ValueError(problem)
        with progress.reporting(progress.executing_node()) as hooks:
            frames = pipeline.decode(self.lightx2v_handle, samples, tile=tile, hooks=hooks, host=find_host())
        return self._hand_over(frames.view(len(samples), -1, *frames.shape[1:]))

    def _encode(self, frames: torch.Tensor, tile: Tile | None, not_video: bool | None) -> torch.Tensor:
        inputs.check_pictures(frames, Tensors.FRAMES())
        if frames.dim() == 4 and (self.not_video if not_video is None else not_video):
            frames = frames[:, None]
        with progress.reporting(progress.executing_node()) as hooks:
            latents = pipeline.encode_video(self.lightx2v_handle, frames, tile=tile, hooks=hooks, host=find_host())
        return self._hand_over(latents)

    def _hand_over(self, found: torch.Tensor) -> torch.Tensor:
        """Put a result where ComfyUI wants it, in the float type that newer versions ask for."""
        dtype_of = getattr(super(), "vae_output_dtype", None)
        moved = found.to(self.output_device, found.dtype if dtype_of is None else dtype_of())
        return moved if moved is found else attach(moved, records_of(found))

    def _decode_bytes(self, shape: Any, dtype: torch.dtype) -> int:
        clip = Clip.of_latents(tuple(shape))
        return vae_bytes("decode", clip, self._files.base_dim, None, on_gpu=mm.dtype_size(dtype) == 2)

    def _encode_bytes(self, shape: Any, dtype: torch.dtype) -> int:
        _, _, num_frames, height, width = shape
        clip = Clip(width=width, height=height, num_frames=num_frames)
        return vae_bytes("encode", clip, self._files.base_dim, None, on_gpu=mm.dtype_size(dtype) == 2)


def handle_of(vae: Any) -> VaeHandle | None:
    """Return the handle of a VAE of this pack; None of another's."""
    handle: VaeHandle | None = getattr(vae, "lightx2v_handle", None)
    return handle


class _Engine(torch.nn.Module):
    """Stands where ComfyUI has the network; the engine computes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(Vae.OWN_ENGINE(name=name)) from None


class _Ratio(tuple[Any, ...]):
    """(frames, rows, columns), as ComfyUI has it of a video's VAE; in arithmetic its pixels a cell.

    VAEEncodeForInpaint takes it for a number, as it is of an image's VAE.
    """

    def __rfloordiv__(self, pixels: int) -> int:
        return pixels // int(self[-1])

    def __rmod__(self, pixels: int) -> int:
        return pixels % int(self[-1])

    def __mul__(self, cells: Any) -> Any:
        return cells * int(self[-1])

    __rmul__ = __mul__


def _tile(tile_x: int | None, tile_y: int | None, overlap: int | None, unit: int) -> Tile:
    """Return the tile that a node asked for, as near as tiles can be.

    Args:
        tile_x, tile_y, overlap: in latent cells, or in pixels; None is the usual.
        unit: of these: 1, or pixels a cell.
    """
    usual = Tile()
    asked = min((length // unit for length in (tile_x, tile_y) if length is not None), default=usual.size)
    size = max(asked, _OVERLAPS_IN_TILE)
    shared = usual.overlap if overlap is None else overlap // unit
    found = Tile(size=size, overlap=min(max(shared, 1), size // _OVERLAPS_IN_TILE))
    if (found.size, found.overlap) != (asked, shared):
        numbers = (cells * _ROWS for cells in (found.size, found.overlap, asked, shared))
        pixels = dict(zip(("size", "overlap", "asked", "asked_overlap"), numbers, strict=True))
        logger.info("LightX2V: %s", Vae.OTHER_TILES(**pixels))
    return found
