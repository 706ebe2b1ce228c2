"""`%date:yyyy-MM-dd%` and `%Node.value%` in filename prefixes, which the editor replaces before it queues a prompt.

Source of the rules: ComfyUI_frontend (searchAndReplace, formatUtil). Two differences: what cannot be in a file's name
on Windows is replaced in dates too, and a date may have dots. `%year%`, `%width%` and the like are ComfyUI's own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ...engine.sentences.tools import Workflows
from .workflow import Prompt, is_editor_format

logger = logging.getLogger(__name__)

_PREFIX = "filename_prefix"
_PLACEHOLDER = re.compile(r"%([^%]+)%")
_DATE_PART = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyyy|yy")
# No system's file names have these; a date may lead into folders, a value may not.
_FORBIDDEN = r'?<>\\:*|"\x00-\x1f\x7f'
_IN_DATES, _IN_VALUES = re.compile(f"[{_FORBIDDEN}]"), re.compile(f"[/{_FORBIDDEN}]")


def replace_in_prefixes(prompt: Prompt, data: Mapping[str, Any], now: datetime | None = None) -> None:
    """Replace placeholders in the filename prefixes of a prompt, in place; what names nothing stays, with a warning.

    Args:
        prompt: API format, with its final values.
        data: the file it is from, in which nodes of the editor may have names for this.
        now: the date to write; None takes the clock.
    """
    moment = now or datetime.now()
    names = _names(prompt, data)

    def replacement(match: re.Match[str]) -> str:
        text = match[1]
        if text.startswith("date:"):
            return _IN_DATES.sub("_", format_date(text.removeprefix("date:"), moment))
        name, dot, value = text.rpartition(".")
        if not dot:
            return match[0]
        node = prompt.get(names.get(name, ""), {"inputs": {}})
        found = node["inputs"].get(value)
        if found is None or isinstance(found, (list, dict)):
            logger.warning("LightX2V: %s", Workflows.STAYS_IN_PREFIX(pattern=match[0], node=name, value=value))
            return match[0]
        return _IN_VALUES.sub("_", _as_text(found))

    for node in prompt.values():
        prefix = node["inputs"].get(_PREFIX)
        if isinstance(prefix, str):
            node["inputs"][_PREFIX] = _PLACEHOLDER.sub(replacement, prefix)


def format_date(pattern: str, moment: datetime) -> str:
    """Return a date in the editor's pattern: d, M, h, m and s, doubled to have two digits, yy and yyyy."""
    values = {"d": moment.day, "M": moment.month, "h": moment.hour, "m": moment.minute, "s": moment.second}

    def part(match: re.Match[str]) -> str:
        text = match[0]
        if text[0] == "y":
            return f"{moment.year:04}"[-len(text) :]
        return str(values[text[0]]).zfill(len(text))

    return _DATE_PART.sub(part, pattern)


def _names(prompt: Prompt, data: Mapping[str, Any]) -> dict[str, str]:
    """Return node ids by the names that placeholders use: the editor's own name, else the class; else the title."""
    given: dict[str, Any] = {}
    if is_editor_format(data):
        nodes = [node for node in data["nodes"] if isinstance(node, dict)]
        given = {str(node.get("id")): (node.get("properties") or {}).get("Node name for S&R") for node in nodes}
    by_name, by_title = {}, {}
    for node_id, node in prompt.items():
        by_name.setdefault(given.get(node_id) or node["class_type"], node_id)
        by_title.setdefault((node.get("_meta") or {}).get("title"), node_id)
    return {**by_title, **by_name}


def _as_text(value: Any) -> str:
    """Return a value as the editor writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
