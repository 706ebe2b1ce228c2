"""The LightX2V engine on a CPU against LightX2V itself and against the portable engine, on tiny checkpoints."""

import gc
import weakref

import pytest
import torch
from lightx2v_pack.engine.adapters.lightx2v.config import build_config
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.plan import Placement
from lightx2v_pack.engine.offload import streamer
from lightx2v_pack.engine.settings import EngineSettings
from lightx2v_pack.engine.stages.denoise import denoise
from lightx2v_pack.engine.stages.schedule import build_schedule
from safetensors.torch import load_file, save_file
from support import checkpoints, lightx2v_cpu
from support.wan_reference import dequantised, reference_flow

SHAPE = (16, 3, 8, 10)
SCHEDULE = build_schedule(4, 5.0)
# Relative L2 of a flow of unit variance to float32 on the same weights, of this two-block model.
FLOAT32_TOLERANCE = 0.01
MODES = ("none", "block", "phase", "disk")
COMPILE = pytest.mark.parametrize("compile", ["off", "auto"])


@pytest.fixture(autouse=True)
def lightx2v():
    lightx2v_cpu.import_lightx2v()


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def context():
    rows = normal(1, 512, 64).bfloat16()
    rows[37:] = 0
    return rows


def use_fp8_matmul(monkeypatch):
    """Let the CPU run the FP8 op that GPUs run, torch._scaled_mm, instead of the dequantising one."""
    from lightx2v_pack.engine.adapters.lightx2v import ops

    monkeypatch.setattr(ops, "select_matmul", lambda scheme, requested, device: ("scaled_mm", "fp8-torchao"))


def make(path, mode="none", compile="off", resident_blocks=0):
    from lightx2v_pack.engine.adapters.lightx2v.transformer import LightX2VTransformer

    settings = EngineSettings(engine="lightx2v", compile=compile)
    placement = Placement(mode=mode, resident_blocks=resident_blocks)
    return LightX2VTransformer(resolve_transformer(path), settings, placement)


def build(path, mode="none", compile="off", resident_blocks=0):
    """Return a loaded transformer; compile "off" is LightX2V's own blocks, "auto" the pack's."""
    transformer = make(path, mode, compile, resident_blocks)
    transformer.load(SHAPE, Hooks())
    return transformer


def predict(path, context, mode="none", compile="off"):
    return build(path, mode, compile).predict_flow(normal(2, *SHAPE), 937.5, context, Hooks())


def upstream(path, matmul_op="Default", **changes):
    config = build_config(
        resolve_transformer(path).format.architecture,
        attention_op="torch_sdpa",
        matmul_op=matmul_op,
        use_triton=False,
    )
    return lightx2v_cpu.build_upstream(path, {**config, **changes}, "cpu")


def sample(transformer, context, seed=5):
    return denoise(transformer, context, SHAPE, SCHEDULE, method="euler", seed=seed, hooks=Hooks())


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


# ---------------------------------------------------------------- equal to LightX2V


def test_euler_latents_equal_upstreams_own_scheduler_bit_for_bit(context):
    path = checkpoints.single_file("bf16")
    expected = lightx2v_cpu.sample_upstream(*upstream(path), context, normal(5, *SHAPE))
    assert torch.equal(sample(build(path), context), expected)


@pytest.mark.parametrize("step", range(4))
def test_every_flow_equals_upstreams_bit_for_bit(step, context):
    path = checkpoints.single_file("bf16")
    model, scheduler = upstream(path)
    scheduler.prepare(0, list(SHAPE))
    scheduler.latents = normal(2, *SHAPE)
    scheduler.step_pre(step)
    model.infer({"text_encoder_output": {"context": context[None]}, "image_encoder_output": None})
    flow = build(path).predict_flow(normal(2, *SHAPE), SCHEDULE.timesteps[step], context, Hooks())
    assert flow.dtype == torch.float32
    assert torch.equal(flow, scheduler.noise_pred)


def with_bfloat16_scales(path, folder):
    """Copy a checkpoint with scales that upstream's loader, which rounds them to bfloat16, leaves as they are."""
    tensors = load_file(path)
    tensors = {n: t.bfloat16().float() if n.endswith("weight_scale") else t for n, t in tensors.items()}
    save_file(tensors, folder / path.name)
    return folder / path.name


def test_fp8_latents_equal_upstreams_bit_for_bit(context, monkeypatch, tmp_path):
    use_fp8_matmul(monkeypatch)
    path = with_bfloat16_scales(checkpoints.single_file("fp8"), tmp_path)
    expected = lightx2v_cpu.sample_upstream(*upstream(path, "fp8-torchao"), context, normal(5, *SHAPE))
    assert torch.equal(sample(build(path), context), expected)


# ---------------------------------------------------------------- with the pack's own blocks


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("timestep", [1000.0, 625.0])
def test_our_blocks_are_no_further_from_float32_than_lightx2vs(precision, timestep, context):
    """LightX2V rounds norms, modulation and residuals to bfloat16 on the way."""
    path = checkpoints.single_file(precision)
    expected = reference_flow(dequantised(path), normal(2, *SHAPE), timestep, context)
    theirs, ours = (
        relative(build(path, compile=mode).predict_flow(normal(2, *SHAPE), timestep, context, Hooks()), expected)
        for mode in ("off", "auto")
    )
    assert ours < min(1.02 * theirs, FLOAT32_TOLERANCE)


@COMPILE
def test_portable_engine_agrees(compile, context):
    from lightx2v_pack.engine.wan.transformer import PortableTransformer

    path = checkpoints.single_file("bf16")
    settings = EngineSettings(engine="portable")
    portable = PortableTransformer(resolve_transformer(path), settings, Placement(mode="none"))
    portable.load(SHAPE, Hooks())
    found, expected = sample(build(path, compile=compile), context), sample(portable, context)
    difference = (found - expected).abs() / expected.std()
    assert difference.max() < 0.05
    assert difference.mean() < 0.005


# ---------------------------------------------------------------- checkpoints


@COMPILE
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_eight_bit_weights_are_used_with_their_scales(precision, compile, context):
    # Without the scales the result is noise: relative error 1 and more.
    expected = predict(checkpoints.single_file("bf16"), context)
    assert relative(predict(checkpoints.single_file(precision), context, compile=compile), expected) < 0.1


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_a_folder_of_blocks_and_a_single_file_give_the_same(precision, context):
    # The folder keeps other tensors in float32 and the file in bfloat16; both are used in bfloat16.
    folder = checkpoints.repository() / f"distill_{precision}"
    assert torch.equal(predict(folder, context), predict(checkpoints.single_file(precision), context))


def test_prefixed_names_give_the_same(context):
    prefixed = checkpoints.single_file("bf16", prefix="model.diffusion_model.")
    assert torch.equal(predict(prefixed, context), predict(checkpoints.single_file("bf16"), context))


@pytest.mark.parametrize("has_marker", [True, False])
@pytest.mark.parametrize("mode", ["none", "disk"])
def test_comfyui_scaled_fp8_with_its_scalar_scales(has_marker, mode, context):
    path = checkpoints.comfy_transformer(prefix="model.diffusion_model.", has_marker=has_marker)
    expected = predict(checkpoints.single_file("bf16"), context)
    assert relative(predict(path, context, mode), expected) < 0.1


def test_scales_stay_float32(context, monkeypatch):
    # Upstream's loader rounds them to bfloat16 when weights stay in memory and does not in its disk mode.
    use_fp8_matmul(monkeypatch)
    path = checkpoints.single_file("fp8")
    stored = load_file(path)
    transformer = build(path)
    transformer.predict_flow(normal(2, *SHAPE), 937.5, context, Hooks())
    block = transformer._loaded.model.transformer_weights.blocks[0].compute_phases[0]
    assert torch.equal(block.self_attn_q.weight_scale, stored["blocks.0.self_attn.q.weight_scale"])
    assert not torch.equal(block.self_attn_q.weight_scale, block.self_attn_q.weight_scale.bfloat16().float())


# ---------------------------------------------------------------- offload


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Let weights travel through RAM and buffers as on a GPU; on a CPU they are mapped from the file."""
    monkeypatch.setattr(streamer, "map_units", streamer.bring_units)


@COMPILE
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_every_placement_equals_the_resident_run(precision, compile, context):
    path = checkpoints.single_file(precision)
    expected = sample(build(path, compile=compile), context)
    for mode in MODES[1:]:
        for resident_blocks in (0, 1, 2):
            assert torch.equal(sample(build(path, mode, compile, resident_blocks), context), expected)


@COMPILE
@pytest.mark.parametrize("mode", MODES)
def test_streamed_weights_give_the_same(mode, compile, context, as_on_a_gpu):
    path = checkpoints.single_file("fp8")
    expected = sample(build(path, compile=compile), context)
    assert torch.equal(sample(build(path, mode, compile, resident_blocks=1), context), expected)


@pytest.mark.parametrize("mode", ["block", "phase"])
def test_compute_stays_on_the_stream_that_every_attention_kernel_launches_on(mode):
    # Upstream computes offloaded blocks on a stream of its own; SageAttention 2 launches on the default one, and
    # without an order between the two all latents are NaN. No manager of upstream's, no such stream.
    transformer = build(checkpoints.single_file("bf16"), mode)
    assert not hasattr(transformer._loaded.model.transformer_infer, "offload_manager")


class CancelledError(Exception):
    pass


def cancel_after(checks):
    def check():
        nonlocal checks
        if checks == 0:
            raise CancelledError
        checks -= 1

    return Hooks(check_interrupt=check)


@COMPILE
@pytest.mark.parametrize("mode", MODES)
def test_a_cancel_passes_before_every_block_and_the_next_run_is_right(mode, compile, context):
    path = checkpoints.single_file("bf16")
    expected = predict(path, context, compile=compile)
    transformer = build(path, mode, compile)
    latents = normal(2, *SHAPE)
    num_units = 6 if mode == "phase" else 2
    for checks in range(num_units):
        with pytest.raises(CancelledError):
            transformer.predict_flow(latents, 937.5, context, cancel_after(checks))
    # Upstream's buffers would hold the weights of whatever block came next.
    assert torch.equal(transformer.predict_flow(latents, 937.5, context, cancel_after(num_units)), expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_cancel_while_loading_leaves_an_object_that_loads_again(mode, context):
    transformer = make(checkpoints.single_file("bf16"), mode)
    if mode != "disk":
        with pytest.raises(CancelledError):
            transformer.load(SHAPE, cancel_after(1))
    transformer.load(SHAPE, Hooks())
    assert transformer.predict_flow(normal(2, *SHAPE), 937.5, context, Hooks()).isfinite().all()


# ---------------------------------------------------------------- memory


@COMPILE
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("leave", ["unload", "drop"])
def test_weights_go_at_once(mode, leave, compile, context, monkeypatch):
    # Upstream's objects refer to themselves and to each other; without cuts this waits for the garbage collector.
    transformer = build(checkpoints.single_file("fp8"), mode, compile)
    transformer.predict_flow(normal(2, *SHAPE), 937.5, context, Hooks())
    model = transformer._loaded.model
    with transformer._loaded.conveyor.unit(0) as tensors:
        weight = weakref.ref(tensors["self_attn.q.weight"])
    del tensors
    model, infer = weakref.ref(model), weakref.ref(model.transformer_infer)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    gc.disable()
    try:
        if leave == "unload":
            transformer.unload()
        else:
            del transformer
        assert (model(), infer(), weight()) == (None, None, None)
    finally:
        gc.enable()


@COMPILE
def test_unloaded_weights_load_again(compile, context):
    transformer = build(checkpoints.single_file("bf16"), "block", compile)
    first = sample(transformer, context)
    transformer.unload()
    transformer.unload()
    transformer.load(SHAPE, Hooks())
    assert torch.equal(sample(transformer, context), first)


@COMPILE
@pytest.mark.parametrize("mode", ["block", "phase"])
def test_rest_keeps_the_weights(mode, compile, context):
    transformer = build(checkpoints.single_file("bf16"), mode, compile)
    transformer.rest()
    first = sample(transformer, context)
    transformer.rest()
    infer = transformer._loaded.model.transformer_infer
    if compile == "auto":
        assert infer.blocks._workspace is None
    assert infer.cos_sin is None
    assert torch.equal(sample(transformer, context), first)


@COMPILE
def test_latents_are_not_kept_or_changed(compile, context):
    transformer = build(checkpoints.single_file("bf16"), compile=compile)
    latents = normal(2, *SHAPE)
    before, alive = latents.clone(), weakref.ref(latents)
    transformer.predict_flow(latents, 937.5, context, Hooks())
    assert torch.equal(latents, before)
    del latents
    assert alive() is None


# ---------------------------------------------------------------- the interface


@COMPILE
@pytest.mark.parametrize("mode", MODES)
def test_weights_loaded_under_inference_mode_can_be_used_outside_of_it(mode, compile, context):
    path = checkpoints.single_file("bf16")
    expected = predict(path, context, compile=compile)
    with torch.inference_mode():
        transformer = build(path, mode, compile)
        assert torch.equal(transformer.predict_flow(normal(2, *SHAPE), 937.5, context, Hooks()), expected)
    assert torch.equal(transformer.predict_flow(normal(2, *SHAPE), 937.5, context, Hooks()), expected)


@COMPILE
def test_another_size_needs_no_reload(compile, context):
    path = checkpoints.single_file("bf16")
    transformer = build(path, compile=compile)
    transformer.predict_flow(normal(2, *SHAPE), 937.5, context, Hooks())
    larger = normal(3, 16, 5, 12, 8)
    found = transformer.predict_flow(larger, 937.5, context, Hooks())
    assert torch.equal(found, build(path, compile=compile).predict_flow(larger, 937.5, context, Hooks()))


@COMPILE
def test_another_prompt_is_seen(compile, context):
    path = checkpoints.single_file("bf16")
    transformer, latents = build(path, compile=compile), normal(2, *SHAPE)
    first = transformer.predict_flow(latents, 937.5, context, Hooks())
    other = transformer.predict_flow(latents, 937.5, context.flip(1), Hooks())
    assert relative(other, first) > 0.01
    assert torch.equal(transformer.predict_flow(latents, 937.5, context, Hooks()), first)


@COMPILE
def test_padding_rows_of_the_text_matter_and_are_seen(compile, context):
    # Cross-attention sees all 512 rows: cutting the zero rows off gives another picture.
    transformer = build(checkpoints.single_file("bf16"), compile=compile)
    latents = normal(2, *SHAPE)
    whole = transformer.predict_flow(latents, 937.5, context, Hooks())
    cut = transformer.predict_flow(latents, 937.5, context[:37], Hooks())
    assert relative(cut, whole) > 0.01


@pytest.mark.parametrize(("compile", "ops"), [("off", "lightx2v"), ("auto", "torch")])
def test_the_report_names_what_ran(compile, ops, context, as_on_a_gpu):
    path = checkpoints.single_file("fp8")
    transformer = build(path, "block", compile)
    before = transformer.describe()
    transformer.predict_flow(normal(2, *SHAPE), 937.5, context, Hooks())
    facts = transformer.describe()
    assert facts["engine"] == "lightx2v"
    assert facts["precision"] == "fp8"
    assert facts["attention"] == "sdpa"
    assert facts["matmul"] == "dequantize"
    assert facts["offload"] == "block"
    assert facts["resident_blocks"] == 0
    assert facts["ops"] == ops
    assert facts["compile"] is False  # no fused kernels on a CPU
    blocks = sum(t.numel() * t.element_size() for n, t in load_file(path).items() if n.startswith("blocks."))
    assert blocks <= facts["moved_bytes"] - before["moved_bytes"] < blocks * 1.05


def test_a_named_matmul_is_not_ignored_silently():
    from lightx2v_pack.engine.adapters.lightx2v.transformer import LightX2VTransformer

    files = resolve_transformer(checkpoints.single_file("fp8"))
    with pytest.raises(ValueError, match="matmul is 'triton' and compile is 'auto'"):
        LightX2VTransformer(files, EngineSettings(), Placement(mode="none"), matmul="triton")
