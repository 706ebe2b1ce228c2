"""The LightX2V engine on a CPU: the contract, LightX2V itself, and the pack's own transformer, on tiny checkpoints."""

import pytest
import torch
from lightx2v_pack.engine.adapters.lightx2v.config import build_config
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.settings import EngineSettings
from lightx2v_pack.engine.stages.denoise import run_steps, start
from lightx2v_pack.engine.stages.schedule import build_schedule
from safetensors.torch import load_file, save_file
from support import checkpoints, lightx2v_cpu
from support.contract_of_a_transformer import CpuContract, travel_as_on_a_gpu
from support.engine import CPU, conditioning_of, open_transformer
from support.tensors import normal, relative_error
from support.wan_reference import dequantized, reference_flow

SHAPE = (16, 3, 8, 10)
SCHEDULE = build_schedule(4, 5.0)
# Relative L2 of a flow of unit variance to float32 on the same weights, of this two-block model.
FLOAT32_TOLERANCE = 0.01
# LightX2V takes text in bfloat16.
CONDITIONING = conditioning_of(normal(37, 64, seed=1).bfloat16().float())
CONTEXT = CONDITIONING.text.bfloat16()


@pytest.fixture(autouse=True)
def lightx2v():
    lightx2v_cpu.import_lightx2v()


class TestContract(CpuContract):
    engine = "lightx2v"


def build(path, mode="none", engine="lightx2v", matmul=None):
    """Return a loaded transformer."""
    settings, placement = EngineSettings(engine=engine), Placement(mode=mode)
    transformer = open_transformer(resolve_transformer(path), settings, placement, matmul=matmul)
    transformer.load(Hooks())
    return transformer


def flow_of(transformer, timestep=937.5):
    return transformer.predict_flow(normal(*SHAPE, seed=2), timestep, CONDITIONING, Hooks())


def upstream(path, matmul_op="Default", **changes):
    config = build_config(
        resolve_transformer(path).format.architecture,
        attention_op="torch_sdpa",
        matmul_op=matmul_op,
        use_triton=False,
    )
    return lightx2v_cpu.build_upstream(path, {**config, **changes}, "cpu")


def sample(transformer, seed=5):
    state = start(SHAPE, seed, CPU)
    run_steps(transformer, CONDITIONING, state, SCHEDULE, range(4), method="euler", hooks=Hooks())
    return state.latents


# ---------------------------------------------------------------- equal to LightX2V


def test_euler_latents_equal_upstreams_own_scheduler_bit_for_bit():
    path = checkpoints.single_file("bf16")
    expected = lightx2v_cpu.sample_upstream(*upstream(path), CONTEXT, normal(*SHAPE, seed=5))
    assert torch.equal(sample(build(path)), expected)


def test_both_experts_of_wan22_are_two_of_upstreams_models(monkeypatch):
    """In any order, streamed or not."""
    folder, timesteps = checkpoints.experts("bf16"), (1000.0, 833.25)
    alone = [build(folder / f"{noise}_noise_model") for noise in ("high", "low")]
    expected = [flow_of(each, timestep) for each, timestep in zip(alone, timesteps, strict=True)]
    assert not torch.equal(*expected)
    for mode in ("none", "block", "phase", "disk"):
        pair = build(folder, mode)
        for expert, then in ((0, 1), (1, 0), (0, 0)):
            flow = pair.predict_flow(normal(*SHAPE, seed=2), timesteps[expert], CONDITIONING, Hooks(), expert, then)
            assert torch.equal(flow, expected[expert])
        pair.unload()
        travel_as_on_a_gpu(monkeypatch)


@pytest.mark.parametrize("step", range(4))
def test_every_flow_equals_upstreams_bit_for_bit(step):
    path = checkpoints.single_file("bf16")
    model, scheduler = upstream(path)
    scheduler.prepare(0, list(SHAPE))
    scheduler.latents = normal(*SHAPE, seed=2)
    scheduler.step_pre(step)
    model.infer({"text_encoder_output": {"context": CONTEXT[None]}, "image_encoder_output": None})
    flow = flow_of(build(path), SCHEDULE.timesteps[step])
    assert flow.dtype == torch.float32
    assert torch.equal(flow, scheduler.noise_pred)


def test_fp8_latents_equal_upstreams_bit_for_bit(tmp_path):
    """By the FP8 op that GPUs run, torch._scaled_mm, instead of the dequantising one."""
    path = lightx2v_cpu.with_bfloat16_scales(checkpoints.single_file("fp8"), tmp_path)
    expected = lightx2v_cpu.sample_upstream(*upstream(path, "fp8-torchao"), CONTEXT, normal(*SHAPE, seed=5))
    assert torch.equal(sample(build(path, matmul="scaled_mm")), expected)


# ---------------------------------------------------------------- beside the pack's own


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("timestep", [1000.0, 625.0])
def test_our_own_compute_is_no_further_from_float32(precision, timestep):
    """LightX2V rounds norms, modulation and residuals to bfloat16 on the way."""
    path = checkpoints.single_file(precision)
    expected = reference_flow(dequantized(path), normal(*SHAPE, seed=2), timestep, CONTEXT)
    theirs, ours = (
        relative_error(flow_of(build(path, engine=engine), timestep), expected) for engine in ("lightx2v", "portable")
    )
    assert ours < min(1.02 * theirs, FLOAT32_TOLERANCE)


def test_portable_engine_agrees():
    path = checkpoints.single_file("bf16")
    found, expected = sample(build(path)), sample(build(path, engine="portable"))
    difference = (found - expected).abs() / expected.std()
    assert difference.max() < 0.05
    assert difference.mean() < 0.005


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_a_folder_of_blocks_and_a_single_file_give_the_same(precision):
    # The folder keeps other tensors in float32 and the file in bfloat16; both are used in bfloat16.
    folder, single_file = checkpoints.distilled(precision), checkpoints.single_file(precision)
    assert torch.equal(flow_of(build(folder)), flow_of(build(single_file)))


def test_a_plain_cast_to_fp8_is_what_it_holds(tmp_path):
    weights = checkpoints.transformer_weights()
    cast = {name: each.to(torch.float8_e4m3fn if each.ndim == 2 else torch.bfloat16) for name, each in weights.items()}
    save_file(cast, tmp_path / "cast.safetensors")
    expected = flow_of(build(tmp_path / "cast.safetensors", engine="portable"))
    for mode in ("none", "block", "phase", "disk"):
        assert relative_error(flow_of(build(tmp_path / "cast.safetensors", mode)), expected) < FLOAT32_TOLERANCE


def test_scales_stay_float32():
    # Upstream's loader rounds them to bfloat16 when weights stay in memory and does not in its disk mode.
    path = checkpoints.single_file("fp8")
    stored = load_file(path)
    transformer = build(path, matmul="scaled_mm")
    flow_of(transformer)
    block = transformer._loaded.experts[0].model.transformer_weights.blocks[0].compute_phases[0]
    assert torch.equal(block.self_attn_q.weight_scale, stored["blocks.0.self_attn.q.weight_scale"])
    assert not torch.equal(block.self_attn_q.weight_scale, block.self_attn_q.weight_scale.bfloat16().float())


# ---------------------------------------------------------------- what runs


@pytest.mark.parametrize("mode", ["block", "phase"])
def test_compute_stays_on_the_stream_that_every_attention_kernel_launches_on(mode):
    # Upstream computes offloaded blocks on a stream of its own; SageAttention 2 launches on the default one, and
    # without an order between the two all latents are NaN. No manager of upstream's, no such stream.
    transformer = build(checkpoints.single_file("bf16"), mode)
    assert not hasattr(transformer._loaded.experts[0].model.transformer_infer, "offload_manager")


def test_the_report_names_what_ran(monkeypatch):
    travel_as_on_a_gpu(monkeypatch)
    path = checkpoints.single_file("fp8")
    transformer = build(path, "block")
    before = transformer.moved_bytes
    flow_of(transformer)
    facts = transformer.describe()
    assert facts["engine"] == "lightx2v"
    assert facts["precision"] == "fp8"
    assert facts["attention"] == "sdpa"
    assert facts["matmul"] == "dequantize"
    assert facts["offload"] == "block"
    assert facts["resident_blocks"] == 0
    assert facts["ops"] == "lightx2v"
    assert facts["compile"] is False  # no fused kernels on a CPU
    blocks = sum(t.numel() * t.element_size() for n, t in load_file(path).items() if n.startswith("blocks."))
    assert blocks <= facts["moved_bytes"] - before < blocks * 1.05
