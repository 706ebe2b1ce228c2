"""Run in a process with ComfyUI: handles under its memory manager, on a pretended GPU of 16 GB.

usage: eviction.py PACK_ROOT; prints one line of JSON: what is loaded after each step.
"""

import json
import sys
import types

(root,) = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [root]
sys.modules["lightx2v_pack"] = pack

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as mm  # noqa: E402
import torch  # noqa: E402
from lightx2v_pack.engine.adapters.comfy import memory  # noqa: E402

GB = 10**9


class Weights:
    """A handle that pretends to hold weights on the GPU."""

    def __init__(self, size):
        self.num_bytes, self.is_loaded = size * GB, False

    def unload(self):
        self.is_loaded = False


handles = {}
mm.cpu_state, mm.vram_state = mm.CPUState.GPU, mm.VRAMState.NORMAL_VRAM
mm.get_torch_device = lambda: torch.device("cuda", 0)
mm.soft_empty_cache = lambda force=False: None


def get_free_memory(device=None, torch_free_too=False):
    free = 16 * GB - sum(handle.num_bytes for handle in handles.values() if handle.is_loaded)
    return (free, 0) if torch_free_too else free


mm.get_free_memory = get_free_memory


def use(name, size, activations=0):
    """What a node does: register the handle, then let the stage load it."""
    handle = handles.setdefault(name, Weights(size))
    memory.register(handle, activations * GB)
    handle.is_loaded = True


def loaded():
    return sorted(name for name, handle in handles.items() if handle.is_loaded)


steps = {}
use("vae", 1)
use("transformer", 10)
steps["both fit"] = loaded()
use("transformer", 10)
steps["again"] = loaded()
use("vae", 1, activations=8)
steps["room for activations"] = loaded()
use("transformer", 10)
use("other transformer", 9)
steps["room for weights"] = loaded()
memory.make_room(15 * GB)
steps["room on request"] = loaded()
use("transformer", 10)
mm.free_memory(12 * GB, mm.get_torch_device())
steps["room for another pack"] = loaded()
use("vae", 1)
mm.unload_all_models()
steps["unload models"] = loaded()
use("vae", 1)
handles.clear()
steps["entries after the last reference"] = len(mm.current_loaded_models)
print(json.dumps(steps))
