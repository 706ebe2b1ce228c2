"""The checks ComfyUI makes before it runs a prompt, each with a sentence.

Source of the rules: ComfyUI execution.py (validate_prompt, validate_inputs). Two differences: choices of V3 combos are
checked (as ComfyUI does since 0.10), and any problem stops the run (ComfyUI runs the outputs that are fine).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ...engine.errors import nearest
from ...engine.sentences import joined, shortened
from ...engine.sentences.between import Between
from ...engine.sentences.comfyui import Lists
from ...engine.sentences.tools import Workflows
from .errors import WorkflowError
from .node_info import InputSpec, NodeInfo, input_specs
from .workflow import Prompt, is_link, title_of, types_overlap, unknown_node

_CONVERT: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_NUM_LISTED = 3
_NUM_SHOWN = 60

CustomCheck = Callable[[str, dict[str, Any]], str | None]
"""(class, inputs with None for links) -> what the node's own validate_inputs complains about, or None."""


def validate_prompt(
    prompt: Prompt,
    infos: Mapping[str, NodeInfo],
    *,
    custom_check: CustomCheck,
    checked_by_node: Callable[[str], frozenset[str]],
) -> list[str]:
    """Check a prompt and convert its values in place to the types of their inputs.

    Args:
        prompt: API format.
        infos: node descriptions by class.
        custom_check: a node's own check.
        checked_by_node: class -> inputs whose range and choices the node's own check takes over.

    Returns:
        The nodes to run, in order: every output node after everything it needs.

    Raises:
        WorkflowError: with one line for each problem found.
    """
    for node_id, node in prompt.items():
        if "class_type" not in node:
            raise WorkflowError(Workflows.NO_CLASS_TYPE(node_id=node_id))
        if node["class_type"] not in infos:
            raise unknown_node(node_id, node["class_type"])
    outputs = [node_id for node_id, node in prompt.items() if infos[node["class_type"]].get("output_node")]
    if not outputs:
        raise WorkflowError(Workflows.NO_OUTPUT_NODE())
    order = _topological_order(prompt, outputs)
    problems = []
    for node_id in order:
        node = prompt[node_id]
        found = _check_node(node, prompt, infos, checked_by_node(node["class_type"]))
        if not found:
            constants = {name: None if is_link(value) else value for name, value in node["inputs"].items()}
            complaint = custom_check(node["class_type"], constants)
            found = [complaint] if complaint else []
        problems += [
            Workflows.NODE_PROBLEM(node_id=node_id, title=title_of(node), problem=problem) for problem in found
        ]
    if problems:
        raise WorkflowError(joined(problems, Between.LINES))
    return order


def _topological_order(prompt: Prompt, outputs: list[str]) -> list[str]:
    """Return the outputs and their ancestors, each after what it needs."""
    order: list[str] = []
    open_nodes: list[str] = []

    def visit(node_id: str) -> None:
        if node_id in order:
            return
        if node_id in open_nodes:
            loop = " -> ".join([*open_nodes[open_nodes.index(node_id) :], node_id])
            raise WorkflowError(Workflows.LOOP(loop=loop))
        open_nodes.append(node_id)
        for name, value in prompt[node_id]["inputs"].items():
            if is_link(value):
                if len(value) != 2 or str(value[0]) not in prompt or type(value[1]) is not int:
                    raise WorkflowError(Workflows.NO_SUCH_OUTPUT(node_id=node_id, name=name, value=value))
                visit(str(value[0]))
        open_nodes.pop()
        order.append(node_id)

    for output in outputs:
        visit(output)
    return order


def _check_node(
    node: dict[str, Any], prompt: Prompt, infos: Mapping[str, NodeInfo], checked_by_node: frozenset[str]
) -> list[str]:
    problems = []
    inputs = node["inputs"]
    for name, spec in input_specs(infos[node["class_type"]]).items():
        if name not in inputs:
            problem = Workflows.INPUT_MISSING(name=name, type=spec.type) if spec.required else None
        elif is_link(inputs[name]):
            problem = _link_problem(spec, inputs[name], prompt, infos)
        else:
            problem = _convert(spec, inputs) or (
                None if name in checked_by_node else _value_problem(spec, inputs[name])
            )
        if problem:
            problems.append(problem)
    return problems


def _link_problem(spec: InputSpec, link: list[Any], prompt: Prompt, infos: Mapping[str, NodeInfo]) -> str | None:
    origin = str(link[0])
    outputs = infos[prompt[origin]["class_type"]]["output"]
    if not 0 <= link[1] < len(outputs):
        return Workflows.TOO_FEW_OUTPUTS(name=spec.name, number=link[1], origin=origin, num_outputs=len(outputs))
    received = outputs[link[1]]
    if not isinstance(received, str) or types_overlap(received, spec.type):
        return None
    return Workflows.OTHER_TYPE(name=spec.name, type=spec.type, origin=origin, received=received)


def _convert(spec: InputSpec, inputs: dict[str, Any]) -> str | None:
    value = inputs[spec.name]
    if isinstance(value, dict) and "__value__" in value:
        value = inputs[spec.name] = value["__value__"]
    convert = _CONVERT.get(spec.type)
    try:
        if convert:
            inputs[spec.name] = convert(value)
    except (TypeError, ValueError, OverflowError):
        return Workflows.NO_SUCH_TYPE(name=spec.name, value=shortened(value, _NUM_SHOWN), type=spec.type)
    if convert in (int, float) and not is_number(inputs[spec.name]):
        return Workflows.NO_SUCH_TYPE(name=spec.name, value=value, type=spec.type)
    return None


def is_number(value: Any) -> bool:
    """Say whether a value of an input is one that a float can hold: no NaN, no infinity, nothing of 400 digits."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _value_problem(spec: InputSpec, value: Any) -> str | None:
    if spec.type in ("INT", "FLOAT"):
        low, high = spec.options.get("min"), spec.options.get("max")
        if low is not None and value < low:
            return Workflows.TOO_LOW(name=spec.name, value=value, low=low)
        if high is not None and value > high:
            return Workflows.TOO_HIGH(name=spec.name, value=value, high=high)
    if spec.choices is not None and value not in spec.choices:
        shown = ", ".join(nearest(str(value), map(str, spec.choices))) or Workflows.NOTHING_THERE()
        more = Lists.IN_ALL(num_names=len(spec.choices)) if len(spec.choices) > _NUM_LISTED else ""
        return Workflows.NO_CHOICE(shown=shown, more=more, name=spec.name, value=value)
    return None
