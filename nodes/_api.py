"""The only import of ComfyUI's node API, and the few places where its versions differ.

ComfyUI 0.3.64 is the oldest supported version; what newer ones added is passed where it is understood.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import ComfyExtension, io

from ..engine.adapters.comfy.language import errors_to_editor, to_editor
from ._values import check_values

__all__ = [
    "CATEGORY",
    "ComfyExtension",
    "advanced",
    "graph_inputs_of",
    "io",
    "linked_node",
    "node_id_of",
    "output_shown",
    "refuse",
    "schema",
    "speaking",
    "verdict",
]

CATEGORY = "LightX2V"
# People search for the model's name; ComfyUI 0.3.64 searches names only, search_aliases came later.
_SUFFIX = " (Wan)"


def supported(function: Callable[..., Any], **kwargs: Any) -> dict[str, Any]:
    """Return those of `kwargs` that `function` takes."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in kwargs.items() if name in known}


def schema(*, display_name: str, **fields: Any) -> io.Schema:
    """Build the schema of one of this pack's nodes; fields that this ComfyUI lacks are left out."""
    return io.Schema(**supported(io.Schema, category=CATEGORY, display_name=display_name + _SUFFIX, **fields))


def advanced(field: Any) -> Any:
    """Return an input that newer editors fold away until it is asked for; elsewhere it is one among the others."""
    field.extra_dict = {**(field.extra_dict or {}), "advanced": True}
    return field


def node_id_of(node: type[io.ComfyNode]) -> str | None:
    """Return the id of the running node in its graph, or None where nobody runs a graph.

    The node has to ask for `io.Hidden.unique_id` in its schema.
    """
    return getattr(node.hidden, "unique_id", None)


def graph_inputs_of(node: type[io.ComfyNode]) -> dict[str, Any]:
    """Return the inputs of the running node as its graph has them, links as [node id, output].

    The node has to ask for `io.Hidden.unique_id` and `io.Hidden.dynprompt` in its schema; empty where nobody runs a
    graph.
    """
    graph = getattr(node.hidden, "dynprompt", None)
    return dict(graph.get_node(node_id_of(node))["inputs"]) if graph else {}


def speaking(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Let a node say what goes wrong in it, and with what links bring it, in the language of the editor whose graph it
    is in; returns it.
    """
    for name in {"execute", "check_lazy_status"} & vars(node).keys():
        setattr(node, name, classmethod(errors_to_editor()(_with_checks(name, getattr(node, name).__func__))))
    return node


def _with_checks(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(node: type[io.ComfyNode], **values: Any) -> Any:
        return method(node, **check_values(node, values, is_asked=name == "check_lazy_status"))

    return call


def linked_node(node: type[io.ComfyNode], name: str) -> tuple[str, dict[str, Any]]:
    """Return class and inputs of the node that an input of the running node is linked to.

    Asks for the same as `graph_inputs_of`; "" and {} where nobody runs a graph, or nothing is linked.
    """
    link = graph_inputs_of(node).get(name)
    if not isinstance(link, list):
        return "", {}
    origin = node.hidden.dynprompt.get_node(link[0])
    return origin["class_type"], dict(origin["inputs"])


def verdict(check: Callable[..., Any], *values: Any) -> bool | str:
    """Answer ComfyUI's validate_inputs: True, or the sentence of the ValueError that `check` raises.

    A linked input arrives as None; it is checked when the node runs. For a validate_inputs that names one input:
    ComfyUI repeats the sentence for each that is named, and leaves out its own checks of them.
    """
    if any(value is None for value in values):
        return True
    try:
        check(*values)
    except ValueError as error:
        return to_editor(str(error))
    return True


def refuse(check: Callable[..., Any], *values: Any) -> bool:
    """Answer a validate_inputs that names several inputs: True, or raise the ValueError of `check`.

    Of an error that is raised ComfyUI shows the sentence once, and under no input's name: the sentence has it.
    """
    answer = verdict(check, *values)
    if answer is not True:
        raise ValueError(answer)
    return True


def output_shown(*values: Any, **texts: str) -> io.NodeOutput:
    """Return node outputs and texts that the pack's JavaScript finds by name when the node was executed, in the
    language of its editor.
    """
    return io.NodeOutput(*values, ui={name: [to_editor(text)] for name, text in texts.items()})
