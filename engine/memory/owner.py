"""Who holds loaded weights in this process: owners of one engine object each, and what they take together.

Weights go when the last handle that refers to their owner goes. ComfyUI's memory manager may ask any owner to unload.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

from ..sentences.memory import Memory
from .needs import Need
from .placement import Placement

logger = logging.getLogger(__name__)

_NOTHING = Need(vram=0, ram=0)


class _Unloadable(Protocol):
    def unload(self) -> None: ...


EngineObject = TypeVar("EngineObject", bound=_Unloadable)

_loaded: weakref.WeakSet[WeightOwner[Any]] = weakref.WeakSet()


class WeightOwner(Generic[EngineObject]):
    """Owner of at most one engine object, which views of the same weights share."""

    def __init__(self, name: str) -> None:
        """Args: name: what it holds, for the log."""
        self.name = name
        self.engine: EngineObject | None = None
        self.key: Hashable = None
        """What was loaded, and how."""
        self.placement: Placement | None = None
        """Where the loaded weights rest, of a transformer's."""
        self.patcher: Any = None
        """The entry of ComfyUI's memory manager, see adapters/comfy/memory.py."""
        self.is_elsewhere = False
        """Whether other processes have it: then this one's torch holds nothing of it."""
        self._need = _NOTHING
        self._release: weakref.finalize[[], WeightOwner[Any]] | None = None

    @property
    def is_loaded(self) -> bool:
        return self.engine is not None

    @property
    def held(self) -> Need:
        """Bytes of the weights while loaded: of this process on the compute device, and of RAM that the system cannot
        take back.
        """
        if not self.is_loaded:
            return _NOTHING
        return Need(vram=0, ram=self._need.ram) if self.is_elsewhere else self._need

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights on the compute device, whichever process has them."""
        return self._need.vram if self.is_loaded else 0

    def load(
        self,
        key: Hashable,
        build: Callable[[], EngineObject],
        load: Callable[[EngineObject], None],
        need: Need,
        placement: Placement | None = None,
    ) -> EngineObject:
        """Return the engine object, loaded; what was loaded with another key goes first.

        Args:
            key: of what decides how it is loaded.
            build: makes an unloaded object.
            load: loads it. Where that fails or is cancelled, what was loaded so far is given back.
            need: what its weights take while loaded, with what is added to them.
            placement: where a transformer's weights will rest.
        """
        if self.engine is not None and self.key != key:
            self.unload()
        engine = self.engine
        if engine is None:
            engine = self.engine = build()
            # Without it an engine with a reference cycle would keep its memory until the next garbage collection.
            self._release = weakref.finalize(self, engine.unload)
            self._release.atexit = False
            self.key, self.placement = key, placement
            _loaded.add(self)
        self._need = need
        try:
            load(engine)
        except BaseException:
            self.unload()
            raise
        return engine

    def unload(self) -> None:
        """Give back all memory; the next stage that needs the weights loads them again."""
        self.engine = self.key = self.placement = None
        if self._release is not None:
            self._release()


def held(without: WeightOwner[Any] | None = None) -> Need:
    """Return what the owners of this process hold now, but for `without`."""
    total = _NOTHING
    for owner in list(_loaded):
        if owner is not without:
            total += owner.held
    return total


def unload_others(keep: WeightOwner[Any] | None = None) -> None:
    """Unload every owner of this process but `keep`."""
    for owner in list(_loaded):
        if owner is not keep and owner.is_loaded:
            logger.info("LightX2V: %s", Memory.UNLOADING(name=owner.name))
            owner.unload()
