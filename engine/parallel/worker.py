"""A rank: a process with one GPU, or on the CPU. It does what its parent says, and ends when the parent does."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import engines, system
from ..checkpoints.companions import VaeFiles
from ..errors import LightX2VError
from ..interfaces import Conditioning, Hooks, VideoDecoder
from ..offload.shared import SharedHome
from ..stages.decode import to_cpu
from ..wan.experts import WanExperts, build_denoiser
from ..wan.transformer import WanTransformer
from .channel import Channel, ClosedError, Region
from .exchange import Ranks, StoppedError, is_lost_neighbour
from .split import split_evenly, with_halo


def main(request: dict[str, Any]) -> None:
    """Connect to the parent and to the other ranks, then serve; never returns."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(request["socket"])
    channel = Channel(connection)
    _Rank(channel, rank, size, request).serve()


class _Rank:
    """What a rank holds, and what it does with it."""

    def __init__(self, channel: Channel, rank: int, size: int, request: dict[str, Any]) -> None:
        self._channel = channel
        self._rank, self._size = rank, size
        self._request = request
        self._stop = threading.Event()
        self._commands: queue.Queue[tuple[str, Any, list[Region]]] = queue.Queue()
        self._device = torch.device("cpu")
        self._ranks: Ranks | None = None
        self._transformers: dict[int, WanTransformer | WanExperts] = {}
        self._decoder: tuple[VaeFiles, VideoDecoder] | None = None
        self._conditionings: dict[int, Conditioning] = {}
        """By transformer, the last."""
        self._memory: dict[int, tuple[torch.Tensor, ...]] = {}
        """By transformer: latents and flow."""

    def serve(self) -> None:
        """Do one command after the other."""
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._join()
            while True:
                name, value, regions = self._commands.get()
                self._do(getattr(self, f"do_{name}"), value, regions)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told and this process ends
            with contextlib.suppress(ClosedError):
                self._channel.send(("failed", _facts(error)))
            # Without what libraries do at exit, which waits for the other ranks.
            os._exit(1)

    def _do(self, work: Callable[[Any, list[Region]], Any], value: Any, regions: list[Region]) -> None:
        try:
            # Inside ComfyUI inference mode is on; here nothing trains either.
            with torch.no_grad():
                answer = ("done", work(value, regions))
        except StoppedError:
            answer = ("stopped", self._ranks.block if self._ranks else 0)
        except LightX2VError as error:
            # Of files and settings, the same on every rank: it can go on.
            answer = ("refused", (type(error), str(error)))
        self._channel.send(answer)

    def _listen(self) -> None:
        """Take commands; end this process where the parent has ended."""
        while True:
            try:
                (name, value), regions = self._channel.receive()
            except ClosedError:
                os._exit(0)
            if name == "stop":
                self._stop.set()
            else:
                self._commands.put((name, value, regions))

    def _join(self) -> None:
        if self._request["device"] == "cuda":
            self._device = torch.device("cuda", self._request["indices"][self._rank])
            torch.cuda.set_device(self._device)
        else:
            system.use_cpu_only()
        if self._request["memory_fraction"] and self._device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(self._request["memory_fraction"])
        self._channel.send(("hello", {"rank": self._rank, "pid": os.getpid()}))
        store = Path(self._request["store"])
        self._ranks = Ranks(self._rank, self._size, self._device, store, self._stop.is_set, self._request["patience"])
        self._channel.send(("done", None))

    def do_budget(self, value: Any, regions: list[Region]) -> dict[str, Any]:
        """Return what memory this rank's card has, in bytes."""
        if self._device.type != "cuda":
            return {"free": None, "reserved": 0, "total": None}
        free, total = torch.cuda.mem_get_info()
        return {"free": free, "reserved": torch.cuda.memory_reserved(), "total": total}

    def do_load(self, value: Any, regions: list[Region]) -> int:
        """Load a transformer; returns the bytes of its weights."""
        number, files, backends, placements, least = value
        if number not in self._transformers:
            assert self._ranks is not None
            # What is streamed from RAM is there once for all ranks.
            memory = SharedHome(regions[0], least, self._rank, self._size, self._ranks.meet) if regions else None
            self._transformers[number] = build_denoiser(
                files, backends, placements[self._rank], self._device, exchange=self._ranks, memory=memory
            )
        transformer = self._transformers[number]
        try:
            transformer.load(self._hooks())
        except StoppedError:
            self._transformers.pop(number).unload()
            raise
        return int(transformer.describe()["weight_bytes"])

    def do_loras(self, value: Any, regions: list[Region]) -> None:
        number, stack, expert = value
        self._transformers[number].use_loras(stack, self._hooks(), expert)

    def do_unload(self, value: Any, regions: list[Region]) -> None:
        self._forget(value)
        transformer = self._transformers.pop(value, None)
        if transformer is not None:
            transformer.unload()

    def do_release(self, value: Any, regions: list[Region]) -> None:
        """Give back what only a pass needs."""
        self._forget(value)
        if value in self._transformers:
            self._transformers[value].release_workspace()

    def _forget(self, number: int) -> None:
        self._conditionings.pop(number, None)
        self._memory.pop(number, None)

    def do_forget_stop(self, value: Any, regions: list[Region]) -> None:
        """Every rank has heard of the last wish to stop."""
        self._stop.clear()

    def do_conditioning(self, value: Any, regions: list[Region]) -> None:
        number, conditioning = value
        self._conditionings[number] = conditioning

    def do_memory(self, value: Any, regions: list[Region]) -> None:
        """Take the memory for latents and for their flow."""
        number, shape = value
        self._memory[number] = tuple(region.floats(shape) for region in regions)

    def do_predict(self, value: Any, regions: list[Region]) -> dict[str, Any]:
        """Compute the flow of the latents; the first rank writes it."""
        begun = time.perf_counter()
        number, timestep, *turn = value
        latents, flow = self._memory[number]
        assert self._ranks is not None
        # Only between blocks, where all ranks are asked, may a pass end.
        self._ranks.begin_pass()
        hooks = Hooks(on_block=self._tell_block if self._rank == 0 else _tell_nobody)
        given = self._conditionings[number]
        found = self._transformers[number].predict_flow(latents, timestep, given, hooks, *turn)
        self._ranks.end_pass()
        if self._rank == 0:
            flow.copy_(found)
        seconds = time.perf_counter() - begun
        return {"moved_bytes": self._transformers[number].moved_bytes, "pass_seconds": seconds, **self._peaks()}

    def do_decode(self, value: Any, regions: list[Region]) -> dict[str, Any]:
        """Decode this rank's columns of the latents in the first region to the second, chunk by chunk."""
        files, shape, frames_shape, pins_frames = value
        latents, frames = regions[0].floats(shape), regions[1].floats(frames_shape)
        decoder = self._decoder_of(files)
        hooks = self._hooks()
        own = split_evenly(shape[-1], self._size)[self._rank]
        wide = with_halo(own, shape[-1])
        features = decoder.prepare(latents, hooks)[..., wide]
        width, done = frames_shape[2] // shape[-1], 0
        before = (own.start - wide.start) * width
        chunks = decoder.decode_chunks(features, hooks)
        mine = (chunk[:, :, before : before + (own.stop - own.start) * width] for chunk in chunks)
        for number, chunk in enumerate(to_cpu(mine, self._device, pins_frames)):
            frames[done : done + len(chunk), :, own.start * width : own.stop * width] = chunk
            done += len(chunk)
            self._channel.send(("chunk", (number, len(chunk))))
        return self._peaks()

    def do_load_decoder(self, value: Any, regions: list[Region]) -> None:
        self._decoder_of(value)

    def do_unload_decoder(self, value: Any, regions: list[Region]) -> None:
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            decoder[1].unload()

    def _decoder_of(self, files: VaeFiles) -> VideoDecoder:
        if self._decoder is None or self._decoder[0] != files:
            self.do_unload_decoder(None, [])
            self._decoder = (files, engines.build_decoder(files, "portable", self._device))
        decoder = self._decoder[1]
        decoder.load(self._hooks())
        return decoder

    def _hooks(self) -> Hooks:
        """Return what long work asks and tells, where each rank may stop by itself."""

        def check() -> None:
            if self._stop.is_set():
                raise StoppedError("Cancelled.")

        def tell(done: int, total: int, what: str) -> None:
            if self._rank == 0:
                self._channel.send(("progress", (done, total, what)))

        return Hooks(check_interrupt=check, on_progress=tell)

    def _tell_block(self, block: int, blocks: int) -> None:
        self._channel.send(("block", (block, blocks)))

    def _peaks(self) -> dict[str, Any]:
        if self._device.type != "cuda":
            return {}
        free, total = torch.cuda.mem_get_info()
        return {"peak_vram_reserved_bytes": torch.cuda.max_memory_reserved(), "used_vram_bytes": total - free}


def _tell_nobody(block: int, blocks: int) -> None:
    """Only one rank reports blocks."""


def _facts(error: BaseException) -> dict[str, Any]:
    """Return what the parent has to know of what ended a rank."""
    is_full = isinstance(error, RuntimeError) and system.is_out_of_memory(error)
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    traceback.print_exception(error)
    return {
        "kind": "memory" if is_full else "neighbour" if is_lost_neighbour(error) else "error",
        "text": text,
        "type": type(error).__name__,
    }
