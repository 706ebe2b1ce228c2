"""ComfyUI's own nodes that the example workflows use, for runs without ComfyUI.

Ids, inputs, their order and defaults are those of ComfyUI 0.3.64; a value one of them cannot honour here is an error.
CLIPLoader, CLIPTextEncode, VAELoader and VAEDecode are backed by this pack's text encoder and decoder, so the same
weights give the same conditioning and frames as the pack's own nodes; in ComfyUI they are ComfyUI's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ...engine import pipeline
from ...engine.adapters.comfy import formats, progress
from ...engine.adapters.comfy.vae import LightX2VVAE
from ...engine.sentences.tools import Saving, Workflows
from ...engine.settings import OffloadSettings
from ..mp4 import to_bytes, write_mp4
from ..saving import problem_of_file, save
from .errors import WorkflowError

_MAX_RESOLUTION = 16384
_PREFIX = "filename_prefix"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Video:
    """A VIDEO value: frames [F, H, W, 3] in [0, 1] and their rate."""

    images: torch.Tensor
    frame_rate: Fraction


class EmptyHunyuanLatentVideo(io.ComfyNode):
    """An empty video LATENT of 16 channels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EmptyHunyuanLatentVideo",
            display_name="EmptyHunyuanLatentVideo",
            inputs=[
                io.Int.Input("width", default=848, min=16, max=_MAX_RESOLUTION, step=16),
                io.Int.Input("height", default=480, min=16, max=_MAX_RESOLUTION, step=16),
                io.Int.Input("length", default=25, min=1, max=_MAX_RESOLUTION, step=4),
                io.Int.Input("batch_size", default=1, min=1, max=4096),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, width: int, height: int, length: int, batch_size: int = 1) -> io.NodeOutput:
        return io.NodeOutput({"samples": torch.zeros(batch_size, 16, (length - 1) // 4 + 1, height // 8, width // 8)})


class LoadImage(io.ComfyNode):
    """Load one picture: a file of the input folder, or any path."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = Path(folder_paths.get_input_directory())
        names = sorted(file.name for file in folder.glob("*") if file.suffix.lower() in _PICTURES)
        return io.Schema(
            node_id="LoadImage",
            display_name="Load Image",
            inputs=[io.Combo.Input("image", options=names, upload=io.UploadType.image)],
            outputs=[io.Image.Output(), io.Mask.Output()],
        )

    @classmethod
    def validate_inputs(cls, image: str | None = None) -> bool | str:
        is_there = image is None or Path(folder_paths.get_annotated_filepath(image)).is_file()
        return is_there or Workflows.NO_PICTURE(image=image, folder=folder_paths.get_input_directory())

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        path = folder_paths.get_annotated_filepath(image)
        try:
            file = Image.open(path)
        except UnidentifiedImageError as error:
            raise WorkflowError(Workflows.ODD_PICTURE(path=path)) from error
        with file:
            picture = ImageOps.exif_transpose(file)
            colours = picture.convert("RGB")
            alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
        mask = torch.zeros(1, 64, 64) if alpha is None else 1 - _values(alpha, 1)[..., 0]
        return io.NodeOutput(_values(colours, 3), mask)


class CLIPLoader(io.ComfyNode):
    """Load a text encoder; only umT5 for Wan here."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLIPLoader",
            display_name="Load CLIP",
            inputs=[
                io.Combo.Input("clip_name", options=folder_paths.get_filename_list("text_encoders")),
                io.Combo.Input("type", options=["wan"]),
                io.Combo.Input("device", options=["default", "cpu"], optional=True),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, clip_name: str, type: str, device: str = "default") -> io.NodeOutput:
        path = Path(folder_paths.get_full_path_or_raise("text_encoders", clip_name))
        return io.NodeOutput(pipeline.load_text_encoder(path))


class CLIPTextEncode(io.ComfyNode):
    """Encode a prompt on the CPU."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLIPTextEncode",
            display_name="CLIP Text Encode (Prompt)",
            inputs=[io.String.Input("text", multiline=True, dynamic_prompts=True), io.Clip.Input("clip")],
            outputs=[io.Conditioning.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, text: str, clip: Any) -> io.NodeOutput:
        with progress.reporting(cls.hidden.unique_id) as hooks:
            rows = pipeline.encode_text(clip, text, hooks=hooks)
        return io.NodeOutput(formats.make_conditioning(rows))


class VAELoader(io.ComfyNode):
    """Load the Wan2.1 VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VAELoader",
            display_name="Load VAE",
            inputs=[io.Combo.Input("vae_name", options=folder_paths.get_filename_list("vae"))],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        path = Path(folder_paths.get_full_path_or_raise("vae", vae_name))
        return io.NodeOutput(LightX2VVAE(pipeline.load_vae(path, offload=OffloadSettings())))


class VAEDecode(io.ComfyNode):
    """Decode a LATENT to frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VAEDecode",
            display_name="VAE Decode",
            inputs=[io.Latent.Input("samples"), io.Vae.Input("vae")],
            outputs=[io.Image.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], vae: Any) -> io.NodeOutput:
        with progress.reporting(cls.hidden.unique_id) as hooks:
            frames = pipeline.decode(vae.lightx2v_handle, formats.latent_samples(samples), hooks=hooks)
        return io.NodeOutput(frames)


class CreateVideo(io.ComfyNode):
    """Give frames a rate."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CreateVideo",
            display_name="Create Video",
            inputs=[
                io.Image.Input("images"),
                io.Float.Input("fps", default=30.0, min=1.0, max=120.0, step=1.0),
                io.Audio.Input("audio", optional=True),
            ],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, fps: float) -> io.NodeOutput:
        return io.NodeOutput(Video(images=images, frame_rate=Fraction(round(fps * 1000), 1000)))


class SaveVideo(io.ComfyNode):
    """Save a VIDEO as h264 in mp4, with the workflow in its metadata as ComfyUI stores it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveVideo",
            display_name="Save Video",
            inputs=[
                io.Video.Input("video"),
                io.String.Input("filename_prefix", default="video/ComfyUI"),
                io.Combo.Input("format", options=["auto", "mp4"], default="auto"),
                io.Combo.Input("codec", options=["auto", "h264"], default="auto"),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return _prefix_problem(filename_prefix, "output", ".mp4") or True

    @classmethod
    def execute(cls, video: Video, filename_prefix: str, format: str, codec: str) -> io.NodeOutput:
        _, height, width, _ = video.images.shape
        folder, name, counter, subfolder = _find_place(filename_prefix, "output", width, height)
        file = f"{name}_{counter:05}_.mp4"
        metadata = {key: json.dumps(value) for key, value in _metadata(cls.hidden).items()}

        def write(path: Path) -> None:
            write_mp4(
                path,
                video.images,
                video.frame_rate,
                metadata=metadata,
                check_interrupt=comfy.model_management.throw_exception_if_processing_interrupted,
            )

        save({Path(folder, file): write})
        return io.NodeOutput(ui=_shown_files([file], subfolder, "output") | {"animated": (True,)})


class SaveImage(io.ComfyNode):
    """Save frames as PNG files, with the workflow in their metadata."""

    folder_type = "output"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveImage",
            display_name="Save Image",
            inputs=[io.Image.Input("images"), io.String.Input("filename_prefix", default="ComfyUI")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return _prefix_problem(filename_prefix, cls.folder_type, ".png") or True

    @classmethod
    def execute(cls, images: torch.Tensor, filename_prefix: str = "ComfyUI") -> io.NodeOutput:
        _, height, width, _ = images.shape
        folder, name, counter, subfolder = _find_place(filename_prefix, cls.folder_type, width, height)
        info = PngInfo()
        for key, value in _metadata(cls.hidden).items():
            info.add_text(key, json.dumps(value))
        files = [f"{name}_{counter + index:05}_.png" for index in range(len(images))]

        def write(image: torch.Tensor) -> Callable[[Path], None]:
            return lambda path: Image.fromarray(to_bytes(image)).save(path, pnginfo=info, compress_level=4)

        save({Path(folder, file): write(image) for file, image in zip(files, images, strict=True)})
        return io.NodeOutput(ui=_shown_files(files, subfolder, cls.folder_type))


class PreviewImage(SaveImage):
    """Save frames as PNG files in the folder for temporary files."""

    folder_type = "temp"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PreviewImage",
            display_name="Preview Image",
            inputs=[io.Image.Input("images")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )


CORE_NODES = (
    LoadImage,
    EmptyHunyuanLatentVideo,
    CLIPLoader,
    CLIPTextEncode,
    VAELoader,
    VAEDecode,
    CreateVideo,
    SaveVideo,
    SaveImage,
    PreviewImage,
)


def _values(picture: Image.Image, channels: int) -> torch.Tensor:
    """Return the bytes of a picture as [1, H, W, channels] in [0, 1]."""
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.view(1, picture.height, picture.width, channels).float() / 255


def _prefix_problem(prefix: str | None, folder_type: str, suffix: str) -> str | None:
    """Return a sentence that says why nothing can be saved under a prefix, or None; a linked one is not known yet."""
    if prefix is None:
        return None
    root, path = folder_paths.get_directory_by_type(folder_type), os.path.normpath(prefix)
    folder = os.path.abspath(os.path.join(root, os.path.dirname(path)))
    if not Path(folder).is_relative_to(os.path.abspath(root)):
        return Saving.CHOOSE(option=_PREFIX, reason=Saving.OUTSIDE(prefix=prefix))
    return problem_of_file(Path(folder, f"{os.path.basename(path)}_00001_{suffix}"), _PREFIX)


def _find_place(prefix: str, folder_type: str, width: int, height: int) -> tuple[str, str, int, str]:
    """Return folder, name, number and sub-folder of the next file; of a folder that cannot be made too."""
    root = folder_paths.get_directory_by_type(folder_type)
    try:
        return folder_paths.get_save_image_path(prefix, root, width, height)[:4]
    except OSError:
        subfolder, name = os.path.split(os.path.normpath(prefix))
        return os.path.join(root, subfolder), name, 1, subfolder


def _metadata(hidden: Any) -> dict[str, Any]:
    return {**(hidden.extra_pnginfo or {}), "prompt": hidden.prompt}


def _shown_files(files: list[str], subfolder: str, folder_type: str) -> dict[str, Any]:
    return {"images": [{"filename": file, "subfolder": subfolder, "type": folder_type} for file in files]}
