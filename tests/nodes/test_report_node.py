"""What LightX2V Report sends to the editor."""

import json
import sys
from types import ModuleType

import pytest
import torch
from lightx2v_pack.engine import report
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.report_table import as_markdown, as_rows


@pytest.mark.parametrize("image", ["a.png", [torch.zeros(1, 16, 16, 3)], torch.zeros(1, 16, 16, 3).byte()])
def test_what_is_no_image_is_named(run, image):
    with pytest.raises(ValueError, match="Connect an IMAGE, such as Load Image's: image is "):
        run("LightX2VReport", image=image)


def test_the_editor_gets_json_rows_and_markdown_of_one_report(host):
    record = report.StageRecord(stage="decode", seconds=1.5, peak_ram_bytes=2**31)
    image = report.attach(torch.zeros(1, 16, 16, 3), [record])
    clone = host.classes["LightX2VReport"].PREPARE_CLASS_CLONE(None)
    output = clone.EXECUTE_NORMALIZED(image=image)
    (text,), (table,), (markdown,) = (output.ui[name] for name in ("text", "table", "markdown"))
    data, rows = json.loads(text), json.loads(table)
    assert output.args == (image, None, text)
    assert rows["headline"].startswith("1.5 s: decode 1.5 s; at most 2.0 GiB of RAM")
    assert rows["stages"][:2] == [["stage", "time", "peak RAM", "peak VRAM"], ["decode", "1.5 s", "2.0 GiB", "-"]]
    assert ["card", data["device"]] in rows["facts"]
    assert markdown == as_markdown(as_rows(data)) and "| decode | 1.5 s | 2.0 GiB | - |" in markdown


@pytest.mark.parametrize("comfyui", ["0.3.64", None])
def test_the_report_says_the_versions_of_pack_and_comfyui(run, monkeypatch, comfyui):
    """A stand-in for ComfyUI has no version of its own; the real one has it in a module at its root."""
    module = ModuleType("comfyui_version")
    module.__version__ = comfyui
    monkeypatch.setitem(sys.modules, "comfyui_version", module if comfyui else None)
    (*_, text) = run("LightX2VReport", image=torch.zeros(1, 16, 16, 3))
    data = json.loads(text)
    facts = dict(as_rows(data)["facts"])
    assert data["versions"].get("ComfyUI") == comfyui
    assert facts["versions"].startswith(f"lightx2v-nodes {trials.pack_version()}, ")
    assert ("ComfyUI" in facts["versions"]) == bool(comfyui)
