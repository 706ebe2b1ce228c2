"""What a clip of coloured shapes shows, measured from its pixels alone.

`measure_content` finds the background colour, and of each thing its colour, shape and motion; `compare` says which
of these are as wanted. Nothing here knows how the clip was made: the demo and the tests use it to check that a
generated clip shows what its caption says. How well it measures is tests/unit/test_clip_content.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Name -> red, green, blue in 0..255. Things have one of the first five colours, backgrounds any.
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (45, 80, 220),
    "yellow": (240, 210, 50),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "purple": (140, 60, 170),
}
THING_COLOURS = ("red", "green", "blue", "yellow", "white")
SHAPES = ("circle", "square", "triangle")
MOTIONS = ("left", "right", "up", "down", "growing", "shrinking", "still")
ATTRIBUTES = ("colour", "shape", "background", "motion")

# Largest distance (of red, green, blue in 0..1) at which a pixel counts as having a colour: half the distance of
# the two nearest colours of the table.
_SAME_COLOUR = 0.24
# Smallest share of a frame that a thing covers; specks are smaller.
_SMALLEST_THING = 0.006
# Share of its bounding box that a shape fills: triangle 1/2, circle pi/4, square 1. Upper limits between them.
_FILL_LIMITS = {"triangle": 0.66, "circle": 0.89, "square": 2.0}
# Area at the end over area at the start from which a thing grows, or the inverse shrinks.
_GROWTH = 1.6
# Mean change of a pixel, of 1, that nobody sees: where nothing moves, no change is a jump.
_UNSEEN_CHANGE = 0.003
# Distance from start to end, in widths of the frame, from which a thing moves.
_MOVE = 0.12


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One coloured shape."""

    colour: str
    shape: str
    motion: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a clip shows."""

    background: str
    things: tuple[Thing, ...]
    """Measured: largest first."""


def measure_content(frames: torch.Tensor, thing_colours: Sequence[str] = THING_COLOURS) -> Content:
    """Measure what a clip shows.

    Args:
        frames: [F, H, W, 3] in [0, 1], at least 2 frames.
        thing_colours: names of the colours that things may have.
    """
    names = list(COLOURS)
    distances = _colour_distances(frames)
    distance, nearest = distances.min(dim=-1)
    background = int(_border(nearest).mode().values)
    colours = []
    for index in map(names.index, thing_colours):
        masks = _without_specks((nearest == index) & (distance < _SAME_COLOUR))
        if index != background and masks.float().mean(dim=(1, 2)).median() >= _SMALLEST_THING:
            colours.append(index)
    # Now that the colours are known, a pixel belongs to the nearest of them: mixed colours at an edge find a side.
    owner = distances[..., [background, *colours]].argmin(dim=-1)
    found = []
    for order, index in enumerate(colours, start=1):
        masks = _without_specks(owner == order)
        thing = Thing(colour=names[index], shape=_measure_shape(masks), motion=_measure_motion(masks))
        found.append((float(masks.float().mean()), thing))
    found.sort(key=lambda pair: -pair[0])
    return Content(background=names[background], things=tuple(thing for _, thing in found))


def measure_clarity(frames: torch.Tensor) -> float:
    """Return the share of pixels that have one of the table's colours: low where a clip is blurred or noisy.

    A drawn clip has about 0.98: the edges of its things are mixed colours.
    """
    return float((_colour_distances(frames).amin(dim=-1) < _SAME_COLOUR / 2).float().mean())


def measure_psnr(frames: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio of frames beside those that are wanted, both in [0, 1]: dB, at most 100."""
    return float(-10 * (frames.float() - wanted.float()).square().mean().clamp(min=1e-10).log10())


def measure_jump(frames: torch.Tensor, count: int = 4) -> float:
    """Return how much more frames change at the start of a clip than later on.

    A drawn clip has about 1, with a thing that shrinks up to 1.5; one that leaves its first frame has more than 2.

    Args:
        frames: [F, H, W, 3] in [0, 1].
        count: changes from one frame to the next that are the start.
    """
    changes = frames.float().diff(dim=0).abs().mean(dim=(1, 2, 3)) + _UNSEEN_CHANGE
    return float(changes[:count].max() / changes[count:].max())


def compare(measured: Content, wanted: Content) -> dict[str, bool]:
    """Say for each of ATTRIBUTES whether it is as wanted, for all things of the clip.

    Things are paired by colour; one whose colour is wrong is paired with one that is left over, so that its shape
    and motion still count.
    """
    pairs, left = [], list(measured.things)
    for same_colour in (True, False):
        for thing in wanted.things:
            if any(thing is other for other, _ in pairs):
                continue
            match = next((other for other in left if other.colour == thing.colour or not same_colour), None)
            if match is not None:
                left.remove(match)
                pairs.append((thing, match))
    complete = len(pairs) == len(wanted.things) and not left
    return {
        "colour": complete and all(want.colour == found.colour for want, found in pairs),
        "shape": complete and all(want.shape == found.shape for want, found in pairs),
        "background": measured.background == wanted.background,
        "motion": complete and all(want.motion == found.motion for want, found in pairs),
    }


def _colour_distances(frames: torch.Tensor) -> torch.Tensor:
    """Return the distance of every pixel to every colour of the table, [F, H, W, number of colours]."""
    table = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=frames.device) / 255
    return torch.cdist(frames.float().flatten(0, 2), table).unflatten(0, frames.shape[:3])


def _border(values: torch.Tensor) -> torch.Tensor:
    """Return the outermost sixteenth of frames [F, H, W] on every side, flat."""
    height, width = (max(1, length // 16) for length in values.shape[1:])
    sides = (values[:, :height], values[:, -height:], values[:, :, :width], values[:, :, -width:])
    return torch.cat([side.flatten() for side in sides])


def _without_specks(masks: torch.Tensor) -> torch.Tensor:
    """Keep of masks [F, H, W] the squares of 3x3 pixels that are full, and what is next to them.

    So specks go, and the mixed colours along an edge.
    """
    solid = _spread(~masks, 1)
    return masks & _spread(~solid, 2)


def _spread(masks: torch.Tensor, radius: int) -> torch.Tensor:
    """Set every pixel that has a set one within `radius` rows and columns."""
    for dim in (1, 2):
        spread = masks.clone()
        length = masks.shape[dim]
        for offset in range(1, radius + 1):
            spread.narrow(dim, offset, length - offset).logical_or_(masks.narrow(dim, 0, length - offset))
            spread.narrow(dim, 0, length - offset).logical_or_(masks.narrow(dim, offset, length - offset))
        masks = spread
    return masks


def _measure_shape(masks: torch.Tensor) -> str:
    """Tell the shape by the share of its bounding box that it fills, the median over the frames."""
    fills = []
    for mask in masks[masks.flatten(1).any(dim=1)].float():
        rows, columns = mask.sum(dim=1), mask.sum(dim=0)
        # Rows and columns that hold little do not stretch the box: a stray pixel, the tip of a triangle.
        box = mask[rows > 0.1 * rows.max()][:, columns > 0.1 * columns.max()]
        fills.append(box.mean())
    fill = torch.stack(fills).median()
    return next(shape for shape, limit in _FILL_LIMITS.items() if fill < limit)


def _measure_motion(masks: torch.Tensor) -> str:
    """Tell the motion by area and centre of the first and the last frames that show the thing."""
    masks = masks[masks.flatten(1).any(dim=1)].float()
    count = min(3, len(masks))
    areas = masks.sum(dim=(1, 2))
    growth = areas[-count:].mean() / areas[:count].mean()
    if growth > _GROWTH or growth < 1 / _GROWTH:
        return "growing" if growth > 1 else "shrinking"
    height, width = masks.shape[1:]
    x = (masks.sum(dim=1) * torch.arange(width, device=masks.device)).sum(dim=1) / areas / width
    y = (masks.sum(dim=2) * torch.arange(height, device=masks.device)).sum(dim=1) / areas / height
    dx, dy = (float(path[-count:].mean() - path[:count].mean()) for path in (x, y))
    if max(abs(dx), abs(dy)) < _MOVE:
        return "still"
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"
