"""Run in a process with ComfyUI: does the transformer stay when a decode was planned beside it? On pretended cards.

usage: decode_room.py PACK_ROOT VAE_FILE; prints one line of JSON: for each card, in GiB that can be had, what was
planned (the tile, and whether weights stay) and whether the transformer was still loaded after ComfyUI was asked.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from start import pretend_gpu, start

root, vae_file = sys.argv[1:]
start(root)

import comfy.model_management as mm  # noqa: E402
import torch  # noqa: E402
from lightx2v_pack.engine import pipeline, system  # noqa: E402
from lightx2v_pack.engine.adapters.comfy import memory  # noqa: E402
from lightx2v_pack.engine.constants import GIB  # noqa: E402
from lightx2v_pack.engine.handles import Handle, VaeHandle  # noqa: E402
from lightx2v_pack.engine.memory.budget import Host  # noqa: E402
from lightx2v_pack.engine.memory.needs import weights_ram, weights_vram  # noqa: E402
from lightx2v_pack.engine.memory.plan import Budget, Sizes, Wish, plan_run  # noqa: E402
from lightx2v_pack.engine.settings import OffloadSettings  # noqa: E402
from support.wan_14b import WAN_14B  # noqa: E402

SHAPE = (1, 16, 21, 60, 104)
RAM_GIB = 40
HOST = Host(claim=memory.register)


class Transformer(Handle):
    """Pretends to hold the weights of a plan."""

    def __init__(self, sizes, placement):
        super().__init__()
        self._bytes = weights_vram(sizes.weights, placement), weights_ram(sizes.weights, placement)
        self._keep(SimpleNamespace(unload=lambda: None))

    @property
    def num_bytes(self):
        return self._bytes[0]

    @property
    def ram_bytes(self):
        return self._bytes[1]


def taken():
    return sum(handle.num_bytes for handle in handles if handle.is_loaded)


pretend_gpu(lambda: card, lambda: handles)
system.compute_device = lambda: torch.device("cuda", 0)
system.free_ram_bytes = lambda: RAM_GIB * GIB - sum(handle.ram_bytes for handle in handles if handle.is_loaded)
torch.cuda.mem_get_info = lambda *_: (card - taken(), card)
torch.cuda.get_device_properties = lambda *_: SimpleNamespace(total_memory=card)
torch.cuda.memory_reserved = torch.cuda.memory_allocated = lambda *_: taken()
torch.cuda.get_per_process_memory_fraction = lambda *_: 1.0

found = {}
for quarters in range(4 * 5, 4 * 25):
    card, handles = quarters * GIB // 4, []
    mm.current_loaded_models.clear()
    sizes = Sizes(
        architecture=WAN_14B, scheme="fp8", attention="triton_in_place", matmul="scaled_mm", width=832, height=480,
        num_frames=81,
    )  # fmt: skip
    plan = plan_run(sizes, Budget(vram=card, ram=RAM_GIB * GIB), Wish())
    transformer = Transformer(sizes, plan.placement)
    transformer._engine = None
    handles.append(transformer)
    memory.register(transformer, plan.needs["sample"].vram - plan.needs["load_transformer"].vram)
    transformer._keep(SimpleNamespace(unload=lambda: None))
    vae = VaeHandle(Path(vae_file), "portable", OffloadSettings())
    vae.base_dim = 96
    handles.append(vae)
    decode = pipeline._plan_decoding(vae, SHAPE, "auto", HOST)
    found[quarters / 4] = [decode.tile.size if decode.tile else None, decode.weights_stay, transformer.is_loaded]
print(json.dumps(found))
