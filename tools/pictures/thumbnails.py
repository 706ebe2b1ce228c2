"""Make the template browser's pictures: frames that the tiny checkpoints in demo/ have drawn, under what they show.

python tools thumbnails
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
SIZE, MARGIN, GAP = 640, 20, 8
HEAD, FOOT = 96, 44
FONT, INK, PAPER, QUIET = "DejaVuSans.ttf", "#f2f2f2", "#202124", "#a0a4aa"
# Of a sheet: how high the line above a row of frames is.
LABEL = 16
NOTE = "frames of the tiny demo checkpoint, 64x64"
FILMS, PICTURES, LORA = "sheet.png", "image_to_video.png", "lora.png"
START, ENDS = (0, 2, 5), (0, 3, 5)
# Template -> title, what stands below it, the sheet, its rows, the frames of each.
THUMBNAILS = {
    "1 Wan text to video": ("Text to video", "Wan2.1, 4 steps", FILMS, (0, 1, 3), START),
    "2 Wan image to video": ("Image to video", "the film begins with your picture", PICTURES, (1, 3, 5), START),
    "3 Wan2.2 first and last frame": ("First and last frame", "Wan2.2, two experts, 4 steps", PICTURES, (5, 1), ENDS),
    "4 Wan with native nodes": ("With native nodes", "KSampler and VAEDecode, our model", FILMS, (2, 4, 5), START),
    "5 Wan with LoRAs": ("With LoRAs", "exact on FP8 and INT8 too", LORA, (0, 3, 5), START),
}


def main(arguments: Sequence[str]) -> int:
    """Write example_workflows/*.jpg; returns 0."""
    argparse.ArgumentParser(prog="thumbnails", description=(__doc__ or "").partition("\n")[0]).parse_args(arguments)
    for name, (title, below, sheet, rows, columns) in THUMBNAILS.items():
        with Image.open(ROOT / "demo" / sheet) as image:
            picture = draw(title, below, [[crop(image, row, column) for column in columns] for row in rows])
        picture.save(ROOT / "example_workflows" / f"{name}.jpg", quality=88, optimize=True)
    return 0


def crop(sheet: Image.Image, row: int, column: int) -> Image.Image:
    """Return a frame of a sheet of six frames a row; see demo/train/sheet.py."""
    size = sheet.width // 6
    top = row * (size + LABEL) + LABEL
    return sheet.crop((column * size, top, (column + 1) * size, top + size))


def draw(title: str, below: str, frames: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return a square picture: words above, rows of frames with an arrow from one to the next, a note below."""
    picture = Image.new("RGB", (SIZE, SIZE), PAPER)
    pen = ImageDraw.Draw(picture)
    # To the right: newer editors put a badge over the left corner.
    pen.text((SIZE - MARGIN, 14), title, INK, ImageFont.truetype(FONT, 40), anchor="ra")
    pen.text((SIZE - MARGIN, 64), below, QUIET, ImageFont.truetype(FONT, 20), anchor="ra")
    pen.text((MARGIN, SIZE - FOOT + 12), NOTE, QUIET, ImageFont.truetype(FONT, 15))
    height = (SIZE - HEAD - FOOT - GAP * (len(frames) - 1)) // len(frames)
    across = (SIZE - 2 * MARGIN - 2 * GAP) // len(frames[0])
    side = min(height, across)
    gap = (SIZE - 2 * MARGIN - side * len(frames[0])) // (len(frames[0]) - 1)
    for index, row in enumerate(frames):
        top = HEAD + index * (height + GAP) + (height - side) // 2
        for column, frame in enumerate(row):
            left = MARGIN + column * (side + gap)
            picture.paste(frame.resize((side, side), Image.Resampling.LANCZOS), (left, top))
            if column and gap > 20:
                middle, right = top + side // 2, left - 8
                pen.line((left - gap + 8, middle, right, middle), QUIET, 3)
                pen.polygon(((right, middle), (right - 9, middle - 6), (right - 9, middle + 6)), QUIET)
    return picture
