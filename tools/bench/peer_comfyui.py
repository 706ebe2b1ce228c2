"""ComfyUI's own Wan model, run in process as its sampler node runs it; found through COMFYUI_DIR.

FP8 is the scaled checkpoint that its users load (`scale_weight` per tensor), plain or with the loader's
`fp8_e4m3fn_fast`. Options: flags (of ComfyUI's command line), fast_weights, compile, compute (what
its ModelComputeDtype node sets; its own choice is float16), lora (a rank: by ComfyUI's own loader).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from typing import Any

import torch
from safetensors.torch import load_file

from .. import make_tiny_checkpoint as checkpoints
from . import pack
from .harness import Bench
from .lora import LAYER, LoraFiles
from .peer import SEED, Clock, Peer, make_image, make_noise, make_schedule, make_text
from .weights import full_model, load_template


def prepare(peer: Peer, bench: Bench) -> None:
    """Import ComfyUI with the peer's flags, which it reads at import."""
    # The weights are made on the card, which holds all of them, and stay there.
    home = "--cpu" if bench.device.type == "cpu" else "--highvram"
    sys.argv = [sys.argv[0], home, *peer.options.get("flags", ())]
    sys.path.insert(0, os.environ["COMFYUI_DIR"])
    if importlib.util.find_spec("torchsde") is None:
        # For samplers that are not used here.
        sys.modules["torchsde"] = types.ModuleType("torchsde")
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.clip_vision
    import comfy.sample
    import comfy.samplers
    import comfy.sd


@torch.inference_mode()
def run(peer: Peer, bench: Bench, clock: Clock) -> torch.Tensor:
    """Load and sample; return the normalized latents [16, T, h, w]."""
    import comfy.model_management
    import comfy.sample
    import comfy.samplers
    import comfy.sd

    patcher = load(peer, bench)
    model = patcher.model
    rank = peer.options.get("lora")
    if rank:
        files, plain = LoraFiles(bench, peer.kind), _weight(model)
        patcher, _ = comfy.sd.load_lora_for_models(patcher, None, load_file(files.path(rank, 0)), 1.0, 0.0)
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    if rank:
        clock.write(**files.survives(_weight(model) - plain, rank))
    clock.loaded()
    text = [[make_text()[None], {"pooled_output": None, **image_keys(peer, bench)}]]
    latents = comfy.sample.sample_custom(
        patcher,
        make_noise(bench)[None],
        1.0,
        comfy.samplers.sampler_object("euler"),
        torch.tensor(make_schedule(bench).sigmas),
        text,
        text,
        torch.zeros(1, *bench.shape),
        callback=clock.step,
        disable_pbar=True,
        seed=SEED,
    )
    clock.write(
        compute=str(model.manual_cast_dtype or model.get_dtype()).removeprefix("torch."),
        attention="sage_attn2" if "--use-sage-attention" in sys.argv else "sdpa",
        version=importlib.import_module("comfyui_version").__version__,
    )
    latents = model.latent_format.process_in(latents.float())
    return latents[0].cpu()


def image_keys(peer: Peer, bench: Bench) -> dict[str, Any]:
    """Return what ComfyUI's WanImageToVideo puts beside the text; nothing for text to video."""
    import comfy.clip_vision

    image = make_image(bench, peer.kind)
    if image is None:
        return {}
    keys = {"concat_latent_image": pack.denormalize(image.latents)[None], "concat_mask": 1 - image.is_given[None, :1]}
    if image.rows is None:
        return keys
    seen = comfy.clip_vision.Output()
    seen["penultimate_hidden_states"] = image.rows[None]
    return {**keys, "clip_vision_output": seen}


def _weight(model: Any) -> torch.Tensor:
    """Return what LAYER multiplies with, on the CPU."""
    layer = model.diffusion_model.get_submodule(LAYER)
    scale = getattr(layer, "scale_weight", None)
    return (layer.weight.float() * (1.0 if scale is None else scale.float())).cpu()


def load(peer: Peer, bench: Bench) -> Any:
    """Return ComfyUI's patcher of a model of the full-size weights."""
    import comfy.sd

    template = load_template(bench.folder, bench.options, peer.kind)
    template = {name: tensor.to(bench.device) for name, tensor in template.items()}
    model = full_model(template, bench.options.layers)
    options: dict[str, Any] = {}
    if peer.precision == "fp8":
        model = checkpoints.quantize_for_comfy(
            model, lambda name, tensor: tensor.ndim == 2 and name.endswith(".weight"), marker_size=2
        )
        if peer.options.get("fast_weights"):
            # What the loader node does for weight_dtype fp8_e4m3fn_fast.
            options = {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True}
    del template
    patcher = comfy.sd.load_diffusion_model_state_dict(model, model_options=options)
    if "compute" in peer.options:
        patcher.set_model_compute_dtype(getattr(torch, peer.options["compute"]))
    if peer.options.get("compile"):
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        # Every block by itself, with room in the cache, as KJNodes' compile node for Wan does.
        torch._dynamo.config.cache_size_limit = 64
        blocks = [f"diffusion_model.blocks.{index}" for index in range(bench.options.layers)]
        set_torch_compile_wrapper(patcher, backend="inductor", keys=blocks)
    return patcher
