"""How long a list takes with workers of different speed: plain arithmetic."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def seconds_left(num_waiting: int, workers: Sequence[tuple[float, float]]) -> float:
    """Return the seconds until all clips are made, each by whoever is free first.

    Args:
        num_waiting: clips that nobody has begun.
        workers: of each: seconds until it is free, and the seconds that it takes for a clip.
    """
    last = max((free for free, _ in workers), default=0.0)
    # The one that would be done first takes the next.
    ends = [(free + seconds, seconds) for free, seconds in workers]
    heapq.heapify(ends)
    for _ in range(num_waiting if ends else 0):
        end, seconds = ends[0]
        last = max(last, end)
        heapq.heapreplace(ends, (end + seconds, seconds))
    return last


def is_better_left(num_waiting: int, seconds: float, others: Sequence[tuple[float, float]]) -> bool:
    """Say whether a worker that takes so long for a clip is to leave the last ones to the others.

    Args:
        num_waiting: clips that nobody has begun.
        seconds: that the worker takes for one.
        others: see `seconds_left`.
    """
    return bool(others) and seconds_left(num_waiting, others) <= seconds
