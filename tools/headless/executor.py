"""Run a validated prompt node by node, as ComfyUI does: inference mode, hidden inputs, interrupt, UI results.

Results are dropped after their last reader, so weights and tensors go as early as they can. A run that others follow
keeps what loaders return: see Kept.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ...engine.report import StageRecord, build_report, records_of
from ...engine.sentences.tools import Workflows
from .boot import Host
from .errors import Cancelled, CommandError, RunError
from .node_info import input_specs
from .progress import Progress
from .report import NodeRun, RunLog
from .workflow import Prompt, is_link, title_of


def validation_hooks(host: Host) -> dict[str, Any]:
    """Return the arguments of `validate_prompt` that need the node classes."""

    def checked(class_type: str) -> frozenset[str]:
        check = _own_check(host, class_type)
        return frozenset(inspect.signature(check).parameters) if check else frozenset()

    def complain(class_type: str, constants: dict[str, Any]) -> str | None:
        check = _own_check(host, class_type)
        if check is None:
            return None
        try:
            verdict = check(**{name: value for name, value in constants.items() if name in checked(class_type)})
        except ValueError as error:
            return str(error)
        return None if verdict is True else str(verdict or Workflows.REJECTS_INPUTS())

    return {"custom_check": complain, "checked_by_node": checked}


def _own_check(host: Host, class_type: str) -> Any:
    node = host.classes[class_type]
    return node.validate_inputs if node.validate_inputs.__func__ is not io.ComfyNode.validate_inputs.__func__ else None


class Kept:
    """Results that a prompt leaves to the next one: what its loaders returned, with the weights that are loaded.

    Results with tensors are not kept: they are large, and belong to one clip. What the next prompt does not have too
    goes before that is run.
    """

    def __init__(self) -> None:
        self._results: dict[str, tuple[Any, ...]] = {}

    def get(self, identity: str) -> tuple[Any, ...] | None:
        """Return the result of a node that was run with the same inputs, or None."""
        return self._results.get(identity)

    def retain(self, identities: Iterable[str]) -> None:
        """Drop the results of all other nodes."""
        self._results = {key: self._results[key] for key in identities if key in self._results}

    def add(self, identity: str, result: tuple[Any, ...]) -> None:
        if not _holds_tensor(result):
            self._results[identity] = result


def run_prompt(
    prompt: Prompt,
    order: list[str],
    host: Host,
    *,
    workflow: Mapping[str, Any] | None,
    progress: Progress,
    log: RunLog,
    kept: Kept | None = None,
) -> None:
    """Run the nodes of `order`, each after what it needs, and note results in `log`.

    Args:
        prompt: API format, validated.
        order: what `validate_prompt` returned.
        host: node classes.
        workflow: the editor's graph to store in saved files, if it describes this prompt.
        progress: shows the run.
        log: filled as nodes finish.
        kept: results of the prompt before; this one's come in their place. Nodes that show or save run again.

    Raises:
        Cancelled: the interrupt flag was set.
        RunError: a node failed.
    """
    identities = _identities(prompt, order, host) if kept is not None else {}
    if kept is not None:
        kept.retain(identities.values())
    readers = Counter(origin for key in order for origin, _ in _links(prompt[key]["inputs"]).values())
    results: dict[str, tuple[Any, ...]] = {}
    records: list[StageRecord] = []
    progress.start_run(len(order))

    def call(node_id: str, method: str) -> Any:
        """Call a method of a node with its inputs; what has not run yet is None."""
        node = prompt[node_id]
        accepted = input_specs(host.infos[node["class_type"]])
        inputs = {name: value for name, value in node["inputs"].items() if name in accepted}
        for name, (origin, output) in _links(inputs).items():
            inputs[name] = results[origin][output] if origin in results else None
        hidden = {
            io.Hidden.unique_id: node_id,
            io.Hidden.prompt: prompt,
            io.Hidden.dynprompt: _Graph(prompt),
            io.Hidden.extra_pnginfo: {"workflow": workflow} if workflow else {},
        }
        return _call(host, node_id, node["class_type"], title_of(node), method, inputs, hidden)

    for node_id in _in_turn(prompt, order, host, lambda node_id: call(node_id, "check_lazy_status")):
        node = prompt[node_id]
        title = title_of(node)
        is_output = _is_output(node, host)
        again = None if kept is None or is_output else kept.get(identities[node_id])
        if again is not None:
            progress.start_node(title)
            progress.note(Workflows.KEPT())
            progress.finish_node()
            results[node_id] = again
            readers.subtract(origin for origin, _ in _links(node["inputs"]).values())
            continue
        progress.start_node(title)
        output = call(node_id, host.classes[node["class_type"]].FUNCTION)
        seconds = progress.finish_node()
        log.nodes.append(
            NodeRun(node_id=node_id, class_type=node["class_type"], title=title, seconds=round(seconds, 4))
        )
        results[node_id] = tuple(output.args)
        if kept is not None and not is_output:
            kept.add(identities[node_id], results[node_id])
        records += [record for record in _records(output.args) if record not in records]
        if records:
            log.engine = build_report(records)
        _note_ui(output.ui, title, progress, log)
        del output
        readers.subtract(origin for origin, _ in _links(node["inputs"]).values())
        for key in [key for key in results if not readers[key]]:
            del results[key]


def _identities(prompt: Prompt, order: Iterable[str], host: Host) -> dict[str, str]:
    """Return, by node, a text that is the same where class, values and all that it is linked to are."""
    found: dict[str, str] = {}
    for node_id in order:
        node = prompt[node_id]
        inputs = {
            name: [found[str(value[0])], value[1]] if is_link(value) else [value]
            for name, value in sorted(node["inputs"].items())
        }
        found[node_id] = json.dumps([node["class_type"], _fingerprint(host, node), inputs], default=repr)
    return found


def _fingerprint(host: Host, node: Mapping[str, Any]) -> Any:
    """Return what a node says changes its result beside its inputs, as a file's time does."""
    cls = host.classes[node["class_type"]]
    if cls.fingerprint_inputs.__func__ is io.ComfyNode.fingerprint_inputs.__func__:
        return None
    return cls.fingerprint_inputs(**{key: None if is_link(value) else value for key, value in node["inputs"].items()})


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, torch.Tensor)


class _Graph:
    """The prompt as nodes look into it, like ComfyUI's DynamicPrompt."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt

    def get_node(self, node_id: str) -> dict[str, Any]:
        return self._prompt[str(node_id)]


def _in_turn(prompt: Prompt, order: Iterable[str], host: Host, asked_for: Callable[[str], list[str]]) -> Iterator[str]:
    """Yield the nodes that are to be run, each after what it needs; it has to have run when the next one is asked for.

    As in ComfyUI, what is linked to a lazy input runs once the node asks for it, which it does when its others are
    there.
    """
    done: set[str] = set()

    def visit(node_id: str) -> Iterator[str]:
        if node_id in done:
            return
        node = prompt[node_id]
        origins = {name: origin for name, (origin, _) in _links(node["inputs"]).items()}
        specs = input_specs(host.infos[node["class_type"]])
        lazy = {name for name in origins if name in specs and specs[name].options.get("lazy")}
        for name in [name for name in origins if name not in lazy]:
            yield from visit(origins[name])
        while lazy and (wanted := [name for name in asked_for(node_id) if origins[name] not in done]):
            for name in wanted:
                yield from visit(origins[name])
        done.add(node_id)
        yield node_id

    for node_id in order:
        if _is_output(prompt[node_id], host):
            yield from visit(node_id)


def _links(inputs: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Return node and output of the inputs that are linked."""
    return {name: (str(value[0]), value[1]) for name, value in inputs.items() if is_link(value)}


def _is_output(node: Mapping[str, Any], host: Host) -> bool:
    return bool(host.infos[node["class_type"]].get("output_node"))


def _call(
    host: Host, node_id: str, class_type: str, title: str, method: str, inputs: dict[str, Any], hidden: dict[Any, Any]
) -> Any:
    interrupt = host.model_management.InterruptProcessingException
    clone = host.classes[class_type].PREPARE_CLASS_CLONE({"hidden_inputs": hidden})
    try:
        host.model_management.throw_exception_if_processing_interrupted()
        with torch.inference_mode():
            output = getattr(clone, method)(**inputs)
            return asyncio.run(output) if inspect.iscoroutine(output) else output
    except interrupt as error:
        raise Cancelled(Workflows.CANCELLED_IN(node_id=node_id, title=title)) from error
    except CommandError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise RunError(Workflows.NODE_FAILED(node_id=node_id, title=title, kind=kind, error=error)) from error


def _records(values: Iterable[Any]) -> list[StageRecord]:
    """Return the engine's stage records that LATENT, CONDITIONING and IMAGE values carry."""
    found: list[StageRecord] = []
    for value in values:
        if isinstance(value, dict):
            value = value.get("samples")
        elif isinstance(value, list) and value and isinstance(value[0], list):
            value = value[0][0]
        if isinstance(value, torch.Tensor):
            found += records_of(value)
    return found


def _note_ui(ui: Any, title: str, progress: Progress, log: RunLog) -> None:
    """Note what a node shows: result files and text. Source of the form: ComfyUI comfy_api/latest/_ui.py."""
    shown = ui.as_dict() if hasattr(ui, "as_dict") else ui or {}
    for name, entries in shown.items():
        for entry in entries:
            if isinstance(entry, Mapping) and "filename" in entry:
                _note_file(entry, progress, log)
            elif name == "text":
                progress.log(f"{title}:\n{entry}")


def _note_file(entry: Mapping[str, str], progress: Progress, log: RunLog) -> None:
    folder = folder_paths.get_directory_by_type(entry["type"])
    path = Path(folder, entry.get("subfolder", ""), entry["filename"])
    if entry["type"] == "output":
        log.outputs.append(path)
    else:
        progress.log(f"Preview: {path}")
