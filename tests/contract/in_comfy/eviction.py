"""Run in a process with ComfyUI: handles under its memory manager, on a pretended GPU of 16 GB.

usage: eviction.py PACK_ROOT; prints one line of JSON: what is loaded after each step.
"""

import json
import sys

from start import pretend_gpu, start

(root,) = sys.argv[1:]
start(root)

import comfy.model_management as mm  # noqa: E402
from lightx2v_pack.engine.adapters.comfy import memory  # noqa: E402

GB = 10**9


class Weights:
    """A handle that pretends to hold weights on the GPU."""

    def __init__(self, size):
        self.num_bytes, self.is_loaded = size * GB, False

    def unload(self):
        self.is_loaded = False


handles = {}
pretend_gpu(lambda: 16 * GB, handles.values)


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
