"""The pack's own transformer on a CUDA device: the contract, 8-bit kernels, attention back ends, fused operations.

The model is tiny but has enough blocks and width that copies and compute overlap.
"""

import gc
import logging

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.backends.choose import Wanted
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.handles import weight_sizes
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.kernels.matmul import MATMULS
from lightx2v_pack.engine.kernels.requantize import requantize
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.settings import EngineSettings
from lightx2v_pack.engine.system import compute_device
from support.attention import ATTENTIONS, attention_or_skip
from support.checkpoints import distilled
from support.contract_of_a_transformer import GpuContract
from support.engine import CPU, conditioning_of, open_transformer
from support.slow_gpu import SHORT_SLEEP, delay_copies, sleep_before_units
from support.tensors import normal, quantized, relative_error

pytestmark = pytest.mark.gpu

DEVICE = compute_device()
CAPABILITY = torch.cuda.get_device_capability(DEVICE)
SIZES, SHAPE = GpuContract.sizes, GpuContract.shape
CONDITIONING = conditioning_of(normal(21, SIZES.text_dim, seed=5))


class TestContract(GpuContract):
    engine = "portable"
    device = DEVICE


class TestContractWithoutFusedKernels(TestContract):
    settings = {"compile": "off"}  # noqa: RUF012


# Matmul kernels


def chosen_for(precision):
    """Return the kernels that plain operations are run with on this card."""
    return trials.confirm(Wanted(precision=precision, dim=512, ffn_dim=2048, fused_kernels="off"), DEVICE)


def quantized_layer(dtype, n, k):
    return *quantized(normal(n, k, seed=1).to(DEVICE), dtype), normal(n, seed=2).bfloat16().to(DEVICE)


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
    weight, scale, bias = quantized_layer(dtype, n, k)
    x = normal(rows, k, seed=3).bfloat16().to(DEVICE)
    found = MATMULS[name](x, weight, scale, bias)
    reference = x.double() @ (weight.double() * scale.double()).T + bias.double()
    assert found.shape == (rows, n)
    assert found.dtype == torch.bfloat16
    assert relative_error(found, reference) < tolerance


def test_auto_uses_the_eight_bit_kernels_of_this_card(caplog):
    with caplog.at_level(logging.INFO):
        assert chosen_for("int8").matmul.name == "int_mm"
        assert chosen_for("fp8").matmul.name == ("scaled_mm" if CAPABILITY >= (8, 9) else "int_mm")
    for precision in ("int8", "fp8"):
        assert len([line for line in caplog.messages if f": {precision} matmul: " in line]) == 1


@pytest.mark.parametrize(("scheme", "dtype"), [("int8", torch.int8), ("fp8", torch.float8_e4m3fn)])
def test_temporaries_stay_small(scheme, dtype):
    """A 14B feed-forward on 32,760 tokens: int32 or fp32 copies of it would be 1.7 GiB each."""
    rows, n, k = 32_760, 13_824, 512
    weight, scale, bias = quantized_layer(dtype, n, k)
    chosen = chosen_for(scheme)
    kernel = MATMULS[chosen.matmul.name]
    if chosen.requantizes:
        weight = requantize(weight, scale)
    x = torch.randn(rows, k, device=DEVICE, dtype=torch.bfloat16)
    out_bytes = rows * n * 2
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernel(x, weight, scale, bias)
    assert torch.cuda.max_memory_allocated() - before < out_bytes + 1024**3


# Attention back ends


EIGHT_BIT = ("sage_attn2", "sage_triton", "triton", "triton_int8")


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("length", [1280, 333])
def test_attention_agrees_with_fp32(name, length):
    attention = attention_or_skip(name, DEVICE)
    q, k, v = (normal(1, length, 4, 128, seed=seed).to(DEVICE) for seed in range(3))
    # Keys with a mean, as real ones have; 8-bit kernels must smooth it away.
    k += normal(1, 1, 4, 128, seed=9).to(DEVICE) * 3
    q, k, v = (part.bfloat16() for part in (q, k, v))
    reference = torch.nn.functional.scaled_dot_product_attention(*(part.float().transpose(1, 2) for part in (q, k, v)))
    found = attention(q, k, v)
    assert found.shape == q.shape
    assert relative_error(found, reference.transpose(1, 2)) < (0.08 if name in EIGHT_BIT else 0.01)


def test_auto_logs_one_line(caplog):
    trials.forget_trials()
    chosen_for("bf16")  # trial runs that fail say so, once
    with caplog.at_level(logging.INFO):
        name = chosen_for("bf16").attention.name
    (line,) = [line for line in caplog.messages if "attention: " in line]
    assert f"attention: {name}" in line
    for package, reason in trials.find_machine(DEVICE).problems.items():
        assert package
        assert reason


# The transformer


def make(precision, mode="none", device=DEVICE, resident_blocks=0, matmul=None, **settings):
    files = resolve_transformer(distilled(precision, SIZES))
    placement = Placement(mode=mode, resident_blocks=resident_blocks)
    transformer = open_transformer(files, EngineSettings(**settings), placement, device, matmul=matmul)
    transformer.load(Hooks())
    return transformer


def flow_of(transformer, hooks=None):
    latents = normal(*SHAPE, seed=4).to(transformer.device)
    return transformer.predict_flow(latents, 937.5, CONDITIONING, hooks or Hooks()).cpu()


@pytest.fixture(autouse=True)
def give_memory_back():
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    # Relative L2 of a six-block flow. bf16: order of summation only. fp8 and int8: the GPU quantizes the
    # activations too (0.010 and 0.006 measured for two blocks on a CPU with the same scheme).
    [("bf16", 0.015), ("int8", 0.02), ("fp8", 0.04)],
)
def test_agrees_with_the_cpu(precision, tolerance):
    on_cpu = flow_of(make(precision, device=CPU))
    assert relative_error(flow_of(make(precision, attention="sdpa")), on_cpu) < tolerance


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_fused_kernels_agree_with_plain_torch(precision):
    """The same roundings but for sums in another order; 8-bit codes differ now and then."""
    fused, plain = make(precision, attention="sdpa", compile="auto"), make(precision, attention="sdpa", compile="off")
    if not fused.describe()["compile"]:
        pytest.skip("Triton does not run here")
    assert fused.describe()["ops"] == "triton"
    assert plain.describe()["ops"] == "torch"
    assert relative_error(flow_of(fused), flow_of(plain)) < 0.02


@pytest.mark.parametrize("matmul", ["int_triton", "int_mm"])
@pytest.mark.parametrize("slow", ["nothing", "compute", "copies"])
def test_an_fp8_file_is_requantized_to_the_same_bits_in_every_mode(matmul, slow, monkeypatch):
    """As on a card without FP8; the second pass finds in RAM what the first has made of it."""
    compile = "on" if matmul == "int_triton" else "off"
    if matmul == "int_triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    resident = make("fp8", matmul=matmul, compile=compile)
    expected, facts = flow_of(resident), resident.describe()
    assert (facts["precision"], facts["compute"]) == ("fp8", "int8")
    hooks = Hooks(check_interrupt=sleep_before_units(SHORT_SLEEP)) if slow == "compute" else Hooks()
    if slow == "copies":
        delay_copies(monkeypatch, SHORT_SLEEP)
    for mode, resident_blocks in (("block", 0), ("block", 3), ("phase", 0), ("disk", 0), ("disk", 2)):
        transformer = make("fp8", mode, resident_blocks=resident_blocks, matmul=matmul, compile=compile)
        for _ in range(3):
            assert torch.equal(flow_of(transformer, hooks), expected), (mode, resident_blocks)
        transformer.unload()


@pytest.mark.parametrize("matmul", ["int_triton", "int_mm"])
def test_requantizing_costs_little_beside_fp8_itself(matmul):
    """Error of the flow to BF16's: an FP8 file's in INT8 next to its own, in BF16, and to an INT8 file's."""
    compile = "on" if matmul == "int_triton" else "off"
    if matmul == "int_triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    exact = flow_of(make("bf16", compile=compile))
    fp8, int8, both = (
        relative_error(flow_of(make(precision, matmul=name, compile=compile)), exact)
        for precision, name in (("fp8", "dequantize"), ("int8", matmul), ("fp8", matmul))
    )
    assert both < 1.25 * max(fp8, int8)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("compile", ["auto", "off"])
def test_a_pass_never_waits_for_the_device(precision, compile):
    """What the host waits for are events of the pace, which are no synchronisation in this sense."""
    transformer = make(precision, "block", compile=compile)
    latents = normal(*SHAPE, seed=4).to(DEVICE)
    first = transformer.predict_flow(latents, 937.5, CONDITIONING, Hooks())
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = transformer.predict_flow(latents, 937.5, CONDITIONING, Hooks())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)


@pytest.mark.parametrize("mode", ["block", "phase", "disk"])
def test_streaming_holds_two_units(mode):
    warm = make("bf16")
    flow_of(warm)  # libraries take their workspaces, which stay
    warm.unload()
    before = torch.cuda.memory_allocated()
    resident = make("bf16")
    resident_bytes = torch.cuda.memory_allocated() - before
    resident.unload()
    assert torch.cuda.memory_allocated() == before
    transformer = make("bf16", mode)
    sizes = weight_sizes(resolve_transformer(distilled("bf16", SIZES)))
    held = torch.cuda.memory_allocated() - before
    assert held < resident_bytes - sizes.blocks + 2 * (sizes.phase if mode == "phase" else sizes.block) + 2**20
    transformer.unload()
    gc.collect()
    assert torch.cuda.memory_allocated() == before
