"""Contact sheets: a row of frames for every clip, with what was asked for above it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

_CAPTION_HEIGHT = 16


def draw_sheet(clips: Sequence[torch.Tensor], captions: Sequence[str], *, num_columns: int = 6) -> Image.Image:
    """Draw evenly spaced frames of clips, one clip a row.

    Args:
        clips: each [F, H, W, 3] in [0, 1], all of one size.
        captions: a line of text for each clip.
        num_columns: frames a row.
    """
    num_frames, height, width, _ = clips[0].shape
    sheet = Image.new("RGB", (num_columns * width, len(clips) * (height + _CAPTION_HEIGHT)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        top = row * (height + _CAPTION_HEIGHT)
        pen.text((2, top + 2), caption, fill="black")
        for column in range(num_columns):
            frame = clip[round(column * (num_frames - 1) / (num_columns - 1))]
            image = Image.fromarray((frame.float() * 255).round().clamp(0, 255).byte().cpu().numpy())
            sheet.paste(image, (column * width, top + _CAPTION_HEIGHT))
    return sheet
