"""Hooks that report to ComfyUI: bar, text, preview, Cancel."""

import pytest
import torch
from PIL import Image


@pytest.fixture
def progress(host):
    from lightx2v_pack.engine.adapters.comfy import progress

    return progress


def test_each_stage_fills_the_nodes_bar_says_how_far_it_is_and_vanishes(progress, shown):
    with progress.reporting("7") as hooks:
        for done in range(1, 4):
            hooks.on_progress(done, 3, "loading blocks")
        for step in (1, 2):
            hooks.on_step_start(step, 2)
            hooks.on_block(1, 1)
            hooks.on_step(step, 2, torch.zeros(16, 1, 2, 2))
    assert (3, 3, "7") in shown.progress and (2, 2, "7") in shown.progress
    loading = [("7", f"loading blocks {done}/3") for done in range(1, 4)]
    steps = [("7", f"step {step}/2{block}") for step in (1, 2) for block in ("", ", block 1/1")]
    assert shown.texts == [*loading, *steps, ("7", "")]


def test_the_text_vanishes_after_an_error_too(progress, shown):
    with pytest.raises(RuntimeError), progress.reporting("7") as hooks:
        hooks.on_progress(1, 3, "loading blocks")
        raise RuntimeError("no")
    assert shown.texts[-1] == ("7", "")


def test_what_runs_within_another_report_goes_there_and_leaves_the_steps_to_it(progress, shown):
    with progress.reporting("7") as hooks:
        hooks.on_step_start(5, 8)
        with progress.reporting("9") as inner:
            inner.on_step_start(1, 4)
            inner.on_block(1, 1)
        hooks.on_progress(1, 1, "after")
    assert shown.texts == [("7", "step 5/8"), ("7", "step 5/8, block 1/1"), ("7", "after 1/1"), ("7", "")]


def test_a_previewer_gets_normalized_latents_with_a_batch(progress, shown, monkeypatch):
    import latent_preview

    class Previewer:
        def decode_latent_to_preview_image(self, preview_format, x0):
            assert tuple(x0.shape) == (1, 16, 3, 4, 4)
            return preview_format, Image.new("RGB", (4, 4)), 512

    monkeypatch.setattr(latent_preview, "get_previewer", lambda device, latent_format: Previewer())
    with progress.reporting("7") as hooks:
        hooks.on_step(1, 4, torch.zeros(16, 3, 4, 4))
    assert [preview[0] for preview in shown.previews] == ["JPEG"]


def test_cancel_is_raised_once_by_the_check(progress):
    import comfy.model_management as mm

    with progress.reporting(None) as hooks:
        hooks.check_interrupt()
        mm.interrupt_current_processing()
        with pytest.raises(mm.InterruptProcessingException):
            hooks.check_interrupt()
        hooks.check_interrupt()


def test_text_needs_a_node_and_a_server(progress, shown, monkeypatch):
    import server

    progress.show_text(None, "nobody's")
    monkeypatch.setattr(server.PromptServer, "instance", None)
    progress.show_text("7", "nowhere")
    monkeypatch.setattr(server.PromptServer, "instance", object())
    progress.show_text("7", "too old")
    assert not shown.texts
