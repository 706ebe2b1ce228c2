"""LoRAs in the product of FP8 layers: as exact as added to it in BF16, whatever their size."""

import pytest
import torch
from lightx2v_pack.engine.kernels import ops_torch
from lightx2v_pack.engine.kernels.joined import balance_of, join, join_inputs, join_weight
from lightx2v_pack.engine.kernels.matmul import Linear
from lightx2v_pack.engine.kernels.quantize import quantize
from lightx2v_pack.engine.memory.activations import branch_room, workspace_sizes
from lightx2v_pack.engine.wan.kernels import Kernels
from lightx2v_pack.engine.wan.workspace import Workspace
from support.tensors import normal, relative_error

ROWS, COLUMNS, OUTPUTS = 40, 96, 56
CPU = torch.device("cpu")


def in_fp8(values, room=0):
    rows = torch.full((len(values), room + values.shape[1]), torch.nan).to(torch.float8_e4m3fn)[:, room:]
    scale = values.new_empty(len(values), 1)
    quantize(values, rows, scale)
    return rows, scale


def multiply(x, scale, layer, out):
    """Multiply in float64 what is stored in FP8."""
    product = x.double() @ layer.weight.double().T * scale.double() * layer.weight_scale.double().flatten()
    out.copy_(product + layer.bias.double())


def parts_of(rank, size, seed=0, *, is_cast=False):
    """Return x, a layer and a branch of some size beside the layer's output, all as they are stored.

    Args: is_cast: the weight has a scale of one.
    """
    x, scale = in_fp8(
        normal(ROWS, COLUMNS, seed=seed) * torch.logspace(-3, 2, ROWS)[:, None], branch_room(rank, joins_loras=True)
    )
    weight, weight_scale = in_fp8(normal(OUTPUTS, COLUMNS, seed=seed + 1) * torch.logspace(-2, 1, OUTPUTS)[:, None])
    if is_cast:
        weight, weight_scale = (weight.float() * weight_scale / 50).to(weight.dtype), torch.ones_like(weight_scale)
        size = size / 50
    down, down_scale = in_fp8(normal(rank, COLUMNS, seed=seed + 2))
    up = (normal(OUTPUTS, rank, seed=seed + 3) * torch.logspace(-2, 1, OUTPUTS)[:, None] * size / rank**0.5).bfloat16()
    hidden = (x.float() * scale @ (down.float() * down_scale).T).bfloat16()
    layer = Linear(weight, weight_scale, normal(OUTPUTS, seed=seed + 4).bfloat16())
    return x, scale, layer, hidden, up, balance_of(up, weight_scale, down.float() * down_scale, COLUMNS)


@pytest.mark.parametrize("rank", [16, 48, 160])
@pytest.mark.parametrize("size", [1e-4, 0.01, 0.3, 10.0, 1e4])
@pytest.mark.parametrize("is_cast", [False, True])
def test_a_branch_in_the_product_is_as_exact_as_beside_it(rank, size, is_cast):
    x, scale, layer, hidden, up, balance = parts_of(rank, size, is_cast=is_cast)
    before = x.float() * scale
    branch = hidden.double() @ up.double().T
    base, out = (torch.empty(ROWS, OUTPUTS, dtype=torch.float64) for _ in range(2))
    multiply(x, scale, layer, base)
    joined = join(ops_torch, hidden, up, balance, x, scale, layer)
    assert joined[0].stride(0) == joined[0].shape[1] == joined[2].weight.shape[1], "dense for every kernel"
    multiply(*joined, out)
    if size <= 10:
        assert torch.equal(x.float() * scale, before)
        # BF16 rounds by 0.0017 on average. What is a ten thousandth of the output is lost in its rounding anyway.
        assert relative_error(out - base, branch) < (0.02 if size < 0.01 else 0.003 if is_cast else 0.0017)
    assert relative_error(out, base + branch) < 0.0017


def test_each_row_is_exact_whatever_its_size_and_that_of_others():
    x, scale, layer, hidden, up, balance = parts_of(16, 0.1)
    for row in (3, 20):
        alone = [part[row : row + 1].clone() for part in (x, scale, hidden)]
        room = torch.zeros(1, 128 + COLUMNS).to(x.dtype)[:, 128:]
        room.copy_(alone[0])
        out = torch.empty(1, OUTPUTS, dtype=torch.float64)
        multiply(*join(ops_torch, alone[2], up, balance, room, alone[1], layer), out)
        together = torch.empty(ROWS, OUTPUTS, dtype=torch.float64)
        every = torch.zeros(ROWS, 128 + COLUMNS).to(x.dtype)[:, 128:]
        every.copy_(x)
        multiply(*join(ops_torch, hidden, up, balance, every, scale.clone(), layer), together)
        assert torch.equal(out[0], together[row])


@pytest.mark.parametrize("zero", ["x", "down", "up", "weight"])
def test_zeros_add_nothing(zero):
    x, scale, layer, hidden, up, balance = parts_of(16, 0.1)
    if zero == "x":
        x.zero_(), hidden.zero_(), scale.fill_(1e-12 / 448)
    if zero == "down":
        hidden.zero_(), balance.fill_(2.0**20)
    if zero == "up":
        up.zero_()
    if zero == "weight":
        layer.weight.zero_(), layer.weight_scale.fill_(1e-12 / 448)
    out = torch.empty(ROWS, OUTPUTS, dtype=torch.float64)
    wanted = out.clone()
    multiply(x, scale, layer, wanted)
    wanted += hidden.double() @ up.double().T
    multiply(*join(ops_torch, hidden, up, balance, x, scale, layer), out)
    assert relative_error(out, wanted) < 0.0017


def test_columns_that_are_left_are_zeros():
    x, scale, layer, hidden, up, balance = parts_of(16, 0.1)
    wide = x.as_strided((ROWS, 128 + COLUMNS), x.stride(), x.storage_offset() - 128)
    join_inputs(hidden, balance, x, scale, wide[:, :128])
    assert not wide[:, 48:128].float().any() and wide[:, :48].float().any(0).all()
    out, out_scale = torch.empty(OUTPUTS, 128 + COLUMNS).to(x.dtype), torch.empty(OUTPUTS, 1)
    join_weight(up, balance, layer.weight, layer.weight_scale, out, out_scale)
    assert not out[:, 48:128].float().any()
    assert torch.equal(out[:, 128:].float() * out_scale, layer.weight.float() * layer.weight_scale)


def test_layers_of_a_block_take_it_where_there_is_room(monkeypatch):
    """Ranks that differ, a layer without a branch, and one of a higher rank than the room is for."""
    ranks = {"self_attn.q": 16, "self_attn.k": 32, "self_attn.v": 64}
    kernels = Kernels(
        ops=ops_torch, multiply=multiply, attention=None, attention_in_place=None, quantized=torch.float8_e4m3fn
    )
    weights = {}
    for index, name in enumerate((*ranks, "self_attn.o")):
        _, _, layer, _, up, balance = parts_of(ranks.get(name, 16), 0.1, seed=index)
        weights |= {
            f"{name}.weight": layer.weight,
            f"{name}.weight_scale": layer.weight_scale,
            f"{name}.bias": layer.bias,
        }
        if name in ranks:
            weights |= {f"{name}.lora_up": up, f"{name}.lora_balance": balance}
    down, down_scale = in_fp8(normal(sum(ranks.values()), COLUMNS, seed=9))
    bias = torch.zeros(len(down), dtype=torch.bfloat16)
    names = ("lora_down", "lora_down_scale", "lora_bias")
    weights |= {f"self_attn.qkv.{name}": part for name, part in zip(names, (down, down_scale, bias), strict=True)}
    joined = []
    monkeypatch.setattr(
        ops_torch, "add_product", lambda *given, add=ops_torch.add_product: joined.append(0) or add(*given)
    )
    found = {}
    for room in (0, 128):
        work = Workspace(ROWS, COLUMNS, 2 * COLUMNS, torch.float8_e4m3fn, CPU, room)
        ops_torch.quantize(normal(ROWS, COLUMNS, seed=5).bfloat16(), work.inputs, work.scales)
        outs = {name: torch.empty(ROWS, OUTPUTS, dtype=torch.bfloat16) for name in ranks}
        kernels.linears((work.inputs, work.scales), weights, outs)
        outs["self_attn.o"] = torch.empty(ROWS, OUTPUTS, dtype=torch.bfloat16)
        kernels.linear((work.inputs, work.scales), weights, "self_attn.o", outs["self_attn.o"])
        found[room] = outs
    # Rank 64 takes 192 columns.
    assert len(joined) == 3 + 1
    for name, out in found[0].items():
        assert relative_error(found[128][name].float(), out.float()) < 0.004
    assert torch.equal(found[0]["self_attn.o"], found[128]["self_attn.o"])


@pytest.mark.parametrize(("rank", "room"), [(0, 0), (16, 128), (32, 128), (48, 256), (64, 256), (128, 384), (160, 512)])
def test_room_is_for_three_columns_of_each_rank(rank, room):
    assert branch_room(rank, joins_loras=True) == room
    assert branch_room(rank, joins_loras=False) == branch_room(161, joins_loras=True) == 0
    sizes = {"tokens": 50, "dim": 128, "ffn_dim": 512}
    work = Workspace(*sizes.values(), torch.float8_e4m3fn, CPU, room)
    assert work.num_bytes == workspace_sizes(**sizes, precision="fp8", room=room).total
    assert all(part.shape[1] + room == part.stride(0) for part in (work.inputs, *(c.inputs for c in work.chunks)))
    assert all(not part.data_ptr() % 16 for part in (work.inputs, *(chunk.inputs for chunk in work.chunks)))
