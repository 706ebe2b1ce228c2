"""The interfaces an engine implements, and the hooks it reports through.

The sampler loop, the schedule, the noise, progress, interrupt and every ComfyUI contract are ours,
written once; an engine (portable, LightX2V) supplies these three objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch


def _nothing(*_: Any) -> None:
    """Do nothing: the default of every hook."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Plain callables through which long work reports upward.

    check_interrupt raises (whatever the host raises) when the user cancelled; on_progress gets
    (done, total, what) with a short text; on_step gets (step index from 1, steps, normalised x0
    estimate [16, T, h, w]) after each sampling step.
    """

    check_interrupt: Callable[[], None] = _nothing
    on_progress: Callable[[int, int, str], None] = _nothing
    on_step: Callable[[int, int, torch.Tensor], None] = _nothing


class Transformer(Protocol):
    """A loaded or loadable denoiser."""

    def load(self, latent_shape: tuple[int, int, int, int], hooks: Hooks) -> None:
        """Make the weights ready for latents [16, T, h, w]; does nothing when they are already."""

    def unload(self) -> None:
        """Give back all memory; `load` makes the object usable again."""

    def rest(self) -> None:
        """Give back what only a pass needs: the workspace, what is kept of the text. The weights stay."""

    def predict_flow(self, latents: torch.Tensor, timestep: float, context: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        """Predict the flow (noise minus data).

        Args:
            latents: [16, T, h, w] float32, normalised, on `device`.
            timestep: model time in [0, 1000].
            context: [512, text_dim] text rows, zero-padded.
            hooks: `check_interrupt` is called before every block.

        Returns:
            [16, T, h, w] float32 on the device of `latents`.
        """

    @property
    def device(self) -> torch.device:
        """Where latents are expected."""

    @property
    def euler_dtype(self) -> torch.dtype:
        """What latents are rounded to between the steps of `euler`; float32 is no rounding."""

    def describe(self) -> dict[str, Any]:
        """Facts for the run report: engine, precision, back ends, offload mode, weight_bytes, and moved_bytes
        (copied to the device since the object was made)."""


class VideoDecoder(Protocol):
    """A loaded or loadable VAE decoder."""

    def load(self, hooks: Hooks) -> None:
        """Make the weights ready; does nothing when they are already."""

    def unload(self) -> None:
        """Give back all memory; `load` makes the object usable again."""

    def prepare(self, latents: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        """Do what needs the whole picture of normalised latents [16, T, h, w].

        Returns:
            features [channels, T, h, w] on the decoder's device; the latents themselves where there is nothing to do.
        """

    def decode_chunks(self, features: torch.Tensor, hooks: Hooks) -> Iterator[torch.Tensor]:
        """Decode features from `prepare`, or a part of their rows and columns, chunk by chunk in time.

        Yields:
            frames [f, H, W, 3] float32 in [0, 1] on the decoder's device; f is 1 for the first latent
            frame and 4 for each later one (an engine may join several). Memory does not grow with T.
        """

    @property
    def device(self) -> torch.device:
        """Where the decoder computes."""

    @property
    def blend_share(self) -> float:
        """Middle share of an overlap in which tiles are blended; beside it each pixel is the better tile's alone.

        1 where tiles differ everywhere, less where they differ near their cut edges only.
        """

    def describe(self) -> dict[str, Any]:
        """Facts for the run report."""


class TextEncoder(Protocol):
    """A loaded or loadable text encoder with its tokenizer."""

    def load(self, device: str, hooks: Hooks) -> None:
        """Make the weights ready on "cpu" or "gpu"; does nothing when they are already."""

    def unload(self) -> None:
        """Give back all memory; `load` makes the object usable again."""

    def tokenize(self, text: str) -> list[int]:
        """Clean `text` as Wan's tokenizer does and return all token ids, end token included, untruncated."""

    def encode_tokens(self, token_ids: list[int], hooks: Hooks) -> torch.Tensor:
        """Encode tokens to rows [len(token_ids), text_dim], float32 on the CPU."""

    def describe(self) -> dict[str, Any]:
        """Facts for the run report."""
