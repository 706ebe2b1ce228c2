"""Where a transformer's weights rest."""

from __future__ import annotations

from dataclasses import dataclass

from ..sentences.memory import Memory


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a transformer's weights rest. What is not a block is always on the device."""

    mode: str
    """none (all on the device) | block | phase (third of a block) | disk (blocks read when needed)."""
    resident_blocks: int = 0
    """In modes block, phase and disk: the first so many blocks, of each expert, stay on the device, the rest are
    streamed."""
    pinned_limit_bytes: int | None = None
    """RAM to page-lock at most; None is no limit of our own."""
    reads_second_expert: bool = False
    """In modes block and phase: what is streamed of the second of two experts rests in its files and not in RAM."""

    def experts_in_ram(self, num_experts: int) -> int:
        """Return of how many experts the streamed blocks rest in RAM."""
        if self.mode == "disk":
            return 0
        return num_experts - self.reads_second_expert

    def describe(self, num_blocks: int, num_experts: int = 1) -> str:
        """Return e.g. "block, 12 of 40 blocks resident"."""
        if self.mode == "none":
            return Memory.RESIDENT()
        of_each = Memory.OF_EACH_EXPERT() if num_experts > 1 else ""
        read = Memory.LOW_NOISE_FROM_FILES() if self.reads_second_expert else ""
        return Memory.PARTLY_RESIDENT(
            mode=self.mode, resident_blocks=self.resident_blocks, num_blocks=num_blocks, of_each=of_each, read=read
        )
