"""Every word we say to LightX2V is one that it understands: config keys, op names, module names."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine.adapters.lightx2v import config as words
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.backends.choose import Wanted
from lightx2v_pack.engine.backends.table import LIGHTX2V_MATMUL_BACKENDS
from lightx2v_pack.engine.checkpoints.formats import WanArchitecture
from lightx2v_pack.engine.kernels import matmul
from lightx2v_pack.engine.stages.schedule import build_schedule
from support import lightx2v_cpu

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = WanArchitecture(
    dim=256, ffn_dim=512, num_heads=2, num_layers=2, in_dim=16, out_dim=16, freq_dim=256, text_dim=64
)
I2V_2_2 = replace(ARCHITECTURE, in_dim=36)
I2V_2_1 = replace(I2V_2_2, image_dim=32)


@pytest.fixture(autouse=True)
def lightx2v():
    lightx2v_cpu.import_lightx2v()


def build(architecture=ARCHITECTURE, **changes):
    chosen = {"attention_op": "torch_sdpa", "matmul_op": "fp8-torchao", "use_triton": True}
    return words.build_config(architecture, **{**chosen, **changes})


def imported_sources():
    """Return the text of every LightX2V module that our import has loaded."""
    files = [module.__file__ for name, module in sys.modules.items() if name.startswith("lightx2v.")]
    return "\n".join(Path(file).read_text(encoding="utf-8") for file in files if file)


def test_every_config_key_is_read_by_the_modules_that_we_import():
    source = imported_sources()
    unread = [key for key in build() if not re.search(rf"config(\.get\(|\[)[\"']{key}[\"']", source)]
    assert unread == []


def test_a_key_that_nobody_reads_would_be_found():
    assert not re.search(r"config(\.get\(|\[)[\"']sage_attention_please[\"']", imported_sources())


@pytest.mark.parametrize("changes", [{}, {"use_triton": False}, {"matmul_op": "Default"}])
def test_every_op_name_is_registered(changes):
    from lightx2v.utils import registry_factory as registry

    config = build(**changes)
    assert config["rope_type"] in registry.ROPE_REGISTER
    assert config["rms_norm_type"] in registry.RMS_WEIGHT_REGISTER
    assert config["layer_norm_type"] in registry.LN_WEIGHT_REGISTER
    assert config["cross_attn_1_type"] in registry.ATTN_WEIGHT_REGISTER
    assert config["cross_attn_2_type"] in registry.ATTN_WEIGHT_REGISTER


def test_every_matmul_op_is_registered_and_allowed_by_upstreams_own_list():
    from lightx2v.models.networks.wan.distill_model import WanDistillModel
    from lightx2v.utils.registry_factory import MM_WEIGHT_REGISTER
    from lightx2v_pack.engine.adapters.lightx2v import ops

    assert ops.matmul_op("fp8", "dequantize") == words.MATMUL_OPS["fp8", "dequantize"]
    assert set(words.MATMUL_OPS.values()) <= set(MM_WEIGHT_REGISTER)
    for op in set(words.MATMUL_OPS.values()) - {"Default"}:
        if not op.startswith(words.OURS):
            model = WanDistillModel.__new__(WanDistillModel)
            model.config = {"dit_quant_scheme": op}
            model._check_dit_quantized()


def test_every_back_end_of_the_table_has_an_op_and_every_op_a_row():
    rows = {(dtype, row.name) for row in LIGHTX2V_MATMUL_BACKENDS for dtype in row.dtypes}
    assert rows == set(words.MATMUL_OPS) - {("bf16", "bf16")}


def test_attention_ops_are_registered_and_compute_what_the_kernel_does():
    from lightx2v.utils.registry_factory import ATTN_WEIGHT_REGISTER
    from lightx2v_pack.engine.adapters.lightx2v import ops

    wanted = Wanted(precision="bf16", dim=256, ffn_dim=512, engine="lightx2v")
    name = trials.confirm(wanted, torch.device("cpu"), lightx2v_matmul=ops.multiply).attention.name
    op = ops.attention_op(name)
    q, k, v = torch.randn(3, 24, 2, 128).bfloat16()
    found = ATTN_WEIGHT_REGISTER[op]().apply(q=q, k=k, v=v, max_seqlen_q=24, cu_seqlens_q=None)
    expected = ATTN_WEIGHT_REGISTER["torch_sdpa"]().apply(q=q, k=k, v=v, max_seqlen_q=24)
    assert name == "sdpa"
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("n", "k", "name"), [(32, 48, "int_mm"), (24, 48, "dequantize"), (32, 40, "dequantize")])
def test_our_matmul_op_dequantizes_sizes_that_its_kernel_cannot_take(n, k, name):
    from lightx2v.utils.registry_factory import MM_WEIGHT_REGISTER
    from lightx2v_pack.engine.adapters.lightx2v import ops

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, k, generator=generator).bfloat16()
    weight = torch.randint(-127, 128, (n, k), generator=generator).to(torch.int8)
    scale, bias = torch.rand(n, 1, generator=generator), torch.randn(n, generator=generator).bfloat16()
    layer = MM_WEIGHT_REGISTER[ops.matmul_op("int8", "int_mm")]("x.weight", "x.bias")
    layer.load({"x.weight": weight, "x.weight_scale": scale, "x.bias": bias})
    found = layer.apply(x)
    assert torch.equal(found, matmul.MATMULS[name](x, weight, scale, bias))
    exact = x.double() @ (weight.double() * scale.double()).T + bias.double()
    assert (found.double() - exact).norm() / exact.norm() < 0.012


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_a_cpu_dequantizes(precision):
    from lightx2v_pack.engine.adapters.lightx2v import ops

    wanted = Wanted(precision=precision, dim=256, ffn_dim=512, engine="lightx2v")
    chosen = trials.confirm(wanted, torch.device("cpu"), lightx2v_matmul=ops.multiply)
    assert (chosen.blocks.name, chosen.matmul.name) == ("lightx2v", "dequantize")


def test_the_trial_of_a_matmul_op_agrees_with_plain_torch():
    from lightx2v_pack.engine.adapters.lightx2v import ops

    found, plain = (ops.multiply("int8", name, torch.device("cpu")).float() for name in ("int_mm", "dequantize"))
    assert not torch.equal(found, plain)
    assert (found - plain).norm() / plain.norm() < 0.012


def test_the_schedule_is_upstreams():
    from lightx2v.models.schedulers.wan.step_distill.scheduler import WanStepDistillScheduler
    from lightx2v.utils.set_config import get_default_config

    scheduler = WanStepDistillScheduler({**get_default_config(), **build()})
    scheduler.prepare(0, [16, 1, 2, 2])
    schedule = build_schedule(4, 5.0)
    # In float32, as both are used.
    assert torch.equal(torch.tensor(schedule.sigmas[:-1]), scheduler.sigmas)
    assert torch.equal(torch.tensor(schedule.timesteps), scheduler.timesteps)


def test_nothing_else_in_the_engine_names_an_upstream_key():
    ours = {"task", "dim", "num_heads", "num_layers", "in_dim", "out_dim", "freq_dim"}
    for path in (ROOT / "engine").rglob("*.py"):
        if path != ROOT / "engine/adapters/lightx2v/config.py":
            text = path.read_text(encoding="utf-8")
            assert not [key for key in set(build()) - ours if f'"{key}"' in text], path


def test_settings_that_upstream_gets_wrong_by_default():
    # use_image_encoder: an unbound variable on text to video; rope_type: flashinfer, which nobody has;
    # rms_norm_type: squares in bfloat16 without sgl-kernel; dit_quantized: 8-bit weights without their scales.
    config = build()
    assert config["use_image_encoder"] is False
    assert [build(each)["use_image_encoder"] for each in (I2V_2_1, I2V_2_2)] == [True, False]
    assert [build(each)["task"] for each in (ARCHITECTURE, I2V_2_1, I2V_2_2)] == ["t2v", "i2v", "i2v"]
    assert config["rope_type"] in ("torch_complex_rope", "torch_real_rope")
    assert config["rms_norm_type"] == "torch_native"
    assert config["dit_quantized"] is True
    assert "dit_quantized" not in build(matmul_op="Default")
