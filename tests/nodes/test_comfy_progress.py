"""Hooks that report to ComfyUI: bar, text, preview, Cancel."""

import pytest
import torch
from PIL import Image


@pytest.fixture
def progress(host):
    from lightx2v_pack.engine.adapters.comfy import progress

    return progress


def test_each_phase_fills_the_nodes_bar_and_says_how_far_it_is(progress, shown):
    hooks = progress.build_hooks("7")
    for done in range(1, 4):
        hooks.on_progress(done, 3, "loading blocks")
    hooks.on_step(1, 2, torch.zeros(16, 1, 2, 2))
    hooks.on_step(2, 2, torch.zeros(16, 1, 2, 2))
    assert (3, 3, "7") in shown.progress and (2, 2, "7") in shown.progress
    loading = [("7", f"loading blocks {done}/3") for done in range(1, 4)]
    assert shown.texts == [*loading, ("7", "step 1/2"), ("7", "step 2/2")]


def test_a_previewer_gets_normalized_latents_with_a_batch(progress, shown, monkeypatch):
    import latent_preview

    class Previewer:
        def decode_latent_to_preview_image(self, preview_format, x0):
            assert tuple(x0.shape) == (1, 16, 3, 4, 4)
            return preview_format, Image.new("RGB", (4, 4)), 512

    monkeypatch.setattr(latent_preview, "get_previewer", lambda device, latent_format: Previewer())
    progress.build_hooks("7").on_step(1, 4, torch.zeros(16, 3, 4, 4))
    assert [preview[0] for preview in shown.previews] == ["JPEG"]


def test_cancel_is_raised_once_by_the_check(progress):
    import comfy.model_management as mm

    hooks = progress.build_hooks(None)
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
