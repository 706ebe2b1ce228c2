"""A picture as a language model server takes it."""

from __future__ import annotations

import base64
import io
import math

import torch
from PIL import Image

# What Wan gives to its own models: wan/utils/prompt_extend.py in https://github.com/Wan-Video/Wan2.2.
_MAX_PIXELS = 512 * 512


def make_data_url(image: torch.Tensor) -> str:
    """Return the first of images [N, H, W, 3], float in [0, 1], as a JPEG of at most 512x512 pixels, as a data URL."""
    pixels = (image[0, :, :, :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    picture = Image.fromarray(pixels)
    scale = math.sqrt(min(1.0, _MAX_PIXELS / (picture.width * picture.height)))
    if scale < 1:
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
