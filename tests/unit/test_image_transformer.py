"""The transformer of image to video, on tiny checkpoints: against diffusers' model, wherever its weights rest."""

import threading
from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.handles import weight_sizes
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.lora.changes import Stack
from lightx2v_pack.engine.lora.reader import read_lora
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.offload import once
from safetensors.torch import save_file
from support.cancel import CancelAfter, Cancelled
from support.checkpoints import A14B_I2V_SIZES, FLF2V_SIZES, I2V_SIZES, distilled, single_file
from support.contract_of_a_transformer import travel_as_on_a_gpu
from support.engine import conditioning_of, open_transformer, with_another_image
from support.tensors import normal, relative_error
from support.wan_reference import dequantized, reference_flow

SHAPE = (16, 3, 8, 10)
LATENTS = normal(*SHAPE, seed=6)
# As in test_portable_transformer.py.
BF16_TOLERANCE = 0.01
KERNEL_TOLERANCE = {"scaled_mm": 0.02, "int_mm": 0.012}
TIMESTEP = 937.5


def image_conditioning(num_tokens=9, image_seed=8, **changes):
    """Return what a clip is made from: text, rows of CLIP Vision, and a mask and an image beside the noise."""
    tokens = normal(num_tokens, I2V_SIZES.image_dim, seed=image_seed) if num_tokens else None
    given = normal(20, *SHAPE[1:], seed=9)
    text = conditioning_of(normal(21, 64, seed=7))
    return replace(text, image_tokens=tokens, image_latents=given, **changes)


def make(path, placement=None, **options):
    transformer = open_transformer(resolve_transformer(path), None, placement, **options)
    transformer.load(Hooks())
    return transformer


def flow_of(transformer, conditioning=None, hooks=None):
    return transformer.predict_flow(LATENTS, TIMESTEP, conditioning or image_conditioning(), hooks or Hooks())


def expected_flow(weights, conditioning):
    latents = torch.cat([LATENTS, conditioning.image_latents])
    return reference_flow(weights, latents, TIMESTEP, conditioning.text, conditioning.image_tokens)


# Against diffusers


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize(
    ("sizes", "num_tokens"),
    [(I2V_SIZES, 9), (I2V_SIZES, 18), (FLF2V_SIZES, 18), (A14B_I2V_SIZES, 0)],
    ids=["Wan2.1", "Wan2.1 with two images", "Wan2.1 FLF2V", "Wan2.2"],
)
def test_agrees_with_diffusers_in_float32(precision, sizes, num_tokens):
    path, conditioning = distilled(precision, sizes), image_conditioning(num_tokens)
    expected = expected_flow(dequantized(path), conditioning)
    assert relative_error(flow_of(make(path), conditioning), expected) < BF16_TOLERANCE


@pytest.mark.parametrize(("precision", "kernel"), [("fp8", "scaled_mm"), ("int8", "int_mm"), ("fp8", "int_mm")])
def test_eight_bit_kernels_agree_with_dequantized_weights(precision, kernel):
    path, conditioning = distilled(precision, I2V_SIZES), image_conditioning()
    try:
        flow = flow_of(make(path, matmul=kernel), conditioning)
    except RuntimeError as error:
        pytest.skip(f"this torch has no {kernel} on the CPU: {error}")
    assert relative_error(flow, expected_flow(dequantized(path), conditioning)) < KERNEL_TOLERANCE[kernel] * 1.5


def test_image_mask_and_rows_all_count():
    """The tolerances above would notice any of them: each is worth more than ten times as much."""
    transformer, whole = make(distilled("bf16", I2V_SIZES)), image_conditioning()
    flow = flow_of(transformer, whole)
    for other in with_another_image(whole):
        assert relative_error(flow_of(transformer, other), flow) > 10 * BF16_TOLERANCE


def test_a_long_prompt_beside_an_image():
    conditioning = image_conditioning()
    text = conditioning_of(normal(512, 64, seed=3))
    conditioning = replace(conditioning, text=text.text, num_text=text.num_text)
    path = distilled("bf16", I2V_SIZES)
    assert relative_error(flow_of(make(path), conditioning), expected_flow(dequantized(path), conditioning)) < 0.01


# Where the weights of the image's keys and values rest


def test_every_placement_gives_the_same_bits(monkeypatch):
    path = single_file("fp8", sizes=I2V_SIZES)
    expected = flow_of(make(path))
    travel_as_on_a_gpu(monkeypatch)
    for mode, resident_blocks in (("none", 0), ("block", 1), ("phase", 0), ("disk", 0)):
        transformer = make(path, Placement(mode=mode, resident_blocks=resident_blocks))
        assert torch.equal(flow_of(transformer), expected), mode
        transformer.unload()


def moved_by(transformer, *args):
    before = transformer.moved_bytes
    flow_of(transformer, *args)
    return transformer.moved_bytes - before


def test_their_weights_travel_once_for_all_clips_of_an_image(monkeypatch):
    travel_as_on_a_gpu(monkeypatch)
    path = single_file("fp8", sizes=replace(I2V_SIZES, num_layers=3))  # more than there are buffers
    transformer = make(path, Placement(mode="block"))
    sizes, first = weight_sizes(resolve_transformer(path)), image_conditioning()
    once_bytes, step = 3 * sizes.image_block, 3 * sizes.block
    assert sizes.image_block > 2 * I2V_SIZES.dim**2
    # A buffer is filled ahead: of the blocks the first again, of what is needed once too.
    assert moved_by(transformer, first) >= step + once_bytes
    assert moved_by(transformer, first) == step
    transformer.release_workspace()
    assert moved_by(transformer, image_conditioning()) == step, "the same image in another conditioning"
    assert moved_by(transformer, image_conditioning(image_seed=99)) > step + once_bytes
    transformer.unload()


def test_another_image_is_seen():
    transformer = make(distilled("bf16", I2V_SIZES))
    flow = flow_of(transformer)
    other = flow_of(transformer, image_conditioning(image_seed=99))
    assert torch.equal(other, flow_of(make(distilled("bf16", I2V_SIZES)), image_conditioning(image_seed=99)))
    assert relative_error(other, flow) > 0.1
    assert torch.equal(flow_of(transformer), flow)


def test_a_cancelled_first_step_leaves_nothing_behind_and_may_be_done_again(monkeypatch):
    travel_as_on_a_gpu(monkeypatch)
    transformer = make(distilled("fp8", I2V_SIZES), Placement(mode="block"))
    expected = flow_of(transformer, image_conditioning(image_seed=99))
    transformer.release_workspace()
    threads, cancel = threading.active_count(), CancelAfter(2)
    with pytest.raises(Cancelled):
        flow_of(transformer, image_conditioning(), Hooks(check_interrupt=cancel))
    assert threading.active_count() > threads
    transformer.release_workspace()
    assert threading.active_count() == threads
    assert torch.equal(flow_of(transformer, image_conditioning(image_seed=99)), expected)
    with pytest.raises(Cancelled):
        flow_of(transformer, image_conditioning(), Hooks(check_interrupt=CancelAfter(2)))
    transformer.unload()
    assert threading.active_count() == threads


# LoRAs


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """Return a LoRA of the image branch alone, as trainers and extractors write it."""
    dim, image_dim, rank = I2V_SIZES.dim, I2V_SIZES.image_dim, 4
    tensors = {"diffusion_model.img_emb.proj.4.diff": normal(dim, seed=1) * 0.2}
    for number, (module, rows, columns) in enumerate(
        [("img_emb.proj.1", image_dim, image_dim), ("img_emb.proj.3", dim, image_dim)]
        + [(f"blocks.{i}.cross_attn.{part}_img", dim, dim) for i in range(2) for part in "kv"]
    ):
        tensors[f"diffusion_model.{module}.lora_down.weight"] = normal(rank, columns, seed=number) * columns**-0.5
        tensors[f"diffusion_model.{module}.lora_up.weight"] = normal(rows, rank, seed=number + 50)
    tensors["diffusion_model.blocks.1.cross_attn.norm_k_img.diff"] = normal(dim, seed=2) * 0.2
    path = tmp_path_factory.mktemp("lora") / "image.safetensors"
    save_file(tensors, path)
    return path, tensors


def test_a_lora_of_the_image_branch(lora, monkeypatch):
    path, (file, tensors) = distilled("fp8", I2V_SIZES), lora
    files = resolve_transformer(path)
    stack = Stack().add(read_lora(file, files.header), 0.8)
    assert not stack.entries[0][0].report.num_left_out
    merged = dequantized(path)
    for name, tensor in tensors.items():
        module = name.removeprefix("diffusion_model.")
        if module.endswith(".diff"):
            merged[module.removesuffix(".diff") + ".weight"] += 0.8 * tensor
        elif module.endswith(".lora_down.weight"):
            base = module.removesuffix(".lora_down.weight")
            merged[f"{base}.weight"] += 0.8 * tensors[f"diffusion_model.{base}.lora_up.weight"] @ tensor
    expected, conditioning = expected_flow(merged, image_conditioning()), image_conditioning()
    plain = flow_of(make(path), conditioning)
    flows = []
    for travels in (False, True):
        if travels:
            travel_as_on_a_gpu(monkeypatch)
        transformer = make(path, Placement(mode="block"))
        flow_of(transformer, conditioning)  # what is kept of it was made without the LoRA
        transformer.use_loras(stack, Hooks())
        flows.append(flow_of(transformer, conditioning))
        assert torch.equal(flow_of(transformer, conditioning), flows[-1])
        transformer.use_loras(Stack(), Hooks())
        assert torch.equal(flow_of(transformer, conditioning), plain)
        transformer.unload()
    assert relative_error(flows[0], expected) < BF16_TOLERANCE
    assert relative_error(plain, expected) > 5 * BF16_TOLERANCE
    assert torch.equal(*flows)


def test_what_is_needed_once_is_no_part_of_what_travels_each_step():
    plain, with_branch = (weight_sizes(resolve_transformer(distilled("fp8", s))) for s in (A14B_I2V_SIZES, I2V_SIZES))
    assert (plain.block, plain.phase) == (with_branch.block, with_branch.phase)
    assert (plain.image_block, plain.total + 2 * with_branch.image_block) < (1, with_branch.total)


def test_units_without_tensors_give_none():
    units = once.OnceUnits([], None, Placement(mode="block"), torch.device("cpu"))
    with units.block(0, lambda: None) as weights:
        assert weights == {}
