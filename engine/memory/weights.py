"""How many bytes a transformer's weights take as they lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class WeightSizes:
    """Bytes of a transformer's weights, whatever precision the file keeps the small ones in; see offload.weigh."""

    block: int
    """The largest block."""
    phase: int
    """The largest phase of a block: self-attention, cross-attention or feed-forward."""
    num_blocks: int
    """Of an expert."""
    others: int
    """Embeddings, time projection and head, of all experts."""
    lora_block: int = 0
    """Of `block`: LoRAs, which rest in RAM where the other weights of a block rest on the drive."""
    image_block: int = 0
    """What a clip needs once of a block, beside `block`: the weights of an image's keys and values, LoRAs included."""
    num_experts: int = 1
    """Each of so many blocks."""

    @property
    def blocks(self) -> int:
        return self.block * self.num_blocks * self.num_experts

    @property
    def total(self) -> int:
        return self.blocks + self.others + self.num_experts * self.num_blocks * self.image_block


def together(sizes: Sequence[WeightSizes]) -> WeightSizes:
    """Return the sizes of the experts of one model, from each one's."""
    return replace(
        sizes[0],
        block=max(each.block for each in sizes),
        phase=max(each.phase for each in sizes),
        others=sum(each.others for each in sizes),
        lora_block=max(each.lora_block for each in sizes),
        image_block=max(each.image_block for each in sizes),
        num_experts=len(sizes),
    )
