"""Fits of what was measured at a few sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Growth:
    """y = linear * x + other * x**power."""

    linear: float
    other: float
    worst: float
    """Largest relative error of a point."""


def fit(points: Sequence[tuple[float, float]], power: int) -> Growth:
    """Fit y = linear * x + other * x**power by least squares of the relative errors."""
    x = torch.tensor([point[0] for point in points], dtype=torch.float64)
    y = torch.tensor([point[1] for point in points], dtype=torch.float64)
    columns = torch.stack([x, x**power], dim=1)
    # Columns of like size, so that the problem is well conditioned.
    scale = columns.amax(dim=0)
    solution = torch.linalg.lstsq(columns / scale / y[:, None], torch.ones_like(y)[:, None]).solution[:, 0] / scale
    worst = float(((columns @ solution) / y - 1).abs().max())
    return Growth(linear=float(solution[0]), other=float(solution[1]), worst=worst)
