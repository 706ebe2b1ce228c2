"""What hooks report, as one line: the stage, how far it is, and the time left.

Each stage starts anew: a line of the stage before never stands beside it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from .interfaces import Hooks
from .quantities import format_seconds
from .sentences.report import Progress

# (done, of so many, in words).
Show = Callable[[int, int, str], None]

# The time left follows the pace of so many last seconds, and is said once it is known for some.
_PACE_SECONDS = 30.0
_LEAST_SECONDS = 3.0
# A transformer of a small clip does a block in a millisecond.
_SHOWN_EVERY = 0.1


class ProgressLine:
    """Feeds `show` from hooks, one run of one node."""

    def __init__(self, show: Show, clock: Callable[[], float] = time.monotonic) -> None:
        self._show = show
        self._clock = clock
        self._stage = ""
        self._pace: deque[tuple[float, float]] = deque()
        self._shown = -_SHOWN_EVERY
        self._share = 0.0
        self._step = self._steps = 1
        self._block = 0
        self._passes, self._passes_before = 1, 1

    def hooks(
        self,
        *,
        check_interrupt: Callable[[], None] | None = None,
        on_step: Callable[[int, int, torch.Tensor], None] | None = None,
    ) -> Hooks:
        """Return hooks that feed this line; see interfaces.Hooks."""
        given: dict[str, Any] = {"check_interrupt": check_interrupt, "on_step": on_step}
        return Hooks(
            on_progress=self.show_progress,
            on_step_start=self.start_step,
            on_block=self.show_block,
            **{name: hook for name, hook in given.items() if hook is not None},
        )

    def show_progress(self, done: int, total: int, what: str) -> None:
        """Report a stage other than sampling."""
        self._enter(what)
        self._put(done, total, Progress.PART(what=what, done=done, total=total))

    def start_step(self, step: int, steps: int) -> None:
        """Report that a sampling step begins, counted from 1."""
        if self._enter("sampling") or step < self._step:
            self._passes_before, self._share = 1, 0.0
        elif step > self._step:
            self._passes_before = self._passes
        self._step, self._steps, self._block, self._passes = step, steps, 0, 1
        self._put(step - 1, steps, Progress.STEP(step=step, steps=steps))

    def show_block(self, block: int, blocks: int) -> None:
        """Report a block of a step, counted from 1; where a step takes several passes, they start again at 1."""
        if block <= self._block:
            self._passes += 1
        self._block = block
        if block < blocks and self._clock() - self._shown < _SHOWN_EVERY:
            return
        passes = max(self._passes, self._passes_before)
        which = Progress.PASS(of=self._passes, passes=passes) if passes > 1 else ""
        done = (self._step - 1) * passes * blocks + (self._passes - 1) * blocks + block
        text = Progress.BLOCK(step=self._step, steps=self._steps, which=which, block=block, blocks=blocks)
        self._put(done, self._steps * passes * blocks, text)

    def _enter(self, stage: str) -> bool:
        """Start a stage anew unless it is the one before."""
        if stage == self._stage:
            return False
        self._stage = stage
        self._share = 0.0
        self._pace.clear()
        return True

    def _put(self, done: int, total: int, text: str) -> None:
        now, share = self._clock(), done / max(total, 1)
        self._shown = now
        if share < self._share:
            # Another clip, or the same again under a cheaper plan.
            self._pace.clear()
        self._share = share
        self._pace.append((now, share))
        while len(self._pace) > 2 and self._pace[1][0] <= now - _PACE_SECONDS:
            self._pace.popleft()
        begun, from_share = self._pace[0]
        if now - begun >= _LEAST_SECONDS and from_share < share < 1:
            left = (1 - share) * (now - begun) / (share - from_share)
            text = Progress.WITH_TIME_LEFT(text=text, time=format_seconds(left))
        self._show(done, total, text)
