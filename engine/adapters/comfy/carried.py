"""What a MODEL of this pack carries: its handle, the LoRAs that nodes put on it, and whatever else they did."""

from __future__ import annotations

from typing import Any

from ...handles import TransformerHandle
from ...lora.experts import ExpertLoras
from ...lora.reader import Patch
from ...sentences.loras import Loras

# Of the wrapper around ComfyUI's sampling, see model.make_model.
KEY = "lightx2v"
_LORAS = "lightx2v_loras"
HIGH_STEPS = "lightx2v_high_steps"
"""Of transformer_options: the steps of the high-noise expert of two; without it half of a schedule."""


def handle_of(model: Any) -> TransformerHandle | None:
    """Return the handle of a MODEL of this pack, whatever patcher is around it; None for another's."""
    handle: TransformerHandle | None = getattr(model.model, "lightx2v_handle", None)
    return handle


def with_lora(model: Any, lora: ExpertLoras, strength: float) -> Any:
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
        view = view.with_lora(view.read_patches(patches, title=Loras.OF_OTHER_NODES(), identity=model.patches_uuid))
    return view


def is_plain(model: Any) -> bool:
    """Say whether nodes have put nothing on a MODEL of this pack that ComfyUI's samplers heed, but for its shift."""
    options = {name: value for name, value in model.model_options.items() if name != "transformer_options"}
    inner = model.model_options.get("transformer_options", {})
    wrappers = {key for by_key in model.wrappers.values() for key, each in by_key.items() if each}
    callbacks = [each for by_key in model.callbacks.values() for each in by_key.values()]
    return not any([*options.values(), *inner.values(), *callbacks]) and wrappers == {KEY}


def _patch_of(key: str, strength: float, value: Any, offset: Any = None, function: Any = None) -> Patch:
    """Return an entry of ComfyUI's ModelPatcher.patches as plain data.

    Args:
        value: an adapter (comfy/weight_adapter), or (kind, tensors), or a difference as (tensor,).
        offset, function: of a patch of a part of the weight, or of a changed one.
    """
    if offset is not None or function is not None:
        return Patch(key=key, kind=Loras.PART_OF_WEIGHT(), tensors=(), strength=strength)
    if isinstance(value, tuple):
        kind, tensors = value if len(value) > 1 else ("diff", value)
        return Patch(key=key, kind=str(kind), tensors=tuple(tensors), strength=strength)
    return Patch(key=key, kind=str(value.name), tensors=tuple(value.weights), strength=strength)
