"""Run in a process with ComfyUI: its own VAE nodes on our VAE and on its own, and our decode node on its own VAE.

usage: vae_nodes.py PACK_ROOT VAE_FILE; prints one line of JSON: largest differences, sentences, shapes.
"""

import json
import sys
from pathlib import Path

from start import start

root, file = sys.argv[1:]
start(root)

import comfy.ldm.wan.vae  # noqa: E402
import comfy.model_management as mm  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy_api.latest import io  # noqa: E402
from comfy_extras import nodes_model_merging, nodes_wan  # noqa: E402
from lightx2v_pack.engine import pipeline  # noqa: E402
from lightx2v_pack.engine.adapters.comfy.vae import LightX2VVAE  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.memory.tiles import Tile  # noqa: E402
from lightx2v_pack.engine.settings import OffloadSettings  # noqa: E402
from lightx2v_pack.nodes import LightX2VDecode  # noqa: E402

import nodes  # noqa: E402

WEIGHTS = comfy.utils.load_torch_file(file)
_WanVAE = comfy.ldm.wan.vae.WanVAE


class TinyWanVAE(_WanVAE):
    """ComfyUI builds this VAE at full width whatever the file says."""

    def __init__(self, **config):
        super().__init__(**(config | {"dim": WEIGHTS["encoder.conv1.weight"].shape[0]}))


comfy.ldm.wan.vae.WanVAE = TinyWanVAE
theirs = comfy.sd.VAE(sd=WEIGHTS)
comfy.ldm.wan.vae.WanVAE = _WanVAE
ours = LightX2VVAE(pipeline.load_vae(Path(file), offload=OffloadSettings()))
draw = torch.Generator().manual_seed(0)
found = {"dtype": str(theirs.vae_dtype)}


def frames(*shape):
    return torch.rand(*shape, 3, generator=draw)


def difference(one, two):
    assert one.shape == two.shape and one.dtype == two.dtype, (one.shape, two.shape, one.dtype, two.dtype)
    return float((one - two).abs().max())


def both(run):
    return difference(*(run(vae) for vae in (ours, theirs)))


def encode(vae, pixels):
    return nodes.VAEEncode().encode(vae, pixels)[0]["samples"]


def conditioned(node, **inputs):
    """Return what a Wan node makes of a VAE: the latents that go with the conditioning."""

    def run(vae):
        made = node.execute([[torch.zeros(1, 4), {}]], [[torch.zeros(1, 4), {}]], vae=vae, **inputs)
        extras = made.args[0][0][1]
        (name,) = [name for name in ("concat_latent_image", "vace_frames") if name in extras]
        return extras[name] if name == "concat_latent_image" else extras[name][0]

    return run


def sentence(run):
    try:
        run()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def decode_node(vae, samples, tiling):
    clone = LightX2VDecode.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})
    return clone.EXECUTE_NORMALIZED(vae=vae, latent={"samples": samples}, tiling=tiling).args[0]


def check_attributes():
    found["missing attributes"] = sorted(name for name in vars(theirs) if not hasattr(ours, name))
    asked = ("spacial_compression_decode", "spacial_compression_encode", "temporal_compression_decode")
    found["ratios"] = [[getattr(vae, name)() for name in asked] for vae in (ours, theirs)]


def check_decoding():
    samples = torch.randn(2, 16, 3, 6, 10, generator=draw)
    run = lambda vae: nodes.VAEDecode().decode(vae, {"samples": samples})[0]  # noqa: E731
    found["VAEDecode"] = both(run)
    found["VAEDecode is our own"] = difference(run(ours), pipeline.decode(ours.lightx2v_handle, samples, hooks=Hooks()))
    wide = torch.randn(1, 16, 2, 8, 40, generator=draw)
    tiled = nodes.VAEDecodeTiled().decode(ours, {"samples": wide}, 128, 32, 16, 4)[0]
    own = pipeline.decode(ours.lightx2v_handle, wide, tile=Tile(size=16, overlap=4), hooks=Hooks())
    found["VAEDecodeTiled is our own"] = difference(tiled, own)
    their_tiled = nodes.VAEDecodeTiled().decode(theirs, {"samples": wide}, 128, 32, 16, 4)[0]
    found["VAEDecodeTiled shapes"] = [list(tiled.shape), list(their_tiled.shape)]
    found["LightX2V Decode"] = difference(decode_node(theirs, samples, "auto"), run(theirs))
    by_core = theirs.decode_tiled(wide, tile_x=64, tile_y=64, overlap=8).flatten(0, 1)
    found["LightX2V Decode tiled"] = difference(decode_node(theirs, wide, "on"), by_core)


def check_encoding():
    sizes = [(1, 16, 32), (2, 32, 16), (4, 16, 16), (5, 70, 75), (8, 16, 16), (9, 24, 40)]
    found["VAEEncode"] = [both(lambda vae, size=size: encode(vae, frames_of[size])) for size in sizes]
    clip = frames_of[(9, 24, 40)]
    own = pipeline.encode_video(ours.lightx2v_handle, clip, hooks=Hooks())
    found["VAEEncode is our own"] = difference(encode(ours, clip), own)
    with_alpha = torch.cat([clip, torch.ones_like(clip[..., :1])], dim=-1)
    found["VAEEncode with alpha"] = both(lambda vae: encode(vae, with_alpha))
    wide = frames(9, 64, 320)
    tiled = [nodes.VAEEncodeTiled().encode(vae, wide, 128, 32)[0]["samples"] for vae in (ours, theirs)]
    own = pipeline.encode_video(ours.lightx2v_handle, wide, tile=Tile(size=16, overlap=4), hooks=Hooks())
    found["VAEEncodeTiled is our own"] = difference(tiled[0], own)
    found["VAEEncodeTiled shapes"] = [list(each.shape) for each in tiled]
    whole = encode(theirs, wide)
    found["VAEEncodeTiled errors"] = [difference(each, whole) for each in tiled]
    found["encode and decode again"] = both(lambda vae: vae.decode(vae.encode(clip)))


def check_wan_nodes():
    size = {"width": 48, "height": 32, "length": 9, "batch_size": 1}
    found["WanImageToVideo"] = both(conditioned(nodes_wan.WanImageToVideo, start_image=frames(2, 40, 56), **size))
    ends = {"start_image": frames(1, 40, 56), "end_image": frames(1, 32, 48)}
    found["WanFirstLastFrameToVideo"] = both(conditioned(nodes_wan.WanFirstLastFrameToVideo, **ends, **size))
    control = {"control_video": frames(9, 32, 48), "strength": 1.0}
    found["WanVaceToVideo"] = both(conditioned(nodes_wan.WanVaceToVideo, **control, **size))


def check_inpainting():
    pixels, mask = frames(5, 37, 50), torch.zeros(1, 37, 50)
    mask[:, 8:24, 8:24] = 1
    made = nodes.VAEEncodeForInpaint().encode(ours, pixels, mask, 0)[0]
    found["inpaint"] = {"samples": list(made["samples"].shape), "mask": list(made["noise_mask"].shape)}
    grey = pixels[:, 2:34, 1:49].clone()
    grey[:, mask[0, 2:34, 1:49].bool()] = 0.5
    found["VAEEncodeForInpaint"] = difference(made["samples"], encode(ours, grey))


def check_refusals():
    found["4-D latents"] = sentence(lambda: nodes.VAEDecode().decode(ours, {"samples": torch.zeros(1, 16, 4, 4)}))
    save = nodes_model_merging.VAESave()
    found["VAESave"] = sentence(lambda: save.save(ours, "saved"))
    image_vae = comfy.sd.VAE.__new__(comfy.sd.VAE)
    image_vae.first_stage_model, image_vae.latent_channels, image_vae.latent_dim = torch.nn.Module(), 4, 2
    found["image VAE"] = sentence(lambda: decode_node(image_vae, torch.zeros(1, 16, 1, 4, 4), "auto"))


def check_memory():
    owner = ours.lightx2v_handle.owner
    states = [owner.is_loaded, any(each.model is ours.patcher for each in mm.current_loaded_models)]
    mm.unload_all_models()
    states.append(owner.is_loaded)
    ours.decode(torch.zeros(1, 16, 1, 2, 2))
    found["loaded, registered, after /free, again"] = [*states, owner.is_loaded]


frames_of = {
    size: frames(*size) for size in [(1, 16, 32), (2, 32, 16), (4, 16, 16), (5, 70, 75), (8, 16, 16), (9, 24, 40)]
}
with torch.inference_mode():
    check_attributes()
    check_decoding()
    check_encoding()
    check_wan_nodes()
    check_inpainting()
    check_refusals()
    check_memory()
print(json.dumps(found))
