"""Let several GPUs compute a prompt's clip together, whatever its workflow says of it."""

from __future__ import annotations

from collections.abc import Mapping

from ...engine.sentences.tools import Workflows
from .errors import WorkflowError
from .node_info import NodeInfo, input_specs
from .workflow import Prompt

_NODE, _TYPE = "LightX2VGPUs", "LIGHTX2V_GPUS"


def use_gpus(prompt: Prompt, count: int, infos: Mapping[str, NodeInfo]) -> None:
    """Connect a LightX2V GPUs to every loader of `prompt` that takes one, in place.

    Args:
        prompt: API format.
        count: GPUs that compute together.
        infos: node descriptions by class.

    Raises:
        WorkflowError: no node takes one, or there is no such node.
    """
    inputs = [
        (node, name)
        for node in prompt.values()
        for name, spec in (input_specs(infos[node["class_type"]]) if node["class_type"] in infos else {}).items()
        if spec.type == _TYPE
    ]
    if _NODE not in infos or not inputs:
        raise WorkflowError(Workflows.NOBODY_TAKES_GPUS())
    node_id = f"{_NODE}-of-the-command"
    prompt[node_id] = {"class_type": _NODE, "inputs": {"gpus": str(count)}, "_meta": {"title": "LightX2V GPUs"}}
    for node, name in inputs:
        node["inputs"][name] = [node_id, 0]
