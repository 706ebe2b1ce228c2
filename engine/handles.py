"""Light handles for checkpoints: what a loader returns. Weights load when a stage first needs them.

A handle owns at most one engine object. ComfyUI keeps handles in its cache and may ask any of them to
unload; nothing else refers to an engine, so weights go when the last reference to the handle goes.
"""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from . import engines
from .adapters import system
from .constants import GIB
from .errors import CheckpointError
from .interfaces import Hooks, TextEncoder, Transformer, VideoDecoder
from .logic import shapes
from .logic.checkpoint_files import TransformerFiles
from .logic.memory_plan import plan_offload
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

    def unload(self) -> None:
        """Give back all memory; the next stage that needs the weights loads them again."""
        self._engine = None
        if self._release is not None:
            self._release()

    def _keep(self, engine: EngineObject) -> EngineObject:
        self._engine = engine
        # Without it an engine with a reference cycle would keep its memory until the next garbage collection.
        self._release = weakref.finalize(self, engine.unload)
        self._release.atexit = False
        _loaded.add(self)
        return engine


def held_ram_bytes() -> int:
    """Return the RAM in which loaded transformers keep their weights; unloading them gives it back."""
    return sum(handle.ram_bytes for handle in list(_loaded) if isinstance(handle, TransformerHandle))


def unload_others(keep: Handle[Any]) -> None:
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
        self._mode = ""

    @property
    def text_dim(self) -> int:
        return self.files.format.architecture.text_dim

    @property
    def num_bytes(self) -> int:
        mode = self._mode or self.offload.mode
        if mode in ("auto", "none"):
            return self.files.num_bytes
        # Two units in flight and what is not a block.
        return 3 * self.files.num_bytes // max(self.files.format.architecture.num_layers, 1)

    @property
    def ram_bytes(self) -> int:
        """Bytes of the weights that rest in RAM while loaded, streamed from there to the GPU."""
        return self.files.num_bytes if self.is_loaded and self._mode in ("block", "phase") else 0

    @property
    def moved_bytes(self) -> int:
        """Bytes copied to the GPU since the engine was made."""
        return self._engine.describe()["moved_bytes"] if self._engine else 0

    def acquire(self, latent_shape: tuple[int, int, int, int], hooks: Hooks) -> Transformer:
        """Return the transformer, loaded for latents of this shape."""
        mode = self._plan_mode(latent_shape)
        if self._engine is not None and mode != self._mode:
            self.unload()
        self._mode = mode
        pinned_limit = int(self.offload.pinned_ram_limit_gib * GIB) or None
        engine = self._engine or self._keep(engines.build_transformer(self.files, self.settings, mode, pinned_limit))
        engine.load(latent_shape, hooks)
        return engine

    def _plan_mode(self, latent_shape: tuple[int, int, int, int]) -> str:
        held = self.num_bytes if self._engine is not None else 0
        vram = system.free_vram_bytes()
        if vram is not None:
            vram += held
            if self.offload.vram_budget_gib:
                vram = min(vram, int(self.offload.vram_budget_gib * GIB))
        plan = plan_offload(
            self.offload.mode,
            weight_bytes=self.files.num_bytes,
            dim=self.files.format.architecture.dim,
            tokens=shapes.num_tokens(latent_shape),
            vram_bytes=vram,
            ram_bytes=system.free_ram_bytes() + self.ram_bytes,
        )
        if plan.mode != self._mode:
            logger.info("LightX2V: offload mode %s (%s).", plan.mode, plan.reason)
        return plan.mode


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

    @property
    def num_bytes(self) -> int:
        return self.file.stat().st_size


class VaeHandle(FileHandle[VideoDecoder]):
    """A VAE file and how to decode with it."""

    def __init__(self, file: Path | None, engine: str, offload: OffloadSettings, problem: str = "") -> None:
        super().__init__(file, problem)
        self.engine = engine
        self.offload = offload

    def acquire(self, hooks: Hooks) -> VideoDecoder:
        """Return the decoder, loaded."""
        engine = self._engine or self._keep(engines.build_decoder(self.file, self.engine))
        engine.load(hooks)
        return engine


class TextEncoderHandle(FileHandle[TextEncoder]):
    """A text encoder file and its tokenizer."""

    def __init__(self, file: Path | None, tokenizer: Path | None, problem: str = "") -> None:
        super().__init__(file, problem)
        self.tokenizer = tokenizer

    def acquire(self, device: str, hooks: Hooks) -> TextEncoder:
        """Return the text encoder, loaded on "cpu" or "gpu"."""
        engine = self._engine or self._keep(engines.build_text_encoder(self.file, self.tokenizer))
        engine.load(device, hooks)
        return engine
