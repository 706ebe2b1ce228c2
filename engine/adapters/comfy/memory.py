"""ComfyUI's memory manager: make room on the GPU, and obey Unload Models, /free and other models' needs.

Only what is in `model_management.current_loaded_models` obeys them, so every owner that may hold GPU
memory is put there as a ModelPatcher.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import comfy.cli_args
import comfy.model_management as mm
import comfy.model_patcher
import torch

from ...memory.owner import WeightOwner
from ...settings import HostPolicy
from .host_flags import policy_of


def register(owner: WeightOwner[Any], weight_bytes: int = 0, activation_bytes: int = 0) -> None:
    """Put an owner of weights under ComfyUI's memory manager and make room for its weights and activations.

    Call it before each stage that loads it. Weights load in the stage itself, which knows the
    size of the clip; until then the owner counts as offloaded, with so many bytes.
    """
    # The owner has its patcher, and the patcher knows the owner weakly: no cycle, so both go when the
    # last node output that refers to the owner goes. ComfyUI's RAM-pressure cache looks for `patcher`.
    if owner.patcher is None:
        owner.patcher = EnginePatcher(owner)
    owner.patcher.planned_bytes = weight_bytes
    mm.load_models_gpu([owner.patcher], memory_required=activation_bytes)


def claim_with(patcher: Any) -> Callable[[Any, int, int], None]:
    """Return `register` for a transformer that is a MODEL: its entry is this patcher, with what nodes have put on it.

    Args:
        patcher: a TransformerPatcher (model_patcher.py).
    """

    def claim(owner: WeightOwner[Any], weight_bytes: int, activation_bytes: int) -> None:
        patcher.model.planned_bytes, patcher.model.activation_bytes = weight_bytes, activation_bytes
        mm.load_models_gpu([patcher], memory_required=activation_bytes)

    return claim


def make_room(num_bytes: int) -> None:
    """Ask ComfyUI to unload models until `num_bytes` of GPU memory are free; nothing without a GPU."""
    device = mm.get_torch_device()
    if not mm.is_device_cpu(device):
        mm.free_memory(num_bytes, device)


def host_policy() -> HostPolicy:
    """Return what ComfyUI's launch flags ask of a plan made now."""
    args = comfy.cli_args.args
    # Older versions have neither page-locked memory nor its flag.
    return policy_of(
        mm.vram_state.name,
        reserve_vram_gib=args.reserve_vram,
        is_pinning_disabled=getattr(args, "disable_pinned_memory", False),
        # Not less what it has locked itself: that changes with every model, and a plan would with it.
        max_pinned_bytes=getattr(mm, "MAX_PINNED_MEMORY", -1),
    )


class _EngineModule(torch.nn.Module):
    """What ComfyUI's base class takes for the model: it sets attributes on it and counts its (no) parameters."""

    def __init__(self, owner: WeightOwner[Any]) -> None:
        super().__init__()
        self.owner = weakref.ref(owner)


class EnginePatcher(comfy.model_patcher.ModelPatcher):  # type: ignore[misc]
    """Owned weights as ComfyUI's memory manager sees them: loaded or not, never patched, never cloned.

    A subclass, because newer versions call methods on every entry of their list that older ones lack.
    """

    planned_bytes = 0
    """What the weights are going to take on the compute device."""

    def __init__(self, owner: WeightOwner[Any]) -> None:
        # A size of 0 would make the base class measure the module.
        size = max(owner.num_bytes, 1)
        super().__init__(_EngineModule(owner), mm.get_torch_device(), mm.unet_offload_device(), size=size)

    def _is_loaded(self) -> bool:
        owner = self.model.owner()
        return owner is not None and owner.is_loaded

    def _unload(self) -> None:
        owner = self.model.owner()
        if owner is not None:
            owner.unload()

    def model_size(self) -> int:
        owner = getattr(self.model, "owner", lambda: None)()
        held = owner.num_bytes if owner is not None and owner.is_loaded else self.planned_bytes
        return max(held, 1)

    def loaded_size(self) -> int:
        return self.model_size() if self._is_loaded() else 0

    def current_loaded_device(self) -> Any:
        return self.load_device if self._is_loaded() else self.offload_device

    def partially_load(self, device_to: Any, extra_memory: float = 0, *_: Any, **__: Any) -> int:
        """Load nothing: the stage does, with an offload mode that fits what is free then."""
        return 0

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, *_: Any, **__: Any) -> int:
        """Free nothing, upon which ComfyUI calls `detach`."""
        return 0

    def detach(self, unpatch_all: bool = True) -> Any:
        """Drop the weights. With False, ComfyUI only re-registers the model and means to keep them."""
        if unpatch_all:
            self._unload()
        return self.model

    def patch_model(self, *_: Any, **__: Any) -> Any:
        return self.model

    def unpatch_model(self, *_: Any, **__: Any) -> None:
        self._unload()

    def clone(self, *_: Any, **__: Any) -> EnginePatcher:
        return self

    def model_dtype(self) -> None:
        return None

    def model_patches_to(self, device: Any) -> None:
        return None

    def model_patches_models(self) -> list[Any]:
        return []

    def lowvram_patch_counter(self) -> int:
        return 0

    def __del__(self) -> None:
        """Do not detach, as the base class would: the owner may be in use without its patcher."""
