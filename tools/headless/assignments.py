"""`--set node.input=value`: change values of a prompt from the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...engine.errors import nearest
from ...engine.sentences.tools import Workflows
from .errors import WorkflowError
from .node_info import InputSpec, NodeInfo, input_specs
from .validation import is_number
from .workflow import Prompt, unknown_node


def apply_assignments(
    prompt: Prompt, assignments: Sequence[str], infos: Mapping[str, NodeInfo], *, has_server: bool = False
) -> set[tuple[str, str]]:
    """Set inputs of `prompt` in place, and return which: (node, input).

    Args:
        prompt: API format.
        assignments: `node.input=value`; the node is named by its id, else by its title, else by its class.
        infos: node descriptions by class.
        has_server: whether they are a server's.

    Raises:
        WorkflowError: wrong form, no such node or input, several nodes of that name, or a value that does not parse.
    """
    assigned = set()
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        name, dot, input_name = target.strip().rpartition(".")
        if not (equals and dot and name and input_name):
            raise WorkflowError(Workflows.NO_ASSIGNMENT(assignment=assignment))
        node_id = _find_node(prompt, name, assignment)
        node = prompt[node_id]
        if node["class_type"] not in infos:
            raise unknown_node(name, node["class_type"], has_server=has_server)
        spec = _find_input(node, input_name, assignment, infos)
        node["inputs"][input_name] = _parse(spec, text, assignment)
        assigned.add((node_id, input_name))
    return assigned


def _find_node(prompt: Prompt, name: str, assignment: str) -> str:
    if name in prompt:
        return name
    by_title = [node_id for node_id, node in prompt.items() if node.get("_meta", {}).get("title") == name]
    by_class = [node_id for node_id, node in prompt.items() if node.get("class_type") == name]
    found = by_title or by_class
    if len(found) == 1:
        return found[0]
    if found:
        raise WorkflowError(
            Workflows.SEVERAL_NODES(assignment=assignment, name=name, num_found=len(found), ids=", ".join(found))
        )
    # By whichever of its names is nearest.
    known = {**{str(node.get("class_type")): key for key, node in prompt.items()}, **_titles(prompt)}
    close = dict.fromkeys(known[found] for found in nearest(name, known))
    listed = "; ".join(f"{node_id} {_describe(prompt[node_id])}" for node_id in close)
    raise WorkflowError(Workflows.NO_SUCH_NODE(assignment=assignment, listed=listed, name=name))


def _titles(prompt: Prompt) -> dict[str, str]:
    titles = {key: node.get("_meta", {}).get("title") for key, node in prompt.items()}
    return {title: key for key, title in titles.items() if title}


def _describe(node: Mapping[str, Any]) -> str:
    title = node.get("_meta", {}).get("title", "")
    return f"'{title}' ({node.get('class_type')})" if title else str(node.get("class_type"))


def _find_input(node: Mapping[str, Any], input_name: str, assignment: str, infos: Mapping[str, NodeInfo]) -> InputSpec:
    widgets = {key: spec for key, spec in input_specs(infos[node["class_type"]]).items() if spec.is_widget}
    if input_name in widgets:
        return widgets[input_name]
    known = ", ".join(nearest(input_name, widgets)) or Workflows.ANOTHER_NODE()
    raise WorkflowError(
        Workflows.NO_SUCH_VALUE(
            assignment=assignment, known=known, class_type=node["class_type"], input_name=input_name
        )
    )


def _parse(spec: InputSpec, text: str, assignment: str) -> Any:
    """Read a value as JSON; text and choices need no quotes."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if spec.type in ("STRING", "COMBO"):
        return value if isinstance(value, str) else text
    expected = {"INT": (int,), "FLOAT": (int, float), "BOOLEAN": (bool,)}[spec.type]
    is_right = isinstance(value, expected) and isinstance(value, bool) == (spec.type == "BOOLEAN")
    # JSON as Python reads it has NaN and infinities.
    if is_right and is_number(value):
        return value
    raise WorkflowError(Workflows.NOT_OF_TYPE(assignment=assignment, text=text, type=spec.type))
