"""Test-only ComfyUI nodes and routes; never part of the pack.

ProbeSave and ProbeConditioning move tensors out of and into a graph, /probe/* shows what the memory
manager holds, and ComfyUI's own Wan loaders are made to take the tests' tiny files, whose sizes they fix.
"""

import ctypes
import gc
import os
import sys

import comfy.ldm.wan.vae
import comfy.model_management as mm
import comfy.sd
import folder_paths
import torch
from aiohttp import web
from server import PromptServer


class AnyType(str):
    """A socket type that every other is equal to."""

    def __ne__(self, other):
        return False


class ProbeSave:
    """Save a tensor as output/<name>.pt."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"required": {"value": (AnyType("*"),), "name": ("STRING", {})}}

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True

    def save(self, value, name):
        if isinstance(value, dict):
            value = value["samples"]
        elif isinstance(value, list):
            value = value[0][0]
        torch.save(value.clone(), os.path.join(folder_paths.get_output_directory(), f"{name}.pt"))
        return ()


class ProbeConditioning:
    """A CONDITIONING of zeros, as other models make them."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"required": {"rows": ("INT", {"default": 77}), "width": ("INT", {"default": 768})}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"

    def make(self, rows, width):
        return ([[torch.zeros(1, rows, width), {"pooled_output": torch.zeros(1, 768)}]],)


NODE_CLASS_MAPPINGS = {"ProbeSave": ProbeSave, "ProbeConditioning": ProbeConditioning}


@PromptServer.instance.routes.get("/probe/handles")
async def handles(request):
    """Every handle of the pack that is alive, by class, and whether its weights are loaded and registered.

    And every owner of weights to which no handle refers.
    """
    gc.collect()
    registered = {id(_owner_of(loaded.model)) for loaded in mm.current_loaded_models if loaded.model is not None}
    handles = [each for each in gc.get_objects() if type(each).__name__.endswith("Handle") and hasattr(each, "owner")]
    owned = {id(each.owner) for each in handles}
    found = [(type(each).__name__, each.owner) for each in handles]
    for each in gc.get_objects():
        if type(each).__name__ == "WeightOwner" and id(each) not in owned:
            found.append((f"{each.name} without a handle", each))
    return web.json_response(
        [
            {"type": name, "is_loaded": owner.is_loaded, "is_registered": id(owner) in registered}
            for name, owner in found
        ]
    )


@PromptServer.instance.routes.get("/probe/trim")
async def trim(request):
    """Give the memory that is free inside the process back to the system, so that the rest can be measured."""
    gc.collect()
    mm.soft_empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return web.json_response({})


@PromptServer.instance.routes.get("/probe/memory")
async def memory(request):
    """Bytes that torch has page-locked, that it has reserved on the GPU, and that are in use there by everybody."""
    device = mm.get_torch_device()
    if device.type != "cuda":
        return web.json_response({"pinned": 0, "vram": 0, "card": 0})
    free, total = torch.cuda.mem_get_info(device)
    # Older versions of torch do not tell.
    stats = getattr(torch.cuda, "host_memory_stats", dict)()
    pinned = stats.get("allocated_bytes.current", 0)
    return web.json_response({"pinned": pinned, "vram": torch.cuda.memory_reserved(device), "card": total - free})


def _owner_of(patcher):
    """Return the owner of the weights behind an entry of the memory manager; None where it is not ours."""
    if type(patcher).__name__ == "EnginePatcher":
        return patcher.model.owner()
    handle = getattr(patcher.model, "lightx2v_handle", None)
    return handle and handle.owner


# ComfyUI fixes the sizes of UMT5-XXL and recognises it by its 24th layer; read both from the file instead.
_detect_te_model, _load_text_encoder = comfy.sd.detect_te_model, comfy.sd.load_text_encoder_state_dicts
_QUERY = "encoder.block.{}.layer.0.SelfAttention.q.weight"


def _is_tiny(sd):
    return "spiece_model" in sd and _QUERY.format(0) in sd and _QUERY.format(23) not in sd


def _load_tiny_text_encoder(state_dicts=(), embedding_directory=None, clip_type=None, model_options=None):
    options = dict(model_options or {})
    sd = state_dicts[0]
    if _is_tiny(sd):
        inner, d_model = sd[_QUERY.format(0)].shape
        heads = sd["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape[1]
        options["umt5xxl_model_config"] = {
            "d_model": d_model,
            "d_kv": inner // heads,
            "num_heads": heads,
            "d_ff": sd["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
            "num_layers": sum(_QUERY.format(index) in sd for index in range(24)),
            "vocab_size": sd["shared.weight"].shape[0],
        }
        if "scaled_fp8" in sd:
            options["scaled_fp8"] = sd["scaled_fp8"].dtype
    return _load_text_encoder(list(state_dicts), embedding_directory, clip_type, options)


comfy.sd.detect_te_model = lambda sd: comfy.sd.TEModel.T5_XXL if _is_tiny(sd) else _detect_te_model(sd)
comfy.sd.load_text_encoder_state_dicts = _load_tiny_text_encoder

# The same for the width of the Wan VAE.
_init_vae, _WanVAE = comfy.sd.VAE.__init__, comfy.ldm.wan.vae.WanVAE
_vae_dim = {}


def _init_tiny_vae(self, sd=None, *args, **kwargs):
    _vae_dim.clear()
    if "encoder.conv1.weight" in sd:
        _vae_dim["dim"] = sd["encoder.conv1.weight"].shape[0]
    _init_vae(self, sd, *args, **kwargs)


class _TinyWanVAE(_WanVAE):
    def __init__(self, **config):
        super().__init__(**(config | _vae_dim))


comfy.sd.VAE.__init__ = _init_tiny_vae
comfy.ldm.wan.vae.WanVAE = _TinyWanVAE
