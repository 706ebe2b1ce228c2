"""Read a workflow file, and turn the editor's format into the API's.

The editor format ("Save", "Export"; versions 0.4 and 1.0) stores nodes with positional widget values and
a list of links. The API format ("Export (API)", POST /prompt) maps node ids to class, inputs and title; a link is
`[node id, output index]`. The conversion follows what the editor itself sends (graphToPrompt of
ComfyUI_frontend 1.27): muted nodes vanish with their links, bypassed nodes pass an input of the same type through,
reroutes, primitives and Set/Get nodes dissolve, notes are left out, dynamic prompts are drawn. Nodes that only the
editor knows and that are linked to nothing (labels, bookmarks, switches of groups) are left out too.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...engine.errors import MALFORMED, nearest
from ...engine.sentences.tools import Workflows
from ..text_files import read_text
from .errors import WorkflowError
from .node_info import InputSpec, NodeInfo, input_specs

logger = logging.getLogger(__name__)

Prompt = dict[str, dict[str, Any]]
"""API format: node id -> {"class_type", "inputs", "_meta": {"title"}}."""

_MUTED, _BYPASSED = 2, 4
_NOTES = ("Note", "MarkdownNote")
_PRIMITIVE = "PrimitiveNode"
_REROUTES = ("Reroute", "Reroute (rgthree)")
# Source: ComfyUI-KJNodes (web/js/setgetnodes.js) and ComfyUI-Easy-Use, which took them over.
_SETTERS, _GETTERS = ("SetNode", "easy setNode"), ("GetNode", "easy getNode")
# Switches that are linked to the nodes they mute or bypass, which is saved as these nodes' mode. Source: rgthree-comfy
# (src_web/comfyui/constants.ts).
_SWITCHES = tuple(
    f"{name} (rgthree)"
    for name in (
        "Mute / Bypass Relay", "Mute / Bypass Repeater", "Fast Muter", "Fast Bypasser", "Fast Node Muter",
        "Fast Actions Button", "Node Collector", "Random Unmuter",
    )
)  # fmt: skip
_VIRTUAL = (*_NOTES, *_REROUTES, _PRIMITIVE, *_SETTERS, *_GETTERS, *_SWITCHES)
_CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
_SEED_NAMES = ("seed", "noise_seed")


def read_workflow(path: Path) -> dict[str, Any]:
    """Return the JSON object of a workflow file, in either format.

    Raises:
        WorkflowError: no such file, not JSON, or not a workflow.
    """
    try:
        data = json.loads(read_text(path))
    except OSError as error:
        raise WorkflowError(Workflows.CANNOT_READ(path=path, reason=error.strerror)) from error
    except RecursionError as error:
        raise WorkflowError(Workflows.TOO_DEEP(path=path)) from error
    except json.JSONDecodeError as error:
        raise WorkflowError(Workflows.NO_JSON(path=path, error=error)) from error
    except ValueError as error:
        raise WorkflowError(str(error)) from error
    if is_editor_format(data):
        return dict(data)
    nodes = _api_nodes(data)
    if not nodes:
        raise WorkflowError(Workflows.NO_WORKFLOW(path=path))
    return nodes


def is_editor_format(data: Any) -> bool:
    """Return whether this is the editor's format rather than the API's."""
    return isinstance(data, dict) and isinstance(data.get("nodes"), list)


def _api_nodes(data: Any) -> dict[str, Any]:
    """Return the nodes of a file in API format, without what people note beside them.

    Raises:
        WorkflowError: a node is not whole.
    """
    if not isinstance(data, dict):
        return {}
    nodes = {}
    for key, node in data.items():
        if not isinstance(node, dict) or not {"class_type", "inputs"} & node.keys():
            continue
        for part, kind in (("class_type", str), ("inputs", dict)):
            if not isinstance(node.get(part), kind):
                found = Workflows.IT_IS(value=_shown(node[part])) if part in node else Workflows.HAS_NONE()
                expected = Workflows.A_TEXT() if kind is str else Workflows.AN_OBJECT()
                raise WorkflowError(Workflows.LACKS_PART(key=key, part=part, expected=expected, found=found))
        nodes[key] = node
    left_out = [key for key in data if key not in nodes]
    if nodes and left_out:
        logger.warning("LightX2V: %s", Workflows.NO_NODES(names=", ".join(left_out)))
    return nodes


def _shown(value: Any) -> str:
    return _short(json.dumps(value))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _objects(items: Any, what: str) -> list[dict[str, Any]]:
    """Return the objects of a list; holes are passed over, as the editor does.

    Raises:
        WorkflowError: it is no list, or has something else.
    """
    if items is None:
        return []
    if not isinstance(items, list):
        raise WorkflowError(Workflows.NO_LIST(what=what, items=_shown(items)))
    for index, item in enumerate(items):
        if item is not None and not isinstance(item, dict):
            raise WorkflowError(Workflows.NO_OBJECT(what=what, index=index, item=_shown(item)))
    return [item for item in items if item is not None]


def to_prompt(data: Mapping[str, Any], infos: Mapping[str, NodeInfo], *, has_server: bool = False) -> Prompt:
    """Return a workflow in API format.

    Args:
        data: what `read_workflow` returned.
        infos: node descriptions by class.
        has_server: whether they are a server's, for messages.

    Raises:
        WorkflowError: an unknown node, a subgraph, a group node, a broken or circular link, or what no editor writes.
    """
    if not is_editor_format(data):
        return {str(node_id): dict(node) for node_id, node in data.items()}
    try:
        return _Editor(data, infos, has_server=has_server).to_prompt()
    except MALFORMED as error:
        raise WorkflowError(Workflows.FOREIGN(kind=type(error).__name__, error=str(error)[:120])) from error


def adopt_separators(prompt: Prompt, infos: Mapping[str, NodeInfo]) -> None:
    """Write the names of files that were chosen on another system as they are offered here: a\\b for a/b, or a/b."""
    for node in prompt.values():
        for name, spec in input_specs(infos[node["class_type"]]).items() if node["class_type"] in infos else ():
            value = node["inputs"].get(name)
            if isinstance(value, str) and spec.choices is not None and value not in spec.choices:
                same = [choice for choice in spec.choices if _plain(choice) == _plain(value)]
                node["inputs"][name] = same[0] if same else value


def _plain(name: Any) -> str:
    return str(name).replace("\\", "/")


def silenced_outputs(data: Mapping[str, Any], infos: Mapping[str, NodeInfo]) -> list[str]:
    """Return the nodes that would save or show something, and are muted or bypassed in the editor."""
    if not is_editor_format(data):
        return []
    return [
        Workflows.TITLED(
            title=node.get("title") or infos[node["type"]].get("display_name") or node["type"], node_id=node["id"]
        )
        for node in _objects(data["nodes"], "nodes")
        if node.get("mode", 0) in (_MUTED, _BYPASSED) and infos.get(str(node.get("type")), {}).get("output_node")
    ]


class _Editor:
    """An editor graph: its nodes and links by id."""

    def __init__(self, data: Mapping[str, Any], infos: Mapping[str, NodeInfo], *, has_server: bool) -> None:
        self._infos = infos
        self._has_server = has_server
        definitions = data.get("definitions") or {}
        self._subgraphs = {
            graph.get("id"): graph.get("name", "") for graph in _objects(definitions.get("subgraphs"), "subgraphs")
        }
        self._nodes: dict[str, dict[str, Any]] = {}
        for node in _objects(data["nodes"], "nodes"):
            if not isinstance(node.get("type"), str) or not isinstance(node.get("id"), (int, str)):
                raise WorkflowError(Workflows.NO_ID(node=_shown(node)))
            node_id = str(node["id"])
            # Entries that hold no link may be missing.
            slots = {
                kind: _objects(node.get(kind), Workflows.SLOTS(kind=kind, node_id=node_id))
                for kind in ("inputs", "outputs")
            }
            self._nodes[node_id] = node | slots
        self._links = dict(_read_link(link) for link in data.get("links") or () if link is not None)

    def to_prompt(self) -> Prompt:
        prompt = {
            node_id: self._convert(node_id, node)
            for node_id, node in self._nodes.items()
            if node.get("mode", 0) not in (_MUTED, _BYPASSED) and not self._is_left_out(node_id, node)
        }
        for node in prompt.values():
            inputs = node["inputs"]
            for name in [name for name, value in inputs.items() if is_link(value) and value[0] not in prompt]:
                del inputs[name]
        return prompt

    def _is_left_out(self, node_id: str, node: Mapping[str, Any]) -> bool:
        """Whether a node is the editor's alone: a known one, or one that nobody here knows and nothing is linked to."""
        if self._is_virtual(node):
            return True
        class_type = node["type"]
        is_known = class_type in self._infos or class_type in self._subgraphs or _is_group_node(class_type)
        is_linked = any(entry.get("link") is not None for entry in node["inputs"]) or any(
            origin == node_id for origin, _ in self._links.values()
        )
        if is_known or is_linked:
            return False
        logger.info("LightX2V: %s", Workflows.NOT_LINKED(node_id=node_id, class_type=class_type))
        return True

    def _is_virtual(self, node: Mapping[str, Any]) -> bool:
        return node["type"] in _VIRTUAL and node["type"] not in self._infos

    def _convert(self, node_id: str, node: Mapping[str, Any]) -> dict[str, Any]:
        info = self._info(node_id, node["type"])
        inputs: dict[str, Any] = {}
        for name, value in _widget_values(node, info).items():
            # A list is a link; list values travel wrapped. Source: ComfyUI execution.py (validate_inputs).
            inputs[name] = {"__value__": value} if isinstance(value, list) else value
        for entry in node["inputs"]:
            resolved = self._resolve(entry, set())
            if resolved is not None:
                inputs[str(entry.get("name"))] = resolved
        title = node.get("title") or info.get("display_name") or node["type"]
        return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}

    def _info(self, node_id: str, class_type: str) -> NodeInfo:
        if class_type in self._subgraphs:
            raise WorkflowError(Workflows.SUBGRAPH(node_id=node_id, name=self._subgraphs[class_type]))
        if _is_group_node(class_type):
            raise WorkflowError(Workflows.GROUP_NODE(node_id=node_id, class_type=class_type))
        if class_type not in self._infos:
            raise unknown_node(node_id, class_type, has_server=self._has_server)
        return self._infos[class_type]

    def _resolve(self, entry: Mapping[str, Any], visited: set[tuple[str, int]]) -> Any:
        """Follow the link of an input to `[node id, output index]`, a primitive's value, or None."""
        number = entry.get("link")
        if number is None:
            return None
        if number not in self._links:
            raise WorkflowError(Workflows.LOST_LINK(name=_short(entry.get("name")), link=_short(number)))
        origin, slot = self._links[number]
        if origin not in self._nodes:
            raise WorkflowError(Workflows.LOST_ORIGIN(number=number, origin=_short(origin)))
        if (origin, slot) in visited:
            raise WorkflowError(Workflows.LINKS_LOOP(origin=_short(origin)))
        visited.add((origin, slot))
        node = self._nodes[origin]
        wanted = str(entry.get("type", "*"))
        if node.get("mode", 0) == _BYPASSED and not self._is_virtual(node):
            index = _bypass_index(node, slot, wanted)
            return None if index is None else self._resolve(node["inputs"][index], visited)
        if not self._is_virtual(node):
            return [origin, slot]
        if node["type"] == _PRIMITIVE:
            return _first_value(node)
        if node["type"] in _GETTERS:
            node = self._setter_of(origin, node)
        if node["type"] in (*_REROUTES, *_SETTERS):
            return self._resolve(node["inputs"][0] | {"type": wanted}, visited) if node["inputs"] else None
        return None

    def _setter_of(self, node_id: str, getter: Mapping[str, Any]) -> dict[str, Any]:
        """Return the Set node that a Get node names."""
        name = _first_value(getter)
        setters = {str(_first_value(node)): node for node in reversed(self._nodes.values()) if node["type"] in _SETTERS}
        if str(name) in setters:
            return setters[str(name)]
        known = ", ".join(nearest(str(name), setters)) or Workflows.THERE_IS_NONE()
        raise WorkflowError(Workflows.NO_SETTER(node_id=node_id, known=known, name=name))


def _read_link(link: Any) -> tuple[Any, tuple[str, int]]:
    """Return a link's number, origin and output: version 0.4 stores it as a list, 1.0 as an object."""
    try:
        if isinstance(link, dict):
            return link["id"], (str(link["origin_id"]), int(link["origin_slot"]))
        number, origin, slot = link[:3]
        return number, (str(origin), int(slot))
    except (TypeError, ValueError, LookupError):
        raise WorkflowError(Workflows.NO_LINK(link=_shown(link))) from None


def _first_value(node: Mapping[str, Any]) -> Any:
    values = node.get("widgets_values") or ()
    return next(iter(values.values() if isinstance(values, dict) else values), None)


def _is_group_node(class_type: str) -> bool:
    return class_type.startswith(("workflow>", "workflow/"))


def is_link(value: Any) -> bool:
    """Return whether an input's value in API format is a link `[node id, output index]`."""
    return isinstance(value, list)


def title_of(node: Mapping[str, Any]) -> str:
    """Return what a node in API format is called: its title, else its class."""
    return str(node.get("_meta", {}).get("title") or node["class_type"])


def unknown_node(node_id: str, class_type: str, *, has_server: bool = False) -> WorkflowError:
    """Return the error for a node that is not available where the workflow is to run."""
    if has_server:
        return WorkflowError(Workflows.NOT_ON_SERVER(node_id=node_id, class_type=class_type))
    return WorkflowError(Workflows.NOT_HERE(node_id=node_id, class_type=class_type))


def _bypass_index(node: Mapping[str, Any], slot: int, wanted: str) -> int | None:
    """Return which input a bypassed node passes through to output `slot`: the same index first, then the first fit."""
    inputs = [str(entry.get("type", "*")) for entry in node["inputs"]]
    if wanted in ("*", ""):
        return (slot if slot < len(inputs) else 0) if inputs else None
    output = str(node["outputs"][slot].get("type", "*")) if slot < len(node["outputs"]) else "*"
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
    slots = widget_slots(widgets, stored)
    return {spec.name: stored[slots[spec.name]] if slots[spec.name] < len(stored) else spec.default for spec in widgets}


def widget_slots(widgets: Sequence[InputSpec], stored: Sequence[Any]) -> dict[str, int]:
    """Return which of a node's stored values is whose, by the widget's name; those of newer widgets come after them."""
    slots, index = {}, 0
    for spec in widgets:
        slots[spec.name] = index
        index += 1
        # The editor adds a widget behind a seed: what to do with it after each run.
        has_control = spec.options.get("control_after_generate") or (spec.type == "INT" and spec.name in _SEED_NAMES)
        if has_control and index < len(stored) and stored[index] in _CONTROL_VALUES:
            index += 1
    return slots


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
