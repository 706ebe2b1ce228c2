"""What links bring to a node's inputs: of them ComfyUI compares the names of types only, if those.

Values that are typed in are checked before a run, by ComfyUI or by the node's validate_inputs.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..engine.inputs import describe
from ..engine.sentences import Sentence, shortened
from ..engine.sentences.nodes import Nodes

_SHOWN = 60
# Whose range the node checks itself, as it knows which LoRA it is of.
_IN_THE_NODE = {"strength"}
# What an object of a type has that nothing else has, and where one comes from. By attribute, not by class: a pack may
# be imported twice.
_OBJECTS: dict[str, tuple[str, Sentence]] = {
    "MODEL": ("model", Nodes.A_MODEL),
    "CLIP_VISION": ("encode_image", Nodes.CLIP_VISION),
    "LIGHTX2V_TEXT_ENCODER": ("owner", Nodes.TEXT_ENCODER),
    "LIGHTX2V_OFFLOAD": ("vram_budget_gib", Nodes.OFFLOAD),
    "LIGHTX2V_GPUS": ("named", Nodes.GPUS),
}


@dataclass(frozen=True, kw_only=True)
class _Input:
    """Of a schema's input what decides whether a value may enter."""

    name: str
    type: str
    low: float | None
    high: float | None
    optional: bool
    lazy: bool


def check_values(node: Any, values: Mapping[str, Any], *, is_asked: bool = False) -> dict[str, Any]:
    """Return the values of a node's inputs, numbers as the types that they are declared as.

    An optional input whose link brings nothing counts as one without a link.

    Args:
        node: the class whose inputs they are.
        values: by name.
        is_asked: whether the node is asked what it needs, and lazy inputs have nothing yet.

    Raises:
        ValueError: one is of another type, or out of range; the sentence names it.
    """
    found = dict(values)
    for each in _inputs_of(node):
        if each.name not in found or (is_asked and each.lazy and found[each.name] is None):
            continue
        if each.optional and found[each.name] is None:
            del found[each.name]
        else:
            found[each.name] = _checked(each, found[each.name])
    return found


@functools.cache
def _inputs_of(node: Any) -> tuple[_Input, ...]:
    return tuple(
        _Input(
            name=each.id,
            type=str(each.get_io_type() if hasattr(each, "get_io_type") else each.io_type),
            low=None if each.id in _IN_THE_NODE else getattr(each, "min", None),
            high=None if each.id in _IN_THE_NODE else getattr(each, "max", None),
            optional=bool(each.optional),
            lazy=bool(each.lazy),
        )
        for each in node.define_schema().inputs
    )


def _checked(given: _Input, value: Any) -> Any:
    if given.type in ("INT", "FLOAT"):
        return _number(given, value)
    if given.type == "STRING" and not isinstance(value, str):
        raise ValueError(Nodes.NO_TEXT(name=given.name, found=_found(value)))
    if given.type in _OBJECTS:
        attribute, what = _OBJECTS[given.type]
        if not hasattr(value, attribute):
            raise ValueError(Nodes.OTHER_OBJECT(what=what(), name=given.name, found=describe(value)))
    return value


def _number(given: _Input, value: Any) -> int | float:
    low, high = given.low, given.high
    is_number = isinstance(value, numbers.Real)
    if given.type == "INT":
        # 64.0 is what nodes that compute give for 64.
        is_number = isinstance(value, numbers.Integral) or (isinstance(value, float) and value.is_integer())
    if not is_number and low is None:
        raise ValueError(Nodes.NO_NUMBER_AT_ALL(name=given.name, found=_found(value)))
    # NaN is between no two numbers.
    if not is_number or (low is not None and not value >= low) or (high is not None and not value <= high):
        sentence = Nodes.NO_WHOLE_NUMBER if given.type == "INT" else Nodes.NO_NUMBER
        raise ValueError(sentence(name=given.name, low=low, high=high, found=_found(value)))
    return int(value) if given.type == "INT" else float(value)


def _found(value: Any) -> str:
    """Return what a value is, as one reads it: a number or a text itself, else what kind of thing."""
    return shortened(repr(value), _SHOWN) if isinstance(value, numbers.Real | str) else describe(value)
