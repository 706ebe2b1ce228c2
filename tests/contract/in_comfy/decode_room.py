"""Run in a process with ComfyUI: does the transformer stay when a decode was planned beside it? On pretended cards.

usage: decode_room.py PACK_ROOT VAE_FILE; prints one line of JSON: for each card, in GiB that can be had, what was
planned (the tile, and whether weights stay) and whether the transformer was still loaded after ComfyUI was asked.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from start import pretend_gpu, start

root, vae_file = sys.argv[1:]
start(root)

import comfy.model_management as mm  # noqa: E402
import torch  # noqa: E402
from lightx2v_pack.engine import system  # noqa: E402
from lightx2v_pack.engine.adapters.comfy import memory  # noqa: E402
from lightx2v_pack.engine.checkpoints.companions import resolve_vae  # noqa: E402
from lightx2v_pack.engine.constants import GIB  # noqa: E402
from lightx2v_pack.engine.handles import VaeHandle  # noqa: E402
from lightx2v_pack.engine.interfaces import Host  # noqa: E402
from lightx2v_pack.engine.memory.clip import Clip  # noqa: E402
from lightx2v_pack.engine.memory.needs import VAE_BASE_DIM, Budget, Need, weights_ram, weights_vram  # noqa: E402
from lightx2v_pack.engine.memory.owner import WeightOwner  # noqa: E402
from lightx2v_pack.engine.memory.plan import Wish, plan_run  # noqa: E402
from lightx2v_pack.engine.settings import OffloadSettings  # noqa: E402
from support.wan_14b import choose_kernels, make_sizes  # noqa: E402

CLIP = Clip(width=832, height=480, num_frames=81)
RAM_GIB = 40
HOST = Host(device=torch.device("cuda", 0), claim=memory.register)
SIZES = make_sizes(CLIP, choose_kernels(attention="triton"))
VAE = resolve_vae(Path(vae_file))
VAE = replace(VAE, format=replace(VAE.format, base_dim=VAE_BASE_DIM))


class Engine:
    """Pretends to hold the weights of a plan."""

    def unload(self):
        pass


def hold(owner, placement):
    """Let an owner hold a transformer's weights, in name only."""
    need = Need(vram=weights_vram(SIZES.weights, placement), ram=weights_ram(SIZES.weights, placement))
    owner.load("transformer", Engine, lambda _: None, need, placement)


def taken():
    return sum(owner.num_bytes for owner in owners)


pretend_gpu(lambda: card, lambda: owners)
system.free_ram_bytes = lambda: RAM_GIB * GIB - sum(owner.held.ram for owner in owners)
torch.cuda.mem_get_info = lambda *_: (card - taken(), card)
torch.cuda.get_device_properties = lambda *_: SimpleNamespace(total_memory=card)
torch.cuda.memory_reserved = torch.cuda.memory_allocated = lambda *_: taken()
torch.cuda.get_per_process_memory_fraction = lambda *_: 1.0

found = {}
for quarters in range(4 * 5, 4 * 25):
    card, owners = quarters * GIB // 4, []
    mm.current_loaded_models.clear()
    plan = plan_run(SIZES, Budget(vram=card, ram=RAM_GIB * GIB), Wish())
    transformer, vae = WeightOwner("transformer"), VaeHandle(VAE, "portable", OffloadSettings())
    owners += [transformer, vae.owner]
    loaded, sampled = plan.needs["load_transformer"].vram, plan.needs["sample"].vram
    memory.register(transformer, loaded, sampled - loaded)
    hold(transformer, plan.placement)
    decode = vae.room(HOST).claim_vae("decode", CLIP, VAE.base_dim, "auto")
    found[quarters / 4] = [decode.tile.size if decode.tile else None, decode.weights_stay, transformer.is_loaded]
print(json.dumps(found))
