"""Run in a process with ComfyUI: owners of weights under its memory manager, on a pretended GPU of 16 GB.

usage: eviction.py PACK_ROOT; prints one line of JSON: what is loaded after each step.
"""

import json
import sys

from start import pretend_gpu, start

(root,) = sys.argv[1:]
start(root)

import comfy.model_management as mm  # noqa: E402
from lightx2v_pack.engine.adapters.comfy import memory  # noqa: E402
from lightx2v_pack.engine.memory.needs import Need  # noqa: E402
from lightx2v_pack.engine.memory.owner import WeightOwner  # noqa: E402

GB = 10**9


class Engine:
    """Pretends to hold weights on the GPU."""

    def unload(self):
        pass


owners = {}
pretend_gpu(lambda: 16 * GB, owners.values)


def use(name, size, activations=0):
    """What a stage does: claim room for its weights and work, then load."""
    owner = owners.setdefault(name, WeightOwner(name))
    memory.register(owner, size * GB, activations * GB)
    owner.load(name, Engine, lambda _: None, Need(vram=size * GB, ram=0))


def loaded():
    return sorted(name for name, owner in owners.items() if owner.is_loaded)


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
owners.clear()
steps["entries after the last reference"] = len(mm.current_loaded_models)
print(json.dumps(steps))
