"""Image to video against Wan's own code, in float32: its transformers, and what its pipelines make of a picture.

Needs WAN21_DIR and WAN22_DIR, checkouts of Wan-Video/Wan2.1 and Wan2.2. Their modules are loaded without what a GPU
needs: flash attention is torch's own here.
"""

import importlib
import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import denormalize
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.stages.given import Given, with_given
from lightx2v_pack.engine.stages.given_frames import fit_pictures, lay_out, size_of_area
from PIL import Image
from support.checkpoints import A14B_I2V_SIZES, FLF2V_SIZES, I2V_SIZES, single_file
from support.engine import conditioning_of, open_transformer
from support.tensors import normal, relative_error
from support.wan_reference import dequantized
from torch.nn import functional

# Wan's image branch has no other width.
SIZES = {
    ("2.1", "i2v"): replace(I2V_SIZES, image_dim=1280),
    ("2.1", "flf2v"): replace(FLF2V_SIZES, image_dim=1280, image_positions=514),
    ("2.2", "i2v"): A14B_I2V_SIZES,
}
# As in test_portable_transformer.py.
BF16_TOLERANCE = 0.01
TORCHVISION = "torchvision.transforms.functional"
SHAPE = (16, 3, 8, 10)
LATENTS = normal(*SHAPE, seed=6)


def sdpa(q, k, v, *_, **__):
    return functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2)


def stand_in(name, **members):
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def official(version, module):
    """Return a module of Wan's code below wan/, without the packages' own __init__, which import everything."""
    variable = f"WAN{version.replace('.', '')}_DIR"
    if not os.environ.get(variable):
        pytest.skip(f"needs {variable}")
    root, package = Path(os.environ[variable]) / "wan", f"official_wan_{version.replace('.', '_')}"
    if package not in sys.modules:
        for name, folder in (("", root), (".modules", root / "modules"), (".utils", root / "utils")):
            stand_in(f"{package}{name}", __path__=[str(folder)])
        stand_in(f"{package}.distributed", __path__=[])
        stand_in(f"{package}.distributed.fsdp", shard_model=None)
        stand_in(f"{package}.distributed.sequence_parallel", sp_attn_forward=None, sp_dit_forward=None)
        stand_in(f"{package}.distributed.util", get_world_size=None)
        for name, members in (
            ("clip", "CLIPModel"),
            ("t5", "T5EncoderModel"),
            ("vae", "WanVAE"),
            ("vae2_1", "Wan2_1_VAE"),
        ):
            stand_in(f"{package}.modules.{name}", **{members: None})
    found = importlib.import_module(f"{package}.modules.model")
    if module == "modules.model":
        return found
    importlib.import_module(f"{package}.utils.fm_solvers_unipc")
    names = [name for name in ("torchvision", "torchvision.transforms", TORCHVISION) if name not in sys.modules]
    for name in names:
        stand_in(name, to_tensor=to_tensor, __path__=[])
    try:
        return importlib.import_module(f"{package}.{module}")
    finally:
        for name in names:
            del sys.modules[name]


def to_tensor(image):
    """As torchvision's function of this name."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    return data.permute(2, 0, 1).float() / 255


def conditioning(sizes, num_tokens):
    tokens = normal(num_tokens, 1280, seed=8) if sizes.image_dim else None
    text = conditioning_of(normal(21, 64, seed=7))
    return replace(text, image_tokens=tokens, image_latents=normal(20, *SHAPE[1:], seed=9))


@pytest.mark.parametrize(("version", "kind"), SIZES)
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_a_flow_is_that_of_wans_transformer(version, kind, precision, monkeypatch):
    module, sizes = official(version, "modules.model"), SIZES[version, kind]
    monkeypatch.setattr(module, "flash_attention", sdpa)
    path = single_file(precision, sizes=sizes)
    model = module.WanModel(
        model_type=kind, in_dim=36, dim=sizes.dim, ffn_dim=sizes.ffn_dim, freq_dim=sizes.freq_dim, text_dim=64,
        num_heads=sizes.dim // 128, num_layers=sizes.num_layers,
    )  # fmt: skip
    missing, unexpected = model.load_state_dict(dequantized(path), strict=False)
    assert not missing and not unexpected
    entry = conditioning(sizes, 514 if kind == "flf2v" else 257)
    features = {} if entry.image_tokens is None else {"clip_fea": entry.image_tokens.view(-1, 257, 1280)}
    with torch.no_grad():
        (wanted,) = model(
            [LATENTS], t=torch.tensor([937.5]), context=[entry.text[: entry.num_text]], seq_len=60,
            y=[entry.image_latents], **features,
        )  # fmt: skip
    transformer = open_transformer(resolve_transformer(path))
    transformer.load(Hooks())
    found = transformer.predict_flow(LATENTS, 937.5, entry, Hooks())
    assert relative_error(found, wanted) < BF16_TOLERANCE


class ReachedError(Exception):
    """Wan's pipeline has called its transformer."""


@pytest.mark.parametrize("version", ["2.1", "2.2"])
@pytest.mark.parametrize("size", [(110, 70), (70, 110), (64, 48)])
def test_a_picture_becomes_what_wans_pipeline_makes_of_it(version, size):
    """One that is not twice as large; such are averaged here first."""
    module, area, num_frames = official(version, "image2video"), 64 * 48, 9
    pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture, seen = Image.fromarray(pixels.numpy()), {}
    width, height = size_of_area(size[1], size[0], area)
    latents = normal(16, 3, height // 8, width // 8, seed=3)

    def encode(videos):
        seen["video"] = videos[0]
        return [latents]

    def call(*_, y, **__):
        seen["y"] = y[0]
        raise ReachedError

    def see(videos):
        seen["picture"] = videos[0]

    model = types.SimpleNamespace(to=lambda *_: None, cpu=lambda: None)
    pipeline = module.WanI2V.__new__(module.WanI2V)
    vars(pipeline).update(
        device=torch.device("cpu"), vae_stride=(4, 8, 8), patch_size=(1, 2, 2), sp_size=1, t5_cpu=True, rank=0,
        text_encoder=lambda *_: [torch.zeros(1, 8)], sample_neg_prompt="none", num_train_timesteps=1000, boundary=0.9,
        param_dtype=torch.float32, vae=types.SimpleNamespace(encode=encode), init_on_cpu=False,
        clip=types.SimpleNamespace(model=model, visual=see),
    )  # fmt: skip
    for name in ("model", "low_noise_model", "high_noise_model"):
        stub = torch.nn.Linear(1, 1)
        stub.forward = call
        setattr(pipeline, name, stub)
    with pytest.raises(ReachedError):
        pipeline.generate("a cat", picture, max_area=area, frame_num=num_frames, offload_model=False)

    start = fit_pictures(pixels[None].float() / 255, width, height, crops=False)
    frames, mask = lay_out(start, start[:0], num_frames)
    torch.testing.assert_close(frames.permute(3, 0, 1, 2) * 2 - 1, seen["video"], rtol=0, atol=1e-5)
    sizes = SIZES[version, "i2v"]
    architecture = resolve_transformer(single_file("bf16", sizes=sizes)).format.architecture
    given = Given(latents=denormalize(latents)[None], mask=mask, rows=normal(1, 257, 1280) if sizes.image_dim else None)
    clip = Clip(width=width, height=height, num_frames=num_frames)
    (entry,) = with_given([conditioning_of(normal(3, 64, seed=1))], given, architecture, clip)
    torch.testing.assert_close(entry.image_latents, seen["y"], rtol=0, atol=1e-5)
    if version == "2.1":
        torch.testing.assert_close(seen["picture"][:, 0], pixels.permute(2, 0, 1) / 127.5 - 1, rtol=0, atol=1e-5)
