"""How long calls take on a device, within a limit of time: what `auto` goes by where the table could be wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

# More rounds do not change what is fastest.
_MOST_ROUNDS = 5
# Of which one is timed.
_CALLS = 2


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Something to be timed."""

    call: Callable[[], object]
    reset: Callable[[], object] = _nothing
    """Puts back what the call changes; not timed."""


def time_calls(
    calls: Mapping[str, Timed],
    device: torch.device,
    check_interrupt: Callable[[], None],
    limit: float,
    errors: tuple[type[Exception], ...],
    on_failure: Callable[[str, Exception], None],
    on_progress: Callable[[int], None],
) -> dict[str, float]:
    """Return the least seconds of each call.

    All are timed once, then in rounds, one after the other, so that a card that warms up or is used by others treats
    them alike. What compiles at the first call is not counted.

    Args:
        calls: by name, the most promising first: what there is no time for is left out.
        device: that computes.
        check_interrupt: asked before every call; what it raises passes.
        limit: seconds that all calls may take together.
        errors: what a call may raise. Such a call is left out, and on_failure told.
        on_progress: told how many calls were timed once.
    """
    seconds: dict[str, float] = {}
    spent = 0.0
    for done, (name, timed) in enumerate(calls.items(), 1):
        if spent > limit:
            break
        check_interrupt()
        try:
            timed.reset()
            timed.call()
            seconds[name] = _run(timed, device)
        except errors as error:
            on_failure(name, error)
            continue
        spent += (1 + _CALLS) * seconds[name]
        on_progress(done)
    for _ in range(_MOST_ROUNDS):
        if spent + _CALLS * sum(seconds.values()) > limit:
            break
        for name in seconds:
            check_interrupt()
            found = _run(calls[name], device)
            spent += _CALLS * found
            seconds[name] = min(seconds[name], found)
    return seconds


def _run(timed: Timed, device: torch.device) -> float:
    """Call once; returns the seconds on the device."""
    if device.type != "cuda":
        timed.reset()
        begun = time.perf_counter()
        timed.call()
        return max(time.perf_counter() - begun, 1e-9)
    # While the device does the first call, the launches of the second one are made: none of them is waited for.
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    timed.call()
    timed.reset()
    start.record()
    timed.call()
    end.record()
    end.synchronize()
    return float(max(start.elapsed_time(end) / 1000, 1e-9))
