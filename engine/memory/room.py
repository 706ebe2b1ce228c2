"""Room for one stage: what it plans with, how the host makes room for it, and a second try under a cheaper plan.

Planning is a query. `claim_*` plan, let the host make room, and plan again with what is there then. `attempts` runs a
stage once, and once more where the plan was wrong and the GPU's memory ran out.
"""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

from ..constants import GIB
from ..errors import NothingFitsError
from ..interfaces import Hooks, Host
from ..sentences.memory import Memory
from ..settings import OffloadSettings
from ..system import is_out_of_memory, is_surely_out_of_memory, release_memory
from .budget import find_budget
from .clip import Clip
from .needs import LATER_MARGIN, Budget, Sizes, vae_weight_bytes
from .owner import WeightOwner, held, unload_others
from .placement import Placement
from .plan import MemoryPlan, VaePlan, Wish, plan_run, plan_vae, retry_wish
from .tiles import Tile

logger = logging.getLogger(__name__)

# More VRAM than there is: all that the host can free.
_ALL_OF_IT = 2**50

Plan = TypeVar("Plan")


class Room:
    """The memory that a stage of one owner can have on the host's device."""

    def __init__(self, host: Host, offload: OffloadSettings, owner: WeightOwner[Any] | None = None) -> None:
        """Args: owner: of the stage's weights; None where nothing is loaded yet, as in a forecast."""
        self._host = host
        self._offload = offload
        self._owner = owner
        self.companion: Any = None
        """What is not to end before the stage does."""

    def start(self, hooks: Hooks) -> None:
        """Start what has to run before it is known what is free; nothing on one GPU."""

    def plan_run(self, sizes: Sizes, *, assume_evicted: bool = True, failed: MemoryPlan | None = None) -> MemoryPlan:
        """Plan the sampling of a clip; what is loaded stays if it fits and is not clearly worse.

        Args:
            sizes: what is to be run.
            assume_evicted: count on the host to unload its own models first.
            failed: the plan that ran out of memory, for a cheaper one.

        Raises:
            NothingFitsError: see memory/plan.py.
        """
        return plan_run(sizes, self._budget(assume_evicted), self._run_wish(failed))

    def find_run(self, sizes: Sizes) -> MemoryPlan:
        """Plan a sampling; where nothing fits, the host is asked for all that it can free.

        Raises:
            NothingFitsError: that was not enough.
        """
        with suppress(NothingFitsError):
            return self.plan_run(sizes)
        # The host may hold memory that torch does not know of.
        self._host.make_room(_ALL_OF_IT)
        return self.plan_run(sizes)

    def claim_run(self, sizes: Sizes) -> MemoryPlan:
        """Plan a sampling, let the host make room, and plan again with what is there then."""
        plan = self.find_run(sizes)
        loaded, sampled = plan.claimed
        self._host.claim(self._owner, loaded, sampled - loaded)
        return self.plan_run(sizes, assume_evicted=False)

    def plan_vae(
        self,
        stage: str,
        clip: Clip,
        vae_dim: int,
        tiling: str = "auto",
        tile: Tile | None = None,
        *,
        assume_evicted: bool = True,
        failed: VaePlan | None = None,
    ) -> VaePlan:
        """Plan a decode or an encode.

        Args:
            stage: decode | encode.
            clip, vae_dim: what it is of, and the base width of its VAE, see needs.Sizes.
            tiling: auto, which asks the offload settings, or on, or off.
            tile: a tile that was asked for, whatever `tiling` says.
            assume_evicted, failed: see plan_run.
        """
        wish = replace(self._wish(None), tile=tile)
        if tiling != "auto":
            wish = replace(wish, tiling=tiling)
        budget, beside = self._budget(assume_evicted), held(without=self._owner)
        return plan_vae(stage, clip, vae_dim, budget, wish, beside, margin=LATER_MARGIN, below=failed)

    def claim_vae(
        self, stage: str, clip: Clip, vae_dim: int, tiling: str = "auto", tile: Tile | None = None
    ) -> VaePlan:
        """Plan beside what the host holds; ask it for room only where the plan is better without.

        A host may unload more than it is asked to, the transformer among it, which the next prompt would load again.
        """
        weights = vae_weight_bytes(stage, vae_dim)
        plan = self.plan_vae(stage, clip, vae_dim, tiling, tile, assume_evicted=False)
        wanted = self.plan_vae(stage, clip, vae_dim, tiling, tile)
        if plan.weights_stay and plan.tile == wanted.tile:
            self._host.claim(self._owner, weights, 0)
            return plan
        beside = held(without=self._owner).vram if wanted.weights_stay else 0
        self._host.claim(self._owner, weights, max(wanted.need.vram - beside - weights, 0))
        return self.plan_vae(stage, clip, vae_dim, tiling, tile, assume_evicted=False)

    def attempts(
        self, what: str, plan: Plan, cheaper: Callable[[], Plan], make_room: Callable[[], None]
    ) -> Iterator[Attempt[Plan]]:
        """Yield the stage's attempts; each is to be entered, and the loop left where it succeeds.

            for attempt in room.attempts("sampling", plan, cheaper, make_room):
                with attempt as plan:
                    return ...

        Args:
            what: name of the stage, for the log.
            plan: how to do it first; its text is for the log.
            cheaper: makes a plan that takes less, once all is unloaded; NothingFitsError where there is none.
            make_room: asks the host for room.

        Raises:
            torch.cuda.OutOfMemoryError: the retry ran out of memory too, or there is no cheaper plan.
            RuntimeError: the retry failed with what only looks like a lack of memory, unchanged.
        """
        device = self._host.device
        first = Attempt(plan, device, is_last=False)
        yield first
        if first.error is None:
            return
        _release(device)
        make_room()
        try:
            plan = cheaper()
        except NothingFitsError as reason:
            raise torch.cuda.OutOfMemoryError(Memory.NO_RETRY(error=first.error, reason=reason)) from reason
        said = str(first.error).partition(".")[0]
        logger.warning("LightX2V: %s", Memory.RETRY(stage=what, said=said, plan=plan))
        yield Attempt(plan, device, is_last=True)

    @property
    def _current(self) -> Placement | None:
        """Where the loaded weights rest."""
        return self._owner.placement if self._owner is not None else None

    def _budget(self, assume_evicted: bool) -> Budget:
        host = self._host
        return find_budget(
            host.device, host.policy, self._offload.vram_budget_gib, held(), assume_evicted=assume_evicted
        )

    def _run_wish(self, failed: MemoryPlan | None) -> Wish:
        """Return what is asked of a plan for sampling, and of one that is cheaper than the plan that failed."""
        wish = self._wish(self._current)
        return wish if failed is None else retry_wish(wish, failed.needs["sample"])

    def _wish(self, current: Placement | None) -> Wish:
        return Wish(
            mode=self._offload.mode,
            tiling=self._offload.vae_tiling,
            pinned_limit_bytes=int(self._offload.pinned_ram_limit_gib * GIB) or None,
            policy=self._host.policy,
            current=current,
        )


class Attempt(Generic[Plan]):
    """One run of a stage under a plan; swallows a lack of GPU memory unless it is the last."""

    def __init__(self, plan: Plan, device: torch.device, *, is_last: bool) -> None:
        self.plan = plan
        self.error: RuntimeError | None = None
        self._device = device
        self._is_last = is_last

    def __enter__(self) -> Plan:
        return self.plan

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, RuntimeError) or not is_out_of_memory(error):
            return False
        # The frames hold the stage's tensors.
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        self.error = error
        if not self._is_last:
            return True
        _release(self._device)
        if not is_surely_out_of_memory(error):
            return False
        raise torch.cuda.OutOfMemoryError(
            Memory.WAS_RETRY(error=error, plan=self.plan, advice=Memory.ADVICE())
        ) from error


def _release(device: torch.device) -> None:
    """Unload everything."""
    unload_others()
    gc.collect()
    release_memory(device)
