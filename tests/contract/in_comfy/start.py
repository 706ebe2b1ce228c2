"""Makes a process with ComfyUI ready for the scripts here. Import it first."""

import importlib
import logging
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


def load(path, **more):
    """Return this pack's MODEL of a file or a folder, with plain kernels."""
    from lightx2v_pack.engine import pipeline
    from lightx2v_pack.engine.adapters.comfy.model import make_model
    from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings

    settings = EngineSettings(compile="off", attention="sdpa")
    return make_model(pipeline.load_transformer(Path(path), settings=settings, offload=OffloadSettings(), **more))


def read_tiny_models():
    """Let ComfyUI's own loader read a tiny Wan: it takes every Wan for one of 4,096 text channels."""
    import comfy.model_detection

    original = comfy.model_detection.detect_unet_config

    def detect(state_dict, prefix, metadata=None):
        config = original(state_dict, prefix, metadata)
        key = f"{prefix}text_embedding.0.weight"
        if config is not None and key in state_dict:
            config["text_dim"] = state_dict[key].shape[1]
        return config

    comfy.model_detection.detect_unet_config = detect


def listen():
    """Return a list that gets the texts of all warnings from now on."""
    texts = []

    class Listen(logging.Handler):
        def emit(self, record):
            if record.levelno >= logging.WARNING:
                texts.append(record.getMessage())

    logging.getLogger().addHandler(Listen())
    return texts


def far(one, other):
    """Return the largest difference, as a share of the spread."""
    return float((one - other).abs().max() / other.std())


def refused(function, *args, kind=ValueError, **kwargs):
    """Return the text of the error that a call ends with, None without one."""
    try:
        function(*args, **kwargs)
    except kind as error:
        return str(error)
    return None


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
