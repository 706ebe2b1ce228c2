"""Durations."""

from __future__ import annotations

from . import Sentence


class Quantities:
    """How long it takes, as one reads it."""

    # quantities.py
    SECONDS = Sentence("{seconds} s")
    MINUTES = Sentence("{minutes} min {seconds} s")
    HOURS = Sentence("{hours} h {minutes} min")
