"""Read a workflow file, and turn the editor's format into the API's.

The editor format ("Save", "Export"; versions 0.4 and 1.0) stores nodes with positional widget values and
a list of links. The API format ("Export (API)", POST /prompt) maps node ids to class, inputs and title; a link is
`[node id, output index]`. The conversion follows what the editor itself sends (graphToPrompt of
ComfyUI_frontend 1.27): muted nodes vanish with their links, bypassed nodes pass an input of the same type through,
reroutes and primitives dissolve, notes are left out, dynamic prompts are drawn.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import WorkflowError
from .node_info import InputSpec, NodeInfo, input_specs

Prompt = dict[str, dict[str, Any]]
"""API format: node id -> {"class_type", "inputs", "_meta": {"title"}}."""

_MUTED, _BYPASSED = 2, 4
_NOTES = ("Note", "MarkdownNote")
_REROUTE, _PRIMITIVE = "Reroute", "PrimitiveNode"
_VIRTUAL = (*_NOTES, _REROUTE, _PRIMITIVE)
_CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
_SEED_NAMES = ("seed", "noise_seed")


def read_workflow(path: Path) -> dict[str, Any]:
    """Return the JSON object of a workflow file, in either format.

    Raises:
        WorkflowError: no such file, not JSON, or not a workflow.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkflowError(f"Cannot read the workflow {path}: {error.strerror}.") from error
    except ValueError as error:
        raise WorkflowError(
            f"{path} is not JSON: {error}. Expected a workflow saved or exported by ComfyUI."
        ) from error
    if not (is_editor_format(data) or _is_api_format(data)):
        raise WorkflowError(
            f"{path} is JSON but not a workflow: expected an object with 'nodes' and 'links' (saved by ComfyUI's "
            "editor), or node ids with 'class_type' and 'inputs' (Export (API))."
        )
    return dict(data)


def is_editor_format(data: Any) -> bool:
    """Return whether this is the editor's format rather than the API's."""
    return isinstance(data, dict) and isinstance(data.get("nodes"), list)


def _is_api_format(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and bool(data)
        and all(isinstance(node, dict) and isinstance(node.get("inputs"), dict) for node in data.values())
    )


def to_prompt(data: Mapping[str, Any], infos: Mapping[str, NodeInfo]) -> Prompt:
    """Return a workflow in API format.

    Args:
        data: what `read_workflow` returned.
        infos: node descriptions by class.

    Raises:
        WorkflowError: an unknown node, a subgraph, a group node, or a broken or circular link.
    """
    if not is_editor_format(data):
        return {str(node_id): dict(node) for node_id, node in data.items()}
    return _Editor(data, infos).to_prompt()


class _Editor:
    """An editor graph: its nodes and links by id."""

    def __init__(self, data: Mapping[str, Any], infos: Mapping[str, NodeInfo]) -> None:
        self._infos = infos
        self._subgraphs = {
            graph["id"]: graph.get("name", "") for graph in (data.get("definitions") or {}).get("subgraphs") or ()
        }
        self._nodes: dict[str, dict[str, Any]] = {str(node["id"]): node for node in data["nodes"]}
        self._links: dict[int, tuple[str, int]] = {}
        for link in data.get("links") or ():
            # Version 0.4 stores a link as a list, 1.0 as an object.
            number, origin, slot = (
                (link["id"], link["origin_id"], link["origin_slot"]) if isinstance(link, dict) else link[:3]
            )
            self._links[number] = (str(origin), int(slot))

    def to_prompt(self) -> Prompt:
        prompt = {
            node_id: self._convert(node_id, node)
            for node_id, node in self._nodes.items()
            if node["type"] not in _VIRTUAL and node.get("mode", 0) not in (_MUTED, _BYPASSED)
        }
        for node in prompt.values():
            inputs = node["inputs"]
            for name in [name for name, value in inputs.items() if is_link(value) and value[0] not in prompt]:
                del inputs[name]
        return prompt

    def _convert(self, node_id: str, node: Mapping[str, Any]) -> dict[str, Any]:
        info = self._info(node_id, node["type"])
        inputs: dict[str, Any] = {}
        for name, value in _widget_values(node, info).items():
            # A list is a link; list values travel wrapped. Source: ComfyUI execution.py (validate_inputs).
            inputs[name] = {"__value__": value} if isinstance(value, list) else value
        for entry in node.get("inputs") or ():
            resolved = self._resolve(entry, set())
            if resolved is not None:
                inputs[entry["name"]] = resolved
        title = node.get("title") or info.get("display_name") or node["type"]
        return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}

    def _info(self, node_id: str, class_type: str) -> NodeInfo:
        if class_type in self._subgraphs:
            raise WorkflowError(
                f"Node {node_id} is the subgraph '{self._subgraphs[class_type]}', which is not supported here. "
                "Unpack it in ComfyUI's editor, or use Workflow > Export (API) there and run that file."
            )
        if class_type.startswith(("workflow>", "workflow/")):
            raise WorkflowError(
                f"Node {node_id} is the group node '{class_type}', which is not supported here. Ungroup it in "
                "ComfyUI's editor, or use Workflow > Export (API) there and run that file."
            )
        if class_type not in self._infos:
            raise unknown_node(node_id, class_type)
        return self._infos[class_type]

    def _resolve(self, entry: Mapping[str, Any], visited: set[tuple[str, int]]) -> Any:
        """Follow the link of an input to `[node id, output index]`, a primitive's value, or None."""
        number = entry.get("link")
        if number is None:
            return None
        if number not in self._links:
            raise WorkflowError(f"Input '{entry['name']}' uses link {number}, which the file does not contain.")
        origin, slot = self._links[number]
        if origin not in self._nodes:
            raise WorkflowError(f"Link {number} starts at node {origin}, which the file does not contain.")
        if (origin, slot) in visited:
            raise WorkflowError(f"The links around node {origin} form a loop; a workflow must not be circular.")
        visited.add((origin, slot))
        node = self._nodes[origin]
        inputs = node.get("inputs") or []
        if node.get("mode", 0) == _BYPASSED:
            index = _bypass_index(node, slot, str(entry.get("type", "*")))
            return None if index is None else self._resolve(inputs[index], visited)
        if node["type"] == _REROUTE:
            return self._resolve(inputs[0] | {"type": entry.get("type", "*")}, visited)
        if node["type"] == _PRIMITIVE:
            return next(iter(node.get("widgets_values") or ()), None)
        return None if node["type"] in _NOTES else [origin, slot]


def is_link(value: Any) -> bool:
    """Return whether an input's value in API format is a link `[node id, output index]`."""
    return isinstance(value, list)


def unknown_node(node_id: str, class_type: str) -> WorkflowError:
    """Return the error for a node that is not available where the workflow is to run."""
    return WorkflowError(
        f"Node {node_id} is of type '{class_type}', which is not available here. Without a server only the LightX2V "
        "nodes and a few core nodes run; --server URL runs the workflow in a ComfyUI that has the node installed."
    )


def _bypass_index(node: Mapping[str, Any], slot: int, wanted: str) -> int | None:
    """Return which input a bypassed node passes through to output `slot`: the same index first, then the first fit."""
    inputs = [str(entry.get("type", "*")) for entry in node.get("inputs") or ()]
    if wanted in ("*", ""):
        return (slot if slot < len(inputs) else 0) if inputs else None
    output = str(node["outputs"][slot].get("type", "*"))
    fits = [types_overlap(kind, output) and types_overlap(kind, wanted) for kind in inputs]
    if slot < len(fits) and fits[slot]:
        return slot
    exact = [index for index, kind in enumerate(inputs) if kind == wanted]
    fitting = [index for index, fit in enumerate(fits) if fit]
    return next(iter(exact + fitting), None)


def types_overlap(received: str, accepted: str) -> bool:
    """Return whether a link of type `received` may enter an input of type `accepted`; commas separate alternatives."""
    if "*" in (received, accepted):
        return True
    return bool({kind.strip() for kind in received.split(",")} & {kind.strip() for kind in accepted.split(",")})


def _widget_values(node: Mapping[str, Any], info: NodeInfo) -> dict[str, Any]:
    """Return the values of a node's widgets by name; widgets newer than the file get their default."""
    widgets = [spec for spec in input_specs(info).values() if spec.is_widget]
    stored = node.get("widgets_values") or []
    if isinstance(stored, dict):
        values = {spec.name: stored.get(spec.name, spec.default) for spec in widgets}
    else:
        values = _read_positional(widgets, list(stored))
    for spec in widgets:
        if spec.options.get("dynamicPrompts") and isinstance(values[spec.name], str):
            values[spec.name] = draw_dynamic_prompt(values[spec.name])
    return values


def _read_positional(widgets: list[InputSpec], stored: list[Any]) -> dict[str, Any]:
    values = {}
    for spec in widgets:
        values[spec.name] = stored.pop(0) if stored else spec.default
        # The editor adds a widget behind a seed: what to do with it after each run.
        has_control = spec.options.get("control_after_generate") or (spec.type == "INT" and spec.name in _SEED_NAMES)
        if has_control and stored and stored[0] in _CONTROL_VALUES:
            stored.pop(0)
    return values


def draw_dynamic_prompt(text: str) -> str:
    """Return a prompt with one choice drawn from every `{a|b|c}`, nested ones too, and without C-style comments.

    A backslash keeps a brace or a bar. The editor does the same before it queues a prompt.
    """
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    escaped = {r"\{": "\0", r"\}": "\1", r"\|": "\2"}
    for sequence, placeholder in escaped.items():
        text = text.replace(sequence, placeholder)
    innermost = re.compile(r"\{([^{}]*)\}")
    while innermost.search(text):
        text = innermost.sub(lambda match: random.choice(match[1].split("|")), text)
    for sequence, placeholder in escaped.items():
        text = text.replace(placeholder, sequence[1])
    return text
