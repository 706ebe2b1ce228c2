"""LoRAs on the pack's own transformer: as if merged in float32 into the model, wherever weights rest."""

import functools
import gc

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.checkpoints.source import TransformerCheckpoint
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.lora.changes import Stack
from lightx2v_pack.engine.lora.reader import Patch, lora_of_patches, read_lora
from lightx2v_pack.engine.memory.placement import Placement
from support import loras
from support.alive import Snapshot, num_bytes, tensors
from support.cancel import CancelAfter, Cancelled
from support.checkpoints import distilled, scratch, transformer_weights
from support.contract_of_a_transformer import travel_as_on_a_gpu
from support.engine import conditioning_of, open_transformer
from support.mapped_files import mapped_below, needs_proc
from support.tensors import normal, quantized, relative_error, skip_without_scaled_mm
from support.wan_reference import dequantized, reference_flow

WEIGHTS = transformer_weights()
LATENTS = normal(16, 2, 4, 6, seed=6)
# Text rows: few, of which the last linear of the cross-attention is applied to the text; and many.
SHORT, LONG = conditioning_of(normal(21, 64, seed=7)), conditioning_of(normal(90, 64, seed=8))
# As tests/unit/test_portable_transformer.py has them without LoRAs: activations in BF16, or quantized per token.
KERNELS = [
    ("bf16", None, 0.01),
    ("fp8", None, 0.01),
    ("int8", None, 0.01),
    ("fp8", "scaled_mm", 0.02),
    ("int8", "int_mm", 0.012),
    ("fp8", "int_mm", 0.025),
]
EVERY_KERNEL = pytest.mark.parametrize(("precision", "matmul", "tolerance"), KERNELS)
PLACES = [("none", 0), ("block", 0), ("phase", 1), ("disk", 0), ("disk", 1)]
SMALL = [
    "blocks.0.modulation",
    "blocks.1.norm3.weight",
    "blocks.1.norm3.bias",
    "blocks.0.self_attn.q.bias",
    "blocks.1.ffn.2.bias",
    "blocks.1.cross_attn.norm_k.weight",
    "head.modulation",
    "head.head.weight",
    "patch_embedding.weight",
    "text_embedding.0.bias",
]
# Of several ranks, some with an alpha, not all of the same layers; and the strengths they are used with.
DRAWN = [
    loras.draw(WEIGHTS, rank=4, seed=0, size=0.1, full=SMALL),
    loras.draw(WEIGHTS, rank=24, seed=1000, size=0.1, alpha=6.0),
    loras.draw(WEIGHTS, rank=8, seed=2000, size=0.1, modules=["blocks.0.self_attn.v", "blocks.1.cross_attn.k"]),
    loras.draw(WEIGHTS, rank=1, seed=3000, size=0.2, modules=["blocks.1.ffn.0", "blocks.0.ffn.2", "time_projection.1"]),
    loras.draw(WEIGHTS, rank=4, seed=4000, size=0.1, full=SMALL[:3]).only("blocks.1."),
]
STRENGTHS = [1.0, -0.75, 2.0, 0.5, 1.0]


def lora_file(index):
    path = scratch() / f"lora{index}.safetensors"
    return path if path.exists() else loras.write(path, DRAWN[index])


def read(index, precision="bf16"):
    return read_lora(lora_file(index), resolve_transformer(distilled(precision)).header)


def stack_of(*indices, precision="bf16", strengths=STRENGTHS):
    stack = Stack()
    for index in indices:
        stack = stack.add(read(index, precision), strengths[index])
    return stack


def unloaded(precision="bf16", matmul=None, mode="none", resident_blocks=0):
    placement = Placement(mode=mode, resident_blocks=resident_blocks)
    return open_transformer(resolve_transformer(distilled(precision)), None, placement, matmul=matmul)


def loaded(*options, stack=None):
    if "scaled_mm" in options:
        skip_without_scaled_mm()
    transformer = unloaded(*options)
    transformer.load(Hooks())
    if stack is not None:
        transformer.use_loras(stack, Hooks())
    return transformer


def flow_of(transformer, conditioning=SHORT, hooks=None):
    return transformer.predict_flow(LATENTS, 937.5, conditioning, hooks or Hooks())


@functools.cache
def expected(precision, indices, conditioning=SHORT):
    weights = dequantized(distilled(precision))
    weights = loras.merged(weights, *((DRAWN[index], STRENGTHS[index]) for index in indices))
    return reference_flow(weights, LATENTS, 937.5, conditioning.text)


def gain(change, wanted):
    """Return how much of a wanted change is in a change: 1 is all of it."""
    return float((change * wanted).sum() / wanted.square().sum())


# Results


@EVERY_KERNEL
@pytest.mark.parametrize("indices", [(0,), (0, 1), (0, 1, 2, 3, 4)], ids=["1", "2", "5"])
def test_a_stack_is_as_merged_in_float32(indices, precision, matmul, tolerance):
    transformer = loaded(precision, matmul)
    plain = flow_of(transformer)
    transformer.use_loras(stack_of(*indices, precision=precision), Hooks())
    flow, reference = flow_of(transformer), expected(precision, indices)
    assert relative_error(flow, reference) < tolerance
    without = expected(precision, ())
    assert relative_error(reference, without) > 0.1
    assert gain(flow - plain, reference - without) == pytest.approx(1, abs=0.02)


@EVERY_KERNEL
def test_both_ways_of_the_cross_attention_have_their_loras(precision, matmul, tolerance):
    transformer = loaded(precision, matmul, stack=stack_of(0, 1, precision=precision))
    assert relative_error(flow_of(transformer, LONG), expected(precision, (0, 1), LONG)) < tolerance


@pytest.mark.parametrize(
    "module",
    [
        "blocks.0.cross_attn.o",
        "blocks.0.cross_attn.v",
        "blocks.0.self_attn.k",
        "text_embedding.2",
        "time_embedding.0",
        "time_projection.1",
        "head.head",
    ],
)
def test_one_layer_alone_has_its_lora(module, tmp_path):
    precision, matmul = ("int8", "int_mm") if module.startswith("blocks.") else ("bf16", None)
    drawn = loras.draw(WEIGHTS, modules=[module], size=0.5)
    files = resolve_transformer(distilled(precision))
    lora = read_lora(loras.write(tmp_path / "x.safetensors", drawn), files.header)
    transformer = loaded(precision, matmul)
    plain = flow_of(transformer)
    transformer.use_loras(Stack().add(lora, 1.0), Hooks())
    weights = dequantized(distilled(precision))
    flows = [reference_flow(each, LATENTS, 937.5, SHORT.text) for each in (loras.merged(weights, (drawn, 1)), weights)]
    assert gain(flow_of(transformer) - plain, flows[0] - flows[1]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("precision", "matmul"), [("bf16", None), ("fp8", None), ("int8", None), ("int8", "int_mm")])
def test_full_differences_of_large_layers_are_applied_too(precision, matmul, tmp_path):
    """Wider than long, longer than wide, square: each is a branch of full rank."""
    full = ["blocks.0.ffn.0.weight", "blocks.1.ffn.2.weight", "blocks.1.self_attn.q.weight"]
    drawn = loras.draw(WEIGHTS, modules=["blocks.1.self_attn.k"], full=full, size=0.3)
    path = loras.write(tmp_path / "x.safetensors", drawn)
    stack = Stack().add(read_lora(path, resolve_transformer(distilled(precision)).header), -0.5)
    weights = loras.merged(dequantized(distilled(precision)), (drawn, -0.5))
    flow = flow_of(loaded(precision, matmul, stack=stack))
    assert relative_error(flow, reference_flow(weights, LATENTS, 937.5, SHORT.text)) < 0.012


@pytest.mark.parametrize(
    ("precision", "matmul"), [("bf16", None), ("fp8", None), ("fp8", "int_mm")], ids=["bf16", "fp8", "requantized"]
)
def test_replaced_tensors_are_what_was_set(precision, matmul):
    files = resolve_transformer(distilled(precision))
    values = {name: 0.1 * normal(*WEIGHTS[name].shape, seed=3) for name in SMALL[3:5]}
    values["blocks.0.ffn.0.weight"] = 0.05 * normal(512, 256, seed=4)
    patches = [Patch(key=name, kind="set", tensors=(value,), strength=0.3) for name, value in values.items()]
    lora = lora_of_patches(patches, files.header, title="set", identity=1)
    flow = flow_of(loaded(precision, matmul, stack=Stack().add(lora, 1.0)))
    weights = dequantized(distilled(precision)) | values
    assert relative_error(flow, reference_flow(weights, LATENTS, 937.5, SHORT.text)) < (0.025 if matmul else 0.01)


@pytest.mark.parametrize(("precision", "matmul"), [("fp8", "scaled_mm"), ("int8", "int_mm")])
def test_a_small_lora_survives_in_eight_bits(precision, matmul, tmp_path):
    """1 % of the weights, of which rounding the merged weights loses a part."""
    drawn = loras.draw(WEIGHTS, rank=8, size=0.01, modules=["blocks.0.ffn.0"])
    path = loras.write(tmp_path / "x.safetensors", drawn)
    x = normal(48, 256, seed=1).bfloat16()
    weight = dequantized(distilled(precision))["blocks.0.ffn.0.weight"]
    wanted = x.float() @ drawn.deltas()["blocks.0.ffn.0.weight"].t()
    transformer = loaded(precision, matmul)
    blocks = transformer._loaded.blocks
    outs = []
    for stack in (Stack(), Stack().add(read_lora(path, resolve_transformer(distilled(precision)).header), 1.0)):
        transformer.use_loras(stack, Hooks())
        with blocks.streamer.unit(0) as stored, blocks.loras.unit(0, stored) as weights:
            dtype = blocks.kernels.quantized
            inputs = blocks.kernels.quantize(x, torch.empty_like(x, dtype=dtype), torch.empty(48, 1))
            outs.append(torch.empty(48, 512, dtype=torch.bfloat16))
            blocks.kernels.linear(inputs, weights, "ffn.0", outs[-1])
    codes, scale = quantized(weight + drawn.deltas()["blocks.0.ffn.0.weight"], dtype)
    rounded = x.float() @ (codes.float() * scale - weight).t()
    assert gain(outs[1].float() - outs[0].float(), wanted) == pytest.approx(1, abs=0.02)
    assert gain(rounded, wanted) < (0.5 if dtype == torch.float8_e4m3fn else 0.95)


# What does not change a bit


@pytest.mark.parametrize(("precision", "matmul"), [("bf16", None), ("int8", "int_mm")])
def test_neither_order_nor_repetition_nor_zero_changes_a_bit(precision, matmul):
    transformer = loaded(precision, matmul)
    plain = flow_of(transformer)
    flows = {}
    for order in ((0, 1, 2), (2, 0, 1)):
        transformer.use_loras(Stack(), Hooks())
        transformer.use_loras(stack_of(*order, precision=precision), Hooks())
        flows[order] = flow_of(transformer)
    assert torch.equal(*flows.values())
    lora = read(0, precision)
    for stack in (Stack().add(lora, 0.75).add(lora, -0.25), Stack().add(lora, 0.5)):
        transformer.use_loras(stack, Hooks())
        flows[len(flows)] = flow_of(transformer)
    assert torch.equal(flows[2], flows[3]) and not torch.equal(flows[2], plain)
    for stack in (Stack().add(lora, 0.0), Stack()):
        transformer.use_loras(stack, Hooks())
        assert torch.equal(flow_of(transformer), plain)
        transformer.use_loras(stack_of(1, precision=precision), Hooks())


def test_the_order_is_that_of_the_content_whatever_the_names(tmp_path):
    flows = []
    for names in ("ab", "ba"):
        stack = Stack()
        for index, name in enumerate(names):
            folder = tmp_path / names
            folder.mkdir(exist_ok=True)
            path = loras.write(folder / f"{name}.safetensors", DRAWN[index])
            stack = stack.add(read_lora(path, resolve_transformer(distilled("bf16")).header), 1.0)
        flows.append(flow_of(loaded("bf16", stack=stack)))
    assert torch.equal(*flows)


@pytest.mark.parametrize(
    ("precision", "matmul", "travels"), [("bf16", None, False), ("int8", "int_mm", True)], ids=["mapped", "travels"]
)
def test_every_placement_gives_the_same_bits(precision, matmul, travels, monkeypatch):
    stack = stack_of(0, 1, 2, 3, precision=precision)
    wanted = flow_of(loaded(precision, matmul, stack=stack))
    monkeypatch.setattr(gc, "collect", lambda: 0)  # each unload asks for one, which takes a second here
    if travels:
        travel_as_on_a_gpu(monkeypatch)
    for mode, resident_blocks in PLACES:
        transformer = loaded(precision, matmul, mode, resident_blocks, stack=stack)
        for _ in range(2):
            assert torch.equal(flow_of(transformer), wanted), (mode, resident_blocks)
        transformer.unload()


@pytest.mark.parametrize("mode", ["none", "phase"])
def test_a_lora_of_some_blocks_only_travels_with_them(mode, monkeypatch):
    travel_as_on_a_gpu(monkeypatch)
    for index in (2, 3, 4):
        flow = flow_of(loaded("bf16", None, mode, stack=stack_of(index)))
        assert relative_error(flow, expected("bf16", (index,))) < 0.01


def test_what_is_kept_of_the_text_goes_with_the_loras_it_was_computed_with():
    transformer = loaded("bf16")
    plain, wanted = flow_of(transformer), flow_of(loaded("bf16", stack=stack_of(2)))
    transformer.use_loras(stack_of(2), Hooks())
    assert torch.equal(flow_of(transformer), wanted) and not torch.equal(wanted, plain)
    transformer.use_loras(Stack(), Hooks())
    assert torch.equal(flow_of(transformer), plain)


@pytest.mark.parametrize("order", [(True, False), (False, True)], ids=str)
def test_inference_mode_may_change_between_loading_and_passes(order):
    wanted = flow_of(loaded("fp8", stack=stack_of(0, 1, precision="fp8")))
    with torch.inference_mode(order[0]):
        transformer = loaded("fp8", stack=stack_of(0, 1, precision="fp8"))
    with torch.inference_mode(order[1]):
        assert torch.equal(flow_of(transformer), wanted)


# Memory, cancel, errors


@pytest.mark.parametrize("mode", ["none", "block", "disk"])
def test_another_stack_reloads_nothing_of_the_base(mode, monkeypatch):
    transformer = loaded("fp8", None, mode)
    reads, read_one = [], TransformerCheckpoint.read
    monkeypatch.setattr(
        TransformerCheckpoint,
        "read",
        lambda self, spec, elements=None: reads.append(spec.name) or read_one(self, spec, elements),
    )
    transformer.use_loras(stack_of(0, 1, precision="fp8"), Hooks())
    assert sorted(set(reads)) == sorted(SMALL)  # what differences are added to
    reads.clear()
    transformer.use_loras(stack_of(1, precision="fp8", strengths=[0, 0.3]), Hooks())
    transformer.use_loras(Stack(), Hooks())
    assert not reads


def test_the_same_stack_again_reads_nothing(monkeypatch):
    transformer = loaded("fp8", stack=stack_of(0, precision="fp8"))
    after = Snapshot()
    transformer.use_loras(stack_of(0, precision="fp8"), Hooks())
    assert not tensors(after.made_since())


@pytest.mark.parametrize(
    ("mode", "travels"), [("none", True), ("block", True), ("disk", True), ("disk", False)], ids=str
)
def test_a_cancel_while_loading_leaves_the_base_and_no_lora(mode, travels, monkeypatch):
    if travels:
        travel_as_on_a_gpu(monkeypatch)
    transformer, stack = loaded("fp8", None, mode), stack_of(0, 1, precision="fp8")
    plain = flow_of(transformer)
    transformer.use_loras(stack, Hooks())
    wanted = flow_of(transformer)
    for checks in range(2):
        transformer.use_loras(stack_of(1, precision="fp8"), Hooks())
        with pytest.raises(Cancelled):
            transformer.use_loras(stack, Hooks(check_interrupt=CancelAfter(checks)))
        assert torch.equal(flow_of(transformer), plain)
    transformer.use_loras(stack, Hooks())
    assert torch.equal(flow_of(transformer), wanted)


@pytest.mark.parametrize("mode", ["none", "phase"])
def test_a_cancel_in_a_pass_leaves_the_next_one_right(mode, monkeypatch):
    travel_as_on_a_gpu(monkeypatch)
    transformer = loaded("fp8", None, mode, stack=stack_of(0, 1, precision="fp8"))
    wanted = flow_of(transformer)
    for checks in range(2 if mode == "none" else 6):
        with pytest.raises(Cancelled):
            flow_of(transformer, hooks=Hooks(check_interrupt=CancelAfter(checks)))
        assert torch.equal(flow_of(transformer), wanted)


def test_unloading_takes_the_loras_along_and_loading_again_brings_the_base_alone():
    transformer = loaded("fp8")
    plain = flow_of(transformer)
    transformer.use_loras(stack_of(0, 1, precision="fp8"), Hooks())
    wanted = flow_of(transformer)
    transformer.unload()
    transformer.load(Hooks())
    assert torch.equal(flow_of(transformer), plain)
    transformer.use_loras(stack_of(0, 1, precision="fp8"), Hooks())
    assert torch.equal(flow_of(transformer), wanted)


@needs_proc
@pytest.mark.parametrize("travels", [False, True], ids=["mapped", "travels"])
def test_loras_go_at_once_and_their_files_are_not_held(travels, monkeypatch):
    if travels:
        travel_as_on_a_gpu(monkeypatch)
    transformer = loaded("fp8", None, "block")
    flow_of(transformer)
    transformer.release_workspace()
    gc.collect()
    before = Snapshot()
    transformer.use_loras(stack_of(0, 1, precision="fp8"), Hooks())
    made = before.made_since()
    assert num_bytes(tensors(made)) > 100_000 and not mapped_below(lora_file(0))
    del before
    monkeypatch.setattr(gc, "collect", lambda: 0)
    gc.disable()
    try:
        transformer.use_loras(Stack(), Hooks())
        assert not tensors(made)
    finally:
        gc.enable()


def test_values_that_are_no_numbers_are_an_error_and_the_base_stays(tmp_path):
    drawn = loras.draw(WEIGHTS, modules=["blocks.1.ffn.0"])
    drawn.pairs["blocks.1.ffn.0"][0][0, 0] = torch.nan
    lora = read_lora(loras.write(tmp_path / "bad.safetensors", drawn), resolve_transformer(distilled("bf16")).header)
    transformer = loaded("bf16")
    plain = flow_of(transformer)
    with pytest.raises(CheckpointError, match=r"bad.safetensors"):
        transformer.use_loras(Stack().add(lora, 1.0), Hooks())
    assert torch.equal(flow_of(transformer), plain)


def test_the_report_says_what_is_in_use():
    transformer = loaded("bf16", stack=stack_of(0, 1))
    facts = transformer.describe()["loras"]
    assert [(each["lora"], each["strength"]) for each in facts] == [
        ("lora0.safetensors", 1.0),
        ("lora1.safetensors", -0.75),
    ]
    assert facts[1]["factors"] == [0.25] and facts[0]["matched"]["embeddings and head"] == 2 * 6 + 4
    transformer.use_loras(Stack(), Hooks())
    assert transformer.describe()["loras"] == []
