"""Run in a process with ComfyUI: this pack's MODEL through ComfyUI's samplers, and ComfyUI's own through ours.

usage: native_model.py PACK_ROOT FP8_FILE BF16_FILE; prints one line of JSON: for each question its answer.
"""

import gc
import json
import sys
import types
import weakref

from start import far, listen, load, read_tiny_models, refused, start

root, fp8_file, bf16_file = sys.argv[1:]
start(root)

import utils.install_util  # noqa: E402, F401, I001 - before nodes puts comfy/, which has a utils.py, on the path
import comfy.context_windows  # noqa: E402
import comfy.hooks  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.model_management as mm  # noqa: E402
import comfy.patcher_extension as extension  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402
from comfy_extras import nodes_custom_sampler as custom  # noqa: E402
from comfy_extras import nodes_freelunch as freelunch  # noqa: E402
from comfy_extras import nodes_model_advanced as advanced  # noqa: E402
from lightx2v_pack.engine import report  # noqa: E402
from lightx2v_pack.engine.adapters.comfy import sampling  # noqa: E402
from lightx2v_pack.engine.adapters.comfy.carried import handle_of  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.settings import SamplingSettings  # noqa: E402

comfy.utils.PROGRESS_BAR_ENABLED = False
read_tiny_models()
SEED = 7
SHAPE = (1, 16, 2, 6, 8)
PIXELS = {"width": 64, "height": 48}
answers = {}
warnings = listen()
said = warnings.copy


model = load(fp8_file)
handle = handle_of(model)
text_dim = handle.text_dim
rows = torch.randn(1, 20, text_dim, generator=torch.Generator().manual_seed(1))
other_rows = torch.randn(1, 9, text_dim, generator=torch.Generator().manual_seed(2))
positive, negative = [[rows, {"pooled_output": None}]], [[other_rows, {"pooled_output": None}]]
empty = {"samples": torch.zeros(SHAPE)}


def ksampler(model, *, cfg=1.0, sampler="euler", scheduler="simple", steps=4, latent=None, pos=positive, **extra):
    latent = latent or empty
    return nodes.common_ksampler(
        model, SEED, steps, cfg, sampler, scheduler, pos, negative, latent, **extra
    )[0]["samples"]  # fmt: skip


def ours(model, method="euler", *, shift=5.0, latent=None, pos=positive, steps=4):
    settings = SamplingSettings(seed=SEED, method=method, shift=shift, steps=steps)
    return sampling.sample(model, pos, latent or empty, settings, Hooks())["samples"]


class Calls:
    """Counts the passes of the engine."""

    def __init__(self):
        from lightx2v_pack.engine.wan.transformer import WanTransformer

        self.texts, self.original = [], WanTransformer.predict_flow
        calls = self

        def predict_flow(transformer, latents, timestep, conditioning, *others):
            calls.texts.append(id(conditioning))
            assert latents.ndim == 4
            return calls.original(transformer, latents, timestep, conditioning, *others)

        WanTransformer.predict_flow = predict_flow

    def __call__(self):
        found, self.texts = self.texts, []
        return found


calls = Calls()
with torch.inference_mode():
    # Parity.
    reference = ours(model)
    planned = calls()
    by_ksampler = ksampler(model)
    native = calls()
    answers["ksampler"] = far(by_ksampler, reference)
    answers["texts"] = [len(planned), len(native), len(set(native))]
    answers["report"] = {
        record.stage: record.details for record in report.records_of(by_ksampler)
    }["sample"]["method"]  # fmt: skip
    answers["quiet"] = said()
    sigmas = torch.tensor([1.0, 0.9375, 0.8333333, 0.625, 0.0])
    euler = custom.KSamplerSelect().get_sampler("euler")[0]
    by_custom = custom.SamplerCustom().sample(model, True, SEED, 1.0, positive, negative, euler, sigmas, empty)
    answers["custom"] = far(by_custom[0]["samples"], reference)
    guider = custom.BasicGuider().get_guider(model, positive)[0]
    noise = custom.RandomNoise().get_noise(SEED)[0]
    by_advanced = custom.SamplerCustomAdvanced().sample(noise, guider, euler, sigmas, empty)
    answers["advanced"] = far(by_advanced[0]["samples"], reference)
    first = nodes.common_ksampler(
        model, SEED, 4, 1.0, "euler", "simple", positive, negative, empty, disable_noise=False, start_step=0,
        last_step=2, force_full_denoise=False,
    )[0]  # fmt: skip
    second = nodes.common_ksampler(
        model, SEED, 4, 1.0, "euler", "simple", positive, negative, first, disable_noise=True, start_step=2,
        last_step=10000, force_full_denoise=True,
    )[0]["samples"]  # fmt: skip
    answers["two halves"] = far(second, reference)
    answers["halves are quiet"] = said() == answers["quiet"]

    # The shift: ModelSamplingSD3 on a clone, and the next run without it.
    patch = lambda model, shift: advanced.ModelSamplingSD3().patch(model, shift)[0]  # noqa: E731
    shifted = ksampler(patch(model, 8.0))
    answers["warned of the shift"] = [line for line in said() if "noise levels" in line][-1:]
    answers["shift 8"] = far(shifted, ours(model, shift=8.0))
    answers["shift is undone"] = far(ksampler(model), by_ksampler)
    answers["shift of ours wins"] = far(ours(patch(model, 8.0)), reference)
    answers["it says so"] = any("ModelSamplingSD3" in line for line in said())

    # CFG: conditions one after the other, keys and values per text.
    calls()
    guided = ksampler(model, cfg=3.0)
    answers["cfg"] = [len(calls()), bool(torch.isfinite(guided).all()), far(guided, reference) > 0.01]
    answers["warned of cfg"] = any("cfg is 3" in line for line in said())

    # Batches, sizes, conditions in places.
    batch = ksampler(model, latent={"samples": torch.zeros(2, *SHAPE[1:])})
    answers["batch"] = [len(calls()), far(batch[:1], reference), far(batch[1:], reference) > 0.01]
    odd = ksampler(model, latent={"samples": torch.zeros(1, 16, 2, 7, 9)})
    answers["odd size"] = [list(odd.shape), bool(torch.isfinite(odd).all())]
    area = [[rows, {"area": (3, 5, 0, 0), "strength": 1.0}], [other_rows, {}]]
    answers["area"] = bool(torch.isfinite(ksampler(model, pos=area)).all())
    mask = torch.zeros(1, 6, 8)
    mask[..., :4] = 1
    masked = [[rows, {"mask": mask, "mask_strength": 1.0, "set_area_to_bounds": False}], [other_rows, {}]]
    calls()
    answers["ours heeds a mask"] = [far(ours(model, pos=masked), reference) > 0.01, len(calls())]
    answers["ours like ComfyUI"] = far(ours(model, pos=masked), ksampler(model, pos=masked))
    kept = ksampler(
        model, latent={"samples": reference.clone(), "noise_mask": torch.cat([torch.zeros(1, 6, 4), mask[..., :4]], 2)}
    )
    answers["inpainting"] = [
        float((kept - reference)[..., :3].abs().max()) < 1e-4,
        far(kept[..., 5:], reference[..., 5:]) > 0.01,
    ]
    half = ksampler(model, latent={"samples": reference.clone()}, denoise=0.5)
    answers["video to video"] = bool(torch.isfinite(half).all())
    samplers = {}
    for name in ("dpmpp_2m", "uni_pc", "res_multistep", "heun", "ddim", "lcm", "er_sde"):
        samplers[name] = bool(torch.isfinite(ksampler(model, sampler=name)).all())
    answers["samplers"] = samplers
    answers["wrong text"] = refused(ksampler, model, pos=[[torch.randn(1, 77, 768), {}]])

    # LightX2V Sampler where something is on the model that ComfyUI's samplers heed.
    counted = model.clone()
    seen = []
    counted.set_model_sampler_post_cfg_function(lambda args: seen.append(1) or args["denoised"])
    answers["post cfg"] = [far(ours(counted), reference), len(seen)]
    answers["lcm by ComfyUI"] = far(ours(counted, "lcm"), ours(model, "lcm"))
    two = {"samples": torch.zeros(2, *SHAPE[1:])}
    answers["batch seeds"] = far(ours(counted, latent=two), ours(model, latent=two))

    texts = [
        [torch.cat([torch.nn.functional.pad(each, (0, 0, 0, 20 - each.shape[1])) for each in (rows, other_rows)]), {}]
    ]
    answers["batch texts"] = [
        far(ours(counted, latent=two, pos=texts), ours(model, latent=two, pos=texts)),
        far(ours(model, latent=two, pos=texts)[1:], ours(model, latent=two)[1:]) > 0.01,
    ]

    # Guiders of more than two conditions, and windows of a clip.
    before = len(warnings)
    dual = custom.DualCFGGuider().get_guider(model, positive, negative, negative, 2.0, 2.0, "regular")[0]
    custom.SamplerCustomAdvanced().sample(noise, dual, euler, sigmas, empty)
    answers["dual"] = [line for line in warnings[before:] if "noise levels" not in line]
    long = {"samples": torch.zeros(1, 16, 7, 6, 8)}
    whole = ksampler(model, latent=long)
    windows = model.clone()
    windows.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        comfy.context_windows.get_matching_context_schedule("standard_static"),
        comfy.context_windows.get_matching_fuse_method("pyramid"), context_length=3, context_overlap=1, dim=2,
    )  # fmt: skip
    calls()
    by_windows = ksampler(windows, latent=long)
    needs = [
        {record.stage: record for record in report.records_of(each)}["sample"].details["plan"]["needs"]["sample"]
        for each in (by_windows, whole)
    ]
    answers["windows"] = [len(calls()), needs[0]["ram_bytes"] < needs[1]["ram_bytes"], far(by_windows, whole) > 0.01]

    # Refusals, by every way that there is.
    broken = {}
    clone = model.clone()
    clone.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v))
    broken["attention patch"] = clone
    clone = model.clone()
    clone.set_model_patch_replace(lambda *_: None, "dit", "double_block", 1)
    broken["replaced block"] = clone
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = lambda *_: None
    broken["attention override"] = clone
    clone = model.clone()
    clone.add_object_patch("diffusion_model.blocks.0.self_attn.forward", lambda *_: None)
    broken["replaced forward"] = clone
    clone = model.clone()
    clone.add_wrapper_with_key(extension.WrappersMP.APPLY_MODEL, "torch.compile", lambda *_: None)
    broken["torch.compile"] = clone
    broken["another sampling"] = advanced.ModelSamplingAuraFlow().patch_aura(model, 1.7)[0]
    refusals = {}
    for name, clone in broken.items():
        refusals[name] = [refused(ksampler, clone), refused(ours, clone)]
    calls()
    for key, value in (
        ("concat_latent_image", torch.zeros(SHAPE)),
        ("clip_vision_output", object()),
        ("reference_latents", [torch.zeros(SHAPE)]),
        ("time_dim_concat", torch.zeros(SHAPE)),
    ):
        with_image = [[rows, {key: value}]]
        refusals[key] = [refused(ksampler, model, pos=with_image), refused(ours, model, pos=with_image)]
    from comfy_extras import nodes_model_merging as merging

    plain = comfy.sd.load_diffusion_model(bf16_file)
    refusals["merged into"] = [refused(merging.ModelSubtract().merge, model, plain, 1.0)]
    refusals["merged from"] = [refused(merging.ModelMergeSimple().merge, plain, model, 0.5)]
    refusals["saved"] = [refused(mm.load_models_gpu, [model], force_patch_weights=True)]
    answers["after saving"] = [handle.owner.is_loaded, far(ksampler(model), by_ksampler)]
    refusals["a UNet's node"] = [refused(freelunch.FreeU().patch, model, 1.1, 1.2, 0.9, 0.2, kind=KeyError)]
    refusals["a part of ComfyUI's Wan"] = [refused(lambda: model.model.diffusion_model.freqs, kind=AttributeError)]
    unloading = model.clone()
    unloading.set_model_sampler_post_cfg_function(lambda args: mm.unload_all_models() or args["denoised"])
    refusals["unloaded between steps"] = [
        refused(ksampler, unloading, kind=RuntimeError), refused(ours, unloading, kind=RuntimeError)
    ]  # fmt: skip
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 0.0)
    refusals["LoRA hook"] = [refused(ksampler, model, pos=[[rows, {"hooks": hooks}]])]
    calls()
    at = lambda levels, on=model: refused(  # noqa: E731
        custom.SamplerCustom().sample, on, True, SEED, 1.0, positive, negative, euler, torch.tensor(levels), empty
    )
    # Karras' of Stable Diffusion, among others.
    for name, levels in (("NaN", [1.0, torch.nan, 0.0]), ("14.61", [14.6146, 2.0, 0.0]), ("-0.5", [1.0, -0.5, 0.0])):
        refusals[f"noise levels {name}"] = [at(levels)]
    text = rows.clone()
    text[0, 0, 0] = torch.nan
    for name, found in (
        ("text of NaN", text), ("text of whole numbers", rows.long()), ("text of another model", rows[..., :60])
    ):  # fmt: skip
        odd = [[found, {}]]
        refusals[name] = [refused(ours, model, pos=odd), refused(ours, model, pos=[*odd, [rows, {}]])]
        if not name.endswith("numbers"):
            refusals[name] += [refused(ksampler, model, pos=odd), refused(ours, plain, pos=odd)]
    nowhere = [[rows, {"area": (50, 50, 100, 100), "strength": 1.0}]]
    refusals["an area outside"] = [refused(ksampler, model, pos=nowhere), refused(ours, plain, pos=nowhere)]
    refusals["a mask that is none"] = [refused(ksampler, model, pos=[[rows, {"mask": torch.ones(3)}]])]
    bounds = [[rows, {"mask": torch.ones(1, 64, 64), "mask_strength": 1.0, "set_area_to_bounds": True}]]
    refusals["bounds of a mask"] = [refused(which, model, pos=bounds) for which in (ksampler, ours)]
    refusals["bounds of a mask"] += [refused(ours, plain, pos=bounds)]
    refusals["two axes of text"] = [refused(ksampler, model, pos=[[rows[0], {}]])]
    refusals["no prompt at all"] = [refused(ksampler, model, pos=[])]
    refusals["noise levels of two axes"] = [at([[1.0, 0.0]])]
    refusals["no text"] = [refused(ksampler, model, pos=[[None, {}]])]
    answers["refusals"] = refusals
    answers["nothing loaded for them"] = not calls()
    answers["noise levels of few kinds"] = [at([]), at([1.0]), at([0.0, 0.5, 1.0])]
    calls()
    ksampler(model, pos=[[rows, {"nobody_knows": 1}]])
    answers["unknown key"] = any("nobody_knows" in line for line in said())

    # ComfyUI's own Wan through LightX2V Sampler. Its text encoder fills prompts up to 512 rows, its Wan does not.
    wan = plain
    positive[0][0] = torch.nn.functional.pad(rows, (0, 0, 0, 512 - rows.shape[1]))
    sd3 = patch(wan, 5.0)
    by_custom = custom.SamplerCustom().sample(sd3, True, SEED, 1.0, positive, negative, euler, sigmas, empty)
    answers["native euler"] = far(ours(wan), by_custom[0]["samples"])
    answers["native shift"] = far(ours(patch(wan, 8.0)), by_custom[0]["samples"])
    answers["native like ours"] = far(ours(wan), ours(load(bf16_file)))
    answers["native lcm like ours"] = far(ours(wan, "lcm"), ours(load(bf16_file), "lcm"))
    joined = [
        [
            torch.cat(
                [torch.nn.functional.pad(each, (0, 0, 0, 512 - each.shape[1])) for each in (rows, other_rows)], 1
            ),
            {},
        ]
    ]
    answers["native like ours with prompts joined"] = far(ours(wan, pos=joined), ours(load(bf16_file), pos=joined))
    answers["both prompts count"] = far(ours(wan, pos=joined), ours(wan))
    answers["native batch"] = far(ours(wan, latent=two)[1:], ours(load(bf16_file), latent=two)[1:])
    answers["native report"] = {record.stage: record.details["engine"] for record in report.records_of(ours(wan))}

    image = torch.nn.Module()
    image.model_config = types.SimpleNamespace(unet_config={"image_model": "flux"})
    answers["not Wan"] = refused(ours, types.SimpleNamespace(model=image))

    positive[0][0] = rows

    # A LoRA by ComfyUI's own loader.
    draw = torch.Generator().manual_seed(3)
    lora = {}
    for name in ("blocks_0_self_attn_q", "blocks_1_ffn_0", "blocks_1_cross_attn_o"):
        path = name.replace("blocks_0_self_attn_q", "blocks.0.self_attn.q").replace("blocks_1_ffn_0", "blocks.1.ffn.0")
        path = path.replace("blocks_1_cross_attn_o", "blocks.1.cross_attn.o")
        rows_out, rows_in = model.model.state_dict()[f"diffusion_model.{path}.weight"].shape
        lora[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows_out, 4, generator=draw) * 0.25
        lora[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, rows_in, generator=draw) * 0.25
        lora[f"lora_unet_{name}.alpha"] = torch.tensor(2.0)
    apply = lambda model, strength: comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]  # noqa: E731
    padded = positive[0][0]
    positive[0][0] = torch.nn.functional.pad(rows, (0, 0, 0, 512 - rows.shape[1]))
    sixteen = load(bf16_file)
    bare = ours(sixteen)
    mine, theirs = ours(apply(sixteen, 0.8)), ours(apply(plain, 0.8))
    answers["LoRA changes"] = far(mine, bare)
    answers["LoRA like ComfyUI"] = far(mine, theirs)
    answers["LoRA by KSampler"] = far(ksampler(apply(sixteen, 0.8)), ours(apply(sixteen, 0.8), "euler"))
    answers["LoRA twice"] = far(ours(apply(apply(sixteen, 0.4), 0.4)), mine)
    answers["LoRA is undone"] = far(ours(sixteen), bare)

    def differ(model, value):
        clone = model.clone()
        clone.add_patches({"diffusion_model.blocks.0.self_attn.norm_q.weight": value}, 0.5)
        return ours(clone)

    delta = torch.randn(len(lora["lora_unet_blocks_0_self_attn_q.lora_up.weight"]), generator=draw)
    answers["unnamed difference"] = [
        far(differ(sixteen, (delta,)), differ(sixteen, ("diff", (delta,)))),
        far(differ(sixteen, (delta,)), differ(plain, (delta,))),
    ]
    positive[0][0] = padded

    # Memory manager: one entry, clones share, /free, lifetimes.
    mm.unload_all_models()
    answers["free"] = [handle.owner.is_loaded, far(ksampler(model), by_ksampler), handle.owner.is_loaded]
    clone = model.clone()
    ksampler(clone)
    entries = [each.model for each in mm.current_loaded_models if each.model is not None]
    answers["one entry"] = sum(each.model is model.model for each in entries)
    answers["workspace is given back"] = handle.owner.engine._loaded.blocks.memory.workspace is None
    keys = set(model.model.state_dict())
    answers["names"] = ["diffusion_model.blocks.0.self_attn.q.weight" in keys, any("scale" in key for key in keys)]
    third = load(fp8_file)
    ksampler(third)
    gone = [weakref.ref(third), weakref.ref(third.model), weakref.ref(handle_of(third).owner)]
    gc.disable()
    del third
    mm.cleanup_models()
    answers["gone"] = [each() is None for each in gone]
    gc.enable()

print(json.dumps(answers))
