"""LightX2V nodes for ComfyUI: the 4-step distilled Wan2.1-T2V-14B as a graph of small nodes."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
