"""Why nothing fits, in words: what would be needed, what is there, and the largest clips that would fit."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ..constants import GIB
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.memory import Memory
from ..sentences.sampling import Sampling
from .clip import Clip
from .needs import Budget, Need, Sizes, sampling_need
from .placement import Placement


def explain_run(sizes: Sizes, budget: Budget, mode: str, best_for: Callable[[Clip], Placement | None]) -> str:
    """Return what to do, what each mode would need, and what is there, a line each.

    Args:
        mode: the offload mode that was chosen.
        best_for: finds the best placement for a clip under mode auto; None where it does not fit.
    """
    cause = Memory.NO_MODE_FITS() if mode == "auto" else Memory.MODE_DOES_NOT_FIT(mode=mode)
    modes = ("none", "block", "phase", "disk") if mode == "auto" else (mode,)
    on_gpu, num_experts = budget.vram is not None, sizes.weights.num_experts
    placements = {each: Placement(mode=each) for each in modes}
    if num_experts > 1:
        placements |= {
            Memory.FROM_ITS_FILES(mode=each): Placement(mode=each, reads_second_expert=True)
            for each in modes
            if each in ("block", "phase")
        }
    # Modes that need the same share a line.
    needs: dict[str, list[str]] = {}
    for name, each in placements.items():
        needs.setdefault(sampling_need(sizes, each, on_gpu=on_gpu).describe(budget), []).append(name)
    there = Need(vram=budget.vram or 0, ram=budget.ram).describe(budget)
    bound = Memory.KEPT(vram_limit=budget.vram_limit) if budget.vram_limit else ""
    lines = [
        _advise(sizes, best_for),
        Memory.NEEDED(cause=cause, clip=sizes.clip, precision=sizes.backends.precision.upper()),
        *(Memory.MODES_NEED(modes=joined(names, Between.COMMA), need=need) for need, names in needs.items()),
        Memory.THERE_ARE(there=there, bound=bound),
    ]
    return joined(lines, Between.LINES)


def explain_frames(stage: str, clip: Clip, needed_for: Callable[[Clip], int], budget: Budget) -> str:
    """Return the largest clips that would fit, what the frames need, and what is there.

    Args:
        stage: decode | encode.
        needed_for: the RAM in which the frames of a clip can go through that stage.
    """
    found = _first_fitting((_fewer(clip), _shorter(clip), _smaller(clip)), lambda each: needed_for(each) <= budget.ram)
    advice = Memory.USE_OR_CLOSE(sizes=joined(found, Between.OR)) if found else Memory.CLOSE_PROGRAMS()
    doing = {"decode": Sampling.DECODING, "encode": Memory.ENCODING}[stage]
    needed, free = needed_for(clip) / GIB, budget.ram / GIB
    return Memory.FRAMES_DO_NOT_FIT(advice=advice, clip=clip, doing=doing(), needed=needed, free=free)


def _advise(sizes: Sizes, best_for: Callable[[Clip], Placement | None]) -> str:
    best = best_for(sizes.clip)
    if best is not None:
        described = best.describe(sizes.weights.num_blocks, sizes.weights.num_experts)
        return Memory.SET_AUTO(described=described)
    series = (_smaller(sizes.clip), _shorter(sizes.clip))
    found = _first_fitting(series, lambda each: best_for(each) is not None)
    if not found:
        return Memory.NOTHING_FITS_IN_BF16() if sizes.backends.precision == "bf16" else Memory.NOTHING_FITS()
    return Memory.USE_LARGEST_OR_CLOSE(sizes=joined(found, Between.OR))


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
