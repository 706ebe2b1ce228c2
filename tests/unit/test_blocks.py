"""One block of the transformer against diffusers' own in float32, its workspace, and what is kept of the text."""

import gc
import itertools
import weakref
from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.backends.choose import Wanted, choose
from lightx2v_pack.engine.backends.table import Machine
from lightx2v_pack.engine.checkpoints.formats import WanArchitecture
from lightx2v_pack.engine.checkpoints.weights import TensorSpec
from lightx2v_pack.engine.errors import LightX2VError
from lightx2v_pack.engine.interfaces import Conditioning, Hooks
from lightx2v_pack.engine.kernels import matmul, ops_torch
from lightx2v_pack.engine.kernels.attention import Normed, SelfAttention, sdpa
from lightx2v_pack.engine.kernels.ops import Rotary
from lightx2v_pack.engine.memory.activations import FIXED_BYTES, ROTARY_BYTES, activation_bytes, workspace_sizes
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.memory.rounding import ALIGNMENT
from lightx2v_pack.engine.offload import WeightStreamer, make_units, place_weights
from lightx2v_pack.engine.wan import block as blocks
from lightx2v_pack.engine.wan import embeddings
from lightx2v_pack.engine.wan.kernels import Kernels, build_kernels
from lightx2v_pack.engine.wan.layout import PHASES
from lightx2v_pack.engine.wan.workspace import Workspace
from support.alive import Snapshot, tensors
from support.cancel import CancelAfter, Cancelled
from support.engine import conditioning_of
from support.tensors import normal, quantized, relative_error, skip_without_scaled_mm

CPU = torch.device("cpu")
SIZES = WanArchitecture(
    dim=256, ffn_dim=512, num_heads=2, num_layers=2, in_dim=16, out_dim=16, freq_dim=256, text_dim=64
)
GRID = (3, 4, 5)
TOKENS = 60
# Relative L2 of x after two blocks to float32, whose branches are as large as x. Activations in BF16; quantized per
# row to INT8 (values of the largest / 127) and FP8 (3 bits of mantissa).
TOLERANCE = {"bf16": 0.006, "dequantize": 0.006, "int_mm": 0.012, "scaled_mm": 0.03}
CASES = [
    ("bf16", None),
    ("dequantize", torch.float8_e4m3fn),
    ("dequantize", torch.int8),
    ("int_mm", torch.int8),
    ("scaled_mm", torch.float8_e4m3fn),
]


def make_weights(dtype):
    """Return (what our blocks take, the same dequantized in float32), under native names."""
    stored, plain = {}, {}
    for index in range(SIZES.num_layers):
        for number, (name, shape) in enumerate(block_shapes().items()):
            value = normal(*shape, seed=100 * index + number)
            if name.endswith("weight") and len(shape) == 2:
                add_linear(stored, plain, f"blocks.{index}.{name}", value * shape[1] ** -0.5, dtype)
                continue
            value = 1 + 0.2 * value if name.endswith("weight") else 0.3 * value
            keep = torch.float32 if name.startswith(("modulation", "norm3")) else torch.bfloat16
            stored[f"blocks.{index}.{name}"] = value.to(keep)
            plain[f"blocks.{index}.{name}"] = value.to(keep).float()
    return stored, plain


def block_shapes():
    dim, ffn_dim = SIZES.dim, SIZES.ffn_dim
    shapes = {"modulation": (1, 6, dim), "norm3.weight": (dim,), "norm3.bias": (dim,)}
    for attention in ("self_attn", "cross_attn"):
        for part in "qkvo":
            shapes |= {f"{attention}.{part}.weight": (dim, dim), f"{attention}.{part}.bias": (dim,)}
        shapes |= {f"{attention}.norm_{part}.weight": (dim,) for part in "qk"}
    shapes |= {"ffn.0.weight": (ffn_dim, dim), "ffn.0.bias": (ffn_dim,)}
    return shapes | {"ffn.2.weight": (dim, ffn_dim), "ffn.2.bias": (dim,)}


def add_linear(stored, plain, name, value, dtype):
    if dtype is None:
        stored[name], plain[name] = value.bfloat16(), value.bfloat16().float()
        return
    stored[name], stored[f"{name}_scale"] = quantized(value, dtype)
    plain[name] = stored[name].float() * stored[f"{name}_scale"]


class DictSource:
    def __init__(self, tensors):
        self._tensors = tensors

    def read(self, spec, elements=None):
        tensor = self._tensors[spec.name]
        return tensor if elements is None else tensor.flatten()[elements]

    def location(self, spec):
        return None

    def close(self):
        pass


def kernels_of(backend):
    if backend == "scaled_mm":
        skip_without_scaled_mm()

    def multiply(x, scale, weights, out):
        matmul.linear(x, scale, weights, out, backend=backend)

    quantized = matmul.ACTIVATION_DTYPES.get(backend)
    attention = Normed(ops_torch, sdpa)
    return Kernels(ops=ops_torch, multiply=multiply, attention=attention, attention_in_place=None, quantized=quantized)


def make_blocks(stored, kernels, *, by_phase=False):
    specs = [TensorSpec(name, tensor.dtype, tensor.shape) for name, tensor in stored.items()]
    units = make_units(specs, SIZES.num_layers, PHASES, by_phase)
    conveyor = place_weights(units, DictSource(stored), Placement(mode="none"), CPU, Hooks())
    return blocks.Blocks(units, conveyor, SIZES, kernels, CPU)


def embed(rows):
    """Stand for the text embedding: as wide as the blocks, and not zero where the text is."""
    return torch.cat([rows, 1 - rows, rows, 0.5 + rows], dim=1).bfloat16()


def context_of(num_rows, total=512, seed=5):
    rows = torch.zeros(total, SIZES.text_dim)
    rows[:num_rows] = normal(num_rows, SIZES.text_dim, seed=seed)
    return conditioning_of(rows) if total == 512 else Conditioning(text=rows, num_text=num_rows)


def run(made, context, hidden, time):
    work = made.workspace(TOKENS)
    work.hidden.copy_(hidden)
    with torch.no_grad():
        made.run(work, embeddings.rotary_of(GRID, 128, CPU), time, made.text(context, embed), None)
    return work.hidden.clone()


def expected(plain, context, hidden, time):
    """Return what diffusers' blocks make of the same input in float32."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock

    renamed = convert_wan_transformer_to_diffusers(dict(plain))
    rotary = WanRotaryPosEmbed(128, (1, 2, 2), 1024)(torch.empty(1, 16, GRID[0], 2 * GRID[1], 2 * GRID[2]))
    x = hidden[None].float()
    for index in range(SIZES.num_layers):
        block = WanTransformerBlock(SIZES.dim, SIZES.ffn_dim, SIZES.num_heads, "rms_norm_across_heads", True)
        start = f"blocks.{index}."
        block.load_state_dict({name.removeprefix(start): t for name, t in renamed.items() if name.startswith(start)})
        with torch.no_grad():
            x = block(x, embed(context.text)[None].float(), time[None], rotary)
    return x[0]


HIDDEN = normal(TOKENS, SIZES.dim, seed=1).bfloat16()
TIME = 0.3 * normal(6, SIZES.dim, seed=2)


@pytest.mark.parametrize(("backend", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("num_rows", [21, 512])
def test_blocks_agree_with_diffusers_in_float32(backend, dtype, num_rows):
    stored, plain = make_weights(dtype)
    context = context_of(num_rows)
    found = run(make_blocks(stored, kernels_of(backend)), context, HIDDEN, TIME)
    reference = expected(plain, context, HIDDEN, TIME)
    assert relative_error(HIDDEN, reference) > 0.5
    assert relative_error(found, reference) < TOLERANCE[backend]


@pytest.mark.parametrize("num_rows", [0, 1, 63, 64, 510, 511])
def test_any_number_of_text_rows_agrees_with_diffusers(num_rows):
    stored, plain = make_weights(None)
    context = context_of(num_rows)
    found = run(make_blocks(stored, kernels_of("bf16")), context, HIDDEN, TIME)
    assert relative_error(found, expected(plain, context, HIDDEN, TIME)) < TOLERANCE["bf16"]


def test_text_that_is_not_padded_is_seen_as_it_is():
    stored, plain = make_weights(None)
    context = context_of(37, total=37)
    found = run(make_blocks(stored, kernels_of("bf16")), context, HIDDEN, TIME)
    assert relative_error(found, expected(plain, context, HIDDEN, TIME)) < TOLERANCE["bf16"]


class CountingOps:
    """Plain torch that counts its cross-attentions."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("cross_"):
            self.calls.append(name)
        return getattr(ops_torch, name)


@pytest.mark.parametrize(
    ("num_rows", "operation"), [(0, "cross_weights"), (63, "cross_weights"), (64, "cross_attention")]
)
def test_the_last_linear_is_applied_to_a_text_of_64_rows_at_most(num_rows, operation):
    """Padding counts as one; 64 rows of 2 heads are half of 256 columns."""
    stored, _ = make_weights(None)
    ops = CountingOps()
    run(make_blocks(stored, replace(kernels_of("bf16"), ops=ops)), context_of(num_rows), HIDDEN, TIME)
    assert ops.calls == [operation] * SIZES.num_layers


@pytest.mark.parametrize(("backend", "dtype"), CASES, ids=str)
def test_both_ways_of_the_cross_attention_agree(backend, dtype, monkeypatch):
    stored, plain = make_weights(dtype)
    context = context_of(42)
    to_outputs = run(make_blocks(stored, kernels_of(backend)), context, HIDDEN, TIME)
    monkeypatch.setattr(blocks, "_attend_to_outputs", blocks._attend_to_values)
    to_values = run(make_blocks(stored, kernels_of(backend)), context, HIDDEN, TIME)
    assert not torch.equal(to_outputs, to_values)
    assert relative_error(to_outputs, to_values) < TOLERANCE[backend]
    reference = expected(plain, context, HIDDEN, TIME)
    errors = [relative_error(found, reference) for found in (to_outputs, to_values)]
    assert max(errors) < TOLERANCE[backend] and errors[0] < 1.05 * errors[1]


# The text


@pytest.mark.parametrize(
    ("num_rows", "total", "kept", "repeats"),
    [(0, 512, 1, 512), (21, 512, 22, 491), (510, 512, 511, 2), (511, 512, 512, 1), (512, 512, 512, 1), (5, 5, 5, 1)],
)
def test_one_padding_row_stands_for_all(num_rows, total, kept, repeats):
    text = blocks.Text(context_of(num_rows, total), embed, kernels_of("bf16"))
    assert len(text.inputs[0]) == kept
    assert text.repeats == repeats


def test_zero_rows_inside_the_text_are_no_padding():
    rows = context_of(21).text.clone()
    rows[3:9] = 0
    assert len(blocks.Text(conditioning_of(rows), embed, kernels_of("bf16")).inputs[0]) == 22


class Counter:
    """Counts the multiplications with each weight, by its data."""

    def __init__(self, kernels):
        self.calls = []
        self._multiply = kernels.multiply

    def __call__(self, x, scale, weights, out):
        self.calls.append(weights.weight.data_ptr())
        self._multiply(x, scale, weights, out)


def counted_blocks():
    stored, _ = make_weights(torch.int8)
    kernels = kernels_of("int_mm")
    counter = Counter(kernels)
    made = make_blocks(stored, replace(kernels, multiply=counter))
    text_weights = {stored[f"blocks.{i}.cross_attn.{part}.weight"].data_ptr() for i in range(2) for part in "kv"}
    return made, lambda: sum(pointer in text_weights for pointer in counter.calls)


def test_keys_and_values_are_computed_once_a_prompt_and_give_the_same_bits(monkeypatch):
    made, count = counted_blocks()
    context, other = context_of(21), context_of(30, seed=6)
    first = run(made, context, HIDDEN, TIME)
    assert count() == 4
    assert torch.equal(run(made, context, HIDDEN, TIME), first)
    assert count() == 4
    second = run(made, other, HIDDEN, TIME)
    assert count() == 8
    assert not torch.equal(second, first)
    assert torch.equal(run(made, context, HIDDEN, TIME), first)
    monkeypatch.setattr(blocks, "TEXT_ROWS_KEPT", 0)
    made, count = counted_blocks()
    for passes in (1, 2):
        assert torch.equal(run(made, context, HIDDEN, TIME), first)
        assert count() == 4 * passes


def test_long_prompts_are_not_kept():
    made, count = counted_blocks()
    long = context_of(blocks.TEXT_ROWS_KEPT)
    run(made, long, HIDDEN, TIME)
    run(made, long, HIDDEN, TIME)
    assert count() == 8


def test_what_is_kept_of_a_prompt_goes_with_the_next_one():
    made, _ = counted_blocks()
    context = context_of(21)
    run(made, context_of(30, seed=6), HIDDEN, TIME)  # the workspace is there
    before = Snapshot()
    run(made, context, HIDDEN, TIME)
    kept = before.made_since()
    assert len([part for part in tensors(kept) if part.shape == (22, SIZES.dim)]) >= 4  # 21 rows and one of padding
    run(made, context_of(30, seed=6), HIDDEN, TIME)
    assert not tensors(kept)


# The workspace


def memory_of(work):
    """Return a workspace's region, uint8 [bytes]."""
    return torch.empty(0, dtype=torch.uint8).set_(work.hidden.untyped_storage())


def extent(tensor, start):
    first = tensor.data_ptr() - start
    return first, first + tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("quantized", [None, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 61, 1024])
@pytest.mark.parametrize("ffn_dim", [512, 2048])
def test_the_workspace_is_as_large_as_planned_and_its_parts_lie_apart(quantized, tokens, ffn_dim):
    work = Workspace(tokens, 256, ffn_dim, quantized, CPU)
    precision = {None: "bf16", torch.int8: "int8", torch.float8_e4m3fn: "fp8"}[quantized]
    assert work.num_bytes == workspace_sizes(tokens=tokens, dim=256, ffn_dim=ffn_dim, precision=precision).total
    always = [work.hidden, work.inputs, *([] if work.scales is None else [work.scales])]
    groups = [work.parts]
    for chunk in work.chunks:
        # What a chunk's first linear and its second need at once; in BF16 the output is work.inputs.
        quantized_inputs = [chunk.inputs, chunk.scales] if quantized else []
        written = [work.output[:end] if quantized else work.output[:0] for end in (chunk.rows.start, chunk.rows.stop)]
        groups += [[chunk.wide, *quantized_inputs, written[0]], [*quantized_inputs, written[1]]]
    ends = []
    for group in groups:
        extents = sorted(extent(tensor, memory_of(work).data_ptr()) for tensor in (*always, *group) if len(tensor))
        assert all(first % ALIGNMENT == 0 for first, _ in extents)
        assert all(end <= first for (_, end), (first, _) in itertools.pairwise(extents))
        ends.append(extents[-1][1])
    assert work.num_bytes - ALIGNMENT < max(ends) <= work.num_bytes
    assert [row for chunk in work.chunks for row in range(tokens)[chunk.rows]] == list(range(tokens))
    assert len(work.chunks) == min(tokens, 2)


def test_the_cross_attentions_last_linear_is_planned_beside_the_workspace():
    """Its weights widened and its result: of the smallest clip more than anything else."""

    machine = Machine(capability=(9, 0), packages={"triton": "3.6.0"})

    def needed(precision):
        backends = choose(machine, Wanted(precision=precision, dim=5120, ffn_dim=13824, attention="triton"))
        assert (backends.inputs, backends.attention.name) == (precision, "triton")
        sizes = {"tokens": 1, "dim": 5120, "ffn_dim": 13824}
        beside = activation_bytes(**sizes, num_blocks=0, backends=backends)
        return beside - workspace_sizes(**sizes, precision=precision).total - FIXED_BYTES - ROTARY_BYTES

    result = 40 * 64 * 5120 * 2
    assert needed("bf16") == result
    assert needed("fp8") == needed("int8") == result + 5120 * 5120 * 2


def test_the_workspace_is_made_once_a_size():
    stored, _ = make_weights(None)
    made = make_blocks(stored, kernels_of("bf16"))
    first = made.workspace(60)
    assert made.workspace(60) is first
    gone = weakref.ref(first)
    del first
    assert made.workspace(61).tokens == 61
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(("backend", "dtype"), CASES, ids=str)
def test_nothing_is_read_from_the_workspace_that_was_not_written_before(backend, dtype):
    stored, _ = make_weights(dtype)
    made, context = make_blocks(stored, kernels_of(backend)), context_of(21)
    first = run(made, context, HIDDEN, TIME)
    memory_of(made.workspace(TOKENS)).fill_(0xFF)  # NaN in every floating dtype
    assert torch.equal(run(made, context, HIDDEN, TIME), first)


@pytest.mark.parametrize("order", [(True, False), (False, True)], ids=str)
def test_inference_mode_may_change_between_passes(order):
    """ComfyUI samples in inference mode; a script may not."""
    stored, _ = make_weights(None)
    made, context = make_blocks(stored, kernels_of("bf16")), context_of(21)
    results = []
    for is_inference in order:
        with torch.inference_mode(is_inference):
            results.append(run(made, context, HIDDEN, TIME))
    assert torch.equal(*results)


# Choices


def test_all_tensors_of_a_block_travel_once_in_phases():
    specs = [TensorSpec(name, torch.float32, torch.Size([1])) for name in make_weights(torch.int8)[0]]
    for by_phase, count in ((True, 6), (False, 2)):
        units = make_units(specs, SIZES.num_layers, PHASES, by_phase)
        assert len(units) == count
        assert sorted(spec.name for unit in units for spec in unit.specs.values()) == sorted(s.name for s in specs)
        assert [(unit.block, phase) for unit in units for phase in unit.phases] == [
            (index, phase) for index in range(2) for phase in range(3)
        ]


@pytest.mark.parametrize(
    ("precision", "matmul_name"), [("bf16", "bf16"), ("fp8", "dequantize"), ("int8", "dequantize")]
)
def test_a_cpu_computes_in_bf16_with_plain_operations(precision, matmul_name):
    chosen = trials.confirm(Wanted(precision=precision, dim=SIZES.dim, ffn_dim=SIZES.ffn_dim), CPU)
    kernels = build_kernels(chosen)
    assert kernels.quantized is None and kernels.attention_in_place is None
    assert kernels.ops is ops_torch and kernels.attention.inner == Normed(ops_torch, sdpa)
    assert chosen.as_facts() == {
        "engine": "portable",
        "precision": precision,
        "compute": "bf16",
        "attention": "sdpa",
        "attention_in_place": False,
        "matmul": matmul_name,
        "ops": "torch",
        "compile": False,
    }


def test_fused_kernels_are_not_replaced_silently():
    with pytest.raises(LightX2VError, match="compile is 'on'"):
        trials.confirm(Wanted(precision="bf16", dim=SIZES.dim, ffn_dim=SIZES.ffn_dim, fused_kernels="on"), CPU)


@pytest.mark.parametrize(("backend", "dtype"), [("bf16", None), ("int_mm", torch.int8)], ids=str)
@pytest.mark.parametrize("by_phase", [False, True], ids=["blocks", "phases"])
def test_a_pass_stops_before_the_next_unit_and_the_next_pass_gives_the_same_bits(backend, dtype, by_phase):
    stored, _ = make_weights(dtype)
    made, context = make_blocks(stored, kernels_of(backend), by_phase=by_phase), context_of(21)
    assert isinstance(made.streamer, WeightStreamer)
    first = run(made, context, HIDDEN, TIME)
    for units_before in range(6 if by_phase else 2):
        made.streamer.check_interrupt = CancelAfter(units_before)
        with pytest.raises(Cancelled):
            run(made, context, HIDDEN, TIME)
        assert torch.equal(run(made, context, HIDDEN, TIME), first)


# Self-attention


class InPlace(SelfAttention):
    """Stands for a back end that prepares its inputs in the memory of q, k and v."""

    def __init__(self):
        self.calls = 0

    def prepare(self, q, k, v, norms, eps, rotary):
        return Normed(ops_torch, sdpa).prepare(q, k, v, norms, eps, rotary), v

    def attend(self, prepared):
        self.calls += 1
        inputs, v = prepared
        v.copy_(Normed(ops_torch, sdpa).attend(inputs))
        return v


def test_attention_in_place_takes_the_heads_that_fit_it():
    stored, _ = make_weights(None)
    kernels, in_place = kernels_of("bf16"), InPlace()
    both = replace(kernels, attention_in_place=in_place)
    found = run(make_blocks(stored, both), context_of(21), HIDDEN, TIME)
    assert in_place.calls == SIZES.num_layers
    assert torch.equal(found, run(make_blocks(stored, kernels), context_of(21), HIDDEN, TIME))
    q, k, v = torch.randn(3, 7, 4, 64).bfloat16()
    rotary = Rotary(torch.ones(7, 32), torch.zeros(7, 32))
    both.attention_for(q)(q, k, v, (torch.ones(256), torch.ones(256)), 1e-6, rotary)
    assert in_place.calls == SIZES.num_layers
