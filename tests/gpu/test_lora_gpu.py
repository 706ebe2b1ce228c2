"""LoRAs on a GPU: as if merged in float32, with the kernels of the card, wherever the weights rest."""

import gc

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.lora.changes import Stack
from lightx2v_pack.engine.lora.reader import read_lora
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.system import compute_device
from support import loras
from support.cancel import CancelAfter, Cancelled
from support.checkpoints import distilled, scratch, transformer_weights
from support.engine import conditioning_of, open_transformer
from support.slow_gpu import SHORT_SLEEP, delay_copies, sleep_before_units
from support.tensors import normal, relative_error
from support.wan_reference import dequantized, reference_flow

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WEIGHTS = transformer_weights()
LATENTS = normal(16, 3, 8, 10, seed=6)
PROMPTS = {"short": conditioning_of(normal(21, 64, seed=7)), "long": conditioning_of(normal(90, 64, seed=8))}
SMALL = ["blocks.0.modulation", "blocks.1.norm3.bias", "blocks.0.self_attn.q.bias", "head.head.weight"]
DRAWN = [
    loras.draw(WEIGHTS, rank=4, seed=0, size=0.1, full=SMALL),
    loras.draw(WEIGHTS, rank=24, seed=1000, size=0.1, alpha=6.0),
    loras.draw(WEIGHTS, rank=8, seed=2000, size=0.1, modules=["blocks.0.self_attn.v", "blocks.1.cross_attn.k"]),
]
STRENGTHS = [1.0, -0.75, 2.0]
# Activations in BF16, or quantized per token, and the attention of the card, on tiny models.
TOLERANCE = {"bf16": 0.012, "fp8": 0.03, "int8": 0.02}


def stack_of(precision):
    stack = Stack()
    for index, (drawn, strength) in enumerate(zip(DRAWN, STRENGTHS, strict=True)):
        path = scratch() / f"gpu-lora{index}.safetensors"
        if not path.exists():
            loras.write(path, drawn)
        stack = stack.add(read_lora(path, resolve_transformer(distilled(precision)).header), strength)
    return stack


def loaded(precision, mode="none", resident_blocks=0):
    placement = Placement(mode=mode, resident_blocks=resident_blocks)
    transformer = open_transformer(resolve_transformer(distilled(precision)), None, placement, compute_device())
    transformer.load(Hooks())
    return transformer


def flow_of(transformer, prompt="short", hooks=None):
    latents = LATENTS.to(compute_device())
    return transformer.predict_flow(latents, 937.5, PROMPTS[prompt], hooks or Hooks()).cpu()


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_stack_is_as_merged_in_float32(precision, prompt):
    transformer = loaded(precision)
    plain = flow_of(transformer, prompt)
    transformer.use_loras(stack_of(precision), Hooks())
    weights = dequantized(distilled(precision))
    merged = loras.merged(weights, *zip(DRAWN, STRENGTHS, strict=True))
    wanted, without = (reference_flow(each, LATENTS, 937.5, PROMPTS[prompt].text) for each in (merged, weights))
    flow = flow_of(transformer, prompt)
    assert relative_error(flow, wanted) < TOLERANCE[precision]
    change = wanted - without
    assert float(((flow - plain) * change).sum() / change.square().sum()) == pytest.approx(1, abs=0.03)
    transformer.use_loras(Stack(), Hooks())
    assert torch.equal(flow_of(transformer, prompt), plain)


@pytest.mark.parametrize("slow", ["", "compute", "copies"])
@pytest.mark.parametrize(("mode", "blocks"), [("block", 0), ("block", 1), ("phase", 0), ("disk", 0), ("disk", 1)])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_every_placement_gives_the_same_bits(precision, mode, blocks, slow, monkeypatch):
    stack, resident = stack_of(precision), loaded(precision)
    resident.use_loras(stack, Hooks())
    wanted, hooks = flow_of(resident), Hooks()
    if slow == "compute":
        hooks = Hooks(check_interrupt=sleep_before_units(SHORT_SLEEP))
    if slow == "copies":
        delay_copies(monkeypatch, SHORT_SLEEP)
    transformer = loaded(precision, mode, blocks)
    transformer.use_loras(stack, Hooks())
    for _ in range(2):
        assert torch.equal(flow_of(transformer, hooks=hooks), wanted)
    with pytest.raises(Cancelled):
        flow_of(transformer, hooks=Hooks(check_interrupt=CancelAfter(1)))
    assert torch.equal(flow_of(transformer), wanted)


@pytest.mark.parametrize("mode", ["none", "block"])
def test_loras_give_their_memory_back_at_once(mode):
    transformer, stack = loaded("fp8", mode), stack_of("fp8")
    flow_of(transformer)
    transformer.release_workspace()
    before = torch.cuda.memory_allocated()
    gc.disable()
    try:
        transformer.use_loras(stack, Hooks())
        assert torch.cuda.memory_allocated() > before
        transformer.use_loras(Stack(), Hooks())
        assert torch.cuda.memory_allocated() == before
        transformer.use_loras(stack, Hooks())
        transformer.unload()
        assert torch.cuda.memory_allocated() < before
    finally:
        gc.enable()
