"""FP8 without scales: files that were cast as they are compute as what they hold; files that lost their scales are
refused, wherever the scales got lost."""

import functools

import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.checkpoints.checks import BLOCK_LINEAR
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.checkpoints.source import TransformerCheckpoint
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.lora.changes import Stack
from lightx2v_pack.engine.lora.reader import read_lora
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.offload.reader import Progress, load_to_ram
from lightx2v_pack.engine.offload.units import make_units
from lightx2v_pack.engine.panel.verify import verify
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings
from lightx2v_pack.engine.wan.layout import PHASES
from safetensors.torch import load_file, save_file
from support import checkpoints, loras
from support.contract_of_a_transformer import travel_as_on_a_gpu
from support.engine import conditioning_of, open_transformer
from support.tensors import normal, relative_error
from support.wan_reference import reference_flow

FP8, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LATENTS, CONDITIONING = normal(16, 2, 4, 6, seed=6), conditioning_of(normal(21, 64, seed=7))
BF16_TOLERANCE = 0.01


def is_linear(name):
    return BLOCK_LINEAR.search(name) is not None


# What a file may hold in FP8.
IN_FP8 = {
    "the blocks' linear layers": is_linear,
    "every matrix": lambda name: name.endswith(".weight") and "norm" not in name,
    "everything": lambda name: True,
}


@functools.cache
def cast(what, prefix=""):
    """Return a file of the tiny transformer that was cast to FP8, the rest to BF16."""
    file = checkpoints.scratch() / f"cast {what}{prefix}" / "Wan2_1-T2V-14B_fp8_e4m3fn.safetensors"
    file.parent.mkdir()
    weights = checkpoints.transformer_weights()
    in_fp8 = IN_FP8[what]
    save_file({prefix + name: each.to(FP8 if in_fp8(name) else torch.bfloat16) for name, each in weights.items()}, file)
    return file


def make(path, mode="none", resident_blocks=0, **options):
    placement = Placement(mode=mode, resident_blocks=resident_blocks)
    transformer = open_transformer(resolve_transformer(path), None, placement, **options)
    transformer.load(Hooks())
    return transformer


def flow_of(transformer):
    return transformer.predict_flow(LATENTS, 937.5, CONDITIONING, Hooks())


def expected_flow(weights):
    return reference_flow({name: each.float() for name, each in weights.items()}, LATENTS, 937.5, CONDITIONING.text)


@pytest.mark.parametrize("what", IN_FP8)
def test_a_cast_computes_as_what_it_holds(what, caplog):
    file = cast(what)
    assert resolve_transformer(file).format.is_cast
    assert relative_error(flow_of(make(file)), expected_flow(load_file(file))) < BF16_TOLERANCE
    pipeline.load_transformer(file, settings=EngineSettings(), offload=OffloadSettings())
    assert "taken as a plain cast" in caplog.text or not caplog.records
    assert "damaged" not in caplog.text


@pytest.mark.parametrize(
    ("what", "travels", "modes"),
    [
        ("everything", False, [("block", 1), ("disk", 0)]),
        ("the blocks' linear layers", True, [("none", 0), ("block", 0), ("phase", 0), ("disk", 1)]),
    ],
    ids=["mapped", "travels"],
)
def test_every_placement_and_prefix_gives_the_same(what, travels, modes, monkeypatch):
    expected = flow_of(make(cast(what)))
    if travels:
        travel_as_on_a_gpu(monkeypatch)
    for mode, resident_blocks in modes:
        transformer = make(cast(what, "model.diffusion_model."), mode, resident_blocks)
        assert relative_error(flow_of(transformer), expected) < 1e-6, (mode, resident_blocks)
        transformer.unload()


def test_scales_of_one_in_a_file_change_nothing(tmp_path):
    stored = load_file(cast("the blocks' linear layers"))
    ones = {f"{name}_scale": torch.ones(len(each), 1) for name, each in stored.items() if each.dtype == FP8}
    save_file(stored | ones, tmp_path / "scaled.safetensors")
    found, wanted = (TransformerCheckpoint(resolve_transformer(path)) for path in (
        cast("the blocks' linear layers"), tmp_path / "scaled.safetensors"
    ))  # fmt: skip
    assert {*found.specs} == {*wanted.specs} and found.num_bytes == wanted.num_bytes
    for spec in found.specs:
        assert torch.equal(found.read(spec).float(), wanted.read(spec).float())


def test_a_cast_computes_in_int8_and_with_loras(tmp_path):
    """As cards without FP8 have it; a LoRA is added to what the weights are."""
    file = cast("the blocks' linear layers")
    weights, drawn = load_file(file), loras.draw(checkpoints.transformer_weights(), seed=3)
    lora = read_lora(loras.write(tmp_path / "lora.safetensors", drawn), resolve_transformer(file).header)
    merged = expected_flow(loras.merged(weights, (drawn, 1.0)))
    assert relative_error(merged, expected_flow(weights)) > 0.1
    for matmul, tolerance in ((None, BF16_TOLERANCE), ("int_mm", 0.03)):
        transformer = make(file, matmul=matmul)
        transformer.use_loras(Stack().add(lora, 1.0), Hooks())
        assert relative_error(flow_of(transformer), merged) < tolerance


# FP8 in E5M2, as files for RTX 30 have it


@functools.cache
def in_e5m2(scale, prefix=""):
    """Return a file of the tiny transformer whose matrices are in E5M2: cast, or with a scale a tensor or a row."""
    file = checkpoints.scratch() / f"e5m2 {scale}{prefix}" / "Wan2_1-T2V-14B_fp8_e5m2.safetensors"
    file.parent.mkdir()
    stored = {}
    for name, each in checkpoints.transformer_weights().items():
        if not name.endswith(".weight") or "norm" in name:
            stored[prefix + name] = each.bfloat16()
        elif scale is None:
            stored[prefix + name] = each.to(E5M2)
        else:
            by = {"tensor": each.abs().max(), "row": each.abs().amax(tuple(range(1, each.ndim)), keepdim=True)}[scale]
            by = by / torch.finfo(E5M2).max
            stored[prefix + name] = (each / by).to(E5M2)
            suffix = {"tensor": "scale_weight", "row": "weight_scale"}[scale]
            stored[prefix + name.removesuffix("weight") + suffix] = by.reshape(-1, 1) if scale == "row" else by
    save_file(stored, file)
    return file


def widened(stored):
    """Return what a file holds, in float32."""
    weights = {}
    for name, each in stored.items():
        if "scale" not in name:
            scale = [
                stored[other]
                for other in stored
                if "scale" in other and other.rpartition(".")[0] == name.rpartition(".")[0]
            ]
            of_matrix = scale and name.endswith(".weight")
            weights[name] = each.float() * (scale[0].reshape(-1, *[1] * (each.ndim - 1)) if of_matrix else 1)
    return weights


@pytest.mark.parametrize("scale", [None, "tensor", "row"], ids=str)
def test_e5m2_is_read_as_it_is(scale, caplog):
    """Every number of it, by a power of two."""
    file = in_e5m2(scale)
    found = resolve_transformer(file)
    assert found.format.precision == "fp8" and found.format.is_cast == (scale is None)
    held = widened(load_file(file))
    source = TransformerCheckpoint(found)
    specs = {spec.name: spec for spec in source.specs}
    for name in filter(is_linear, specs):
        codes, scales = (source.read(specs[each]) for each in (name, f"{name}_scale"))
        assert codes.dtype == FP8 and codes.float().abs().max() >= 256
        assert relative_error(codes.float() * scales, held[name]) < (1e-6 if scale else 1e-12), name
    assert relative_error(flow_of(make(file)), expected_flow(held)) < BF16_TOLERANCE
    assert not [record for record in caplog.records if "damaged" in record.message or "odd" in record.message]


def test_e5m2_is_the_same_whatever_moves_it_to_the_card_and_computes_in_int8(monkeypatch):
    expected = expected_flow(widened(load_file(in_e5m2("tensor"))))
    assert relative_error(flow_of(make(in_e5m2("tensor"), matmul="int_mm")), expected) < 0.03
    whole = flow_of(make(in_e5m2("tensor")))
    travel_as_on_a_gpu(monkeypatch)
    for mode, resident_blocks in (("phase", 1), ("disk", 0)):
        transformer = make(in_e5m2("tensor", "model."), mode, resident_blocks)
        assert relative_error(flow_of(transformer), whole) < 1e-6, (mode, resident_blocks)
        transformer.unload()


def test_small_numbers_beside_a_large_one_in_e5m2_lose_nothing_that_counts(tmp_path):
    stored = load_file(in_e5m2(None))
    name = "blocks.0.ffn.0.weight"
    odd = stored[name].float()
    odd[0, 0], odd[1] = 1.75, torch.linspace(2**-13, 2**-10, odd.shape[1])
    stored[name] = odd.to(E5M2)
    save_file(stored, tmp_path / "odd_fp8_e5m2.safetensors")
    source = TransformerCheckpoint(resolve_transformer(tmp_path / "odd_fp8_e5m2.safetensors"))
    specs = {spec.name: spec for spec in source.specs}
    codes, scales = (source.read(specs[each]) for each in (name, f"{name}_scale"))
    assert torch.equal((codes.float() * scales)[:2], stored[name].float()[:2])
    with pytest.raises(AssertionError):
        assert torch.equal(stored[name].float()[:2].to(FP8).float(), stored[name].float()[:2])


@pytest.mark.parametrize("scale", ["tensor", "row"])
def test_e5m2_that_lost_its_scales_is_refused(scale, tmp_path):
    stored = {name: each for name, each in load_file(in_e5m2(scale)).items() if "scale" not in name}
    save_file(stored, tmp_path / "Wan2_1-T2V-14B_fp8_e5m2.safetensors")
    with pytest.raises(CheckpointError, match="its scales got lost"):
        resolve_transformer(tmp_path / "Wan2_1-T2V-14B_fp8_e5m2.safetensors")


@pytest.mark.parametrize("code", [0x7C, 0xFC, 0x7F])
def test_what_is_no_number_in_e5m2_is_named(code, tmp_path):
    stored = load_file(in_e5m2("row"))
    stored["blocks.1.ffn.2.weight"].view(torch.uint8)[3] = code
    save_file(stored, tmp_path / "bad_fp8_e5m2.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ffn\.2\.weight"):
        flow_of(make(tmp_path / "bad_fp8_e5m2.safetensors"))


def test_both_kinds_of_fp8_in_one_file(tmp_path):
    mixed = load_file(cast("the blocks' linear layers"))
    mixed |= {name: each for name, each in load_file(in_e5m2(None)).items() if ".self_attn." in name}
    save_file(mixed, tmp_path / "mixed_fp8.safetensors")
    flow = flow_of(make(tmp_path / "mixed_fp8.safetensors"))
    assert relative_error(flow, expected_flow(widened(mixed))) < BF16_TOLERANCE


# Scaled files, in which more than the blocks' linear layers has a scale


@pytest.mark.parametrize("shape", [(), (1,), (-1,), (-1, 1)], ids=str)
def test_layers_outside_of_the_blocks_have_their_scales(tmp_path, shape):
    """ComfyUI multiplies every linear layer with its scale (comfy/ops.py scaled_fp8_ops), whatever its dtype."""
    stored, expected = load_file(checkpoints.comfy_transformer()), checkpoints.transformer_weights()
    outside = [
        name for name, each in stored.items() if each.ndim == 2 and name.endswith(".weight") and "blocks" not in name
    ]
    for number, name in enumerate(outside):
        amax = expected[name].abs().amax(1, keepdim=True) if shape[:1] == (-1,) else expected[name].abs().amax()
        scale = amax / 448 if number else amax * 0 + 2
        stored[name] = (expected[name] / scale).to(FP8 if number else torch.bfloat16)
        stored[name.removesuffix("weight") + "scale_weight"] = scale.float().reshape(shape).contiguous()
    assert len(outside) == 6
    save_file(stored, tmp_path / "scaled.safetensors")
    source = TransformerCheckpoint(resolve_transformer(tmp_path / "scaled.safetensors"))
    by_name = {spec.name: spec for spec in source.specs}
    for name in outside:
        whole = source.read(by_name[name]).float()
        assert relative_error(whole, expected[name]) < 0.05
        assert source.location(by_name[name]) is None
        part = source.read(by_name[name], slice(100, 900)).bfloat16().float()
        assert torch.equal(part, whole.flatten()[100:900])
    assert f"{outside[0]}_scale" not in by_name


# Scales that got lost


def without_scales(source, target, prefix=""):
    """Write a file or a folder without its scales."""
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    target.mkdir(exist_ok=True)
    for file in files:
        kept = {
            prefix + name: each
            for name, each in load_file(file).items()
            if not name.endswith(("weight_scale", "scale_weight")) and name != "scaled_fp8"
        }
        save_file(kept, target / file.name)
    return target if source.is_dir() else target / source.name


@pytest.mark.parametrize(
    "make_source",
    [
        lambda: checkpoints.single_file("fp8"),
        lambda: checkpoints.distilled("fp8"),
        checkpoints.comfy_transformer,
        lambda: checkpoints.single_file("fp8", sizes=checkpoints.I2V_SIZES),
    ],
    ids=["file", "folder", "one a tensor", "image to video"],
)
def test_a_transformer_that_lost_its_scales_is_refused_before_it_is_used(tmp_path, make_source):
    path = without_scales(make_source(), tmp_path / "lost")
    with pytest.raises(CheckpointError, match=r"damaged: blocks\.\d\.\S+weight holds FP8 numbers of [\d.]+ .*got lost"):
        resolve_transformer(path)


@pytest.mark.parametrize("way", ["mapped", "read"])
@pytest.mark.parametrize("layer", ["blocks.1.ffn.0.weight", "blocks.0.self_attn.v.weight", "head.head.weight"])
def test_one_layer_that_lost_its_scale_is_refused_when_it_is_read(tmp_path, layer, way):
    stored = load_file(cast("every matrix"))
    stored[layer] = (stored[layer].float() * 448 / stored[layer].float().abs().max()).to(FP8)
    save_file(stored, tmp_path / "distilled.safetensors")
    source = TransformerCheckpoint(resolve_transformer(tmp_path / "distilled.safetensors"))
    with pytest.raises(CheckpointError, match=rf"{layer} holds FP8 numbers of [\d.]+ on average without a scale"):
        if way == "mapped" or layer == "head.head.weight":
            for spec in source.specs:
                source.read(spec)
        else:
            units = make_units(source.specs, 2, PHASES, by_phase=False)
            load_to_ram(units, source, torch.device("cpu"), 0, Progress(Hooks(), len(units)))
    # In full, on request.
    found = {item.name: item for item in verify(tmp_path / "distilled.safetensors", endpoint="http://127.0.0.1:9")}
    assert layer in found["distilled.safetensors"].found and "got lost" in found["distilled.safetensors"].found


@pytest.mark.parametrize("name", ["fp8", "comfy"])
def test_a_text_encoder_that_lost_its_scales_is_refused(tmp_path, name):
    source = checkpoints.text_encoder("fp8") if name == "fp8" else checkpoints.comfy_text_encoder(scaled_fp8=True)
    file = without_scales(source, tmp_path)
    handle = pipeline.load_text_encoder(file, tokenizer=checkpoints.repository() / "distill_fp8/google/umt5-xxl")
    with pytest.raises(CheckpointError, match=rf"{file} is damaged: \S+ holds FP8 numbers of [\d.]+ .* got lost"):
        pipeline.encode_text(handle, "a fox", hooks=Hooks())


def test_int8_without_scales_is_refused_whatever_it_holds(tmp_path):
    path = without_scales(checkpoints.single_file("int8"), tmp_path)
    with pytest.raises(CheckpointError, match=r"Use a file with scales, distill_fp8.* holds INT8 weights without"):
        resolve_transformer(path)


def changed(tmp_path, change):
    """Return a copy of the scaled FP8 file with other names or forms of scales, and the sizes that it computes with."""
    tensors = load_file(checkpoints.single_file("fp8"))
    plain = {name: each.float() for name, each in tensors.items() if not name.endswith("_scale")}
    for name in list(tensors):
        if name.endswith("weight_scale"):
            weight = name.removesuffix("_scale")
            scale = tensors.pop(name)
            plain[weight] = plain[weight] * scale
            change(tensors, plain, weight, scale)
    save_file({name: each.contiguous() for name, each in tensors.items()}, tmp_path / "wan-4step-fp8.safetensors")
    return tmp_path / "wan-4step-fp8.safetensors", plain


def mixed_names(tensors, plain, weight, scale):
    name = "weight_scale" if weight.startswith("blocks.0.") else "scale_weight"
    tensors[weight.removesuffix("weight") + name] = scale


def cast_cross_attention(tensors, plain, weight, scale):
    if ".cross_attn." in weight:
        tensors[weight] = plain[weight].to(FP8)
        plain[weight] = tensors[weight].float()
    else:
        tensors[f"{weight}_scale"] = scale


SCALES = {
    "names mixed": mixed_names,
    "cross attention cast": cast_cross_attention,
    "F64": lambda tensors, plain, weight, scale: tensors.update({f"{weight}_scale": scale.double()}),
    "a row": lambda tensors, plain, weight, scale: tensors.update({f"{weight}_scale": scale.view(1, -1)}),
}


@pytest.mark.parametrize("change", SCALES)
def test_scales_of_any_name_and_form_are_read(change, tmp_path):
    file, plain = changed(tmp_path, SCALES[change])
    found = resolve_transformer(file)
    assert not found.format.notes and not found.format.is_cast
    assert relative_error(flow_of(make(file)), expected_flow(plain)) < 0.05
    source = TransformerCheckpoint(found)
    for spec in source.specs:
        if spec.name.endswith("_scale"):
            weight = next(each for each in source.specs if each.name == spec.name.removesuffix("_scale"))
            value = source.read(weight).float() * source.read(spec)
            torch.testing.assert_close(value, plain[weight.name], rtol=1e-6, atol=0)


def test_layers_of_one_kind_that_lost_their_scales_are_refused(tmp_path):
    def lose(tensors, plain, weight, scale):
        if ".cross_attn." not in weight:
            tensors[f"{weight}_scale"] = scale

    file, _ = changed(tmp_path, lose)
    with pytest.raises(CheckpointError, match="cross_attn"):
        resolve_transformer(file)
