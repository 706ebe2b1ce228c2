"""A group of GPUs as one VideoDecoder: each decodes some columns of the picture, and what these depend on beside them.

No blending: frames are those of one GPU.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch

from .. import shapes
from ..checkpoints.companions import VaeFiles
from ..checkpoints.formats import VaeFormat
from ..interfaces import Hooks
from ..sentences.gpus import Gpus
from .channel import Region
from .group import Members, WorkerGroup, group_of


def can_be_shared(files: VaeFiles, engine: str) -> bool:
    """Say whether several GPUs can decode with it together: Wan's network, of which is known how far a pixel sees."""
    return isinstance(files.format, VaeFormat) and engine != "lightx2v"


class GroupDecoder:
    """The decoder, for whole pictures; see interfaces.VideoDecoder."""

    def __init__(self, files: VaeFiles, members: Members) -> None:
        self.pins_frames = True
        """Whether frames come from the GPUs through page-locked RAM."""
        self._files = files
        self._members = members
        self._group: WorkerGroup | None = None
        self._answers: list[dict[str, Any]] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def blend_share(self) -> float:
        return 1.0

    def load(self, hooks: Hooks) -> None:
        if self._group is None or not self._group.is_alive():
            self._group = group_of(self._members, hooks)
            self._group.ask(Gpus.LOADING_VAE(), "load_decoder", self._files, hooks=hooks)

    def unload(self) -> None:
        group, self._group = self._group, None
        if group is not None and group.is_alive():
            group.tell("unload_decoder")

    def prepare(self, latents: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        return latents

    def decode_chunks(self, features: torch.Tensor, hooks: Hooks) -> Iterator[torch.Tensor]:
        """See interfaces.VideoDecoder; the features are the whole picture's latents."""
        group = self._group
        assert group is not None, "decode_chunks before load"
        shape = tuple(features.shape)
        frames_shape = (*shapes.video_shape(shape), 3)
        regions = [Region.of_floats(each) for each in (shape, frames_shape)]
        regions[0].floats(shape).copy_(features)
        chunks: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        arrived: dict[int, int] = {}

        def note(rank: int, part: tuple[int, int]) -> None:
            number, count = part
            arrived[number] = arrived.get(number, 0) + 1
            if arrived[number] == group.size:
                chunks.put(count)

        def work() -> None:
            try:
                value = (self._files, shape, frames_shape, self.pins_frames)
                self._answers = group.ask(Gpus.DECODING(), "decode", value, regions, hooks=hooks, on_chunk=note)
                chunks.put(None)
            except BaseException as error:  # noqa: BLE001 - raised where the frames are asked for
                chunks.put(error)

        # Frames are copied to their place while the next ones are computed.
        thread = threading.Thread(target=work, name="lightx2v-decode", daemon=True)
        thread.start()
        try:
            yield from self._take(chunks, regions[1].floats(frames_shape))
        finally:
            thread.join()

    def _take(
        self, chunks: queue.SimpleQueue[int | BaseException | None], frames: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        done = 0
        while True:
            said = chunks.get()
            if said is None:
                return
            if isinstance(said, BaseException):
                raise said
            yield frames[done : done + said]
            done += said

    def describe(self) -> dict[str, Any]:
        names = self._members.names
        return {
            "engine": "portable",
            "vae": self._files.path.name,
            "vae_dim": self._files.base_dim,
            "device": ", ".join(names),
            "gpus": self._members.size,
            "ranks": [{"device": name, **answer} for name, answer in zip(names, self._answers, strict=False)],
        }
