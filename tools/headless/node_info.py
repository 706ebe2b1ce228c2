"""Node descriptions as plain data, in the form of ComfyUI's GET /object_info.

Source of the form: ComfyUI server.py (node_info); inputs are `[type, options]`, and a combo is either a
list of choices in place of the type (V1 nodes) or the type "COMBO" with `options["options"]` (V3 nodes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NodeInfo = Mapping[str, Any]
"""One node of /object_info: input, input_order, output, output_node, display_name ..."""

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One input of a node."""

    name: str
    type: str
    """INT, FLOAT, STRING, BOOLEAN, COMBO, or a link type; several link types are separated by commas."""
    required: bool
    options: Mapping[str, Any]
    """default, min, max, tooltip ..."""
    choices: tuple[Any, ...] | None = None
    """What a combo offers."""

    @property
    def is_widget(self) -> bool:
        """Whether the editor shows a value for it; otherwise it can only be linked."""
        return self.type in WIDGET_TYPES and not self.options.get("forceInput")

    @property
    def default(self) -> Any:
        """The value a fresh node has in the editor."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices is not None:
            return self.choices[0] if self.choices else None
        return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(self.type)


def input_specs(info: NodeInfo) -> dict[str, InputSpec]:
    """Return the inputs of a node by name, in the order of its widgets: required first, then optional."""
    specs = {}
    for section in ("required", "optional"):
        entries = info["input"].get(section) or {}
        for name in info.get("input_order", {}).get(section) or entries:
            specs[name] = _parse(name, entries[name], required=section == "required")
    return specs


def _parse(name: str, entry: Any, *, required: bool) -> InputSpec:
    kind = entry[0]
    options = (entry[1] if len(entry) > 1 else None) or {}
    if isinstance(kind, (list, tuple)):
        return InputSpec(name=name, type="COMBO", required=required, options=options, choices=tuple(kind))
    choices = tuple(options.get("options") or ()) if kind == "COMBO" else None
    return InputSpec(name=name, type=str(kind), required=required, options=options, choices=choices)
