"""Image to video on a GPU: against diffusers in float32, with the kernels of the card, wherever the weights rest."""

from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.system import compute_device
from support.cancel import CancelAfter, Cancelled
from support.checkpoints import A14B_I2V_SIZES, FLF2V_SIZES, I2V_SIZES, single_file
from support.engine import conditioning_of, open_transformer
from support.slow_gpu import SHORT_SLEEP, delay_copies, sleep_before_units
from support.tensors import normal, relative_error
from support.wan_reference import dequantized, reference_flow

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LATENTS = normal(16, 3, 8, 10, seed=6)
# As in test_lora_gpu.py.
TOLERANCE = {"bf16": 0.012, "fp8": 0.03, "int8": 0.02}
# More blocks than there are buffers.
MANY = replace(I2V_SIZES, num_layers=5)


def conditioning(num_tokens=257, image_seed=8):
    tokens = normal(num_tokens, 32, seed=image_seed) if num_tokens else None
    text = conditioning_of(normal(21, 64, seed=7))
    return replace(text, image_tokens=tokens, image_latents=normal(20, *LATENTS.shape[1:], seed=9))


def loaded(precision, sizes, mode="none", resident_blocks=0):
    placement = Placement(mode=mode, resident_blocks=resident_blocks)
    files = resolve_transformer(single_file(precision, sizes=sizes))
    transformer = open_transformer(files, None, placement, compute_device())
    transformer.load(Hooks())
    return transformer


def flow_of(transformer, entry, hooks=None):
    return transformer.predict_flow(LATENTS.to(compute_device()), 937.5, entry, hooks or Hooks()).cpu()


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(
    ("sizes", "num_tokens"),
    [
        (I2V_SIZES, 257),
        (I2V_SIZES, 514),
        (replace(FLF2V_SIZES, image_positions=514), 514),
        (A14B_I2V_SIZES, 0),
    ],
    ids=["Wan2.1", "two images", "FLF2V", "Wan2.2"],
)
def test_agrees_with_diffusers_in_float32(precision, sizes, num_tokens):
    entry = conditioning(num_tokens)
    weights = dequantized(single_file(precision, sizes=sizes))
    latents = torch.cat([LATENTS, entry.image_latents])
    wanted = reference_flow(weights, latents, 937.5, entry.text, entry.image_tokens)
    assert relative_error(flow_of(loaded(precision, sizes), entry), wanted) < TOLERANCE[precision]


@pytest.mark.parametrize("slow", ["", "compute", "copies"])
@pytest.mark.parametrize(("mode", "blocks"), [("none", 0), ("block", 0), ("block", 2), ("phase", 0), ("disk", 0)])
def test_every_placement_gives_the_same_bits(mode, blocks, slow, monkeypatch):
    entry, other = conditioning(), conditioning(image_seed=99)
    wanted = [flow_of(loaded("fp8", MANY), each) for each in (entry, other)]
    transformer = loaded("fp8", MANY, mode, blocks)
    hooks = Hooks(check_interrupt=sleep_before_units(SHORT_SLEEP)) if slow == "compute" else Hooks()
    if slow == "copies":
        delay_copies(monkeypatch, SHORT_SLEEP)
    for each, expected in ((entry, wanted[0]), (other, wanted[1]), (other, wanted[1]), (entry, wanted[0])):
        assert torch.equal(flow_of(transformer, each, hooks), expected)
    transformer.unload()


def test_nothing_of_an_image_stays_on_the_card_after_sampling():
    transformer = loaded("fp8", MANY)
    flow_of(transformer, conditioning())
    transformer.release_workspace()
    before = torch.cuda.memory_allocated()
    flow = flow_of(transformer, conditioning(image_seed=3))
    transformer.release_workspace()
    assert torch.cuda.memory_allocated() == before
    assert torch.equal(flow_of(transformer, conditioning(image_seed=3)), flow)
    with pytest.raises(Cancelled):
        flow_of(transformer, conditioning(image_seed=4), Hooks(check_interrupt=CancelAfter(4)))
    transformer.release_workspace()
    assert torch.cuda.memory_allocated() == before
    transformer.unload()
