"""Keep what a release ships: python tests/workflows/ship.py writes tests/workflows/shipped/<version of pyproject>/.

For every example workflow NAME.json as it is and NAME.api.json, what it means to ComfyUI; schemas.json, the nodes it
was saved with. Run it as the last step before a release; never change the folder of a version that is out.
"""

import json
import re
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = Path(__file__).parent / "shipped"
SCHEMAS = ROOT / "tests" / "nodes" / "schemas.json"
# What ComfyUI says of a node that is not there without ComfyUI.
CLIP_VISION = {
    "CLIPVisionLoader": {
        "input": {"required": {"clip_name": [["clip_vision_h.safetensors"]]}},
        "input_order": {"required": ["clip_name"]},
        "output": ["CLIP_VISION"],
        "output_name": ["CLIP_VISION"],
        "name": "CLIPVisionLoader",
        "display_name": "Load CLIP Vision",
    }
}


def version() -> str:
    """Return the version of pyproject.toml."""
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1]


def meaning(workflow: Path, infos) -> dict:
    """Return what a workflow file asks ComfyUI to run: class and inputs of every node, without titles."""
    from lightx2v_pack.tools.headless.workflow import read_workflow, to_prompt

    prompt = to_prompt(read_workflow(workflow), infos)
    return {number: {"class_type": node["class_type"], "inputs": node["inputs"]} for number, node in prompt.items()}


def main() -> None:
    """Write the folder of this version."""
    from lightx2v_pack.tools.headless.boot import boot
    from lightx2v_pack.tools.headless.progress import Progress

    folder = SHIPPED / version()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as empty:
        infos = CLIP_VISION | boot(Path(empty), Path(empty), Progress(sys.stderr, quiet=True)).infos
    for workflow in sorted((ROOT / "example_workflows").glob("*.json")):
        shutil.copy(workflow, folder)
        text = json.dumps(meaning(workflow, infos), indent=1, ensure_ascii=False)
        (folder / f"{workflow.stem}.api.json").write_text(text + "\n", encoding="utf-8")
    shutil.copy(SCHEMAS, folder)
    print(f"{folder}: {len(list(folder.iterdir()))} files")


if __name__ == "__main__":
    runpy.run_path(str(ROOT / "tools" / "register_pack.py"))
    main()
