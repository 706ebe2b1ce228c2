"""Makes a process with ComfyUI ready for the scripts here. Import it first."""

import importlib
import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]


def start(root):
    """Register the pack, let the tests' modules be imported, and start ComfyUI on the CPU."""
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.append(str(TESTS))
    runpy.run_path(f"{root}/tools/register_pack.py")
    import comfy.options

    comfy.options.enable_args_parsing()
    # ComfyUI's nodes.py puts the folder `comfy` on the path, whose utils is not the one that the server imports.
    importlib.import_module("utils.install_util")


def pretend_gpu(num_bytes, owners):
    """Let ComfyUI manage a GPU of so many bytes (a function), of which loaded owners of weights take theirs.

    Args: owners: returns an iterable.
    """
    import comfy.model_management as mm
    import torch

    def get_free_memory(device=None, torch_free_too=False):
        free = num_bytes() - sum(owner.num_bytes for owner in owners())
        return (free, 0) if torch_free_too else free

    mm.cpu_state, mm.vram_state = mm.CPUState.GPU, mm.VRAMState.NORMAL_VRAM
    mm.get_torch_device = lambda: torch.device("cuda", 0)
    mm.soft_empty_cache = lambda force=False: None
    mm.get_free_memory = get_free_memory
