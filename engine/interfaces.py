"""The interfaces an engine implements, and the hooks it reports through.

The sampler loop, the schedule, the noise, progress, interrupt and every ComfyUI contract are ours,
written once; an engine (portable, LightX2V) supplies these three objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from .lora.changes import Stack
from .settings import HostPolicy
from .system import compute_device


def _nothing(*_: Any) -> None:
    """Do nothing: the default of every hook."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Plain callables through which long work reports upward.

    check_interrupt raises (whatever the host raises) when the user cancelled; on_progress gets
    (done, total, what) with a short text; on_step_start gets (step index from 1, steps) before each
    sampling step, on_block gets (block from 1, blocks) after each block of a pass of the transformer, and on_step
    gets (step index from 1, steps, normalized x0 estimate [16, T, h, w]) after each sampling step.
    """

    check_interrupt: Callable[[], None] = _nothing
    on_progress: Callable[[int, int, str], None] = _nothing
    on_step_start: Callable[[int, int], None] = _nothing
    on_block: Callable[[int, int], None] = _nothing
    on_step: Callable[[int, int, torch.Tensor], None] = _nothing


@dataclass(frozen=True, kw_only=True)
class Host:
    """The program around the engine: where it computes, what it asks of a plan, and how it makes room."""

    device: torch.device = field(default_factory=compute_device)
    policy: HostPolicy = field(default_factory=HostPolicy)
    claim: Callable[[Any, int, int], None] = _nothing
    """Called before a stage with the owner of its weights (memory/owner.py), and the bytes of VRAM that they and
    the work beside them will take."""
    make_room: Callable[[int], None] = _nothing
    """Called with bytes of VRAM that shall be free."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditioning:
    """What one clip is made from. An engine keeps what it computes of it for as long as it gets the same object."""

    text: torch.Tensor
    """[512 or more, text_dim] float32 on the CPU; rows after the first `num_text` are zero."""
    num_text: int
    """Rows of the prompt."""
    image_tokens: torch.Tensor | None = None
    """[tokens, image_dim] of an image encoder, for models that take them."""
    image_latents: torch.Tensor | None = None
    """[channels, T, h, w] beside the noisy latents, for models that take them."""
    records: tuple[Any, ...] = ()
    """Report records of the stages that made it."""


class Transformer(Protocol):
    """A loaded or loadable denoiser."""

    def load(self, hooks: Hooks) -> None:
        """Make the weights ready; does nothing when they are already."""

    def use_loras(self, stack: Stack, hooks: Hooks, expert: int = 0) -> None:
        """Compute with these LoRAs, and with no others, from now on. The loaded weights stay as they are.

        Args:
            expert: whose they are, of a model of several.

        Where it fails or is cancelled, no LoRA is in use.

        Raises:
            CheckpointError: a LoRA cannot be read.
            LightX2VError: the engine cannot compute with LoRAs.
        """

    def unload(self) -> None:
        """Give back all memory; `load` makes the object usable again."""

    def release_workspace(self) -> None:
        """Give back what only a pass needs: the workspace, what is kept of the text. The weights stay."""

    def predict_flow(
        self,
        latents: torch.Tensor,
        timestep: float,
        conditioning: Conditioning,
        hooks: Hooks,
        expert: int = 0,
        then: int = 0,
    ) -> torch.Tensor:
        """Predict the flow (noise minus data).

        Args:
            latents: [16, T, h, w] float32, normalized, on `device`.
            timestep: model time in [0, 1000].
            conditioning: of the clip.
            hooks: `check_interrupt` is called before every block, `on_block` after it.
            expert: which one computes, of a model of several.
            then: which one is expected to compute next; its first block is brought meanwhile.

        Returns:
            [16, T, h, w] float32 on the device of `latents`.
        """

    @property
    def device(self) -> torch.device:
        """Where latents are expected."""

    @property
    def euler_dtype(self) -> torch.dtype:
        """What latents are rounded to between the steps of `euler`; float32 is no rounding."""

    @property
    def moved_bytes(self) -> int:
        """Weights copied to the device since the object was made."""

    def describe(self) -> dict[str, Any]:
        """Facts for the run report: the back ends, offload mode, weight_bytes."""


class VideoDecoder(Protocol):
    """A loaded or loadable VAE decoder."""

    def load(self, hooks: Hooks) -> None:
        """Make the weights ready; does nothing when they are already."""

    def unload(self) -> None:
        """Give back all memory; `load` makes the object usable again."""

    def prepare(self, latents: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        """Do what needs the whole picture of latents [16, T, h, w], un-normalized as in a LATENT.

        Returns:
            features [channels, T, h, w] on the decoder's device; the latents themselves where there is nothing to do.
        """

    def decode_chunks(self, features: torch.Tensor, hooks: Hooks) -> Iterator[torch.Tensor]:
        """Decode features from `prepare`, or a part of their rows and columns, chunk by chunk in time.

        The interrupt is checked before each chunk.

        Yields:
            frames [f, H, W, 3] float32 on the decoder's device, black 0 and white 1, not clamped and free to be written
            to; f is 1 for the first latent frame and 4 for each later one (an engine may join several). Memory does
            not grow with T.
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


class VideoEncoder(Protocol):
    """A loaded or loadable VAE encoder."""

    def load(self, hooks: Hooks) -> None:
        """Make the weights ready; does nothing when they are already."""

    def unload(self) -> None:
        """Give back all memory; `load` makes the object usable again."""

    def encode_frames(self, frames: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Encode frames [H, W, 3] in [0, 1] on the encoder's device, of a clip or of a part of its picture.

        A frame is read before the next one is asked for, and may be overwritten then.

        Yields:
            features [h, w, channels] on the device of one latent frame, after the first frame and then after each
            fourth, or after the last. Memory does not grow with the number of frames.
        """

    def finish(self, features: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        """Do what needs the whole picture, with features [T, h, w, channels] of `encode_frames`.

        Returns:
            the mean [16, T, h, w] float32 on the encoder's device, un-normalized as in a LATENT.
        """

    @property
    def device(self) -> torch.device:
        """Where the encoder computes."""

    @property
    def blend_share(self) -> float:
        """As in VideoDecoder, of the features."""

    def describe(self) -> dict[str, Any]:
        """Facts for the run report."""
