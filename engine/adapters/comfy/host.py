"""ComfyUI as the engine sees it: where it computes, what its launch flags ask, and how it makes room."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import comfy.model_management as mm

from ... import system
from ...interfaces import Host
from . import memory


def find_host(claim: Callable[[Any, int, int], None] | None = None) -> Host:
    """Return the host for a stage that starts now.

    Args:
        claim: puts the stage's weights under ComfyUI's memory manager, see interfaces.Host; memory.register unless
            they are there under an entry of another kind (model.py).
    """
    follow_host_device()
    return Host(policy=memory.host_policy(), claim=claim or memory.register, make_room=memory.make_room)


def follow_host_device() -> None:
    """Compute on the CPU where ComfyUI does (--cpu), although there may be a GPU."""
    system.use_cpu_only(mm.is_device_cpu(mm.get_torch_device()))


def versions() -> dict[str, str]:
    """Return ComfyUI's version by its name; nothing where something else stands in for it."""
    try:
        found = importlib.import_module("comfyui_version")
    except ModuleNotFoundError:
        return {}
    return {"ComfyUI": str(found.__version__)}
