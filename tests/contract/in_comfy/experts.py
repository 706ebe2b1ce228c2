"""Run in a process with ComfyUI: two experts as one MODEL through ComfyUI's samplers.

usage: experts.py PACK_ROOT FOLDER, which holds both; prints one line of JSON: for each question its answer.
"""

import json
import logging
import sys

from start import far, load, start

root, folder = sys.argv[1:]
start(root)

import comfy.model_management as mm  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy_extras import nodes_model_advanced as advanced  # noqa: E402
from lightx2v_pack.engine import report  # noqa: E402
from lightx2v_pack.engine.adapters.comfy import sampling  # noqa: E402
from lightx2v_pack.engine.adapters.comfy.carried import handle_of  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.settings import SamplingSettings  # noqa: E402
from lightx2v_pack.engine.wan.experts import WanExperts  # noqa: E402

import nodes  # noqa: E402

comfy.utils.PROGRESS_BAR_ENABLED = False
logging.disable(logging.CRITICAL)
SEED = 7
SHAPE = (1, 16, 2, 6, 8)
answers = {}


turns, original = [], WanExperts.predict_flow


def predict_flow(transformer, latents, timestep, conditioning, hooks, expert=0, then=0):
    turns.append((expert, then))
    return original(transformer, latents, timestep, conditioning, hooks, expert, then)


WanExperts.predict_flow = predict_flow


def turns_of():
    found = list(turns)
    turns.clear()
    return found


model = load(folder)
text_dim = handle_of(model).text_dim
rows = torch.randn(1, 20, text_dim, generator=torch.Generator().manual_seed(1))
positive, negative = [[rows, {}]], [[rows[:, :9], {}]]
empty = {"samples": torch.zeros(SHAPE)}


def ksampler(model, *, cfg=1.0, steps=4, latent=None, sampler="euler", **part):
    latent = latent or empty
    return nodes.common_ksampler(model, SEED, steps, cfg, sampler, "simple", positive, negative, latent, **part)[0]


def ours(model, latent=None, **settings):
    settings = SamplingSettings(**{"seed": SEED, "method": "euler", **settings})
    return sampling.sample(model, positive, latent or empty, settings, Hooks())["samples"]


def experts_of(latent):
    return {record.stage: record for record in report.records_of(latent)}["sample"].details["experts"]


FIRST = {"disable_noise": False, "start_step": 0, "last_step": 2, "force_full_denoise": False}
SECOND = {"disable_noise": True, "start_step": 2, "last_step": 10000, "force_full_denoise": True}

with torch.inference_mode():
    reference = ours(model)
    answers["ours"] = turns_of()
    by_ksampler = ksampler(model)["samples"]
    answers["turns"] = turns_of()
    answers["ksampler"] = far(by_ksampler, reference)
    answers["report"] = experts_of(by_ksampler)
    shifted = advanced.ModelSamplingSD3().patch(model, 12.0)[0]
    answers["another shift"] = [far(ksampler(shifted)["samples"], ours(model, shift=12.0)), turns_of()[:4]]
    answers["eight steps"] = experts_of(ksampler(model, steps=8)["samples"])
    ksampler(model, sampler="heun")
    answers["heun"] = sorted({expert for expert, _ in turns_of()})

    # In two parts: the same model in both samplers, and each expert alone in one of them.
    answers["two samplers"] = far(ksampler(model, latent=ksampler(model, **FIRST), **SECOND)["samples"], reference)
    answers["turns of two samplers"] = [expert for expert, _ in turns_of()]
    high, low = (load(f"{folder}/{noise}_noise_model", second="alone") for noise in ("high", "low"))
    chained = ksampler(low, latent=ksampler(high, **FIRST), **SECOND)["samples"]
    answers["two models"] = far(chained, reference)
    half = ksampler(model, latent={"samples": reference.clone()}, denoise=0.5)["samples"]
    answers["video to video"] = experts_of(half)

    # A batch changes over once.
    turns_of()
    batch = ksampler(model, latent={"samples": torch.zeros(2, *SHAPE[1:])})["samples"]
    answers["batch"] = [turns_of(), far(batch[:1], reference)]
    ksampler(model, cfg=3.0)
    answers["guided"] = [expert for expert, _ in turns_of()]

    # Our sampler, where ComfyUI's does the work.
    counted = model.clone()
    counted.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    answers["by ComfyUI"] = far(ours(counted), reference)
    answers["by ComfyUI with one step"] = [
        far(ours(counted, high_steps=1), ours(model, high_steps=1)), far(ours(model, high_steps=1), reference) > 0.01
    ]  # fmt: skip

    # A LoRA by ComfyUI's own loader goes on both.
    draw = torch.Generator().manual_seed(3)
    lora = {}
    for name in ("blocks_0_self_attn_q", "blocks_1_ffn_0"):
        path = name.replace("blocks_0_self_attn_q", "blocks.0.self_attn.q").replace("blocks_1_ffn_0", "blocks.1.ffn.0")
        out, inputs = model.model.state_dict()[f"diffusion_model.{path}.weight"].shape
        lora[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, inputs, generator=draw)
        lora[f"lora_unet_{name}.lora_up.weight"] = torch.randn(out, 4, generator=draw) * 0.05
    put = lambda model: comfy.sd.load_lora_for_models(model, None, lora, 0.5, 0)[0]  # noqa: E731
    with_lora = ksampler(put(model))["samples"]
    alone = ksampler(put(low), latent=ksampler(put(high), **FIRST), **SECOND)["samples"]
    answers["LoRA"] = [far(with_lora, alone), far(with_lora, reference) > 0.01]

    # The memory manager has both as one.
    handle = handle_of(model)
    ksampler(model)
    entries = [each for each in mm.current_loaded_models if each.model.model is model.model]
    answers["entries"] = [len(entries), handle.owner.is_loaded]
    mm.unload_all_models()
    answers["unloaded"] = not handle.owner.is_loaded
    answers["again"] = far(ksampler(model)["samples"], by_ksampler)

print(json.dumps(answers))
