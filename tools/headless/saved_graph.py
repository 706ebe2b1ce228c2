"""The editor's graph as it is stored in results: with the values that made them, not those of the file.

As the editor stores it, a prompt with choices `{a|b}` is there with the one that was drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from .node_info import InputSpec, NodeInfo, input_specs
from .workflow import Prompt, is_link, widget_slots


def with_values(
    data: Mapping[str, Any], prompt: Prompt, infos: Mapping[str, NodeInfo], assigned: Collection[tuple[str, str]]
) -> dict[str, Any]:
    """Return a copy of a graph in the editor's format that shows the values of its prompt.

    Args:
        data: the graph, of which `to_prompt` made the prompt.
        prompt: with the values that were changed since.
        infos: node descriptions by class.
        assigned: node and input of these values. Where the graph has a link to such an input, the link goes.
    """
    graph = copy.deepcopy(dict(data))
    for node in graph["nodes"]:
        node_id = str(node["id"]) if isinstance(node, dict) else ""
        if node_id not in prompt:
            continue
        widgets = [spec for spec in input_specs(infos[node["type"]]).values() if spec.is_widget]
        for spec in widgets:
            is_assigned = (node_id, spec.name) in assigned
            value = prompt[node_id]["inputs"].get(spec.name)
            if is_link(value) or not (is_assigned or spec.options.get("dynamicPrompts")):
                continue
            if is_assigned:
                _unlink(graph, node, spec.name)
            _store(node, widgets, spec.name, value, adds=is_assigned)
    return graph


def _store(node: dict[str, Any], widgets: list[InputSpec], name: str, value: Any, *, adds: bool) -> None:
    """Put the value of a widget where the editor looks for it. Args: adds: also where the file has none yet."""
    stored = node.get("widgets_values")
    for named in (stored, node.get("widgets_values_named")):
        if isinstance(named, dict) and (adds or name in named):
            named[name] = value
    if not (stored is None or isinstance(stored, list)):
        return
    values = list(stored or ())
    slots = widget_slots(widgets, values)
    if adds or slots[name] < len(values):
        # Widgets that come before it may be newer than the file too.
        values += [spec.default for spec in widgets if len(values) <= slots[spec.name] <= slots[name]]
        values[slots[name]] = value
        node["widgets_values"] = values


def _unlink(graph: dict[str, Any], node: dict[str, Any], name: str) -> None:
    entries = [entry for entry in node.get("inputs") or () if entry and entry.get("name") == name]
    gone = [entry["link"] for entry in entries if entry.get("link") is not None]
    for entry in entries:
        entry["link"] = None
    graph["links"] = [link for link in graph.get("links") or () if link and _number(link) not in gone]
    for other in graph["nodes"]:
        for output in (other or {}).get("outputs") or ():
            if output and isinstance(output.get("links"), list):
                output["links"] = [number for number in output["links"] if number not in gone]


def _number(link: Any) -> Any:
    """Return a link's number: version 0.4 stores it as a list, 1.0 as an object."""
    return link["id"] if isinstance(link, dict) else link[0]
