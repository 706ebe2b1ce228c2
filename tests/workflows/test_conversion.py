"""Editor format -> API format, against what the editor itself sends.

golden/*.api.json are the outputs of graphToPrompt of ComfyUI_frontend 1.27.10 for the same graphs, run in Chromium on
a ComfyUI 0.3.64 with this pack; editor_features.v1.json is the same graph as editor_features.json in format 1.0.
"""

import json
from pathlib import Path

import pytest
from lightx2v_pack.tools.headless.workflow import read_workflow, to_prompt
from support import examples
from support.examples import TEXT_TO_VIDEO, WITH_NATIVE_NODES
from support.node_schemas import SUCCESSORS

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (TEXT_TO_VIDEO, "1 Wan text to video.api.json"),
        (WITH_NATIVE_NODES, "4 Wan with native nodes.api.json"),
        (GOLDEN / "editor_features.json", "editor_features.api.json"),
        (GOLDEN / "editor_features.v1.json", "editor_features.api.json"),
    ],
)
def test_conversion_equals_the_editors(graph, expected, infos):
    prompt = to_prompt(read_workflow(graph), infos)
    assert prompt == json.loads((GOLDEN / expected).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "template", [TEXT_TO_VIDEO, examples.FIRST_LAST_FRAME, WITH_NATIVE_NODES], ids=lambda path: path.stem
)
def test_a_file_saved_with_old_socket_types_means_the_same(template, infos, tmp_path):
    """A workflow stores the type of a link and of its slots as text."""
    text = template.read_text(encoding="utf-8")
    for old, new in SUCCESSORS.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    (tmp_path / "old.json").write_text(text, encoding="utf-8")
    prompt = to_prompt(read_workflow(tmp_path / "old.json"), infos)
    assert prompt == to_prompt(read_workflow(template), infos)
    assert template == WITH_NATIVE_NODES or any(old in text for old in SUCCESSORS)
