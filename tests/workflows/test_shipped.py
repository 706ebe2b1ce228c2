"""Every workflow that a release ever shipped still means the same; shipped/ is written by ship.py and never edited."""

import copy
import json

import pytest
from ship import SHIPPED, meaning, version
from support.examples import TEXT_TO_VIDEO
from support.node_schemas import breaking_changes, read_golden

WORKFLOWS = [path for path in sorted(SHIPPED.glob("*/*.json")) if path.with_suffix(".api.json").exists()]


def changes(workflow, infos):
    """Name what a workflow asks for now and did not when it was shipped. New inputs may have their defaults."""
    now = meaning(workflow, infos)
    before = json.loads(workflow.with_name(f"{workflow.stem}.api.json").read_text(encoding="utf-8"))
    found = []
    if now.keys() != before.keys():
        found.append(f"nodes were {sorted(before)}, are {sorted(now)}")
    for number, node in before.items():
        kind, inputs = now[number]["class_type"], now[number]["inputs"]
        if kind != node["class_type"]:
            found.append(f"node {number} was {node['class_type']}, is {kind}")
        found += [
            f"{kind}.{name} was {value!r}, is {inputs.get(name)!r}"
            for name, value in node["inputs"].items()
            if inputs.get(name) != value
        ]
    return found


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_workflow_means_the_same(workflow, infos):
    assert changes(workflow, infos) == []


@pytest.mark.parametrize("folder", sorted(SHIPPED.iterdir()), ids=lambda path: path.name)
def test_nodes_take_what_a_release_saved(folder):
    old = json.loads((folder / "schemas.json").read_text(encoding="utf-8"))
    assert breaking_changes(old, read_golden()) == []


def test_this_version_is_kept():
    assert (SHIPPED / version() / "schemas.json").is_file(), "run: python tests/workflows/ship.py"


def test_an_input_put_between_others_would_be_found(infos):
    changed = copy.deepcopy({name: dict(info) for name, info in infos.items()})
    size = changed["LightX2VEmptyLatent"]
    size["input"]["required"]["new"] = ["INT", {"default": 1}]
    size["input_order"]["required"].insert(1, "new")
    workflow = next(path for path in WORKFLOWS if path.stem == TEXT_TO_VIDEO.stem)
    assert any("LightX2VEmptyLatent.height was 480" in change for change in changes(workflow, changed))
