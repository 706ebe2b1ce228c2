"""The memory that a group of GPUs can have: the card which has least decides, and the others keep what they have room
for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..constants import GIB
from ..interfaces import Hooks, Host
from ..memory.budget import find_budget
from ..memory.needs import Budget, Sizes
from ..memory.owner import WeightOwner, held
from ..memory.plan import MemoryPlan, plan_ranks, plan_run
from ..memory.room import Room
from ..settings import OffloadSettings
from .group import Members, group_of, running_group
from .transformer import GroupTransformer

# What a rank's process takes of its card beside what torch reserves: the context of CUDA and NCCL's buffers. Counted
# until the ranks run, and say themselves what is free.
_PROCESS_BYTES = GIB


class GroupRoom(Room):
    """Room whose VRAM is that of the ranks' cards; this process's own card is the first one's too."""

    def __init__(self, host: Host, offload: OffloadSettings, owner: WeightOwner[Any], members: Members) -> None:
        super().__init__(host, offload, owner)
        self._members = members

    def start(self, hooks: Hooks) -> None:
        """Start the ranks, which then say what is free."""
        self.companion = group_of(self._members, hooks)

    def plan_run(self, sizes: Sizes, *, assume_evicted: bool = True, failed: MemoryPlan | None = None) -> MemoryPlan:
        """See Room.plan_run; the plan has one for each rank."""
        budgets, wish = self._budgets(assume_evicted), self._run_wish(failed)
        plan = plan_run(sizes, _least(budgets), wish)
        loaded = self._owner.engine if self._owner is not None and self._owner.placement == plan.placement else None
        current = loaded.placements if isinstance(loaded, GroupTransformer) else ()
        return plan_ranks(sizes, plan, budgets, wish, current)

    def _budget(self, assume_evicted: bool) -> Budget:
        return _least(self._budgets(assume_evicted))

    def _budgets(self, assume_evicted: bool) -> dict[str, Budget]:
        """Return what each card has, by its name."""
        host, group, names = self._host, running_group(self._members), self._members.names
        # Of this process: what it has on the first card, or can free there.
        own = find_budget(
            host.device, host.policy, self._offload.vram_budget_gib, held(), assume_evicted=assume_evicted
        )
        if own.vram is None:
            return dict.fromkeys(names, own)
        if group is None:
            totals = [torch.cuda.get_device_properties(index).total_memory for index in self._members.indices[1:]]
            found = [max(each - _PROCESS_BYTES, 0) for each in (own.vram, *totals)]
        else:
            cards = group.budgets()
            found = [own.vram + cards[0]["reserved"], *(card["free"] + card["reserved"] for card in cards[1:])]
        limit = int(self._offload.vram_budget_gib * GIB) or max(found)
        return {
            name: replace(own, vram=min(vram, limit), vram_limit=name if index and vram < limit else own.vram_limit)
            for index, (name, vram) in enumerate(zip(names, found, strict=True))
        }


def _least(budgets: Mapping[str, Budget]) -> Budget:
    """Return that of the card which has least."""
    return min(budgets.values(), key=lambda budget: budget.vram or 0)
