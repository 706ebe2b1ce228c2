"""Which GPUs compute a clip together, by what the user chose and what is here."""

from __future__ import annotations

import logging
import os

import torch

from ..errors import UnsupportedHardwareError
from ..sentences.gpus import Gpus
from ..settings import GpuSettings
from .group import Members, check_members, find_problem
from .split import MOST_RANKS

logger = logging.getLogger(__name__)


def choose_members(settings: GpuSettings, device: torch.device) -> Members | None:
    """Return the devices that compute together, this process's own first; None where it is one.

    Args:
        settings: of the user.
        device: that this process computes on.

    Raises:
        UnsupportedHardwareError, MissingDependencyError: what was named cannot be had here; says what can.
    """
    if settings.count == 1:
        return None
    here = devices_here(device)
    if settings.count is None:
        members = Members(device=device.type, indices=here[:MOST_RANKS])
        problem = find_problem(members) if len(here) > 1 else Gpus.ONLY_ONE()
        if problem is None:
            return members
        logger.info("LightX2V: %s", Gpus.ONE_COMPUTES(problem=problem))
        return None
    wanted = settings.named or here[: settings.count]
    if len(wanted) < settings.count or not set(wanted) <= set(here) or len(set(wanted)) < len(wanted):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = Gpus.HIDDEN(visible=visible) if visible else ""
        raise UnsupportedHardwareError(Gpus.NOT_HERE(gpus=settings.gpus, count=_count(len(here)), hidden=hidden))
    if device.index is not None and device.index in wanted:
        # The plan of this process's own card is that of the first one.
        wanted = (device.index, *(index for index in wanted if index != device.index))
    members = Members(device=device.type, indices=tuple(wanted))
    check_members(members)
    return members


def devices_here(device: torch.device) -> tuple[int, ...]:
    """Return the numbers of the GPUs that this process sees, the one it computes on first; none on a CPU."""
    if device.type != "cuda":
        return ()
    own = device.index or 0
    return (own, *(index for index in range(torch.cuda.device_count()) if index != own))


def _count(number: int) -> str:
    if number > 1:
        return Gpus.SOME(number=number)
    return Gpus.ONE() if number else Gpus.NONE()
