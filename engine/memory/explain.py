"""Why nothing fits, in words: what would be needed, what is there, and the largest clips that would fit."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ..constants import GIB
from .clip import Clip
from .needs import Budget, Need, Sizes, sampling_need
from .placement import Placement


def explain_run(sizes: Sizes, budget: Budget, mode: str, best_for: Callable[[Clip], Placement | None]) -> str:
    """Return what to do, what each mode would need, and what is there, a line each.

    Args:
        mode: the offload mode that was chosen.
        best_for: finds the best placement for a clip under mode auto; None where it does not fit.
    """
    cause = "No offload mode has room" if mode == "auto" else f"Offload mode {mode!r} has no room"
    modes = ("none", "block", "phase", "disk") if mode == "auto" else (mode,)
    on_gpu, num_experts = budget.vram is not None, sizes.weights.num_experts
    placements = {each: Placement(mode=each) for each in modes}
    if num_experts > 1:
        placements |= {
            f"{each} with the low-noise expert from its files": Placement(mode=each, reads_second_expert=True)
            for each in modes
            if each in ("block", "phase")
        }
    needs = {name: sampling_need(sizes, each, on_gpu=on_gpu) for name, each in placements.items()}
    there = Need(vram=budget.vram or 0, ram=budget.ram).describe(budget)
    bound = f" More VRAM is free: {budget.vram_limit} keeps the rest." if budget.vram_limit else ""
    lines = [
        _advise(sizes, best_for),
        f"{cause} for {sizes.clip} in {sizes.backends.precision.upper()}. Needed, beside a margin:",
        *(f"  {mode}: {need.describe(budget)}" for mode, need in needs.items()),
        f"There are {there}.{bound}",
    ]
    return "\n".join(lines)


def explain_frames(stage: str, clip: Clip, needed_for: Callable[[Clip], int], budget: Budget) -> str:
    """Return the largest clips that would fit, what the frames need, and what is there.

    Args:
        stage: decode | encode.
        needed_for: the RAM in which the frames of a clip can go through that stage.
    """
    found = _first_fitting((_fewer(clip), _shorter(clip), _smaller(clip)), lambda each: needed_for(each) <= budget.ram)
    advice = f"Use {' or '.join(found)}, or close other programs." if found else "Close other programs."
    return (
        f"{advice}\nThe frames of {clip} do not fit in RAM: {stage[:-1]}ing them takes "
        f"{needed_for(clip) / GIB:.1f} GiB, {budget.ram / GIB:.1f} GiB are free."
    )


def _advise(sizes: Sizes, best_for: Callable[[Clip], Placement | None]) -> str:
    best = best_for(sizes.clip)
    if best is not None:
        described = best.describe(sizes.weights.num_blocks, sizes.weights.num_experts)
        return f"Set the offload mode to 'auto': it fits then ({described})."
    series = (_smaller(sizes.clip), _shorter(sizes.clip))
    found = _first_fitting(series, lambda each: best_for(each) is not None)
    if not found:
        other = " Close other programs, or use a checkpoint in FP8 or INT8."
        return f"No size fits.{other if sizes.backends.precision == 'bf16' else ' Close other programs.'}"
    return f"Use {' or '.join(found)}, the largest that fit, or close other programs."


def _first_fitting(series: Iterable[Iterable[Clip]], fits: Callable[[Clip], bool]) -> list[str]:
    """Return the first of each series that fits, in words; each clip needs no more than the one before it."""
    found: list[str] = []
    for candidates in map(list, series):
        # Few of the hundreds are looked at.
        first = bisect.bisect_left(candidates, True, key=fits)
        found += map(str, candidates[first : first + 1])
    return found


def _fewer(clip: Clip) -> Iterator[Clip]:
    return (replace(clip, batch=batch) for batch in range(clip.batch - 1, 0, -1))


def _smaller(clip: Clip) -> Iterator[Clip]:
    """Yield smaller pictures of nearly the same shape, the largest first."""
    for height in range(clip.height - 16, 0, -16):
        width = max(round(clip.width * height / clip.height / 16), 1) * 16
        yield replace(clip, width=width, height=height)


def _shorter(clip: Clip) -> Iterator[Clip]:
    return (replace(clip, num_frames=num_frames) for num_frames in range(clip.num_frames - 4, 0, -4))
