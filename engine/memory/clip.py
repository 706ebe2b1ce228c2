"""The size of what is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import shapes
from ..sentences.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Width and height in pixels, length in frames, and how many clips of that size."""

    width: int
    height: int
    num_frames: int
    batch: int = 1
    image_rows: int | None = None
    """Rows of CLIP Vision that it is made from; None where that is not known yet."""

    @classmethod
    def of_latents(cls, shape: Sequence[int], image_rows: int | None = None) -> Clip:
        """Return the size of latents [B, 16, T, h, w]."""
        num_frames, height, width = shapes.video_shape(shape)
        return cls(width=width, height=height, num_frames=num_frames, batch=shape[0], image_rows=image_rows)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(16, T, h, w) of one clip."""
        return shapes.latent_shape(self.width, self.height, self.num_frames)

    @property
    def tokens(self) -> int:
        """Of one clip."""
        return shapes.num_tokens(self.latent_shape)

    @property
    def pixels(self) -> int:
        """Of all frames of one clip."""
        return self.width * self.height * self.num_frames

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "size": Sizes.SIZE(width=self.width, height=self.height, num_frames=self.num_frames),
            "batch": self.batch,
            "tokens": self.tokens,
        }

    def __str__(self) -> str:
        clip = Sizes.CLIP(width=self.width, height=self.height, num_frames=self.num_frames)
        return Sizes.CLIPS(batch=self.batch, clip=clip) if self.batch > 1 else clip
