"""LoRA files of every tool of the field: read as what they change, or refused by name."""

import json
import math
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.checkpoints.header import TensorInfo
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.handles import TransformerHandle
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.lora.changes import Stack
from lightx2v_pack.engine.lora.experts import read_for_experts
from lightx2v_pack.engine.lora.reader import Patch, lora_of_patches, read_lora
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from safetensors.torch import load_file, save_file
from support import loras
from support.checkpoints import distilled, transformer_weights
from support.engine import conditioning_of

WEIGHTS = transformer_weights()
MODEL = resolve_transformer(distilled("bf16")).header
SMALL = [
    "blocks.0.modulation",
    "blocks.1.norm3.weight",
    "blocks.1.norm3.bias",
    "blocks.0.self_attn.q.bias",
    "blocks.1.cross_attn.norm_k.weight",
    "head.modulation",
    "patch_embedding.weight",
    "head.head.weight",
]
BLOCKS = [f"blocks.{index}.{layer}" for index in range(2) for layer in loras.LAYERS]


def deltas_of(lora):
    """Return what a LoRA that was read adds to each tensor at a strength of 1, in float32."""
    found = {}
    for change in lora.changes:
        parts = [lora.read(name) for name in change.names]
        delta = parts[1].flatten(1) @ parts[0].flatten(1) if change.rank else parts[0]
        found[change.target] = found.get(change.target, 0) + change.factor * delta
    return found


def check(lora, drawn, tolerance=1e-6):
    found, wanted = deltas_of(lora), drawn.deltas()
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        assert torch.allclose(found[name].flatten(), delta.flatten(), rtol=1e-5, atol=tolerance), name


def read(path, **options):
    return read_lora(path, MODEL, **options)


@pytest.mark.parametrize("alpha", [None, 2.0])
@pytest.mark.parametrize("convention", loras.CONVENTIONS)
def test_every_convention_is_read_as_the_same_changes(convention, alpha, tmp_path):
    drawn = loras.draw(WEIGHTS, alpha=alpha, modules=BLOCKS)
    lora = read(loras.write(tmp_path / "x.safetensors", drawn, convention))
    check(lora, drawn)
    assert not lora.report.left_out
    assert lora.report.matched == {"self-attention": 16, "cross-attention": 16, "feed-forward": 8}
    assert lora.report.ranks == (4,) and lora.report.factors == ((1.0,) if alpha is None else (0.5,))


@pytest.mark.parametrize("convention", ["lightx2v", "diffusers", "kohya, musubi", "lycoris"])
def test_layers_outside_of_the_blocks_are_read_too(convention, tmp_path):
    drawn = loras.draw(WEIGHTS, modules=loras.OUTSIDE)
    lora = read(loras.write(tmp_path / "x.safetensors", drawn, convention))
    check(lora, drawn)
    assert lora.report.matched == {"embeddings and head": 2 * len(loras.OUTSIDE)}


def test_full_differences_are_read(tmp_path):
    drawn = loras.draw(WEIGHTS, modules=BLOCKS[:1], full=SMALL)
    lora = read(loras.write(tmp_path / "x.safetensors", drawn))
    check(lora, drawn)
    assert lora.report.matched == {"self-attention": 3, "cross-attention": 1, "norms and modulation": 3,
                                   "embeddings and head": 3}  # fmt: skip


@pytest.mark.parametrize("suffix", ["modulation.diff", "diff_m"])
def test_a_modulation_has_two_spellings(suffix, tmp_path):
    delta = torch.ones(1, 6, 256)
    save_file({f"diffusion_model.blocks.1.{suffix}": delta}, tmp_path / "x.safetensors")
    assert torch.equal(deltas_of(read(tmp_path / "x.safetensors"))["blocks.1.modulation"], delta)


@pytest.mark.parametrize("name", ["norm3.w_norm", "norm3.diff", "norm3.weight.diff"])
def test_a_norm_has_three_spellings(name, tmp_path):
    save_file({f"blocks.1.{name}": torch.ones(256)}, tmp_path / "x.safetensors")
    assert list(deltas_of(read(tmp_path / "x.safetensors"))) == ["blocks.1.norm3.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_dtype_is_read(dtype, tmp_path):
    drawn = loras.draw(WEIGHTS, modules=BLOCKS[:2])
    check(read(loras.write(tmp_path / "x.safetensors", drawn, dtype=dtype)), drawn, tolerance=1e-3)


def test_the_patch_embedding_takes_pairs(tmp_path):
    down, up = torch.randn(4, 16, 1, 2, 2), torch.randn(256, 4, 1, 1, 1)
    save_file({"lora_unet_patch_embedding.lora_down.weight": down, "lora_unet_patch_embedding.lora_up.weight": up},
              tmp_path / "x.safetensors")  # fmt: skip
    (change,) = read(tmp_path / "x.safetensors").changes
    assert (change.target, change.rank) == ("patch_embedding.weight", 4)


# Alpha


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"r": 4, "lora_alpha": 2}, 0.5),
        ({"r": 4, "lora_alpha": 2, "use_rslora": True}, 1.0),
        ({"r": 4, "lora_alpha": 2, "alpha_pattern": {"attn1.to_q": 12}}, 3.0),
        ({"r": 4, "lora_alpha": 2, "alpha_pattern": {"ttn1.to_q|tn1.to_q": 16, ".*attn1.to_q": 12}}, 3.0),
        ({"r": 4, "lora_alpha": 2, "alpha_pattern": {"attn2|attn1.to_q": 12}}, 3.0),
    ],
    ids=["alpha", "rs-LoRA", "pattern", "part of a name", "alternatives"],
)
@pytest.mark.parametrize("place", ["beside", "inside"])
def test_settings_of_peft_are_honoured(settings, factor, place, tmp_path):
    drawn = loras.draw(WEIGHTS, modules=["blocks.0.self_attn.q"])
    metadata = None
    if place == "beside":
        loras.write_peft_config(tmp_path, **settings)
    else:
        packed = {f"transformer.{name}": value for name, value in settings.items()}
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(packed)}
    lora = read(loras.write(tmp_path / "adapter_model.safetensors", drawn, "diffusers", metadata))
    assert [change.factor for change in lora.changes] == [factor]


def test_what_a_trainer_notes_about_alpha_changes_nothing(tmp_path):
    drawn = loras.draw(WEIGHTS, modules=BLOCKS)
    lora = read(loras.write(tmp_path / "x.safetensors", drawn, metadata={"ss_network_alpha": "1"}))
    check(lora, drawn)


def test_a_peft_file_without_its_settings_says_so(tmp_path):
    lora = read(loras.write(tmp_path / "x.safetensors", loras.draw(WEIGHTS, modules=BLOCKS), "peft"))
    assert "adapter_config.json is not beside it" in str(lora.report)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"r": 2}, "they say rank 2, and it has 4"),
        ({"r": 64}, "they say rank 64, and it has 4"),
        ({"r": 8, "rank_pattern": {"attn2": 16}}, "they say rank 8, and it has 4"),
        ({"r": 4, "target_modules": ["to_k", "ffn.net.2"]}, "they are for ffn.net.2, to_k, and it has blocks.0.attn1"),
        ({"r": 4, "target_modules": r".*double_blocks\.\d+\.img_mod"}, "they are for .*double_blocks"),
        ({"r": 4, "lora_alpha": None}, "they have no lora_alpha"),
        ({"r": 4, "use_dora": True, "target_modules": ["to_k"]}, "they are for to_k"),
        ({"r": "x"}, "they cannot be read"),
    ],
)
@pytest.mark.parametrize("name", ["x", "adapter_model"])
def test_settings_of_peft_of_another_lora_are_not_used(settings, reason, name, tmp_path):
    loras.write_peft_config(tmp_path, **{"lora_alpha": 128, **settings})
    drawn = loras.draw(WEIGHTS, modules=["blocks.0.self_attn.q"])
    lora = read(loras.write(tmp_path / f"{name}.safetensors", drawn, "peft of diffusers"))
    assert [change.factor for change in lora.changes] == [1.0]
    assert f"(adapter_config.json) are not used: {reason}" in str(lora.report) and lora.report.is_doubtful


@pytest.mark.parametrize("convention", ["diffusers", "musubi converted, ai-toolkit, diffusion-pipe", "diffsynth"])
def test_settings_beside_a_file_that_is_not_pefts_are_not_used(convention, tmp_path):
    loras.write_peft_config(tmp_path, r=4, lora_alpha=32)
    drawn = loras.draw(WEIGHTS, modules=["blocks.0.self_attn.q"])
    lora = read(loras.write(tmp_path / "x.safetensors", drawn, convention))
    assert [change.factor for change in lora.changes] == [1.0]
    assert "are not used: PEFT's own files are called adapter_model.safetensors" in str(lora.report)


@pytest.mark.parametrize(("convention", "alpha"), [("lightx2v", None), ("diffusers", 2.0), ("peft", 2.0)])
def test_settings_of_peft_that_nothing_asks_for_are_not_spoken_of(convention, alpha, tmp_path):
    loras.write_peft_config(tmp_path, r=4, lora_alpha=32)
    drawn = loras.draw(WEIGHTS, alpha=alpha, modules=["blocks.0.self_attn.q"])
    lora = read(loras.write(tmp_path / "x.safetensors", drawn, convention))
    assert lora.report.notes == () and not lora.report.is_doubtful
    check(lora, drawn)


@pytest.mark.parametrize(
    "targets", [None, ["attn1.to_q"], ["to_q", "to_k"], r"blocks\.\d+\.attn1\.to_[qkv]", "all-linear", "(.*)*.*.*x"]
)
@pytest.mark.parametrize(("name", "convention"), [("adapter_model", "diffusers"), ("my_lora", "peft of diffusers")])
def test_settings_of_peft_that_are_used_are_told(targets, name, convention, tmp_path):
    loras.write_peft_config(tmp_path, r=4, lora_alpha=32, target_modules=targets)
    lora = read(
        loras.write(tmp_path / f"{name}.safetensors", loras.draw(WEIGHTS, modules=["blocks.0.self_attn.q"]), convention)
    )
    assert [change.factor for change in lora.changes] == [8.0]
    assert "scaled by 8 (alpha/rank of adapter_config.json)" in str(lora.report) and not lora.report.is_doubtful


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({"use_dora": True}, "DoRA"), ({"peft_type": "LOHA"}, "LOHA"), ({"peft_type": "ADALORA"}, "ADALORA")],
)
def test_a_file_of_another_kind_by_its_settings_is_refused_by_name(settings, kind, tmp_path):
    loras.write_peft_config(tmp_path, **{"r": 4, "lora_alpha": 8, "target_modules": ["to_q"], **settings})
    path = loras.write(
        tmp_path / "adapter_model.safetensors", loras.draw(WEIGHTS, modules=["blocks.0.self_attn.q"]), "diffusers"
    )
    with pytest.raises(CheckpointError, match=f"cannot be applied exactly.*it has {kind}, as its PEFT settings"):
        read(path)


def test_other_settings_of_peft_are_another_lora(tmp_path):
    """What is loaded is compared by it."""
    path = loras.write(
        tmp_path / "adapter_model.safetensors", loras.draw(WEIGHTS, modules=["blocks.0.self_attn.q"]), "peft"
    )
    identities = set()
    for alpha in (4, 8):
        loras.write_peft_config(tmp_path, r=4, lora_alpha=alpha)
        identities.add(read(path).identity)
    assert len(identities) == 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_alpha_may_be_a_whole_number(dtype, tmp_path):
    drawn = loras.draw(WEIGHTS, modules=["blocks.0.self_attn.q"])
    path = loras.write(tmp_path / "x.safetensors", drawn, "lightx2v")
    alpha = {"diffusion_model.blocks.0.self_attn.q.alpha": torch.tensor(2, dtype=dtype)}
    save_file(load_file(path) | alpha, path)
    assert [change.factor for change in read(path).changes] == [0.5]


@pytest.mark.parametrize("start", ["_" * 230, "lora_unet_" * 22, "transformer_1_" * 16])
def test_names_with_many_prefixes_take_no_time(start, tmp_path):
    tensors = {f"{start}{number}.lora_down.weight": torch.zeros(0) for number in range(10_000)}
    save_file(tensors, tmp_path / "x.safetensors")
    begun = time.thread_time()
    with pytest.raises(CheckpointError):
        read(tmp_path / "x.safetensors")
    assert time.thread_time() - begun < 5


# Files of both experts


def combo(tmp_path, high, low, prefixes=("diffusion_model.transformer_1.", "diffusion_model.transformer_2.")):
    tensors = {}
    for prefix, drawn in zip(prefixes, (high, low), strict=True):
        tensors |= {prefix + name.removeprefix("diffusion_model."): t for name, t in loras.names_of(drawn).items()}
    save_file(tensors, tmp_path / "combo.safetensors")
    return tmp_path / "combo.safetensors"


@pytest.mark.parametrize(
    "prefixes",
    [("diffusion_model.transformer_1.", "diffusion_model.transformer_2."), ("transformer.", "transformer_2.")],
    ids=["ai-toolkit", "diffusers"],
)
@pytest.mark.parametrize("expert", ["high", "low"])
def test_a_file_for_both_experts_gives_one_of_them(expert, prefixes, tmp_path):
    halves = {"high": loras.draw(WEIGHTS, modules=BLOCKS), "low": loras.draw(WEIGHTS, modules=BLOCKS, seed=5)}
    lora = read(combo(tmp_path, **halves, prefixes=prefixes), expert=expert)
    check(lora, halves[expert])
    left = "low" if expert == "high" else "high"
    assert lora.report.left_out.keys() == {f"the {left}-noise expert of Wan2.2"}
    assert f"gets the {expert}-noise half" in str(lora.report)


def test_the_name_of_an_expert_is_noted(tmp_path):
    path = loras.write(tmp_path / "style_high_noise.safetensors", loras.draw(WEIGHTS, modules=BLOCKS))
    assert "high-noise expert of Wan2.2" in str(read(path).report)


# What does not apply


def with_extra(tmp_path, **extra):
    tensors = loras.names_of(loras.draw(WEIGHTS, modules=BLOCKS))
    save_file(tensors | extra, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def pair(name, rows=256, columns=256, rank=4):
    return {f"{name}.lora_down.weight": torch.zeros(rank, columns), f"{name}.lora_up.weight": torch.zeros(rows, rank)}


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "a text encoder"),
        ("text_encoder.blocks.0.attn.q", "a text encoder"),
        ("diffusion_model.blocks.0.cross_attn.k_img", "the image branch of an image-to-video model"),
        ("transformer.blocks.0.attn2.add_v_proj", "the image branch of an image-to-video model"),
        ("diffusion_model.img_emb.proj.1", "the image branch of an image-to-video model"),
        ("diffusion_model.vace_blocks.0.self_attn.q", "a VACE module"),
        ("diffusion_model.blocks.7.self_attn.q", "blocks after the last of 2"),
        ("diffusion_model.blocks.0.self_attn.gate", "modules that this checkpoint lacks"),
    ],
)
def test_what_belongs_elsewhere_is_left_out_and_counted(name, group, tmp_path):
    report = read(with_extra(tmp_path, **pair(name))).report
    assert report.left_out == {group: tuple(pair(name))}
    assert report.num_matched == 40 and f"; 2 left out, of {group} ({name}" in str(report)


def test_an_image_to_video_lora_is_named_and_the_rest_applies(tmp_path):
    extra = {"diffusion_model.patch_embedding.diff": torch.zeros(256, 36, 1, 2, 2),
             **pair("diffusion_model.blocks.0.cross_attn.k_img")}  # fmt: skip
    report = read(with_extra(tmp_path, **extra)).report
    assert set(report.left_out) == {"an input of 36 channels (image to video)",
                                    "the image branch of an image-to-video model"}  # fmt: skip
    assert "It is a LoRA for image to video" in str(report)


def test_a_layer_of_another_shape_is_left_out_and_counted(tmp_path):
    name = "diffusion_model.blocks.0.cross_attn.o.diff_b"
    report = read(with_extra(tmp_path, **{name: torch.zeros(128)})).report
    assert report.left_out == {"another shape": (name,)}


@pytest.mark.parametrize(("width", "family"), [(1536, "Wan2.1 1.3B"), (3072, "Wan2.2 5B"), (640, "another size")])
def test_a_lora_for_another_model_is_named(width, family, tmp_path):
    tensors = pair("diffusion_model.blocks.0.self_attn.q", width, width) | pair(
        "diffusion_model.blocks.1.ffn.0", 8960, width
    )
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=rf"is for .*{family}.* width is 256"):
        read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            pair("double_blocks.0.img_attn.qkv"),
            "^Use a LoRA for Wan: .* FLUX.1, HunyuanVideo, Chroma or another .*double_bl",
        ),
        (pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"), "one for Stable Diffusion or SDXL, and"),
        (pair("unet.up_blocks.1.attentions.0.proj_in"), "one for Stable Diffusion or SDXL, and"),
        (pair("transformer.single_transformer_blocks.3.attn.to_k"), "one for FLUX.1, and"),
        (pair("transformer_blocks.0.img_mlp.net.2"), "one for Qwen-Image, FLUX.1, Stable Diffusion 3 or another"),
        (pair("transformer_blocks.7.attn1.to_out.0"), "one for LTX-Video, PixArt, CogVideoX or another"),
        (pair("diffusion_model.layers.3.attention.to_q"), "one for Lumina, Z-Image or another"),
        (
            pair("strange.things.7"),
            r"applies to nothing of this checkpoint: modules that this checkpoint lacks \(2\), e.g. st",
        ),
        (
            {f"layers.{index}.mlp.x": torch.zeros(2) for index in range(9)},
            r"layers.0.mlp.x, layers.1.mlp.x, layers.2.mlp.x\.",
        ),
        (
            {"blocks.0.self_attn.q.weight": torch.zeros(256, 256)},
            r"^Load it as the transformer\. LoRA x.* is no LoRA but a Wan transformer",
        ),
        ({}, "^Download it again, or use another: LoRA x.safetensors holds no tensors"),
    ],
    ids=[
        "hunyuan",
        "kohya sdxl",
        "sdxl",
        "flux",
        "qwen",
        "ltx",
        "lumina",
        "unknown",
        "no LoRA",
        "a checkpoint",
        "empty",
    ],
)
def test_a_file_that_applies_to_nothing_is_an_error_with_examples(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("diffusion_model.blocks.0.self_attn.k.dora_scale", "DoRA"),
        ("base_model.model.blocks.0.self_attn.k.lora_magnitude_vector.default.weight", "DoRA"),
        ("lora_unet_blocks_0_self_attn_k.hada_w1_a", "LoHa"),
        ("lycoris_blocks_0_self_attn_k.lokr_w1", "LoKr"),
        ("lora_unet_blocks_0_self_attn_k.oft_blocks", "OFT"),
        ("diffusion_model.blocks.0.self_attn.k.lora_mid.weight", "LoCon"),
        ("diffusion_model.blocks.0.self_attn.k.set_weight", "replaced weights"),
        ("blocks.0.self_attn.q_loras.down.weight", "reference branch"),
        ("blocks.0.self_attn.q.lora_B.default.bias", "a bias of its own"),
        ("blocks.0.self_attn.q.a1.weight", "GLoRA"),
    ],
)
def test_other_kinds_are_refused_by_name(name, kind, tmp_path):
    with pytest.raises(CheckpointError, match=rf"not applied at all.*{kind}.*1 tensors, e.g. {name}"):
        read(with_extra(tmp_path, **{name: torch.zeros(4)}))


# Damaged files


@pytest.mark.parametrize("half", ["lora_down", "lora_up"])
def test_half_a_pair_is_an_error(half, tmp_path):
    extra = {f"lora_unet_head_head.{half}.weight": torch.zeros(4, 4)}
    with pytest.raises(CheckpointError, match="without the other half"):
        read(with_extra(tmp_path, **extra))


def test_halves_of_two_ranks_are_an_error(tmp_path):
    extra = {"head.head.lora_down.weight": torch.zeros(4, 256), "head.head.lora_up.weight": torch.zeros(64, 8)}
    with pytest.raises(CheckpointError, match=r"\[4, 256\].*\[64, 8\]"):
        read(with_extra(tmp_path, **extra))


def test_two_spellings_of_one_layer_in_a_file_are_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="two tensors for the same"):
        read(with_extra(tmp_path, **pair("lora_unet_blocks_0_self_attn_q")))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_an_error(value, tmp_path):
    drawn = loras.draw(WEIGHTS, modules=BLOCKS[:1])
    drawn.pairs[BLOCKS[0]][1][3, 2] = value
    lora = read(loras.write(tmp_path / "x.safetensors", drawn))
    with pytest.raises(CheckpointError, match=r"x.safetensors.*lora_up.weight holds values that are NaN"):
        deltas_of(lora)
    with pytest.raises(CheckpointError, match="alpha"):
        read(with_extra(tmp_path, **{"diffusion_model.blocks.0.self_attn.q.alpha": torch.tensor(value)}))


@pytest.mark.parametrize("value", [1e30, -1e9, 7e4])
@pytest.mark.parametrize("half", [0, 1])
def test_numbers_that_no_lora_has_are_an_error(value, half, tmp_path):
    drawn = loras.draw(WEIGHTS, modules=BLOCKS[:1])
    drawn.pairs[BLOCKS[0]][half][3, 2] = value
    lora = read(loras.write(tmp_path / "x.safetensors", drawn))
    name = ("lora_down", "lora_up")[half]
    with pytest.raises(
        CheckpointError, match=rf"^Use another version of LoRA x.safetensors: .*{name}.weight holds num"
    ):
        deltas_of(lora)


@pytest.mark.parametrize(
    ("alpha", "strength"), [(1e30, 1.0), (-1e10, 1.0), (4e8, 100.0)], ids=["alpha", "negative", "both"]
)
@pytest.mark.parametrize("module", ["blocks.1.ffn.2", "head.head", "patch_embedding"])
def test_what_alpha_and_strength_make_of_good_numbers_is_looked_at(module, alpha, strength, tmp_path):
    drawn = loras.draw(WEIGHTS, modules=[module])
    file = loras.write(tmp_path / "x.safetensors", replace(drawn, alpha=alpha))
    files = resolve_transformer(distilled("fp8"))
    handle = TransformerHandle(files, EngineSettings(compile="off"), OffloadSettings(mode="none"))
    handle = handle.with_lora(handle.read_lora(file), strength)
    settings = SamplingSettings(seed=1, method="euler", steps=4, shift=5.0)
    with pytest.raises(CheckpointError, match=rf"^Set a lower .* LoRA x\.safetensors: .* to {module}\.weight") as said:
        pipeline.sample(
            handle, [conditioning_of(torch.ones(4, 64))], torch.zeros(1, 16, 1, 4, 4), settings, hooks=Hooks()
        )
    assert f"with strength {strength:g} and alpha/rank {alpha / 4:g} it adds" in str(said.value)


@pytest.mark.parametrize(
    ("down", "up", "is_bad"), [(6e4, 6e4, True), (6e4, -6e4, True), (1e3, 1e3, True), (30, 30, False)]
)
@pytest.mark.parametrize("module", ["blocks.1.ffn.2", "head.head"])
def test_what_both_factors_make_together_is_looked_at(module, down, up, is_bad, tmp_path):
    drawn = loras.draw(WEIGHTS, modules=[module])
    for half, value in enumerate((down, up)):
        drawn.pairs[module][half].fill_(value)
    files = resolve_transformer(distilled("fp8"))
    handle = TransformerHandle(files, EngineSettings(compile="off"), OffloadSettings(mode="none"))
    handle = handle.with_lora(handle.read_lora(loras.write(tmp_path / "x.safetensors", drawn)))
    (composition,) = handle._compositions(SimpleNamespace(inputs="bf16"))
    spec = next(each for each in composition.specs if each.name == f"{module}.lora_up")
    if is_bad:
        with pytest.raises(CheckpointError, match=rf"^Set a lower .* LoRA x\.safetensors: .* to {module}\.weight"):
            composition.read(spec)
    else:
        composition.read(spec)


def test_a_lora_that_changed_after_it_was_read_is_not_used(tmp_path):
    path = loras.write(tmp_path / "x.safetensors", loras.draw(WEIGHTS, modules=BLOCKS[:1]))
    handle = TransformerHandle(
        resolve_transformer(distilled("fp8")), EngineSettings(compile="off"), OffloadSettings(mode="none")
    )
    handle = handle.with_lora(handle.read_lora(path))
    loras.write(path, loras.draw(WEIGHTS, modules=BLOCKS[:1], seed=7))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    settings = SamplingSettings(seed=1, method="euler", steps=4, shift=5.0)
    entry = conditioning_of(torch.ones(4, 64))
    with pytest.raises(CheckpointError, match=r"x\.safetensors has changed since its loader looked at it"):
        pipeline.sample(handle, [entry], torch.zeros(1, 16, 1, 4, 4), settings, hooks=Hooks())


WRAPPED = {
    "generator.model.": "blocks.0.self_attn.q",
    "my_dit.": "blocks.0.self_attn.q",
    "my.own.dit.": "head.head",
    "_orig_mod.": "blocks.0.self_attn.q",
    "module._orig_mod.": "blocks.0.self_attn.q",
    "lora_unet__orig_mod_": "blocks_0_self_attn_q",
    "lora_wan_": "blocks_0_self_attn_q",
    "my_own_dit_": "blocks_0_attn1_to_q",
    "lora_video_model_": "head_head",
    "model._fsdp_wrapped_module.": "blocks.0._fsdp_wrapped_module.self_attn.q",
    "": "blocks.0._orig_mod.self_attn.q",
    "diffusion_model.": "blocks.0._checkpoint_wrapped_module.self_attn.q",
    "base_model.model.": "blocks.0.self_attn.q.base_layer",
    "transformer.": "blocks.0.attn1.to_q.base_layer",
    "x.y._orig_mod.": "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.ffn.2.base_layer",
}


@pytest.mark.parametrize(("prefix", "module"), WRAPPED.items())
@pytest.mark.parametrize("ends", [("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")])
def test_prefixes_that_nobody_knows_and_wrappers_are_taken_off(prefix, module, ends, tmp_path):
    target = "head.head" if "head" in module else "blocks.0.ffn.2" if "ffn" in module else "blocks.0.self_attn.q"
    drawn = loras.draw(WEIGHTS, modules=[target])
    tensors = dict(zip((f"{prefix}{module}.{end}" for end in ends), drawn.pairs[target], strict=True))
    save_file(tensors, tmp_path / "x.safetensors")
    lora = read(tmp_path / "x.safetensors")
    check(lora, drawn)
    assert not lora.report.left_out


def test_what_stands_behind_another_prefix_is_not_mixed_with_the_model(tmp_path):
    other = pair("controlnet.blocks.0.self_attn.q")
    report = read(with_extra(tmp_path, **other)).report
    assert report.left_out == {"modules that this checkpoint lacks": tuple(other)} and report.num_matched == 40
    report = read(with_extra(tmp_path, **pair("lora_controlnet_blocks_0_self_attn_q"))).report
    assert len(report.left_out["modules that this checkpoint lacks"]) == 2 and report.num_matched == 40
    save_file({**other, **pair("my_dit.blocks.0.self_attn.k")}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"^Use a file with one LoRA: .* 2 times, under controlnet\., my_dit\.\."):
        read(tmp_path / "x.safetensors")
    vace = pair("my.vace_blocks.0.self_attn.q")
    save_file(vace, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="a VACE module"):
        read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, 1e30, 100.5, -101.0])
def test_a_strength_that_makes_no_sense_is_refused(strength, tmp_path):
    lora = read(loras.write(tmp_path / "x.safetensors", loras.draw(WEIGHTS, modules=BLOCKS[:1])))
    with pytest.raises(ValueError, match=r"^Set the strength of LoRA x\.safetensors .* expected -100 to 100"):
        Stack().add(lora, strength)
    with pytest.raises(ValueError, match=r"^Set the strength of LoRA .*blocks"):
        lora_of(patches_of(loras.draw(WEIGHTS, modules=BLOCKS[:1]), strength))
    assert Stack().add(lora, 100.0).add(lora, -100.0) == Stack()


@pytest.mark.parametrize(
    "change",
    [
        lambda drawn: replace(drawn, pairs={name: (down, up * 0) for name, (down, up) in drawn.pairs.items()}),
        lambda drawn: replace(drawn, pairs={name: (down * -0.0, up) for name, (down, up) in drawn.pairs.items()}),
        lambda drawn: replace(drawn, alpha=0.0),
        lambda drawn: replace(drawn, pairs={}, full={"blocks.0.modulation": torch.zeros(1, 6, 256)}),
    ],
    ids=["up", "down", "alpha", "difference"],
)
def test_a_lora_that_adds_zero_says_that_it_changes_nothing(change, tmp_path):
    drawn = loras.draw(WEIGHTS, modules=BLOCKS)
    file = loras.write(tmp_path / "x.safetensors", change(drawn))
    report = read(file).report
    assert report.is_idle and str(report).startswith("Use another version of x.safetensors: it changes nothing, as")
    assert read_for_experts(file, resolve_transformer(distilled("bf16")).header, ("high", "low")).report.is_idle
    assert Stack().add(read(file), 0.5).as_facts()[0]["is_idle"]
    # One pair of many is enough.
    mixed = change(drawn)
    mixed = replace(mixed, pairs={**mixed.pairs, BLOCKS[-1]: drawn.pairs[BLOCKS[-1]]}, alpha=mixed.alpha or None)
    assert not read(loras.write(tmp_path / "y.safetensors", mixed)).report.is_idle


def test_a_truncated_file_is_an_error(tmp_path):
    path = loras.write(tmp_path / "x.safetensors", loras.draw(WEIGHTS, modules=BLOCKS))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        read(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_pickles_are_read_where_they_hold_nothing_but_tensors(suffix, tmp_path):
    drawn = loras.draw(WEIGHTS, modules=BLOCKS[:1], alpha=2.0)
    torch.save(loras.names_of(drawn), tmp_path / f"x{suffix}")
    check(read(tmp_path / f"x{suffix}"), drawn)
    torch.save({"code": print}, tmp_path / f"y{suffix}")
    with pytest.raises(CheckpointError, match="a pickle may run code"):
        read(tmp_path / f"y{suffix}")


# Patches of a host's own loader


def patches_of(drawn, strength=1.0):
    found = []
    for module, (down, up) in drawn.pairs.items():
        key = f"diffusion_model.{module}.weight"
        found.append(Patch(key=key, kind="lora", tensors=(up, down, drawn.alpha, None, None, None), strength=strength))
    for name, delta in drawn.full.items():
        found.append(Patch(key=f"diffusion_model.{name}", kind="diff", tensors=(delta,), strength=strength))
    return found


def lora_of(patches):
    return lora_of_patches(patches, MODEL, title="ComfyUI's LoRAs", identity="uuid")


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_patches_are_read_as_the_same_changes(alpha, tmp_path):
    drawn = loras.draw(WEIGHTS, alpha=alpha, modules=BLOCKS, full=SMALL)
    check(lora_of(patches_of(drawn)), drawn)


def test_patches_of_one_tensor_add_up_with_their_own_strengths():
    drawn = loras.draw(WEIGHTS, modules=BLOCKS)
    found = deltas_of(lora_of([*patches_of(drawn, 0.75), *patches_of(drawn, -0.25)]))
    for name, delta in drawn.deltas().items():
        assert torch.allclose(found[name], 0.5 * delta, atol=1e-5)


def test_a_tensor_that_is_set_forgets_what_came_before():
    drawn, bias = loras.draw(WEIGHTS, modules=[], full=SMALL[3:4]), torch.ones(256)
    lora = lora_of([*patches_of(drawn), Patch(key=SMALL[3], kind="set", tensors=(bias,), strength=0.5)])
    (change,) = lora.changes
    assert change.replaces and torch.equal(lora.read(change.names[0]), bias)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (Patch(key="head.head.weight", kind="lokr", tensors=()), "by lokr"),
        (Patch(key="head.head.weight", kind="model_as_lora", tensors=()), "by model_as_lora"),
        (Patch(key="img_emb.proj.1.weight", kind="diff", tensors=(torch.ones(1),)), "has no img_emb.proj.1.weight"),
        (Patch(key="head.head.weight", kind="diff", tensors=(torch.ones(64, 2),)), r"\[64, 2\].*\[64, 256\]"),
        (Patch(key="head.head.weight", kind="lora", tensors=(torch.ones(64, 4), torch.ones(4, 256), None, None,
                                                             torch.ones(64, 1), None)), "DoRA"),
        (Patch(key="head.head.weight", kind="lora", tensors=(torch.ones(64, 4), torch.ones(8, 256), None)),
         r"\[8, 256\] and \[64, 4\]"),
        (Patch(key="head.head.weight", kind="lora", tensors=(torch.ones(64, 0), torch.ones(0, 256), torch.ones(()))),
         r"\[0, 256\] and \[64, 0\]"),
    ],
    ids=["LoKr", "a model", "no such tensor", "shape", "DoRA", "two ranks", "no rank"],
)  # fmt: skip
def test_patches_that_cannot_be_applied_exactly_are_refused(patch, message):
    with pytest.raises(CheckpointError, match=message):
        lora_of([patch])


# Stacks


def test_a_stack_does_not_depend_on_the_order_and_adds_up(tmp_path):
    first, second = (
        read(loras.write(tmp_path / f"{name}.safetensors", loras.draw(WEIGHTS, modules=BLOCKS[:1]))) for name in "ab"
    )
    again = read(tmp_path / "a.safetensors")
    assert Stack().add(first, 1).add(second, 2).key == Stack().add(second, 2).add(again, 1).key
    assert Stack().add(first, 0.75).add(again, -0.25).key == Stack().add(first, 0.5).key
    assert not Stack().add(first, 0.0) and not Stack().add(first, 1).add(again, -1)
    for strength in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"strength of LoRA a.safetensors"):
            Stack().add(first, strength)


def test_only_headers_alphas_and_one_pair_are_read(tmp_path, monkeypatch):
    path = loras.write(tmp_path / "x.safetensors", loras.draw(WEIGHTS, alpha=2.0, modules=BLOCKS))
    from lightx2v_pack.engine.checkpoints.weights import SafetensorsWeights

    names, get = [], SafetensorsWeights.__getitem__
    monkeypatch.setattr(SafetensorsWeights, "__getitem__", lambda self, name: names.append(name) or get(self, name))
    read(path)
    alphas = [name for name in names if name.endswith(".alpha")]
    assert len(alphas) == len(BLOCKS) and len(names) == len(alphas) + 2


def test_a_14b_lora_matches_a_14b_checkpoint(tmp_path):
    """The order of modules is the names' own: a thousand keys are looked up in a table."""
    layers = {f"blocks.{index}.{layer}.weight": (5120, 5120) for index in range(40) for layer in loras.LAYERS}
    model = {name: TensorInfo("F8_E4M3", shape) for name, shape in layers.items()}
    tensors = {f"lora_unet_{loras.folded(name.removesuffix('.weight'))}": name for name in layers}
    save_file(
        {f"{stem}.lora_{half}.weight": torch.zeros(shape) for stem in tensors
         for half, shape in (("down", (1, 5120)), ("up", (5120, 1)))},
        tmp_path / "x.safetensors",
    )  # fmt: skip
    lora = read_lora(tmp_path / "x.safetensors", model)
    assert {change.target for change in lora.changes} == set(layers)
