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

from checkpoints import repository
from lightx2v_pack.engine.adapters.kernels import matmul
from lightx2v_pack.engine.adapters.kernels.attention import select_attention
from lightx2v_pack.engine.adapters.kernels.probe import find_machine
from lightx2v_pack.engine.adapters.portable.transformer import PortableTransformer
from lightx2v_pack.engine.adapters.streaming import HostBuffer
from lightx2v_pack.engine.adapters.system import compute_device
from lightx2v_pack.engine.errors import MissingDependencyError, UnsupportedHardwareError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.logic.checkpoint_files import resolve_transformer
from lightx2v_pack.engine.logic.support import ATTENTION_BACKENDS
from lightx2v_pack.engine.settings import EngineSettings
from lightx2v_pack.tools.make_tiny_checkpoint import TinySizes

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
    assert relative_error(found, reference.transpose(1, 2)) < (0.08 if name.startswith("sage") else 0.01)


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


def make(precision, mode="none", device=DEVICE, **settings):
    files = resolve_transformer(path_of(precision))
    transformer = PortableTransformer(files, EngineSettings(**settings), mode, device=device)
    transformer.load(SHAPE, Hooks())
    return transformer


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
        transformer = make(precision, mode, attention=name)
        flows += [flow_of(transformer), flow_of(transformer)]
        transformer.unload()
    assert flows[0].isfinite().all()
    assert all(torch.equal(flow, flows[0]) for flow in flows)


@pytest.mark.parametrize("mode", ["block", "phase", "disk"])
@pytest.mark.parametrize("slow", ["compute", "copies"])
def test_streaming_has_no_race(mode, slow):
    """Make one side much slower than the other: a missing wait shows as wrong weights."""
    expected = flow_of(make("bf16"))
    transformer = make("bf16", mode)
    residence = transformer._loaded.conveyor.residence
    if slow == "compute":
        for name, module in transformer._loaded.model.named_modules():
            if name.endswith((".inner.attn1", ".inner.ffn", ".attn1.inner", ".ffn.inner")):
                module.register_forward_pre_hook(lambda *_: torch.cuda._sleep(SHORT_SLEEP))
    else:
        packed = residence._home.packed

        def slow_packed(index, slot):
            with torch.cuda.stream(residence._copies):
                torch.cuda._sleep(SHORT_SLEEP)
            return packed(index, slot)

        residence._home.packed = slow_packed
    for _ in range(2):
        assert torch.equal(flow_of(transformer), expected)


@pytest.mark.parametrize("mode", MODES)
def test_cancel_stops_within_one_block(mode):
    transformer = make("bf16", mode)
    expected = flow_of(transformer)
    for block in transformer._loaded.model.blocks:
        module = block.inner if mode != "phase" else block.attn1.inner
        module.register_forward_pre_hook(lambda *_: torch.cuda._sleep(LONG_SLEEP))
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
    sizes = [unit.num_bytes for unit in transformer._loaded.conveyor.residence._units]
    held = torch.cuda.memory_allocated() - before
    assert held < resident_bytes - sum(sizes) + 2 * max(sizes) + 2**20
    whole = flow_of(transformer)
    transformer.unload()
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    transformer.load(SHAPE, Hooks())
    assert torch.equal(flow_of(transformer), whole)


def test_host_memory_is_page_locked_and_unlocked():
    buffer = HostBuffer(3_000_000)
    assert buffer.lock()
    assert buffer.tensor.is_pinned()
    memory = buffer.tensor
    del buffer
    gc.collect()
    assert not memory.is_pinned()


def test_without_page_locked_memory_the_result_is_the_same():
    files = resolve_transformer(path_of("fp8"))
    transformer = PortableTransformer(files, EngineSettings(), "block", device=DEVICE, pinned_limit_bytes=0)
    transformer.load(SHAPE, Hooks())
    assert not any(buffer.tensor.is_pinned() for buffer in transformer._loaded.conveyor.residence._home._buffers)
    assert torch.equal(flow_of(transformer), flow_of(make("fp8")))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_compiled_blocks(precision):
    """One graph serves all blocks and streamed weights, and computes the same up to rounding."""
    pytest.importorskip("triton", reason="torch.compile on CUDA needs Triton")
    from torch._dynamo.utils import counters

    plain = flow_of(make(precision))
    torch._dynamo.reset()
    counters.clear()
    compiled = flow_of(make(precision, compile="on"))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert relative_error(compiled, plain) < 0.02
    streamed = flow_of(make(precision, "block", compile="on"))
    assert torch.equal(streamed, compiled)
