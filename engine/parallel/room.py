"""The memory that a group of GPUs can have: that of the card which has least."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..constants import GIB
from ..interfaces import Hooks, Host
from ..memory.budget import find_budget
from ..memory.needs import Budget
from ..memory.owner import WeightOwner, held
from ..memory.room import Room
from ..settings import OffloadSettings
from .group import Members, group_of, running_group

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

    def _budget(self, assume_evicted: bool) -> Budget:
        host, group = self._host, running_group(self._members)
        # Of this process: what it has on the first card, or can free there.
        own = find_budget(
            host.device, host.policy, self._offload.vram_budget_gib, held(), assume_evicted=assume_evicted
        )
        if own.vram is None:
            return own
        if group is None:
            return replace(own, vram=max(own.vram - _PROCESS_BYTES, 0))
        cards = group.budgets()
        found = [own.vram + cards[0]["reserved"], *(card["free"] + card["reserved"] for card in cards[1:])]
        limit = int(self._offload.vram_budget_gib * GIB) or max(found)
        least = min(range(len(found)), key=found.__getitem__)
        limited = own.vram_limit if least == 0 else self._members.name(least)
        return replace(
            own, vram=min(found[least], limit), vram_limit=limited if found[least] < limit else own.vram_limit
        )
