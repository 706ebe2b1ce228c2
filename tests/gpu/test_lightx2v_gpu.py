"""The LightX2V engine on a CUDA device: the contract, its back ends, and equality with LightX2V itself; its VAE.

The model is tiny but has enough blocks and width that copies and compute overlap.
"""

import functools
import gc
from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from lightx2v_pack.engine.adapters.lightx2v.config import build_config
from lightx2v_pack.engine.adapters.lightx2v.vae import LightX2VVideoDecoder
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.backends.table import LIGHTX2V_MATMUL_BACKENDS, why_not
from lightx2v_pack.engine.checkpoints.companions import resolve_vae
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.constants import LATENT_MEAN, LATENT_STD
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import denormalize
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.settings import EngineSettings
from lightx2v_pack.engine.stages.decode import decode_video
from lightx2v_pack.engine.stages.denoise import run_steps, start
from lightx2v_pack.engine.stages.schedule import build_schedule
from lightx2v_pack.engine.system import compute_device
from lightx2v_pack.tools.make_tiny_checkpoint import TinySizes
from support import lightx2v_cpu
from support.attention import ATTENTIONS
from support.checkpoints import A14B_I2V_SIZES, FLF2V_SIZES, I2V_SIZES, distilled, single_file, vae
from support.contract_of_a_transformer import GpuContract
from support.decoders import loaded
from support.engine import conditioning_of, open_transformer
from support.gpu_memory import peak_of
from support.tensors import normal, relative_error

pytestmark = pytest.mark.gpu

DEVICE = compute_device()
SIZES, SHAPE = GpuContract.sizes, GpuContract.shape
# LightX2V takes text in bfloat16.
CONDITIONING = conditioning_of(normal(21, SIZES.text_dim, seed=5).bfloat16().float())


@pytest.fixture(autouse=True)
def lightx2v():
    lightx2v_cpu.import_for_cuda()
    yield
    gc.collect()
    torch.cuda.empty_cache()


class TestContract(GpuContract):
    engine = "lightx2v"
    device = DEVICE


def make(path, matmul=None, engine="lightx2v", placement=None, **settings):
    settings = EngineSettings(engine=engine, **settings)
    transformer = open_transformer(resolve_transformer(path), settings, placement, DEVICE, matmul=matmul)
    transformer.load(Hooks())
    return transformer


def flow_of(transformer):
    return transformer.predict_flow(normal(*SHAPE, seed=4).to(DEVICE), 937.5, CONDITIONING, Hooks()).cpu()


# Equal to LightX2V


def test_euler_latents_equal_upstreams_own_scheduler_bit_for_bit():
    path = single_file("bf16", sizes=SIZES)
    config = build_config(
        resolve_transformer(path).format.architecture,
        attention_op="torch_sdpa",
        matmul_op="Default",
        use_triton=True,
    )
    noise, context = normal(*SHAPE, seed=7), CONDITIONING.text.bfloat16()
    upstream = lightx2v_cpu.build_upstream(path, config, DEVICE)
    expected = lightx2v_cpu.sample_upstream(*upstream, context.to(DEVICE), noise.to(DEVICE)).cpu()
    transformer, state = make(path, attention="sdpa"), start(SHAPE, 7, DEVICE)
    run_steps(transformer, CONDITIONING, state, build_schedule(4, 5.0), range(4), method="euler", hooks=Hooks())
    assert torch.equal(state.latents.cpu(), expected)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.015), ("int8", 0.03), ("fp8", 0.04)])
def test_the_portable_engine_agrees(precision, tolerance):
    path = distilled(precision, SIZES)
    expected = flow_of(make(path, engine="portable", attention="sdpa"))
    assert relative_error(flow_of(make(path, attention="sdpa")), expected) < tolerance


# Image to video


@pytest.mark.parametrize(
    ("sizes", "num_rows"), [(I2V_SIZES, 257), (FLF2V_SIZES, 18), (A14B_I2V_SIZES, 0)], ids=["I2V", "FLF2V", "Wan2.2"]
)
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_an_image_is_the_portable_engines_wherever_weights_rest(precision, sizes, num_rows):
    sizes = replace(sizes, num_layers=5)  # more than there are buffers
    path, latents = single_file(precision, sizes=sizes), normal(*SHAPE, seed=4).to(DEVICE)
    rows = normal(num_rows, sizes.image_dim, seed=8) if num_rows else None
    clip = replace(CONDITIONING, image_tokens=rows, image_latents=normal(20, *SHAPE[1:], seed=9))

    def flow(engine, mode):
        transformer = make(path, engine=engine, placement=Placement(mode=mode), attention="sdpa")
        try:
            return transformer.predict_flow(latents, 937.5, clip, Hooks()).cpu()
        finally:
            transformer.unload()

    expected, *others = (flow("lightx2v", mode) for mode in ("none", "block", "phase", "disk"))
    assert all(torch.equal(each, expected) for each in others)
    assert relative_error(expected, flow("portable", "none")) < {"bf16": 0.015, "fp8": 0.04}[precision]


# Back ends


@pytest.mark.parametrize(
    ("precision", "row"),
    [(dtype, row) for row in LIGHTX2V_MATMUL_BACKENDS for dtype in sorted(row.dtypes)],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_matmul_that_is_here_agrees_with_dequantized_weights(precision, row):
    from lightx2v_pack.engine.adapters.lightx2v import ops

    trial = trials.Trial("matmul", row, "dequantize", functools.partial(ops.multiply, precision))
    problem = why_not(row, trials.find_machine(DEVICE), precision) or trials.trial_problem(trial, DEVICE)
    if problem:
        pytest.skip(f"{row.name}: {problem}")
    path = distilled(precision, SIZES)
    expected = flow_of(make(path, matmul="dequantize", attention="sdpa"))
    assert relative_error(flow_of(make(path, matmul=row.name, attention="sdpa")), expected) < 0.05


def test_auto_runs_and_says_what():
    facts = make(distilled("fp8", SIZES)).describe()
    assert facts["attention"] in ATTENTIONS
    assert facts["matmul"] in {row.name for row in LIGHTX2V_MATMUL_BACKENDS}
    assert facts["ops"] == "lightx2v"
    assert facts["compile"] is False


# VAE


def test_vae_equals_upstreams_within_bfloat16_rounding():
    from lightx2v.models.video_encoders.hf.wan.vae import _video_vae

    sizes = TinySizes(vae_dim=24)
    path, clip = vae(".pth", torch.float32, sizes), normal(16, 3, 12, 20, seed=4)
    theirs = _video_vae(str(path), z_dim=16, dim=24, dtype=torch.bfloat16).to(DEVICE).eval().requires_grad_(False)
    mean, std = (torch.tensor(each, device=DEVICE, dtype=torch.bfloat16) for each in (LATENT_MEAN, LATENT_STD))
    images = theirs.decode(clip[None].to(DEVICE, torch.bfloat16), [mean, 1.0 / std]).clamp(-1, 1)
    expected = (images[0].permute(1, 2, 3, 0).float().cpu() + 1) / 2
    decoder = loaded(LightX2VVideoDecoder(resolve_vae(path), DEVICE))
    difference = (decode_video(decoder, denormalize(clip), tile=None, hooks=Hooks()) - expected).abs()
    assert difference.mean() < 0.01
    assert difference.max() < 0.1


def test_vae_memory_does_not_grow_with_time_and_goes():
    before = torch.cuda.memory_allocated()
    decoder = loaded(LightX2VVideoDecoder(resolve_vae(vae(".pth", torch.float32, TinySizes(vae_dim=24))), DEVICE))

    def peak(frames):
        return peak_of(decode_video, decoder, normal(16, frames, 32, 32), tile=None, hooks=Hooks())

    assert peak(12) <= peak(3) * 1.02
    decoder.unload()
    assert torch.cuda.memory_allocated() == before
