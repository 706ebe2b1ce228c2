"""ComfyUI as the engine sees it: what its launch flags ask, and how it makes room."""

from __future__ import annotations

from ...interfaces import Host
from . import memory


def find_host() -> Host:
    """Return the host for a stage that starts now."""
    memory.follow_host_device()
    return Host(policy=memory.host_policy(), claim=memory.register, make_room=memory.make_room)
