"""The portable transformer on a CUDA device: 8-bit kernels, attention back ends, streaming without races.

The model is tiny but has enough blocks and width that copies and compute overlap.
"""

import gc
import itertools
import logging
import time

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from lightx2v_pack.engine.backends.table import ATTENTION_BACKENDS
from lightx2v_pack.engine.backends.trials import find_machine
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.errors import MissingDependencyError, UnsupportedHardwareError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.kernels import matmul
from lightx2v_pack.engine.kernels.attention import select_attention
from lightx2v_pack.engine.memory.plan import Placement
from lightx2v_pack.engine.settings import EngineSettings
from lightx2v_pack.engine.system import compute_device
from lightx2v_pack.engine.wan.transformer import PortableTransformer
from lightx2v_pack.tools.make_tiny_checkpoint import TinySizes
from support.checkpoints import repository
from support.slow_gpu import delay_attention, delay_copies

pytestmark = pytest.mark.gpu

DEVICE = compute_device()
CAPABILITY = torch.cuda.get_device_capability(DEVICE)
SIZES = TinySizes(dim=512, ffn_dim=2048, num_layers=6)
SHAPE = (16, 5, 32, 32)  # 1280 tokens
MODES = ("none", "block", "phase", "disk")
# A tenth of a second of GPU time at about 1.7 GHz.
LONG_SLEEP, SHORT_SLEEP = 170_000_000, 17_000_000
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


class Cancelled(BaseException):
    """Stands for the host's interrupt."""


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found, reference):
    return float((found.double() - reference.double()).norm() / reference.double().norm())


# Matmul kernels


def quantised_layer(dtype, n, k):
    weight = normal(n, k, seed=1).to(DEVICE)
    scale = weight.abs().amax(dim=1, keepdim=True) / LARGEST[dtype]
    values = weight / scale
    bias = normal(n, seed=2).bfloat16().to(DEVICE)
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale, bias


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 40, 1280, 4099])
@pytest.mark.parametrize(("n", "k"), [(256, 512), (512, 256), (5120, 13824)], ids=str)
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    # Relative L2 on random normal data; where the numbers come from: tests/unit/test_linear.py.
    [
        ("dequantize", torch.float8_e4m3fn, 0.004),
        ("dequantize", torch.int8, 0.004),
        ("int_mm", torch.int8, 0.012),
        ("scaled_mm", torch.float8_e4m3fn, 0.035),
    ],
    ids=str,
)
def test_matmul_agrees_with_float64(name, dtype, tolerance, n, k, rows):
    if name == "scaled_mm" and CAPABILITY < (8, 9):
        pytest.skip(f"scaled_mm needs compute capability 8.9; this GPU has {CAPABILITY}")
    weight, scale, bias = quantised_layer(dtype, n, k)
    x = normal(rows, k, seed=3).bfloat16().to(DEVICE)
    found = matmul.matmul_for(name, (n, k))(x, weight, scale, bias)
    reference = x.double() @ (weight.double() * scale.double()).T + bias.double()
    assert found.shape == (rows, n)
    assert found.dtype == torch.bfloat16
    assert relative_error(found, reference) < tolerance


def test_auto_uses_the_eight_bit_kernels_of_this_card(caplog):
    with caplog.at_level(logging.INFO):
        assert matmul.select_matmul("int8", DEVICE) == "int_mm"
        assert matmul.select_matmul("fp8", DEVICE) == ("scaled_mm" if CAPABILITY >= (8, 9) else "dequantize")
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("scheme", "dtype"), [("int8", torch.int8), ("fp8", torch.float8_e4m3fn)])
def test_temporaries_stay_small(scheme, dtype):
    """A 14B feed-forward on 32,760 tokens: int32 or fp32 copies of it would be 1.7 GiB each."""
    rows, n, k = 32_760, 13_824, 512
    weight, scale, bias = quantised_layer(dtype, n, k)
    kernel = matmul.matmul_for(matmul.select_matmul(scheme, DEVICE), (n, k))
    x = torch.randn(rows, k, device=DEVICE, dtype=torch.bfloat16)
    out_bytes = rows * n * 2
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernel(x, weight, scale, bias)
    assert torch.cuda.max_memory_allocated() - before < out_bytes + 1024**3


# Attention back ends


EIGHT_BIT = ("sage_attn2", "sage_triton", "triton")


def attention_or_skip(name):
    try:
        return select_attention(name, DEVICE)[1]
    except (MissingDependencyError, UnsupportedHardwareError) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", [backend.name for backend in ATTENTION_BACKENDS])
@pytest.mark.parametrize("length", [1280, 333])
def test_attention_agrees_with_fp32(name, length):
    attention = attention_or_skip(name)
    q, k, v = (normal(1, length, 4, 128, seed=seed).to(DEVICE) for seed in range(3))
    # Keys with a mean, as real ones have; 8-bit kernels must smooth it away.
    k += normal(1, 1, 4, 128, seed=9).to(DEVICE) * 3
    q, k, v = (part.bfloat16() for part in (q, k, v))
    reference = torch.nn.functional.scaled_dot_product_attention(*(part.float().transpose(1, 2) for part in (q, k, v)))
    found = attention(q, k, v)
    assert found.shape == q.shape
    assert relative_error(found, reference.transpose(1, 2)) < (0.08 if name in EIGHT_BIT else 0.01)


def test_auto_logs_one_line(caplog):
    with caplog.at_level(logging.INFO):
        name, _ = select_attention("auto", DEVICE)
    (record,) = caplog.records
    assert f"attention: {name}" in record.getMessage()
    for package, reason in find_machine(DEVICE).problems.items():
        assert package
        assert reason


# The transformer


def path_of(precision):
    folder = {"bf16": "distill_models/distill_model.safetensors", "fp8": "distill_fp8", "int8": "distill_int8"}
    return repository(SIZES) / folder[precision]


def make(precision, mode="none", device=DEVICE, resident_blocks=0, pinned_limit_bytes=None, **settings):
    files = resolve_transformer(path_of(precision))
    placement = Placement(mode=mode, resident_blocks=resident_blocks, pinned_limit_bytes=pinned_limit_bytes)
    transformer = PortableTransformer(files, EngineSettings(**settings), placement, device=device)
    transformer.load(SHAPE, Hooks())
    return transformer


def streamed_of(transformer):
    """Return what brings the blocks that are not resident."""
    return transformer._loaded.blocks.conveyor.residence._rest


def flow_of(transformer, timestep=937.5, hooks=None):
    context = normal(512, SIZES.text_dim, seed=5)
    context[21:] = 0
    latents = normal(*SHAPE, seed=4).to(transformer.device)
    return transformer.predict_flow(latents, timestep, context, hooks or Hooks()).cpu()


@pytest.fixture(autouse=True)
def give_memory_back():
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    # Relative L2 of a six-block flow. bf16: order of summation only. fp8 and int8: the GPU quantises the
    # activations too (0.010 and 0.006 measured for two blocks on a CPU with the same scheme).
    [("bf16", 0.015), ("int8", 0.02), ("fp8", 0.04)],
)
def test_agrees_with_the_cpu(precision, tolerance):
    on_cpu = flow_of(make(precision, device=torch.device("cpu")))
    assert relative_error(flow_of(make(precision, attention="sdpa")), on_cpu) < tolerance


@pytest.mark.parametrize("name", [backend.name for backend in ATTENTION_BACKENDS])
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_every_mode_gives_the_same_bits_with_every_attention(precision, name):
    attention_or_skip(name)
    flows = []
    for mode in MODES:
        for resident_blocks in (0, 2):
            transformer = make(precision, mode, resident_blocks=resident_blocks, attention=name)
            flows += [flow_of(transformer), flow_of(transformer)]
            transformer.unload()
    assert flows[0].isfinite().all()
    assert all(torch.equal(flow, flows[0]) for flow in flows)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_fused_kernels_agree_with_plain_torch(precision):
    """The same roundings but for sums in another order; 8-bit codes differ now and then."""
    fused, plain = make(precision, attention="sdpa", compile="auto"), make(precision, attention="sdpa", compile="off")
    if not fused.describe()["compile"]:
        pytest.skip("Triton does not run here")
    assert fused.describe()["ops"] == "triton"
    assert plain.describe()["ops"] == "torch"
    assert relative_error(flow_of(fused), flow_of(plain)) < 0.02


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("compile", ["auto", "off"])
def test_a_pass_never_waits_for_the_device(precision, compile):
    """What the host waits for are events of the pace, which are no synchronisation in this sense."""
    transformer = make(precision, "block", compile=compile)
    context = normal(512, SIZES.text_dim, seed=5)
    context[21:] = 0
    latents = normal(*SHAPE, seed=4).to(DEVICE)
    first = transformer.predict_flow(latents, 937.5, context, Hooks())
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = transformer.predict_flow(latents, 937.5, context, Hooks())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)


@pytest.mark.parametrize("mode", ["block", "phase", "disk"])
@pytest.mark.parametrize("slow", ["compute", "copies"])
def test_streaming_has_no_race(mode, slow):
    """Make one side much slower than the other: a missing wait shows as wrong weights."""
    expected = flow_of(make("bf16"))
    transformer = make("bf16", mode)
    if slow == "compute":
        delay_attention(transformer._loaded.blocks, SHORT_SLEEP)
    else:
        delay_copies(streamed_of(transformer), SHORT_SLEEP)
    for _ in range(2):
        assert torch.equal(flow_of(transformer), expected)


@pytest.mark.parametrize("mode", MODES)
def test_cancel_stops_within_one_block(mode):
    transformer = make("bf16", mode)
    expected = flow_of(transformer)
    delay_attention(transformer._loaded.blocks, LONG_SLEEP)
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


@pytest.mark.parametrize("mode", ["block", "phase", "disk"])
def test_streaming_holds_two_units_and_unload_gives_all_back(mode):
    warm = make("bf16")
    flow_of(warm)  # libraries take their workspaces, which stay
    warm.unload()
    before = torch.cuda.memory_allocated()
    resident = make("bf16")
    resident_bytes = torch.cuda.memory_allocated() - before
    resident.unload()
    assert torch.cuda.memory_allocated() == before
    transformer = make("bf16", mode)
    sizes = [unit.num_bytes for unit in streamed_of(transformer)._units]
    held = torch.cuda.memory_allocated() - before
    assert held < resident_bytes - sum(sizes) + 2 * max(sizes) + 2**20
    whole = flow_of(transformer)
    transformer.unload()
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    transformer.load(SHAPE, Hooks())
    assert torch.equal(flow_of(transformer), whole)


def test_without_page_locked_memory_the_result_is_the_same():
    transformer = make("fp8", "block", pinned_limit_bytes=0)
    assert not any(buffer.is_locked for buffer in streamed_of(transformer)._home._buffers)
    assert torch.equal(flow_of(transformer), flow_of(make("fp8")))
