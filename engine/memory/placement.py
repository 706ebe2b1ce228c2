"""Where a transformer's weights rest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a transformer's weights rest. What is not a block is always on the device."""

    mode: str
    """none (all on the device) | block | phase (third of a block) | disk (blocks read when needed)."""
    resident_blocks: int = 0
    """In modes block, phase and disk: the first so many blocks stay on the device, the rest are streamed."""
    pinned_limit_bytes: int | None = None
    """RAM to page-lock at most; None is no limit of our own."""

    def describe(self, num_blocks: int) -> str:
        """Return e.g. "block, 12 of 40 blocks resident"."""
        if self.mode == "none":
            return "resident"
        return f"{self.mode}, {self.resident_blocks} of {num_blocks} blocks resident"
