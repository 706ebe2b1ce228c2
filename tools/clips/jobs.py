"""What is to be made: one clip a line of a list, with a key that is the same where the clip would be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.sentences.tools import Clips
from ..headless.errors import WorkflowError
from ..headless.workflow import is_editor_format, read_workflow
from ..text_files import read_text

# What the editor stores of a graph that changes nothing of what it makes.
_LAYOUT = frozenset({"pos", "size", "flags", "order", "color", "bgcolor", "title", "properties", "shape"})


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip that is to be made."""

    index: int
    """Its place in the list, from 1."""
    prompt: str
    seed: int
    key: str
    """Of workflow, values, prompt and seed: hexadecimal."""
    values: tuple[str, ...]
    """`node.input=value` for the workflow."""

    @property
    def name(self) -> str:
        """What its file is called, without the extension: in the order of the list, and no other clip's."""
        return f"{self.index:05d}_s{self.seed}_{self.key[:8]}"


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a list, one a line; empty lines and those that start with # are none.

    Raises:
        OSError, ValueError: it cannot be read, or has none.
    """
    # A line ends at LF or CRLF: str.splitlines would end it at characters that people paste without seeing them.
    lines = [line.strip() for line in read_text(path).split("\n")]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(Clips.NO_PROMPTS(path=path))
    return prompts


def make_jobs(
    prompts: Sequence[str],
    *,
    workflow: Path,
    values: Sequence[str],
    seed: int,
    prompt_input: str,
    seed_input: str,
) -> list[Job]:
    """Return the jobs of a list.

    Args:
        prompts: of the clips.
        workflow: the file that makes one.
        values: `node.input=value` for all of them.
        seed: of the first; the next ones count up.
        prompt_input, seed_input: the inputs that get prompt and seed.
    """
    workflow_key = _key_of(workflow)
    jobs = []
    for index, prompt in enumerate(prompts):
        # JSON, so that a prompt that looks like a number or has quotes stays as it is.
        own = (f"{prompt_input}={json.dumps(prompt)}", f"{seed_input}={seed + index}")
        key = _digest([workflow_key, [*values, *own]])
        jobs.append(Job(index=index + 1, prompt=prompt, seed=seed + index, key=key, values=(*values, *own)))
    return jobs


def _key_of(workflow: Path) -> Any:
    """Return what of a workflow file decides the clip; of one that cannot be read its path, which is said later."""
    try:
        data = read_workflow(workflow)
    except WorkflowError:
        return str(workflow)
    if not is_editor_format(data):
        return data
    nodes = [
        {name: value for name, value in node.items() if name not in _LAYOUT} if isinstance(node, Mapping) else node
        for node in data["nodes"]
    ]
    return [nodes, data.get("links"), data.get("definitions")]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
