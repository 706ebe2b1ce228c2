"""Run in a process with ComfyUI: images of its own nodes through our image-to-video MODELs, and through its own.

usage: image_to_video.py PACK_ROOT VAE_FILE NAME=FP8_FILE,BF16_FILE ...; names are "Wan2.1", "FLF2V" and "Wan2.2".
Prints one line of JSON: for each question its answer.
"""

import json
import sys
import tempfile
from pathlib import Path

from start import far, listen, load, read_tiny_models, refused, start

root, vae_file, *pairs = sys.argv[1:]
start(root)

import comfy.clip_vision  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy_api.latest import io  # noqa: E402
from comfy_extras import nodes_model_advanced as advanced  # noqa: E402
from comfy_extras import nodes_wan  # noqa: E402
from lightx2v_pack.engine import pipeline, report  # noqa: E402
from lightx2v_pack.engine.adapters.comfy import sampling  # noqa: E402
from lightx2v_pack.engine.adapters.comfy.vae import LightX2VVAE  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.settings import OffloadSettings, SamplingSettings  # noqa: E402
from lightx2v_pack.engine.wan.transformer import WanTransformer  # noqa: E402
from lightx2v_pack.nodes import LightX2VImageToVideo  # noqa: E402

import nodes  # noqa: E402

comfy.utils.PROGRESS_BAR_ENABLED = False
read_tiny_models()
SEED = 7
PIXELS = {"width": 64, "height": 48, "length": 5, "batch_size": 1}
answers = {}
warnings = listen()
draw = torch.Generator().manual_seed(0)


def load_native(file):
    """Return ComfyUI's own, at the shift of the distilled model."""
    return advanced.ModelSamplingSD3().patch(comfy.sd.load_diffusion_model(file), 5.0)[0]


def vision(rows=257, width=1280):
    output = comfy.clip_vision.Output()
    output.penultimate_hidden_states = torch.randn(1, rows, width, generator=draw)
    return output


def tiny_vision():
    """Return ComfyUI's own network at a tiny size, with random weights."""
    config = {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": 14,
        "image_size": 224, "projection_dim": 16, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "model_type": "clip_vision_model",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        file.write_text(json.dumps(config), encoding="utf-8")
        model = comfy.clip_vision.ClipVisionModel(str(file))
    for parameter in model.model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return model


vae = LightX2VVAE(pipeline.load_vae(Path(vae_file), offload=OffloadSettings()))
picture, last_picture = (torch.rand(1, 90, 100, 3, generator=draw) for _ in range(2))
first_vision, last_vision = vision(), vision()
text = torch.nn.functional.pad(torch.randn(1, 20, 64, generator=draw), (0, 0, 0, 492))
TEXT = [[text, {"pooled_output": None}]]


def from_image(**other):
    inputs = {"start_image": picture, "clip_vision_output": first_vision, **PIXELS, **other}
    return nodes_wan.WanImageToVideo.execute(TEXT, TEXT, vae=vae, **inputs).args


def from_two(**other):
    inputs = {
        "start_image": picture,
        "end_image": last_picture,
        "clip_vision_start_image": first_vision,
        "clip_vision_end_image": last_vision,
        **PIXELS,
        **other,
    }
    return nodes_wan.WanFirstLastFrameToVideo.execute(TEXT, TEXT, vae=vae, **inputs).args


def ours(model, made, method="euler", latent=None):
    positive, _, empty = made
    settings = SamplingSettings(seed=SEED, method=method)
    return sampling.sample(model, positive, latent or empty, settings, Hooks())["samples"]


def ksampler(model, made, cfg=1.0):
    positive, negative, empty = made
    return nodes.common_ksampler(model, SEED, 4, cfg, "euler", "simple", positive, negative, empty)[0]["samples"]


passes = []
_predict_flow = WanTransformer.predict_flow


def predict_flow(transformer, latents, timestep, conditioning, *others, **more):
    passes.append(id(conditioning))
    return _predict_flow(transformer, latents, timestep, conditioning, *others, **more)


WanTransformer.predict_flow = predict_flow

with torch.inference_mode():
    one, two = from_image(), from_two()
    files = {name: file.split(",") for name, _, file in (pair.partition("=") for pair in pairs)}
    for name, (fp8_file, bf16_file) in files.items():
        found, model = {}, load(fp8_file)
        exact, native = load(bf16_file), load_native(bf16_file)
        for kind, made in (("one", one), ("two", two)):
            reference = ours(model, made)
            found[f"{kind}: KSampler"] = far(ksampler(model, made), reference)
            found[f"{kind}: LightX2V Sampler on ComfyUI's model"] = far(ours(native, made), ours(exact, made))
            found[f"{kind}: KSampler on ComfyUI's model"] = far(ksampler(native, made), ksampler(exact, made))
        found["two are not one"] = far(ours(exact, two), ours(exact, one))
        other = [[text, {**one[0][0][1], "clip_vision_output": last_vision}]]
        found["CLIP Vision counts"] = far(ours(exact, (other, None, one[2])), ours(exact, one))
        answers[name] = found
    fp8_file, bf16_file = files["Wan2.1"]
    model, native = load(bf16_file), load_native(bf16_file)
    reference = ours(model, one)

    # What ComfyUI itself makes of the conditions, and the engine of the same.
    noise = torch.zeros_like(one[2]["samples"])
    theirs = native.model.concat_cond(noise=noise, device="cpu", **two[0][0][1])
    (entry,) = sampling.with_given(
        sampling.formats.read_conditioning(two[0], 64), sampling.formats.read_given(two[0][0][1]),
        model.model.lightx2v_handle.architecture, sampling.Clip.of_latents(noise.shape),
    )  # fmt: skip
    answers["conditioning"] = float((theirs[0] - entry.image_latents).abs().max())
    answers["mask"] = entry.image_latents[:4, :, 0, 0].tolist()

    # Our node's conditioning where both mean the same, and CLIP Vision as Wan's own code prepares pictures for it.
    exact_size = torch.rand(1, PIXELS["height"], PIXELS["width"], 3, generator=draw)
    by_ours = LightX2VImageToVideo.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})
    sizes = {"width": PIXELS["width"], "height": PIXELS["height"], "num_frames": PIXELS["length"], "batch_size": 1}

    def own(**pictures):
        made = by_ours.EXECUTE_NORMALIZED(positive=TEXT, vae=vae, size="width x height", **sizes, **pictures)
        return made.args

    vision_model = tiny_vision()
    one_own = own(start_image=exact_size, clip_vision=vision_model)
    two_own = own(start_image=exact_size, end_image=exact_size.flip(1), clip_vision=vision_model)
    one_theirs = from_image(start_image=exact_size)
    two_theirs = from_two(start_image=exact_size, end_image=exact_size.flip(1))
    answers["our node"] = [
        [
            far(mine[0][0][1]["concat_latent_image"], theirs[0][0][1]["concat_latent_image"]),
            float((mine[0][0][1]["concat_mask"] - theirs[0][0][1]["concat_mask"]).abs().max()),
            list(mine[2]["samples"].shape) == list(theirs[2]["samples"].shape),
        ]
        for mine, theirs in ((one_own, one_theirs), (two_own, two_theirs))
    ]
    # Smooth, as pictures are: ComfyUI cuts what interpolation makes beyond black and white.
    resize = torch.nn.functional.interpolate
    large = resize(torch.rand(1, 3, 10, 14, generator=draw), size=(300, 420), mode="bilinear").movedim(1, -1)
    seen = own(start_image=large, clip_vision=vision_model)[0][0][1]["clip_vision_output"].penultimate_hidden_states
    squashed = resize(large.movedim(-1, 1), size=(224, 224), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (vision_model.image_mean, vision_model.image_std))
    pixels = (squashed - mean) / std
    wanted = vision_model.model(pixel_values=pixels, intermediate_output=-2)[1]
    cropped = vision_model.encode_image(large).penultimate_hidden_states
    answers["CLIP Vision"] = [far(seen, wanted), far(cropped, wanted), list(seen.shape)]
    two_seen = two_own[0][0][1]["clip_vision_output"].penultimate_hidden_states
    answers["two pictures"] = list(two_seen.shape)

    # CFG and a negative prompt without an image, which ComfyUI fills with zeros.
    del passes[:]
    guided = ksampler(model, one, cfg=2.0)
    answers["cfg"] = [len(passes), len(set(passes)), far(guided, ksampler(native, one, cfg=2.0))]
    bare = (one[0], from_image(start_image=None)[1], one[2])
    answers["negative without image"] = far(ksampler(model, bare, cfg=2.0), ksampler(native, bare, cfg=2.0))

    # Batches: one image for all clips, and one for each.
    pair = {"samples": one[2]["samples"].repeat(2, 1, 1, 1, 1)}
    both = ours(model, one, latent=pair)
    answers["batch"] = far(both[:1], reference)
    other_image = from_image(start_image=last_picture)[0][0][1]["concat_latent_image"]
    images = torch.cat([one[0][0][1]["concat_latent_image"], other_image])
    each = [[text, {**one[0][0][1], "concat_latent_image": images}]]
    answers["an image each"] = [
        far(ours(model, (each, None, pair))[:1], reference),
        far(ours(model, (each, None, pair))[1:], ours(native, (each, None, pair))[1:]),
        far(ours(model, (each, None, pair))[1:], both[1:]),
    ]
    answers["report"] = [record.stage for record in report.records_of(reference)]

    # What does not fit, by both samplers.
    def with_extras(**changes):
        extras = {**one[0][0][1], **changes}
        return [[text, {key: value for key, value in extras.items() if value is not None}]]

    latents, mask = (one[0][0][1][key] for key in ("concat_latent_image", "concat_mask"))
    wrong = {
        "no image": TEXT,
        "no start image": from_image(start_image=None)[0],
        "another size": from_image(width=96)[0],
        "another length": from_image(length=9)[0],
        "other channels": with_extras(concat_latent_image=latents.repeat(1, 3, 1, 1, 1)),
        "control video": with_extras(concat_latent_image=latents.repeat(1, 2, 1, 1, 1)),
        "mask's place": with_extras(concat_mask_index=16),
        "mask's size": with_extras(concat_mask=mask[..., :-1]),
        "three images": with_extras(concat_latent_image=latents.repeat(3, 1, 1, 1, 1)),
        "NaN": with_extras(concat_latent_image=latents * torch.nan),
        "other CLIP": with_extras(clip_vision_output=vision(width=1024)),
        "no CLIP output": with_extras(clip_vision_output=object()),
        "reference": with_extras(reference_latents=[latents]),
    }
    answers["refusals"] = {
        name: [
            refused(ours, model, (positive, None, one[2])),
            refused(ksampler, model, (positive, positive, one[2])),
        ]
        for name, positive in wrong.items()
    }
    answers["three frames"] = refused(
        ours, load(files["FLF2V"][0]), (with_extras(clip_vision_output=vision(771)), None, one[2])
    )
    del warnings[:]
    no_vision = with_extras(clip_vision_output=None)
    ours(model, (no_vision, None, one[2]))
    answers["warned of no CLIP Vision"] = [line for line in warnings if "clip_vision_output" in line]
    del warnings[:]
    ours(load(files["Wan2.2"][0]), one)
    answers["warned of CLIP Vision"] = [line for line in warnings if "CLIP Vision" in line]
print(json.dumps(answers))
