"""When the estimate was wrong: a stage that ran out of GPU memory is tried once more, under a cheaper plan."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..errors import NothingFitsError
from ..handles import unload_others
from ..system import compute_device, is_out_of_memory, is_surely_out_of_memory, release_memory

logger = logging.getLogger(__name__)

Plan = TypeVar("Plan")
Result = TypeVar("Result")

_ADVICE = (
    "Close other programs that use the GPU, choose a smaller size or fewer frames, or set vram_budget_gib of 'LightX2V "
    "Offload' to less than what is free."
)


def run_with_retry(
    what: str, attempt: Callable[[Plan], Result], plan: Plan, cheaper: Callable[[], Plan], make_room: Callable[[], None]
) -> Result:
    """Run `attempt(plan)`; if it runs out of GPU memory, unload everything and run `attempt(cheaper())`.

    Args:
        what: name of the stage, for the log.
        attempt: does the stage from its beginning.
        plan: how to do it first; its text is for the log.
        cheaper: makes a plan that takes less, once all is unloaded; NothingFitsError where there is none.
        make_room: asks the host for room.

    Raises:
        torch.cuda.OutOfMemoryError: the retry ran out of memory too, or there is no cheaper plan.
        RuntimeError: the retry failed with what only looks like a lack of memory, unchanged.
    """
    first = _try(attempt, plan)
    if not isinstance(first, _OutOfMemory):
        return first
    make_room()
    try:
        plan = cheaper()
    except NothingFitsError as reason:
        raise torch.cuda.OutOfMemoryError(f"{first.error}\nThere is no room for a retry. {reason}") from reason
    logger.warning("LightX2V: %s ran out of GPU memory (%s). Trying once more: %s.", what, first, plan)
    second = _try(attempt, plan)
    if not isinstance(second, _OutOfMemory):
        return second
    if not is_surely_out_of_memory(second.error):
        raise second.error
    raise torch.cuda.OutOfMemoryError(f"{second.error}\nThis was the retry ({plan}). {_ADVICE}") from second.error


@dataclass(frozen=True)
class _OutOfMemory:
    error: RuntimeError

    def __str__(self) -> str:
        return str(self.error).partition(".")[0]


def _try(attempt: Callable[[Plan], Result], plan: Plan) -> Result | _OutOfMemory:
    """Return what the attempt returns, or that it ran out of memory, after everything was unloaded."""
    try:
        return attempt(plan)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        failed = _OutOfMemory(error)
    # Outside of the except block, and without its frames: they hold the stage's tensors.
    cause: BaseException | None = failed.error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    unload_others()
    gc.collect()
    release_memory(compute_device())
    return failed
