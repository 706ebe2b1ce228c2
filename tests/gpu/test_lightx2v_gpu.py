"""The LightX2V engine on a CUDA device: kernels, offload without races, cancel, memory; against LightX2V itself.

The model is tiny but has enough blocks and width that copies and compute overlap.
"""

import gc
import itertools
import time

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from lightx2v_pack.engine.adapters.lightx2v.config import MATMUL_BACKENDS, build_config
from lightx2v_pack.engine.adapters.lightx2v.transformer import LightX2VTransformer
from lightx2v_pack.engine.adapters.lightx2v.vae import LightX2VVideoDecoder
from lightx2v_pack.engine.backends.table import ATTENTION_BACKENDS
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.constants import LATENT_MEAN, LATENT_STD
from lightx2v_pack.engine.errors import MissingDependencyError, UnsupportedHardwareError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.kernels.attention import select_attention
from lightx2v_pack.engine.memory.plan import Placement
from lightx2v_pack.engine.settings import EngineSettings
from lightx2v_pack.engine.stages.decode import decode_video
from lightx2v_pack.engine.stages.denoise import denoise
from lightx2v_pack.engine.stages.schedule import build_schedule
from lightx2v_pack.engine.system import compute_device
from lightx2v_pack.engine.wan.transformer import PortableTransformer
from lightx2v_pack.tools.make_tiny_checkpoint import TinySizes
from support import lightx2v_cpu
from support.checkpoints import repository, single_file, vae
from support.slow_gpu import delay_attention, delay_copies, delayed

pytestmark = pytest.mark.gpu

DEVICE = compute_device()
SIZES = TinySizes(dim=512, ffn_dim=2048, num_layers=6)
SHAPE = (16, 5, 32, 32)  # 1280 tokens
MODES = ("none", "block", "phase", "disk")
# LightX2V's own blocks, and the pack's.
COMPILE = pytest.mark.parametrize("compile", ["off", "auto"])
ATTENTIONS = [backend.name for backend in ATTENTION_BACKENDS]
# A tenth of a second of GPU time at about 1.7 GHz.
LONG_SLEEP, SHORT_SLEEP = 170_000_000, 17_000_000


class Cancelled(BaseException):
    """Stands for the host's interrupt."""


@pytest.fixture(autouse=True)
def lightx2v():
    lightx2v_cpu.import_for_cuda()
    yield
    gc.collect()
    torch.cuda.empty_cache()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found, reference):
    return float((found.double() - reference.double()).norm() / reference.double().norm())


def context_rows():
    rows = normal(512, SIZES.text_dim, seed=5).bfloat16()
    rows[21:] = 0
    return rows


def path_of(precision):
    folder = {"bf16": "distill_models/distill_model.safetensors", "fp8": "distill_fp8", "int8": "distill_int8"}
    return repository(SIZES) / folder[precision]


def make(precision, mode="none", matmul="auto", resident_blocks=0, pinned_limit_bytes=None, **settings):
    transformer = LightX2VTransformer(
        resolve_transformer(path_of(precision)),
        EngineSettings(engine="lightx2v", **settings),
        Placement(mode=mode, resident_blocks=resident_blocks, pinned_limit_bytes=pinned_limit_bytes),
        matmul=matmul,
    )
    transformer.load(SHAPE, Hooks())
    return transformer


def flow_of(transformer, timestep=937.5, hooks=None):
    latents = normal(*SHAPE, seed=4).to(DEVICE)
    return transformer.predict_flow(latents, timestep, context_rows(), hooks or Hooks()).cpu()


def attention_or_skip(name):
    try:
        select_attention(name, DEVICE)
    except (MissingDependencyError, UnsupportedHardwareError) as error:
        pytest.skip(str(error))


# Equal to LightX2V


def test_euler_latents_equal_upstreams_own_scheduler_bit_for_bit():
    path = single_file("bf16", sizes=SIZES)
    config = build_config(
        resolve_transformer(path).format.architecture,
        attention_op="torch_sdpa",
        matmul_op="Default",
        use_triton=True,
    )
    noise = normal(*SHAPE, seed=7)
    upstream = lightx2v_cpu.build_upstream(path, config, DEVICE)
    expected = lightx2v_cpu.sample_upstream(*upstream, context_rows().to(DEVICE), noise.to(DEVICE)).cpu()
    settings = EngineSettings(attention="sdpa", compile="off")
    transformer = LightX2VTransformer(resolve_transformer(path), settings, Placement(mode="none"))
    transformer.load(SHAPE, Hooks())
    schedule = build_schedule(4, 5.0)
    found = denoise(transformer, context_rows(), SHAPE, schedule, method="euler", seed=7, hooks=Hooks())
    assert torch.equal(found.cpu(), expected)


@COMPILE
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.015), ("int8", 0.03), ("fp8", 0.04)])
def test_the_portable_engine_agrees(precision, tolerance, compile):
    files, settings = resolve_transformer(path_of(precision)), EngineSettings(attention="sdpa")
    portable = PortableTransformer(files, settings, Placement(mode="none"))
    portable.load(SHAPE, Hooks())
    found = flow_of(make(precision, attention="sdpa", compile=compile))
    assert relative_error(found, flow_of(portable)) < tolerance


# Back ends


@pytest.mark.parametrize(
    ("scheme", "name"), [(dtype, row.name) for row in MATMUL_BACKENDS for dtype in sorted(row.dtypes)], ids=str
)
def test_every_matmul_that_is_here_agrees_with_dequantised_weights(scheme, name):
    expected = flow_of(make(scheme, matmul="dequantize", attention="sdpa", compile="off"))
    try:
        found = flow_of(make(scheme, matmul=name, attention="sdpa", compile="off"))
    except (MissingDependencyError, UnsupportedHardwareError) as error:
        pytest.skip(str(error))
    assert relative_error(found, expected) < 0.05


@COMPILE
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_every_mode_gives_the_same_bits_with_every_attention(precision, name, compile):
    """Upstream's block and phase offload give NaN with sage_attn2."""
    attention_or_skip(name)
    flows = []
    for mode in MODES:
        for resident_blocks in (0, 2):
            transformer = make(precision, mode, resident_blocks=resident_blocks, attention=name, compile=compile)
            flows += [flow_of(transformer), flow_of(transformer)]
            transformer.unload()
    assert flows[0].isfinite().all()
    assert all(torch.equal(flow, flows[0]) for flow in flows)


@COMPILE
def test_auto_runs_and_says_what(compile):
    facts = make("fp8", compile=compile).describe()
    assert facts["attention"] in ATTENTIONS
    assert facts["matmul"] in {row.name for row in MATMUL_BACKENDS}
    assert facts["ops"] in ({"lightx2v"} if compile == "off" else {"triton", "torch"})
    assert facts["compile"] == (facts["ops"] == "triton")


# Streaming


@COMPILE
@pytest.mark.parametrize("mode", ["block", "phase", "disk"])
@pytest.mark.parametrize("slow", ["compute", "copies"])
def test_streaming_has_no_race(mode, slow, compile):
    """Make one side much slower than the other: a missing wait shows as wrong weights."""
    expected = flow_of(make("bf16", compile=compile))
    transformer = make("bf16", mode, compile=compile)
    if slow == "compute":
        delay_blocks(transformer, SHORT_SLEEP)
    else:
        delay_copies(transformer._loaded.conveyor.residence._rest, SHORT_SLEEP)
    for _ in range(2):
        assert torch.equal(flow_of(transformer), expected)


def delay_blocks(transformer, cycles):
    """Let the GPU sleep before each self-attention."""
    loop = transformer._loaded.model.transformer_infer
    if hasattr(loop, "blocks"):
        delay_attention(loop.blocks, cycles)
        return
    for block in transformer._loaded.model.transformer_weights.blocks:
        operator = block.compute_phases[0].self_attn_1
        operator.apply = delayed(operator.apply, cycles)


def test_without_page_locked_memory_the_result_is_the_same():
    assert torch.equal(flow_of(make("fp8", "block", pinned_limit_bytes=0)), flow_of(make("fp8")))


@COMPILE
@pytest.mark.parametrize("mode", MODES)
def test_cancel_stops_within_one_block(mode, compile):
    transformer = make("bf16", mode, compile=compile)
    expected = flow_of(transformer)
    delay_blocks(transformer, LONG_SLEEP)
    start = time.perf_counter()
    flow_of(transformer)
    block_seconds = (time.perf_counter() - start) / SIZES.num_layers
    calls = itertools.count()

    def check():
        if next(calls) == (9 if mode == "phase" else 3):
            raise Cancelled

    with pytest.raises(Cancelled):
        flow_of(transformer, hooks=Hooks(check_interrupt=check))
    start = time.perf_counter()
    torch.cuda.synchronize()
    assert time.perf_counter() - start < 1.5 * block_seconds
    assert torch.equal(flow_of(transformer), expected)


@COMPILE
@pytest.mark.parametrize("mode", MODES)
def test_unload_gives_all_memory_back_at_once(mode, compile):
    warm = make("fp8", compile=compile)
    flow_of(warm)  # libraries take their workspaces, which stay
    warm.unload()
    before = torch.cuda.memory_allocated()
    gc.disable()
    try:
        transformer = make("fp8", mode, compile=compile)
        first = flow_of(transformer)
        assert torch.cuda.memory_allocated() > before
        transformer.unload()
        assert torch.cuda.memory_allocated() == before
        transformer.load(SHAPE, Hooks())
        assert torch.equal(flow_of(transformer), first)
        transformer.unload()
        assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()


@COMPILE
def test_phases_hold_less_than_blocks_and_blocks_less_than_all(compile):
    peaks = []
    for mode in ("none", "block", "phase"):
        transformer = make("bf16", mode, attention="sdpa", compile=compile)
        flow_of(transformer)
        torch.cuda.reset_peak_memory_stats()
        flow_of(transformer)
        peaks.append(torch.cuda.max_memory_allocated())
        transformer.unload()
        del transformer
    assert peaks[0] > peaks[1] > peaks[2]


# VAE


def test_vae_equals_upstreams_within_bfloat16_rounding():
    from lightx2v.models.video_encoders.hf.wan.vae import _video_vae

    sizes = TinySizes(vae_dim=24)
    path, clip = vae(".pth", torch.float32, sizes), normal(16, 3, 12, 20, seed=4)
    theirs = _video_vae(str(path), z_dim=16, dim=24, dtype=torch.bfloat16).to(DEVICE).eval().requires_grad_(False)
    mean, std = (torch.tensor(each, device=DEVICE, dtype=torch.bfloat16) for each in (LATENT_MEAN, LATENT_STD))
    images = theirs.decode(clip[None].to(DEVICE, torch.bfloat16), [mean, 1.0 / std]).clamp(-1, 1)
    expected = (images[0].permute(1, 2, 3, 0).float().cpu() + 1) / 2
    decoder = LightX2VVideoDecoder(path)
    decoder.load(Hooks())
    difference = (decode_video(decoder, clip, tile=None, hooks=Hooks()) - expected).abs()
    assert difference.mean() < 0.01
    assert difference.max() < 0.1


def test_vae_memory_does_not_grow_with_time_and_goes():
    before = torch.cuda.memory_allocated()
    decoder = LightX2VVideoDecoder(vae(".pth", torch.float32, TinySizes(vae_dim=24)))
    decoder.load(Hooks())

    def peak(frames):
        decode_video(decoder, normal(16, frames, 32, 32), tile=None, hooks=Hooks())
        torch.cuda.reset_peak_memory_stats()
        decode_video(decoder, normal(16, frames, 32, 32), tile=None, hooks=Hooks())
        return torch.cuda.max_memory_allocated()

    assert peak(12) <= peak(3) * 1.02
    decoder.unload()
    assert torch.cuda.memory_allocated() == before
