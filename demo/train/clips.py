"""Draws captioned clips: coloured shapes that move or change size on a plain background.

Places, sizes and distances are random; colours are exact. Everything is computed for a whole batch at once, with
anti-aliased masks made from distances to the shapes' edges, so a GPU draws thousands of clips a second and no file
is ever needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...tools.clip_content import COLOURS, SHAPES, Content

# Motion -> direction (x to the right, y down) and radius at the start and at the end.
_PATHS = {
    "left": (-1, 0, 1, 1),
    "right": (1, 0, 1, 1),
    "up": (0, -1, 1, 1),
    "down": (0, 1, 1, 1),
    "growing": (0, 0, 0.5, 1),
    "shrinking": (0, 0, 1, 0.5),
    "still": (0, 0, 1, 1),
}
# In widths of the clip: radius of a single thing and of each of two, length of a path, free space around things.
_RADIUS = {1: (0.18, 0.26), 2: (0.155, 0.195)}
_TRAVEL = (0.3, 0.45)
_MARGIN = 0.03
# Half the size of a shape's bounding box, in radii: all three shapes cover similar areas.
_SQUARE_HALF = 0.88
_TRIANGLE_HALF_WIDTH, _TRIANGLE_HALF_HEIGHT = 1.1, 1.0
_LARGEST_HALF = 1.1


def draw_clips(
    contents: Sequence[Content],
    *,
    size: int,
    num_frames: int,
    generator: torch.Generator,
    device: torch.device,
    crop: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Draw one clip for each of `contents`.

    Args:
        contents: what to show; one or two things each, with one motion.
        size: width and height in pixels.
        num_frames: frames of a clip, at least 2.
        generator: CPU generator of places and sizes.
        device: where to draw.
        crop: pixels and frames of a random part to draw instead of the whole clips.

    Returns:
        [B, 3, F, size, size] float32 in [-1, 1].
    """
    places = _place(contents, num_frames, generator)
    corner = torch.zeros(len(contents), 1, 1, 2)
    shown_size, shown_frames = crop or (size, num_frames)
    if crop:
        corner = torch.randint(size - shown_size + 1, corner.shape, generator=generator) / size
        start = int(torch.randint(num_frames - shown_frames + 1, (), generator=generator))
        places = tuple(part[:, :, start : start + shown_frames] for part in places)
    centres, radii = (places[0] - corner).to(device), places[1].to(device)
    palette = torch.tensor(list(COLOURS.values()), device=device, dtype=torch.float32) / 127.5 - 1
    names = list(COLOURS)
    clips = palette[[names.index(content.background) for content in contents]][:, :, None, None, None]
    clips = clips.expand(-1, -1, shown_frames, shown_size, shown_size)
    for index in range(2):
        things = [content.things[min(index, len(content.things) - 1)] for content in contents]
        shapes = torch.tensor([SHAPES.index(thing.shape) for thing in things], device=device)
        colours = palette[[names.index(thing.colour) for thing in things]][:, :, None, None, None]
        masks = _draw_masks(shapes, centres[:, index], radii[:, index], shown_size, size)[:, None]
        clips = clips + masks * (colours - clips)
    return clips


def _place(
    contents: Sequence[Content], num_frames: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return centres [B, 2, F, 2] (x, y) and radii [B, 2, F] in widths of the clip.

    Two things get a half of the frame each, so that they never meet and each has room to move: one above the other
    when they move sideways, else side by side. The one whose colour is first in the table is above or on the left. A
    model that had to choose which goes where would have to make every part of the clip agree on it, and what is not
    agreed on comes out as two things of one colour, or as one. A clip with one thing has it twice, in the same place.
    """

    def uniform(low: torch.Tensor | float, high: torch.Tensor | float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    batch = len(contents)
    path = torch.tensor([_PATHS[content.things[0].motion] for content in contents])
    direction = path[:, None, :2]
    is_pair = torch.tensor([len(content.things) == 2 for content in contents])
    low, high = (torch.where(is_pair, _RADIUS[2][end], _RADIUS[1][end])[:, None] for end in (0, 1))
    radius = uniform(low, high, batch, 2)

    # Halves [B, 2 things, 2 axes], across the motion.
    axis = torch.stack([direction[:, 0, 0] == 0, direction[:, 0, 0] != 0], dim=1)
    is_split = axis[:, None] & is_pair[:, None, None]
    names = list(COLOURS)
    order = [[names.index(thing.colour) for thing in content.things] for content in contents]
    is_swapped = torch.tensor([indices != sorted(indices) for indices in order])
    is_second = is_swapped[:, None, None] ^ torch.tensor([False, True])[None, :, None]
    start = torch.where(is_split & is_second, 0.5, 0.0)
    stop = torch.where(is_split & ~is_second, 0.5, 1.0)

    reach = (radius * _LARGEST_HALF + _MARGIN)[..., None]
    room = stop - start - 2 * reach
    travel = uniform(*_TRAVEL, batch, 1, 1).minimum(room) * direction
    middle = start + reach + travel.abs() / 2 + (room - travel.abs()) * uniform(0, 1, batch, 2, 2)
    time = torch.linspace(0, 1, num_frames)[:, None]
    centres = middle[:, :, None] + travel[:, :, None] * (time - 0.5)
    scale = path[:, 2, None] + (path[:, 3] - path[:, 2])[:, None] * time[:, 0]
    radii = radius[..., None] * scale[:, None]
    single = ~is_pair
    centres[single, 1], radii[single, 1] = centres[single, 0], radii[single, 0]
    return centres, radii


def _draw_masks(
    shapes: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor, shown_size: int, size: int
) -> torch.Tensor:
    """Return how much of each pixel a shape covers, [B, F, shown_size, shown_size] in [0, 1]."""
    pixels = (torch.arange(shown_size, device=shapes.device) + 0.5) / size
    x = (pixels - centres[..., None, 0])[:, :, None, :]
    y = (pixels - centres[..., None, 1])[:, :, :, None]
    radii = radii[..., None, None]
    circle = (x.square() + y.square()).sqrt() - radii
    square = torch.maximum(x.abs(), y.abs()) - _SQUARE_HALF * radii
    half_width, half_height = _TRIANGLE_HALF_WIDTH, _TRIANGLE_HALF_HEIGHT
    # Distance to the slanted sides (tip up), and to the base.
    slope = (4 * half_height**2 + half_width**2) ** 0.5
    sides = (2 * half_height * x.abs() - half_width * (y + half_height * radii)) / slope
    triangle = torch.maximum(sides, y - half_height * radii)
    shapes = shapes[:, None, None, None]
    edge = torch.where(shapes == 0, circle, torch.where(shapes == 1, square, triangle))
    return (0.5 - edge * size).clamp(0, 1)
