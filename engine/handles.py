"""Light handles for checkpoints: what a loader returns. Weights load when a stage first needs them.

A handle owns at most one engine object. ComfyUI keeps handles in its cache and may ask any of them to
unload; nothing else refers to an engine, so weights go when the last reference to the handle goes.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from . import engines, shapes, system
from .checkpoints.files import TransformerFiles
from .constants import GIB
from .errors import CheckpointError
from .interfaces import Hooks, TextEncoder, Transformer, VideoDecoder
from .memory.budget import Host, find_budget
from .memory.model_sizes import WeightSizes, weight_sizes
from .memory.needs import (
    LATER_MARGIN,
    RAM_FIXED_BYTES,
    ClipSizes,
    Need,
    Placement,
    Sizes,
    decoder_bytes,
    encoding_need,
    weights_ram,
    weights_vram,
)
from .memory.plan import DecodePlan, HostPolicy, MemoryPlan, Wish, plan_decode, plan_run, retry_wish
from .settings import EngineSettings, OffloadSettings

logger = logging.getLogger(__name__)


class _Unloadable(Protocol):
    def unload(self) -> None: ...


EngineObject = TypeVar("EngineObject", bound=_Unloadable)

_loaded: weakref.WeakSet[Handle[Any]] = weakref.WeakSet()


class Handle(Generic[EngineObject]):
    """Owner of one engine object."""

    def __init__(self) -> None:
        self._engine: EngineObject | None = None
        self._release: weakref.finalize[[], Handle[Any]] | None = None

    @property
    def is_loaded(self) -> bool:
        return self._engine is not None

    @property
    def num_bytes(self) -> int:
        """Weight bytes this takes on the compute device while loaded."""
        raise NotImplementedError

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM in which weights rest while loaded, that the system cannot take back by itself."""
        return 0

    def unload(self) -> None:
        """Give back all memory; the next stage that needs the weights loads them again."""
        self._engine = None
        if self._release is not None:
            self._release()

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Give back what was loaded so far when loading fails or is cancelled."""
        try:
            yield
        except BaseException:
            self.unload()
            raise

    def _keep(self, engine: EngineObject) -> EngineObject:
        self._engine = engine
        # Without it an engine with a reference cycle would keep its memory until the next garbage collection.
        self._release = weakref.finalize(self, engine.unload)
        self._release.atexit = False
        _loaded.add(self)
        return engine


def held(without: Handle[Any] | None = None) -> Need:
    """Return what the handles of this process hold now, but for `without`."""
    loaded = [handle for handle in list(_loaded) if handle.is_loaded and handle is not without]
    vram = sum(handle.num_bytes for handle in loaded) if system.compute_device().type == "cuda" else 0
    return Need(vram=vram, ram=sum(handle.ram_bytes for handle in loaded))


def unload_others(keep: Handle[Any] | None = None) -> None:
    """Unload every handle of this process but `keep`."""
    for handle in list(_loaded):
        if handle is not keep and handle.is_loaded:
            logger.info("LightX2V: unloading %s to make room.", type(handle).__name__)
            handle.unload()


class TransformerHandle(Handle[Transformer]):
    """A transformer checkpoint and how to run it."""

    def __init__(self, files: TransformerFiles, settings: EngineSettings, offload: OffloadSettings) -> None:
        super().__init__()
        self.files = files
        self.settings = settings
        self.offload = offload
        # Of what is loaded, or of the last plan.
        self._placement = Placement(mode="none")

    @property
    def text_dim(self) -> int:
        return self.files.format.architecture.text_dim

    @property
    def weights(self) -> WeightSizes:
        return weight_sizes(self.files.format.architecture, self.files.format.scheme)

    @property
    def num_bytes(self) -> int:
        return weights_vram(self.weights, self._placement)

    @property
    def ram_bytes(self) -> int:
        if not self.is_loaded or system.compute_device().type == "cpu":
            return 0
        # The libraries that came with the first run are part of every stage's figures, see memory_needs.py.
        return weights_ram(self.weights, self._placement) + RAM_FIXED_BYTES

    @property
    def moved_bytes(self) -> int:
        """Bytes copied to the GPU since the engine was made."""
        return self._engine.describe()["moved_bytes"] if self._engine else 0

    def plan(
        self, samples_shape: Sequence[int], host: Host, *, others_leave: bool = True, failed: MemoryPlan | None = None
    ) -> MemoryPlan:
        """Plan the sampling of a batch [B, 16, T, h, w]; what is loaded stays if it fits and is not clearly worse.

        Args:
            samples_shape: of the latents.
            host: the program around the engine.
            others_leave: count on the host to unload its own models first.
            failed: the plan that ran out of memory, for a cheaper one.

        Raises:
            NothingFitsError: see memory/plan.py.
        """
        sizes = run_sizes(self.files, self.settings, samples_shape)
        budget = find_budget(host.policy, self.offload.vram_budget_gib, held(), others_leave=others_leave)
        wish = offload_wish(self.offload, host.policy, current=self._placement if self.is_loaded else None)
        if failed is not None:
            wish = retry_wish(wish, failed.needs["sample"])
        plan = plan_run(sizes, budget, wish)
        if not self.is_loaded:
            self._placement = plan.placement
        return plan

    def acquire(
        self, latent_shape: tuple[int, int, int, int], hooks: Hooks, plan: MemoryPlan | None = None
    ) -> Transformer:
        """Return the transformer, loaded for latents of this shape as planned; without a plan one is made."""
        plan = plan or self.plan((1, *latent_shape), Host())
        if self._engine is not None and plan.placement != self._placement:
            self.unload()
        self._placement = plan.placement
        engine = self._engine or self._keep(engines.build_transformer(self.files, self.settings, plan.placement))
        with self._loading():
            engine.load(latent_shape, hooks)
        return engine

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Give back afterwards what only sampling needs, so that a decode has room beside the weights."""
        try:
            yield
        finally:
            if self._engine is not None:
                self._engine.rest()


def run_sizes(files: TransformerFiles, settings: EngineSettings, samples_shape: Sequence[int]) -> Sizes:
    """Return the sizes that a plan is made of, for latents [B, 16, T, h, w]."""
    backends = engines.choose_backends(files.format.scheme, settings)
    num_frames, height, width = shapes.video_shape(samples_shape)
    return Sizes(
        architecture=files.format.architecture,
        scheme=files.format.scheme,
        attention=backends.attention_memory,
        matmul=backends.matmul.name if backends.matmul else files.format.scheme,
        path=backends.path,
        width=width,
        height=height,
        num_frames=num_frames,
        batch=samples_shape[0],
    )


def offload_wish(offload: OffloadSettings, policy: HostPolicy, *, current: Placement | None = None) -> Wish:
    """Return what the offload settings and the host ask of a plan."""
    return Wish(
        mode=offload.mode,
        tiling=offload.vae_tiling,
        pinned_limit_bytes=int(offload.pinned_ram_limit_gib * GIB) or None,
        policy=policy,
        current=current,
    )


class FileHandle(Handle[EngineObject]):
    """A handle of one file, or of a part that a checkpoint lacks: then `problem` says so when it is used."""

    def __init__(self, file: Path | None, problem: str = "") -> None:
        super().__init__()
        self._file = file
        self._problem = problem

    @property
    def file(self) -> Path:
        if self._file is None:
            raise CheckpointError(self._problem)
        return self._file


class VaeHandle(FileHandle[VideoDecoder]):
    """A VAE file and how to decode with it."""

    def __init__(self, file: Path | None, engine: str, offload: OffloadSettings, problem: str = "") -> None:
        super().__init__(file, problem)
        self.engine = engine
        self.offload = offload

    @property
    def num_bytes(self) -> int:
        return decoder_bytes(ClipSizes(width=0, height=0, num_frames=1, vae_base_dim=self.base_dim), None)

    def plan(
        self,
        samples_shape: Sequence[int],
        tiling: str,
        host: Host,
        *,
        others_leave: bool = True,
        failed: DecodePlan | None = None,
    ) -> DecodePlan:
        """Plan the decode of a batch [B, 16, T, h, w].

        Args:
            samples_shape: of the latents.
            tiling: auto, which asks the offload settings, or on, or off.
            host, others_leave, failed: see TransformerHandle.plan.
        """
        num_frames, height, width = shapes.video_shape(samples_shape)
        sizes = ClipSizes(
            width=width, height=height, num_frames=num_frames, batch=samples_shape[0], vae_base_dim=self.base_dim
        )
        budget = find_budget(host.policy, self.offload.vram_budget_gib, held(), others_leave=others_leave)
        wish = offload_wish(self.offload, host.policy)
        if tiling != "auto":
            wish = replace(wish, tiling=tiling)
        return plan_decode(sizes, budget, wish, held(without=self), margin=LATER_MARGIN, below=failed)

    @cached_property
    def base_dim(self) -> int:
        """Base width of the VAE, as in memory_needs.ClipSizes."""
        dim = engines.build_decoder(self.file, self.engine).describe()["vae_dim"]
        return dim if isinstance(dim, int) else 0

    def acquire(self, hooks: Hooks) -> VideoDecoder:
        """Return the decoder, loaded."""
        engine = self._engine or self._keep(engines.build_decoder(self.file, self.engine))
        with self._loading():
            engine.load(hooks)
        return engine


class TextEncoderHandle(FileHandle[TextEncoder]):
    """A text encoder file and its tokenizer."""

    def __init__(self, file: Path | None, tokenizer: Path | None, problem: str = "") -> None:
        super().__init__(file, problem)
        self.tokenizer = tokenizer

    @property
    def num_bytes(self) -> int:
        return encoding_need(self.file.stat().st_size, "gpu").vram

    def acquire(self, device: str, hooks: Hooks) -> TextEncoder:
        """Return the text encoder, loaded on "cpu" or "gpu"."""
        engine = self._engine or self._keep(engines.build_text_encoder(self.file, self.tokenizer))
        with self._loading():
            engine.load(device, hooks)
        return engine
