"""How many bytes a transformer's weights take as they lie in memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WeightSizes:
    """Bytes of a transformer's weights, whatever precision the file keeps the small ones in; see offload.weigh."""

    block: int
    """The largest block."""
    phase: int
    """The largest phase of a block: self-attention, cross-attention or feed-forward."""
    num_blocks: int
    others: int
    """Embeddings, time projection and head."""
    lora_block: int = 0
    """Of `block`: LoRAs, which rest in RAM where the other weights of a block rest on the drive."""
    image_block: int = 0
    """What a clip needs once of a block, beside `block`: the weights of an image's keys and values, LoRAs included."""

    @property
    def blocks(self) -> int:
        return self.block * self.num_blocks

    @property
    def total(self) -> int:
        return self.blocks + self.others + self.num_blocks * self.image_block
