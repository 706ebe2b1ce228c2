"""Image to video on the LightX2V engine on a CPU: LightX2V itself, and diffusers in float32, on tiny checkpoints."""

import gc
import types
from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine.adapters.lightx2v.config import build_config
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.handles import weight_sizes
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.settings import EngineSettings
from lightx2v_pack.engine.stages.denoise import run_steps, start
from lightx2v_pack.engine.stages.schedule import build_schedule
from support import checkpoints, lightx2v_cpu
from support.alive import Snapshot, alive, num_bytes, tensors
from support.cancel import CancelAfter, Cancelled
from support.checkpoints import A14B_I2V_SIZES, FLF2V_SIZES, I2V_SIZES
from support.contract_of_a_transformer import travel_as_on_a_gpu
from support.engine import CPU, conditioning_of, open_transformer, with_another_image
from support.tensors import normal, relative_error
from support.wan_reference import dequantized, reference_flow

SHAPE = (16, 3, 8, 10)
LATENTS = normal(*SHAPE, seed=2)
TIMESTEP = 937.5
FLOAT32_TOLERANCE = 0.01
ROWS = 257
"""Of CLIP Vision for one image."""
EVERY_MODEL = pytest.mark.parametrize(
    ("sizes", "num_rows"), [(I2V_SIZES, ROWS), (A14B_I2V_SIZES, 0)], ids=["Wan2.1", "Wan2.2"]
)


@pytest.fixture(autouse=True)
def lightx2v():
    lightx2v_cpu.import_lightx2v()


def rounded(*shape, seed):
    """LightX2V takes text and images in bfloat16."""
    return normal(*shape, seed=seed).bfloat16().float()


def clip_of(num_rows=ROWS, seed=8):
    """Return what a clip is made from: text, rows of CLIP Vision, and a mask and an image beside the noise."""
    latents = rounded(20, *SHAPE[1:], seed=seed)
    latents[:4] = 0
    latents[:4, 0] = 1
    rows = rounded(num_rows, I2V_SIZES.image_dim, seed=seed + 1) if num_rows else None
    return replace(conditioning_of(rounded(37, 64, seed=1)), image_tokens=rows, image_latents=latents)


def build(path, mode="none", engine="lightx2v", matmul=None):
    settings, placement = EngineSettings(engine=engine), Placement(mode=mode)
    transformer = open_transformer(resolve_transformer(path), settings, placement, matmul=matmul)
    transformer.load(Hooks())
    return transformer


def flow_of(transformer, clip, timestep=TIMESTEP, hooks=None, **experts):
    return transformer.predict_flow(LATENTS, timestep, clip, hooks or Hooks(), **experts)


def sample(transformer, clip, seed=5):
    state = start(SHAPE, seed, CPU)
    run_steps(transformer, clip, state, build_schedule(4, 5.0), range(4), method="euler", hooks=Hooks())
    return state.latents


def upstream(path, matmul_op="Default", **changes):
    architecture = resolve_transformer(path).format.architecture
    ops = {"attention_op": "torch_sdpa", "matmul_op": matmul_op, "use_triton": False}
    return lightx2v_cpu.build_upstream(path, build_config(architecture, **ops) | changes, "cpu")


def encoded(clip, num_images=1):
    """Return the outputs of LightX2V's encoders, as its runners name and shape them (wan_runner.py)."""
    rows = None if clip.image_tokens is None else clip.image_tokens.bfloat16()
    if num_images > 1:
        rows = rows.view(num_images, -1, rows.shape[-1])
    return {"clip_encoder_out": rows, "vae_encoder_out": clip.image_latents.bfloat16()}


def sampled_by_upstream(model, scheduler, clip, num_images=1):
    noise = normal(*SHAPE, seed=5)
    return lightx2v_cpu.sample_upstream(model, scheduler, clip.text.bfloat16(), noise, encoded(clip, num_images))


def cut_after(model, num_rows):
    """Let a model of LightX2V's own take the first so many rows for the image's, instead of 257."""
    loop = model.transformer_infer
    for name in ("infer_cross_attn", "reset_infer_states"):
        function = getattr(type(loop), name)
        constants = function.__code__.co_consts
        assert 257 in constants
        code = function.__code__.replace(co_consts=tuple(num_rows if each == 257 else each for each in constants))
        setattr(loop, name, types.MethodType(types.FunctionType(code, function.__globals__), loop))


# Equal to LightX2V


@EVERY_MODEL
def test_latents_equal_upstreams_bit_for_bit(sizes, num_rows):
    path, clip = checkpoints.single_file("bf16", sizes=sizes), clip_of(num_rows)
    assert torch.equal(sample(build(path), clip), sampled_by_upstream(*upstream(path), clip))


def test_fp8_latents_equal_upstreams_bit_for_bit(tmp_path):
    """The image's keys and values are made of 8-bit weights as the others are."""
    path = lightx2v_cpu.with_bfloat16_scales(checkpoints.single_file("fp8", sizes=I2V_SIZES), tmp_path)
    expected = sampled_by_upstream(*upstream(path, "fp8-torchao"), clip_of())
    assert torch.equal(sample(build(path, matmul="scaled_mm"), clip_of()), expected)


def test_without_clip_vision_latents_equal_upstreams_without_its_image_encoder():
    path, clip = checkpoints.single_file("bf16", sizes=I2V_SIZES), clip_of(0)
    expected = sampled_by_upstream(*upstream(path, use_image_encoder=False), clip)
    transformer = build(path)
    with_rows = sample(transformer, clip_of())
    assert torch.equal(sample(transformer, clip), expected)
    assert torch.equal(sample(transformer, clip_of()), with_rows)
    assert not torch.equal(with_rows, expected)


@pytest.mark.parametrize("task", ["i2v", "flf2v"])
def test_any_number_of_rows_is_cut_where_the_image_ends(task):
    """Two images by Wan2.1's I2V, which has no positions for them, and by FLF2V; LightX2V cuts after 257 rows."""
    sizes = FLF2V_SIZES if task == "flf2v" else I2V_SIZES
    path, clip = checkpoints.single_file("bf16", sizes=sizes), clip_of(18)
    model, scheduler = upstream(path, task=task)
    cut_after(model, 18)
    expected = sampled_by_upstream(model, scheduler, clip, num_images=2 if task == "flf2v" else 1)
    assert torch.equal(sample(build(path), clip), expected)


def test_both_experts_of_wan22_are_two_of_upstreams_models(monkeypatch):
    """In any order, streamed or not."""
    folder, clip, timesteps = checkpoints.experts("bf16", A14B_I2V_SIZES), clip_of(0), (1000.0, 833.25)
    expected = []
    for noise, timestep in zip(("high", "low"), timesteps, strict=True):
        model, scheduler = upstream(folder / f"{noise}_noise_model")
        scheduler.generator = None
        scheduler.prepare(0, list(SHAPE))
        scheduler.latents, scheduler.timesteps = LATENTS.clone(), torch.tensor([timestep])
        scheduler.step_pre(0)
        context = {"context": clip.text.bfloat16()[None]}
        model.infer({"text_encoder_output": context, "image_encoder_output": encoded(clip)})
        expected.append(scheduler.noise_pred)
    assert not torch.equal(*expected)
    for mode in ("none", "block", "phase", "disk"):
        pair = build(folder, mode)
        for expert, then in ((0, 1), (1, 0), (0, 0)):
            flow = flow_of(pair, clip, timesteps[expert], expert=expert, then=then)
            assert torch.equal(flow, expected[expert]), (mode, expert)
        pair.unload()
        travel_as_on_a_gpu(monkeypatch)


# Beside float32 and the pack's own


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize(
    ("sizes", "num_rows"),
    [(I2V_SIZES, ROWS), (I2V_SIZES, 18), (FLF2V_SIZES, 18), (FLF2V_SIZES, 9), (A14B_I2V_SIZES, 0)],
    ids=["Wan2.1", "two images", "FLF2V", "FLF2V with one image", "Wan2.2"],
)
def test_our_own_compute_is_no_further_from_float32(precision, sizes, num_rows):
    path, clip = checkpoints.single_file(precision, sizes=sizes), clip_of(num_rows)
    theirs, ours = (flow_of(build(path, engine=engine), clip) for engine in ("lightx2v", "portable"))
    if num_rows == sizes.image_positions / 2:
        # diffusers takes both images or none: the pack's own, which agrees with it on both, stands for it.
        assert relative_error(theirs, ours) < FLOAT32_TOLERANCE
        return
    latents = torch.cat([LATENTS, clip.image_latents])
    expected = reference_flow(dequantized(path), latents, TIMESTEP, clip.text, clip.image_tokens)
    ours, theirs = (relative_error(flow, expected) for flow in (ours, theirs))
    assert ours < min(1.02 * theirs, FLOAT32_TOLERANCE)
    assert theirs < 1.5 * FLOAT32_TOLERANCE


def test_image_mask_and_rows_all_count():
    transformer, whole = build(checkpoints.single_file("bf16", sizes=I2V_SIZES)), clip_of()
    flow = flow_of(transformer, whole)
    for other in (*with_another_image(whole), replace(whole, image_latents=whole.image_latents.flip(0))):
        assert relative_error(flow_of(transformer, other), flow) > 3 * FLOAT32_TOLERANCE
    assert torch.equal(flow_of(transformer, whole), flow)


# Where the weights rest


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_every_placement_gives_the_same_bits(precision, monkeypatch):
    path = checkpoints.distilled(precision, I2V_SIZES)
    expected = flow_of(build(path), clip_of())
    for _ in ("mapped", "travelling"):
        for mode in ("none", "block", "phase", "disk"):
            transformer = build(path, mode)
            for _ in range(2):
                assert torch.equal(flow_of(transformer, clip_of()), expected), mode
            transformer.unload()
        travel_as_on_a_gpu(monkeypatch)


def test_the_image_branch_travels_in_every_step_as_the_plan_says(monkeypatch):
    travel_as_on_a_gpu(monkeypatch)
    path, clip = checkpoints.single_file("fp8", sizes=replace(I2V_SIZES, num_layers=3)), clip_of()
    sizes, transformer = weight_sizes(resolve_transformer(path), "lightx2v"), build(path, "block")
    flow_of(transformer, clip)
    before = transformer.moved_bytes
    flow_of(transformer, clip)
    # LightX2V takes norms and modulations in bfloat16, the pack's own in float32.
    assert transformer.moved_bytes - before == pytest.approx(3 * sizes.block, rel=0.05)
    assert sizes.block > weight_sizes(resolve_transformer(path)).block + 2 * I2V_SIZES.dim**2


@pytest.mark.parametrize("mode", ["none", "block", "phase", "disk"])
def test_a_cancel_passes_and_the_next_pass_is_right(mode, monkeypatch):
    travel_as_on_a_gpu(monkeypatch)
    transformer = build(checkpoints.distilled("fp8", I2V_SIZES), mode)
    expected = flow_of(transformer, clip_of())
    for checks in range(I2V_SIZES.num_layers * (3 if mode == "phase" else 1)):
        with pytest.raises(Cancelled):
            flow_of(transformer, clip_of(seed=20), hooks=Hooks(check_interrupt=CancelAfter(checks)))
        assert torch.equal(flow_of(transformer, clip_of()), expected)


@pytest.mark.parametrize("mode", ["none", "block", "phase"])
def test_everything_goes_at_once(mode, monkeypatch):
    """Nothing waits for the garbage collector; weights load again."""
    travel_as_on_a_gpu(monkeypatch)
    path, clip = checkpoints.distilled("fp8", FLF2V_SIZES), clip_of(18)
    transformer = build(path, mode)
    first = flow_of(transformer, clip)
    transformer.unload()
    gc.collect()
    before = Snapshot()
    transformer.load(Hooks())
    assert torch.equal(flow_of(transformer, clip), first)
    made = before.made_since()
    assert made
    monkeypatch.setattr(gc, "collect", lambda: 0)
    gc.disable()
    try:
        transformer.unload()
        assert not alive(made)
    finally:
        gc.enable()


def test_what_only_a_pass_needs_can_be_given_back():
    transformer, clip = build(checkpoints.distilled("fp8", I2V_SIZES)), clip_of()
    transformer.release_workspace()
    before = Snapshot()
    first = flow_of(transformer, clip)
    made = [ref for ref in before.made_since() if ref() is not first]
    # The mask and image in bfloat16, and the rows of CLIP Vision.
    assert num_bytes(tensors(made)) > 20 * 3 * 8 * 10 * 2 + ROWS * I2V_SIZES.image_dim * 2
    transformer.release_workspace()
    # LightX2V keeps the lengths of its sequences, two numbers each.
    assert num_bytes(tensors(made)) < 100
    assert torch.equal(flow_of(transformer, clip), first)
